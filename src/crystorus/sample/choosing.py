"""Several walks for one crystal, of which the one that the model finds likeliest is kept.

Walks from noise end in many crystals, of which the right one is often among a few; the model
judges finished crystals better than it finds them (docs/choosing.md).
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crystorus.crystal_model import JudgedBy
from crystorus.diffusion.algorithms import (
    Diffusion,
    Precision,
    SamplerConfig,
    Start,
    start_settling,
)
from crystorus.geometry.crystals import Crystals
from crystorus.sample.errors import RequestError
from crystorus.sample.plan import Request
from crystorus.sample.texts import valid_crystals

MAX_CANDIDATES = 1000
SETTLE = 8
"""Steps in which a crystal that was kept settles, if its walk names none: they halve the
crystals without symmetry (docs/choosing.md)."""


OnStep = Callable[[int, int, Crystals], None]


@runtime_checkable
class Chooser(Protocol):
    """What a choice needs of a loaded checkpoint."""

    diffusion: Diffusion

    def sample(
        self,
        atomic_numbers: Int[Tensor, " atoms"],
        n_atoms: Int[Tensor, " crystals"],
        *,
        seeds: Sequence[int],
        sampler: SamplerConfig,
        start: Start | None = None,
        on_step: OnStep | None = None,
    ) -> Crystals:
        """Make one crystal per entry of `n_atoms`, each from its own seed."""
        ...

    @property
    def judged_by(self) -> JudgedBy:
        """What `judging_error` is."""
        ...

    def judging_error(
        self, crystals: Crystals, *, seeds: Sequence[int], precision: Precision
    ) -> Float[Tensor, " crystals"]:
        """Judge finished crystals; the least is the likeliest."""
        ...


@dataclass(frozen=True, eq=False)
class Choice:
    """The crystals kept.

    Attributes:
        crystals: One per request.
        walk: Which of its candidates each of them is, from 0.
        error: Its `judging_error`; infinite where no candidate is valid.
    """

    crystals: Crystals
    walk: Int[Tensor, " crystals"]
    error: Float[Tensor, " crystals"]


def check_candidates(candidates: int) -> None:
    """Refuse numbers of candidates that make no sense.

    Raises:
        RequestError: If there is none, or more than anybody can want.
    """
    if not 1 <= candidates <= MAX_CANDIDATES:
        raise RequestError(
            f"{candidates} candidates per crystal were asked for: give 1 to {MAX_CANDIDATES}"
        )


def check_choice(candidates: int, requests: Sequence[Request]) -> None:
    """Refuse a choice that would change nothing.

    Raises:
        RequestError: If every crystal starts at a known one.
    """
    if candidates > 1 and all(request.known is not None for request in requests):
        raise RequestError(
            f"{candidates} candidates were asked for, but all {len(requests)} crystals start at "
            "templates, which are ordered by votes: leave candidates out, or start at noise"
        )


def candidate_seed(seed: int, walk: int) -> int:
    """Derive the seed of one candidate; the first is the crystal that is made without a choice."""
    if walk == 0:
        return seed
    return _derived(f"candidate {walk} of {seed}")


def judging_seed(seed: int) -> int:
    """Derive the seed of the noise that judges a crystal's candidates, which none began at."""
    return _derived(f"judge of {seed}")


def settling_steps(sampler: SamplerConfig) -> int:
    """Return in how many steps a crystal that was kept settles: the sampler's own, if any."""
    return sampler.settle or SETTLE


