"""Several sampling runs for one crystal, of which the most probable crystal is kept.

Sampling from noise ends in many crystals, of which the right one is often among a few; the scorer
tells finished crystals apart better than sampling finds them (docs/choosing.md).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crystal_fidelity.cells import HARDLY_PHYSICAL, min_distance_ratio
from crystal_fidelity.validity import structural_validity
from crystorus.config import SamplerConfig
from crystorus.crystal_model import CrystalModel
from crystorus.data.convert import split
from crystorus.diffusion.sampling import Start, refinement_start
from crystorus.diffusion.space_groups import SpaceGroups
from crystorus.errors import RequestError
from crystorus.geometry.crystals import Crystals
from crystorus.sample.requests import Request, derived_seed
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
    return seed if number == 0 else derived_seed(f"candidate {number} of {seed}")


def scoring_seed(seed: int) -> int:
    """Derive the seed of the noise with which a crystal's candidates are scored.

    None of the candidates began at it.

    Args:
        seed: Of the crystal.
    """
    return derived_seed(f"judge of {seed}")  # "judge" was the name of the scorer


def choose_crystals(
    model: CrystalModel,
    atomic_numbers: Int[Tensor, " atoms"],
    n_atoms: Int[Tensor, " crystals"],
    *,
    seeds: Sequence[int],
    sampler: SamplerConfig,
    candidates: int,
    together: int = 1,
    skeletons: Sequence[Sequence[WeightedSkeleton]] = (),
    keep_trajectory: bool = False,
    on_step: OnStep = lambda done, total: None,
) -> Choice:
    """Make several candidates of every crystal and keep the most probable valid one of each.

    Few candidates of a crystal are made at a time, so that memory does not grow with their number.
    Inside space groups, crystals of which no candidate has room for its atoms are tried
    again; where none has, the one with the most room is kept. What was chosen among several is
    refined deterministically at the end (`diffusion`, final refinement), which keeps its symmetry.

    Args:
        model: A loaded checkpoint.
        atomic_numbers: z of all atoms.
        n_atoms: Atoms of each crystal.
        seeds: One per crystal.
        sampler: How each candidate is made.
        candidates: How many, from 1 up.
        together: How many of each crystal are made at a time; fewer than 1 count as 1.
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
        jobs: Sequence[tuple[int, int]],
        sampler: SamplerConfig,
        several: Sequence[WeightedSkeleton] = (),
        start: Start | None = None,
    ) -> list[Crystals]:
        """Sample (place, candidate) once each; returns the steps if wanted, then the crystals."""
        steps: list[Crystals] = []
        at_a_time = len({number for _, number in jobs})

        def after(_step: int, _steps: int, present: Crystals) -> None:
            nonlocal done
            done = min(done + at_a_time, total)
            on_step(done, total)
            if keep_trajectory:
                steps.append(present.to(device="cpu"))

        made = model.sample(
            torch.cat([numbers[place] for place, _ in jobs]),
            n_atoms[[place for place, _ in jobs]],
            seeds=[candidate_seed(seeds[place], number) for place, number in jobs],
            sampler=sampler,
            start=start,
            groups=SpaceGroups.of([one.skeleton for one in several]) if several else None,
            on_step=after,
        )
        return [*steps, made.to(device="cpu")]

    numbers = atomic_numbers.split(n_atoms.tolist())
    everyone = list(range(len(n_atoms)))
    kept: list[Crystals] = []  # the steps, then the crystals
    error, room = [math.inf for _ in everyone], [-math.inf for _ in everyone]
    inside: list[WeightedSkeleton | None] = [None for _ in everyone]
    together = max(together, 1)
    rounds = [range(candidates)[low : low + together] for low in range(0, candidates, together)]
    rounds += [
        range(candidates + n, candidates + n + 1) for n in range(REDRAWS if skeletons else 0)
    ]
    for tried in rounds:
        redraw = tried[0] >= candidates
        places = [place for place in everyone if not redraw or math.isinf(error[place])]
        if not places:
            break
        jobs = [(place, number) for number in tried for place in places]
        several = [skeletons[n][number % len(skeletons[n])] for n, number in jobs if skeletons]
        made = run(jobs, plain, several)
        share = room_of_atoms(made[-1])
        found = torch.full((len(jobs),), torch.inf)
        physical = (share >= HARDLY_PHYSICAL).nonzero()[:, 0]
        found[physical] = 0.0
        if choose and len(physical):
            weights = [one.weight for one in several] or [math.nan]
            said = model.scorer_error(
                made[-1].select(physical),
                seeds=[scoring_seed(seeds[jobs[n][0]]) for n in physical.tolist()],
                weights=torch.tensor(weights).expand(len(jobs))[physical],
                precision=sampler.precision,
            )
            found[physical] = said.to(found).nan_to_num(nan=torch.inf)
        best: dict[int, int] = {}
        for job, ((place, _), *values) in enumerate(
            zip(jobs, found.tolist(), share.tolist(), strict=True)
        ):
            # The surest; where none has room for its atoms, the one with the most.
            if (values[0], -values[1]) < (error[place], -room[place]):
                error[place], room[place] = values
                best[place] = job
                inside[place] = several[job] if several else None
        if kept:
            order = [len(everyone) + best[n] if n in best else n for n in everyone]
            kept = [Crystals.concat(pair).select(order) for pair in zip(kept, made, strict=True)]
        else:
            kept = [one.select([best[place] for place in everyone]) for one in made]
    if not choose:
        return Choice(kept[-1], torch.full((len(everyone),), torch.nan), inside, kept[:-1])
    *steps, final = run(
        [(place, 0) for place in everyone],
        SamplerConfig("ode", refinement, precision=sampler.precision),
        [one for one in inside if one is not None],
        start=refinement_start(kept[-1], model.diffusion.steps),
    )
    return Choice(final, torch.tensor(error), inside, kept[:-1] + steps)


def valid_crystals(crystals: Crystals) -> Bool[Tensor, " crystals"]:
    """Return which crystals are valid (`crystal_fidelity.validity`); one not finite is not.

    Args:
        crystals: A batch.
    """
    return torch.from_numpy(structural_validity(split(crystals)).valid)


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
