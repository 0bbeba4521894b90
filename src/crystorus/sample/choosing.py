"""Several sampling runs for one crystal, of which the most probable crystal is kept.

Sampling from noise ends in many crystals, of which the right one is often among a few; the scorer
tells finished crystals apart better than sampling finds them (docs/choosing.md).
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crystal_fidelity.validity import MIN_DISTANCE, MIN_VOLUME, closest_contacts
from crystorus.config import SamplerConfig
from crystorus.crystal_model import CrystalModel
from crystorus.data.convert import split
from crystorus.diffusion.sampling import Start, refinement_start
from crystorus.errors import RequestError
from crystorus.geometry.crystals import Crystals
from crystorus.sample.requests import Request

FINAL_REFINEMENT_STEPS = 8
"""Deterministic steps that end a crystal that was kept, if its sampler names none: they halve the
crystals without symmetry (docs/choosing.md)."""

OnStep = Callable[[int, int], None]
"""Called with (steps done, steps of the whole batch)."""


def check_choice(candidates: int, requests: Sequence[Request]) -> None:
    """Refuse a choice that would change nothing.

    Raises:
        RequestError: If every crystal starts at a structure.
    """
    if candidates > 1 and all(request.start is not None for request in requests):
        raise RequestError(
            f"{candidates} candidates were asked for, but all {len(requests)} crystals start at "
            "templates, which are ordered by prototype weight: leave candidates out, or start at "
            "noise"
        )


def candidate_seed(seed: int, number: int) -> int:
    """Derive the seed of one candidate, counted from 0.

    The first candidate is the crystal that is made without a choice.
    """
    return seed if number == 0 else _derived(f"candidate {number} of {seed}")


def scoring_seed(seed: int) -> int:
    """Derive the seed of the noise with which a crystal's candidates are scored.

    None of the candidates began at it.
    """
    return _derived(f"judge of {seed}")


def _derived(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def choose_crystals(
    model: CrystalModel,
    atomic_numbers: Int[Tensor, " atoms"],
    n_atoms: Int[Tensor, " crystals"],
    *,
    seeds: Sequence[int],
    sampler: SamplerConfig,
    candidates: int,
    keep_trajectory: bool = False,
    on_step: OnStep = lambda done, total: None,
) -> tuple[Crystals, Float[Tensor, " crystals"], list[Crystals]]:
    """Make several candidates of every crystal and keep the most probable valid one of each.

    The candidates of a crystal are made one after another, so that memory does not grow with their
    number. Where none is valid the first is kept. What is kept is refined deterministically at the
    end (`diffusion`, final refinement).

    Args:
        model: A loaded checkpoint.
        atomic_numbers: z of all atoms.
        n_atoms: Atoms of each crystal.
        seeds: One per crystal.
        sampler: How each candidate is made.
        candidates: How many, from 1 up.
        keep_trajectory: Whether the steps of the crystals that are kept are returned.
        on_step: Called after each step of each candidate.

    Returns:
        The crystals on the CPU; the scorer error of each, infinite where no candidate is valid; and
        the steps of those that were kept.
    """
    kept: Crystals | None = None
    kept_steps: list[Crystals] = []
    error = torch.full((len(n_atoms),), torch.inf)
    refinement = sampler.final_refinement_steps or FINAL_REFINEMENT_STEPS
    total = candidates * sampler.steps + refinement
    done = 0

    def run(
        seeds: Sequence[int], sampler: SamplerConfig, start: Start | None = None
    ) -> list[Crystals]:
        """Sample every crystal once; returns the steps if they are wanted, then the crystals."""
        steps: list[Crystals] = []

        def after(_step: int, _steps: int, present: Crystals) -> None:
            nonlocal done
            done += 1
            on_step(done, total)
            if keep_trajectory:
                steps.append(present.to(device="cpu"))

        made = model.sample(
            atomic_numbers, n_atoms, seeds=seeds, sampler=sampler, on_step=after, start=start
        )
        return [*steps, made.to(device="cpu")]

    for number in range(candidates):
        *steps, made = run(
            [candidate_seed(seed, number) for seed in seeds],
            replace(sampler, final_refinement_steps=0),
        )
        found = _scorer_error(model, made, seeds, sampler)
        better = found < error
        error = torch.where(better, found, error)
        if kept is None:
            kept, kept_steps = made, steps
            continue
        kept = _where(better, made, kept)
        kept_steps = [_where(better, new, old) for new, old in zip(steps, kept_steps, strict=True)]
    assert kept is not None
    *steps, final = run(
        seeds,
        SamplerConfig("ode", refinement, precision=sampler.precision),
        start=refinement_start(kept, model.diffusion.steps),
    )
    return final, error, kept_steps + steps


def _scorer_error(
    model: CrystalModel, made: Crystals, seeds: Sequence[int], sampler: SamplerConfig
) -> Float[Tensor, " crystals"]:
    """Return the scorer error of valid crystals, infinity for the others."""
    places = valid_crystals(made).nonzero()[:, 0]
    error = torch.full((len(made),), torch.inf)
    if len(places):
        found = model.scorer_error(
            made.select(places),
            seeds=[scoring_seed(seeds[n]) for n in places.tolist()],
            precision=sampler.precision,
        )
        error[places] = found.to(error).nan_to_num(nan=torch.inf)
    return error


def valid_crystals(crystals: Crystals) -> Bool[Tensor, " crystals"]:
    """Return which crystals are valid (`crystal_fidelity.validity`); one not finite is not."""
    several = split(crystals)
    usable = [
        n
        for n, one in enumerate(several)
        if np.isfinite(one.lattice).all()
        and np.isfinite(one.frac_coords).all()
        and MIN_VOLUME <= one.volume < math.inf
    ]
    valid = torch.zeros(len(crystals), dtype=torch.bool)
    valid[usable] = torch.from_numpy(closest_contacts([several[n] for n in usable]) >= MIN_DISTANCE)
    return valid


def _where(better: Bool[Tensor, " crystals"], made: Crystals, kept: Crystals) -> Crystals:
    """Return the crystals of `made` where they are better, else those of `kept`."""
    return kept.with_geometry(
        torch.where(better[:, None, None], made.lattice, kept.lattice),
        torch.where(better[kept.crystal_of_atom, None], made.frac_coords, kept.frac_coords),
    )
