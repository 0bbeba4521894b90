"""One batch of crystals: from noise or from known crystals, chosen or not, with its film."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from crystorus.config import Config, SamplerConfig
from crystorus.diffusion.cell_prior import CellStatistics
from crystorus.geometry.crystals import Crystals
from crystorus.sample.choosing import (
    Choice,
    Chooser,
    OnStep,
    choose_crystals,
    kept_steps,
    settling_steps,
)
from crystorus.sample.errors import GenerationError
from crystorus.sample.guiding import GUIDED_SAMPLER, start_of
from crystorus.sample.plan import Request


@runtime_checkable
class Model(Chooser, Protocol):
    """What sampling needs of a loaded checkpoint."""

    config: Config
    statistics: CellStatistics
    trained_elements: frozenset[int]
    max_atoms: int
    digest: str

    @property
    def scorer_digest(self) -> str:
        """SHA-256 of the judge's weights, empty without one."""
        ...


def sample_batch(
    model: Model,
    batch: Sequence[Request],
    sampler: SamplerConfig,
    on_step: OnStep | None = None,
    *,
    candidates: int = 1,
) -> Choice:
    """Make the crystals of one batch, on the CPU, with exactly the composition asked for.

    Args:
        model: A loaded checkpoint.
        batch: What to make; all begin at noise, or all at known crystals.
        sampler: How the noise is removed.
        on_step: Called after each step of each walk.
        candidates: Walks from noise per crystal, of which the likeliest is kept.

    Raises:
        GenerationError: If the model returns another composition.
    """
    atomic_numbers = torch.tensor([z for r in batch for z in r.composition.atomic_numbers])
    n_atoms = torch.tensor([request.n_atoms for request in batch])
    seeds = [request.seed for request in batch]
    if candidates == 1:
        start = start_of(batch, model.diffusion.steps)
        crystals = model.sample(
            atomic_numbers, n_atoms, seeds=seeds, sampler=sampler, start=start, on_step=on_step
        ).to(device="cpu")
        choice = Choice(crystals, torch.zeros_like(n_atoms), torch.full((len(batch),), torch.nan))
    else:
        choice = choose_crystals(
            model,
            atomic_numbers,
            n_atoms,
            seeds=seeds,
            sampler=sampler,
            candidates=candidates,
            on_step=on_step,
        )
    same = torch.equal(choice.crystals.n_atoms, n_atoms) and torch.equal(
        choice.crystals.atomic_numbers, atomic_numbers
    )
    if not same:
        raise GenerationError("the model changed a composition: report this with the checkpoint")
    return choice


@dataclass(frozen=True, eq=False)
class Walked:
    """The crystals of a batch, on the CPU.

    Attributes:
        crystals: One per request.
        errors: By what they were chosen; NaN where there was no choice.
        film: Every step, if it was asked for.
    """

    crystals: Crystals
    errors: tuple[float, ...]
    film: tuple[Crystals, ...] = ()


@dataclass(frozen=True, eq=False)
class Walks:
    """Makes batches from noise or from known crystals.

    Attributes:
        model: A loaded checkpoint.
        sampler: How noise is removed.
        guided_sampler: The same for crystals that start at known ones.
        candidates: Walks from noise per crystal, of which the likeliest is kept.
        keep_film: Whether every step is kept.
    """

    model: Model
    sampler: SamplerConfig
    guided_sampler: SamplerConfig = GUIDED_SAMPLER
    candidates: int = 1
    keep_film: bool = False

    def make(self, batch: Sequence[Request], on_step: OnStep | None = None) -> Walked:
        """Make the crystals of one batch; walks from known crystals have one candidate."""
        steps: list[Crystals] = []
        guided = batch[0].known is not None
        candidates = 1 if guided else self.candidates

        def keep(step: int, total: int, crystals: Crystals) -> None:
            if self.keep_film:
                steps.append(crystals.to(device="cpu"))
            if on_step is not None:
                on_step(step, total, crystals)

        sampler = self.guided_sampler if guided else self.sampler
        choice = sample_batch(self.model, batch, sampler, keep, candidates=candidates)
        film = tuple(kept_steps(steps, choice.walk, candidates, settled=settling_steps(sampler)))
        return Walked(choice.crystals, tuple(choice.error.tolist()), film)
