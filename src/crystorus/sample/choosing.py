"""Several sampling runs for one crystal, of which the most probable crystal is kept.

Sampling from noise ends in many crystals, of which the right one is often among a few; the scorer
tells finished crystals apart better than sampling finds them (docs/choosing.md).
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crystal_fidelity.cells import HARDLY_PHYSICAL, min_distance_ratio
from crystal_fidelity.options import MIN_DISTANCE, MIN_VOLUME
from crystal_fidelity.validity import closest_contacts
from crystorus.config import SamplerConfig
from crystorus.crystal_model import CrystalModel
from crystorus.data.convert import split
from crystorus.diffusion.sampling import Start, refinement_start
from crystorus.diffusion.space_groups import SpaceGroups
from crystorus.errors import RequestError
from crystorus.geometry.crystals import Crystals
from crystorus.sample.requests import Request
from crystorus.templates.skeletons import WeightedSkeleton

FINAL_REFINEMENT_STEPS = 8
"""Deterministic steps that end a crystal that was kept, if its sampler names none: they halve the
crystals without symmetry (docs/choosing.md)."""

REDRAWS = 4
"""Further tries for a crystal inside a space group of which no candidate has room for its atoms:
those that symmetry has brought too near each other cannot pass to where they belong. Of a thousand
crystals one walk leaves 49 so, 3 to 30 eV/atom too high (docs/symmetry.md)."""

OnStep = Callable[[int, int], None]
"""Called with (steps done, steps of the whole batch)."""


class Choice(NamedTuple):
    """What `choose_crystals` kept.

    Attributes:
        crystals: On the CPU.
        error: Scorer error of each, infinite where no candidate is valid, NaN without a choice.
        skeleton: The space group and sites that each was made inside; None for no symmetry.
        steps: All steps of the crystals that were kept, if they were wanted.
    """

    crystals: Crystals
    error: Float[Tensor, " crystals"]
    skeleton: list[WeightedSkeleton | None]
    steps: list[Crystals]


def check_choice(candidates: int, requests: Sequence[Request]) -> None:
    """Refuse a choice that would change nothing.

    Args:
        candidates: Per crystal.
        requests: What is wanted.

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

    Args:
        seed: Of the crystal.
        number: Of the candidate, from 0.
    """
    return seed if number == 0 else _derived(f"candidate {number} of {seed}")


def scoring_seed(seed: int) -> int:
    """Derive the seed of the noise with which a crystal's candidates are scored.

    None of the candidates began at it.

    Args:
        seed: Of the crystal.
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
    skeletons: Sequence[Sequence[WeightedSkeleton]] = (),
    keep_trajectory: bool = False,
    on_step: OnStep = lambda done, total: None,
) -> Choice:
    """Make several candidates of every crystal and keep the most probable valid one of each.

    The candidates of a crystal are made one after another, so that memory does not grow with their
    number. Inside space groups, crystals of which no candidate has room for its atoms are tried
    again; where none has, the one with the most room is kept. What was chosen among several is
    refined deterministically at the end (`diffusion`, final refinement), which keeps its symmetry.

    Args:
        model: A loaded checkpoint.
        atomic_numbers: z of all atoms.
        n_atoms: Atoms of each crystal.
        seeds: One per crystal.
        sampler: How each candidate is made.
        candidates: How many, from 1 up.
        skeletons: Of each crystal the space group and sites of every candidate; none for no
            symmetry.
        keep_trajectory: Whether the steps of the crystals that are kept are returned.
        on_step: Called after each step of each candidate.
    """
    choose = candidates > 1 or not skeletons
    refinement = (sampler.final_refinement_steps or FINAL_REFINEMENT_STEPS) if choose else 0
    plain = replace(sampler, final_refinement_steps=0) if choose else sampler
    total = candidates * (plain.steps + plain.final_refinement_steps) + refinement
    done = 0

    def run(
        places: Sequence[int],
        number: int,
        sampler: SamplerConfig,
        several: Sequence[WeightedSkeleton] = (),
        start: Start | None = None,
    ) -> list[Crystals]:
        """Sample crystals once; returns the steps if they are wanted, then the crystals."""
        steps: list[Crystals] = []

        def after(_step: int, _steps: int, present: Crystals) -> None:
            nonlocal done
            done = min(done + 1, total)
            on_step(done, total)
            if keep_trajectory:
                steps.append(present.to(device="cpu"))

        made = model.sample(
            torch.cat([numbers[n] for n in places]),
            n_atoms[places],
            seeds=[candidate_seed(seeds[n], number) for n in places],
            sampler=sampler,
            start=start,
            groups=SpaceGroups.of([one.skeleton for one in several]) if several else None,
            on_step=after,
        )
        return [*steps, made.to(device="cpu")]

    numbers = atomic_numbers.split(n_atoms.tolist())
    everyone = list(range(len(n_atoms)))
    kept: list[Crystals] = []  # the steps, then the crystals
    error = torch.full((len(n_atoms),), torch.inf)
    room = torch.full((len(n_atoms),), -torch.inf)
    inside: list[WeightedSkeleton | None] = [None for _ in everyone]
    for number in range(candidates + (REDRAWS if skeletons else 0)):
        places = everyone if number < candidates else error.isinf().nonzero()[:, 0].tolist()
        if not places:
            break
        several = [skeletons[n][number % len(skeletons[n])] for n in places] if skeletons else []
        made = run(places, number, plain, several)
        share = room_of_atoms(made[-1])
        physical = (share >= HARDLY_PHYSICAL).nonzero()[:, 0]
        found = torch.full((len(places),), torch.inf)
        found[physical] = 0.0
        if choose and len(physical):
            weights = [one.weight for one in several] or [math.nan]
            said = model.scorer_error(
                made[-1].select(physical),
                seeds=[scoring_seed(seeds[places[n]]) for n in physical.tolist()],
                weights=torch.tensor(weights).expand(len(places))[physical],
                precision=sampler.precision,
            )
            found[physical] = said.to(found).nan_to_num(nan=torch.inf)
        roomier = error[places].isinf() & (share > room[places])
        better = (found < error[places]) | (found.isinf() & roomier)
        kept = [_where(places, better, *pair) for pair in zip(made, kept or made, strict=True)]
        error[places] = torch.where(better, found, error[places])
        room[places] = torch.where(better, share, room[places])
        for place, one, wanted in zip(places, several, better.tolist(), strict=False):
            if wanted or number == 0:
                inside[place] = one
    if not choose:
        return Choice(kept[-1], torch.full_like(error, torch.nan), inside, kept[:-1])
    *steps, final = run(
        everyone,
        0,
        SamplerConfig("ode", refinement, precision=sampler.precision),
        start=refinement_start(kept[-1], model.diffusion.steps),
    )
    return Choice(final, error, inside, kept[:-1] + steps)


def valid_crystals(crystals: Crystals) -> Bool[Tensor, " crystals"]:
    """Return which crystals are valid (`crystal_fidelity.validity`); one not finite is not.

    Args:
        crystals: A batch.
    """
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


def room_of_atoms(crystals: Crystals) -> Float[Tensor, " crystals"]:
    """Return the least distance of two atoms over the sum of their covalent radii, of each crystal.

    Args:
        crystals: A batch.

    Returns:
        0 where a crystal is not valid.
    """
    room = torch.zeros(len(crystals))
    several = split(crystals)
    for n in valid_crystals(crystals).nonzero()[:, 0].tolist():
        room[n] = min_distance_ratio(several[n])
    return room


def _where(
    places: Sequence[int], better: Bool[Tensor, " made"], made: Crystals, kept: Crystals
) -> Crystals:
    """Return the kept crystals with those of `made`, which stand at `places`, where better."""
    if better.all() and len(better) == len(kept):
        return made
    parts = kept.split()
    for place, one, wanted in zip(places, made.split(), better.tolist(), strict=True):
        if wanted:
            parts[place] = one
    return Crystals.concat(parts)