def choose_crystals(
    model: Chooser,
    atomic_numbers: Int[Tensor, " atoms"],
    n_atoms: Int[Tensor, " crystals"],
    *,
    seeds: Sequence[int],
    sampler: SamplerConfig,
    candidates: int,
    on_step: OnStep | None = None,
) -> Choice:
    """Make several candidates of every crystal and keep the likeliest valid one of each.

    The walks follow one another, so that memory does not grow with their number. Where no candidate
    is valid the first is kept. What is kept then settles (`diffusion.algorithms.settle`).

    Args:
        model: A loaded checkpoint.
        atomic_numbers: z of all atoms.
        n_atoms: Atoms of each crystal.
        seeds: One per crystal.
        sampler: How each candidate is made.
        candidates: How many.
        on_step: Called with (steps done, steps of all walks, present crystals).
    """
    best: Crystals | None = None
    plain = replace(sampler, settle=0)
    walk = torch.zeros_like(n_atoms, device="cpu")
    error = torch.full((len(n_atoms),), torch.inf)
    settle = settling_steps(sampler)
    total = candidates * sampler.steps + settle
    for number in range(candidates):

        def step_of_all(step: int, steps: int, crystals: Crystals, before: int = number) -> None:
            if on_step is not None:
                on_step(before * steps + step, total, crystals)

        made = model.sample(
            atomic_numbers,
            n_atoms,
            seeds=[candidate_seed(seed, number) for seed in seeds],
            sampler=plain,
            on_step=step_of_all,
        )
        judged = _judge(model, made, seeds, sampler)
        better = judged < error
        best = made.to(device="cpu") if best is None else _replace(best, made, better)
        walk, error = torch.where(better, number, walk), torch.where(better, judged, error)
    assert best is not None
    rest = SamplerConfig("ode", settle, precision=sampler.precision)
    return Choice(_settled(model, best, seeds, rest, on_step, total), walk, error)


def _settled(
    model: Chooser,
    kept: Crystals,
    seeds: Sequence[int],
    sampler: SamplerConfig,
    on_step: OnStep | None,
    total: int,
) -> Crystals:
    """Let the crystals that were kept come to rest, as `diffusion.algorithms.settle` does."""

    def later(step: int, steps: int, crystals: Crystals) -> None:
        if on_step is not None:
            on_step(total - steps + step, total, crystals)

    return model.sample(
        kept.atomic_numbers,
        kept.n_atoms,
        seeds=seeds,
        sampler=sampler,
        start=start_settling(kept, model.diffusion.steps),
        on_step=later,
    ).to(device="cpu")


def kept_steps(
    steps: Sequence[Crystals],
    walk: Int[Tensor, " crystals"],
    candidates: int,
    *,
    settled: int,
) -> list[Crystals]:
    """Return the steps of the candidates that were kept.

    Args:
        steps: All steps of the first candidates, then all of the second, and so on.
        walk: Which candidate of each crystal was kept.
        candidates: How many there were.
        settled: Steps at the end that only those that were kept have taken.
    """
    if candidates == 1 or not steps:
        return list(steps)
    length = (len(steps) - settled) // candidates
    chosen = [
        Crystals.concat(
            [steps[int(w) * length + step].select([n]) for n, w in enumerate(walk.tolist())]
        )
        for step in range(length)
    ]
    return chosen + list(steps[candidates * length :])


def _judge(
    model: Chooser, made: Crystals, seeds: Sequence[int], sampler: SamplerConfig
) -> Float[Tensor, " crystals"]:
    """Return the judging error of valid crystals, infinity for the others."""
    finished = made.to(device="cpu")
    places = valid_crystals(finished).nonzero()[:, 0]
    error = torch.full((len(finished),), torch.inf)
    if len(places):
        chosen = [judging_seed(seeds[n]) for n in places.tolist()]
        found = model.judging_error(
            made.select(places.to(made.n_atoms.device)), seeds=chosen, precision=sampler.precision
        )
        error[places] = found.to(error).nan_to_num(nan=torch.inf)
    return error


def _derived(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _replace(kept: Crystals, made: Crystals, better: Tensor) -> Crystals:
    """Return `kept` with the crystals of `made` where they are better."""
    made = made.to(device="cpu")
    atoms = better[kept.crystal_of_atom, None]
    return kept.with_geometry(
        torch.where(better[:, None, None], made.lattice, kept.lattice),
        torch.where(atoms, made.frac_coords, kept.frac_coords),
    )
