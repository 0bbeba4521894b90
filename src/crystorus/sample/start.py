"""Structures that sampling starts from, and whether a finished crystal still is one of them."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch

from crystorus.data.compositions import Composition
from crystorus.data.convert import crystals_to_structures
from crystorus.diffusion.cell_prior import CellStatistics
from crystorus.diffusion.sampling import Start
from crystorus.errors import RequestError
from crystorus.geometry.crystals import Crystals
from crystorus.sample.options import TEMPLATE_LEVEL, SampleOptions, parse_space_groups
from crystorus.sample.requests import Request

if TYPE_CHECKING:
    from crystorus.templates.library import TemplateLibrary
    from crystorus.templates.skeletons import SkeletonTable

MOST_UNITS = 8
"""Formula units up to which a cell is looked for that fits a space group."""

Origin = Literal["not compared", "known", "substituted", "changed", "not in library"]


@dataclass(frozen=True, eq=False)
class StartingStructure:
    """A structure to start from, and how: a template with the wanted elements, or a user's own.

    Attributes:
        name: What to call it in the table: a template's id, the name of a structure in a file.
        crystal: The structure, a batch of one, of the composition wanted, atom by atom.
        level: Fraction of the noise levels to go back to, 0 to 1.
        noised: Whether noise is added; see `Start`.
        held_atoms: Atoms that stay, by place in `crystal`.
        held_cell: Whether the cell stays.
        prototype_fraction: See `templates.retrieval.Template`; None where no prototype was chosen.
        same_composition: Whether it is a known crystal of this very composition.
        substitution: Elements of the template and what stands for them, such as "Sr>Ba Ti>Zr".
    """

    name: str
    crystal: Crystals
    level: float
    noised: bool = False
    held_atoms: tuple[int, ...] = ()
    held_cell: bool = False
    prototype_fraction: float | None = None
    same_composition: bool = False
    substitution: str = ""


def give_templates(
    requests: Sequence[Request],
    library: "TemplateLibrary",
    statistics: CellStatistics,
    options: SampleOptions,
    *,
    on_done: Callable[[int], None] = lambda done: None,
) -> tuple[Request, ...]:
    """Return the requests with templates to start from, the most probable prototype first.

    The samples of a composition take one prototype each. Where they run out, and for compositions
    that no template fits, the rest start at noise. With --start both every other sample does, with
    --start noise all of them. A known crystal of the very composition is taken as it is, unless a
    level or noise is asked for. Every request gets the library's phases of its reduced formula.

    Args:
        requests: What is wanted.
        library: Where to look.
        statistics: Of the training cells; they say how elements change the volume.
        options: `start`, `level`, `noised` and `new_only`, which passes over templates that give a
            known phase of the composition.
        on_done: Called with the number of requests seen so far.
    """
    from crystorus.templates.retrieval import find_templates, substitute

    every = 2 if options.start_from == "both" else 1
    samples = _samples(requests)
    phases: dict[Composition, tuple[tuple[str, Crystals], ...]] = {}
    found: dict[Composition, list[StartingStructure]] = {}
    result = []
    for done, request in enumerate(requests, start=1):
        composition = request.composition
        if composition not in found:
            phases[composition] = tuple(
                (library.ids[n], library.template(n).to(dtype=torch.float32))
                for n in library.phases(composition)
            )
            passed_over = phases[composition] if options.new_only else ()
            limit = 0 if options.start_from == "noise" else -(-samples[composition] // every)
            starts: list[StartingStructure] = []
            # A phase may be like several prototypes: look at more than are wanted.
            spare = 4 * len(passed_over)
            for one in find_templates(library, composition, limit=limit + spare) if limit else ():
                level = options.level
                if level is None:  # the network cannot better the compound that is known
                    level = 0.0 if one.same_composition and not options.noised else TEMPLATE_LEVEL
                start = StartingStructure(
                    one.template_id,
                    substitute(library, one, statistics).to(dtype=torch.float32),
                    level,
                    options.noised,
                    prototype_fraction=one.prototype_fraction,
                    same_composition=one.same_composition,
                    substitution=one.substitution,
                )
                if phase_of(start.crystal, passed_over) is None:
                    starts.append(start)
                    if len(starts) == limit:
                        break
            found[composition] = starts
        turn, rest = divmod(request.sample, every)
        there = rest == 0 and turn < len(found[composition])
        start_here = found[composition][turn] if there else None
        result.append(replace(request, start=start_here, known_phases=phases[composition]))
        on_done(done)
    return tuple(result)


def give_skeletons(
    requests: Sequence[Request], table: "SkeletonTable", options: SampleOptions, candidates: int = 1
) -> tuple[Request, ...]:
    """Return the requests from noise with space groups and sites to keep.

    The samples of a composition share the skeletons out, so that none is made inside the skeleton
    of another: the first has the likeliest, the second the next, and so on; the candidates of a
    sample take those of its share in turn (`templates.skeletons.in_turn`). Where there are more
    samples than skeletons they begin again at the first, with "known" after one sample without
    symmetry. Space groups that were asked for are filled in all ways that their sites allow where
    known crystals do not suffice; with "known", compositions that no known crystal resembles are
    sampled without symmetry.

    Args:
        requests: What is wanted.
        table: Skeletons of known crystals.
        options: `space_group`.
        candidates: Of each sample.

    Raises:
        RequestError: If no sites of the space groups asked for hold a composition.
    """
    from crystorus.templates.skeletons import WeightedSkeleton, enumerate_skeletons, in_turn

    requests = [
        replace(one, space_group="" if one.start else options.space_group) for one in requests
    ]
    groups = parse_space_groups(options.space_group)
    if not groups:
        return tuple(requests)
    from_noise = [request for request in requests if request.start is None]
    if options.start_from != "noise":  # templates took samples before them: the first is first
        turns = Counter[Composition]()
        for n, request in enumerate(from_noise):
            from_noise[n] = replace(request, sample=turns[request.composition])
            turns[request.composition] += 1
    samples = _samples(from_noise)
    found: dict[Composition, list[WeightedSkeleton]] = {}
    for composition, n in samples.items():
        count = n * candidates
        several = table.find(composition, limit=count, groups=groups)
        if len(several) < count and options.space_group != "known":
            known = {one.skeleton for one in several}
            ways = [s for group in sorted(groups) for s in enumerate_skeletons(composition, group)]
            ways.sort(key=lambda skeleton: len(skeleton.orbits))
            others = [WeightedSkeleton(s, 0.0) for s in ways if s not in known]
            several += others[: count - len(known)]
            if not several:
                fit = ",".join(map(str, _fitting_units(composition, groups)))
                raise RequestError(
                    f"no sites of the space group {options.space_group} hold "
                    f"{composition.formula} in a primitive cell: ask for "
                    + (f"--z {fit}, which they hold, " if fit else "another composition ")
                    + "or for another --space-group"
                )
        elif several and len(several) < n and all(one.skeleton.group != 1 for one in several):
            several.append(WeightedSkeleton(enumerate_skeletons(composition, 1, limit=1)[0], 0.0))
        found[composition] = several

    chosen = {}
    for request in from_noise:
        if several := found[request.composition]:
            shares = min(samples[request.composition], len(several))
            mine = several[request.sample % shares :: shares]
            chosen[request.index] = tuple(in_turn(mine, candidates))
    return tuple(replace(request, skeletons=chosen.get(request.index, ())) for request in requests)


def _samples(requests: Sequence[Request]) -> dict[Composition, int]:
    """Return how many samples of each composition there are, up to the last of these."""
    samples: dict[Composition, int] = {}
    for request in requests:
        count = max(samples.get(request.composition, 0), request.sample + 1)
        samples[request.composition] = count
    return samples


def _fitting_units(composition: Composition, groups: Collection[int]) -> list[int]:
    """Return the numbers of formula units up to MOST_UNITS that sites of space groups hold."""
    from crystorus.templates.skeletons import enumerate_skeletons

    one = composition.reduced.counts
    cells = {
        n: Composition(tuple((z, n * count) for z, count in one)) for n in range(1, MOST_UNITS + 1)
    }
    return [
        n
        for n, cell in cells.items()
        if any(enumerate_skeletons(cell, group, limit=1) for group in groups)
    ]


def start_of(batch: Sequence[Request], levels: int) -> Start | None:
    """Return where the sampling of a batch begins, None for pure noise.

    Args:
        batch: Requests that all start at noise, or all at structures.
        levels: T of the model. A level above 0 is at least one step.
    """
    starts = [request.start for request in batch if request.start is not None]
    if not starts:
        return None
    held: list[bool] = []
    for one in starts:
        held += [place in one.held_atoms for place in range(int(one.crystal.n_atoms[0]))]
    cells = [one.held_cell for one in starts]
    return Start(
        Crystals.concat([one.crystal for one in starts]),
        torch.tensor([max(round(one.level * levels), int(one.level > 0)) for one in starts]),
        held_atoms=torch.tensor(held) if any(held) else None,
        held_cells=torch.tensor(cells) if any(cells) else None,
        noised=starts[0].noised,
    )


def phase_of(crystal: Crystals, phases: Sequence[tuple[str, Crystals]]) -> str | None:
    """Return the name of the first of several phases that a crystal is, None if it is none.

    By `crystal_fidelity.matching.SAME_PHASE`: ltol 0.2, stol 0.3, angle 5°.

    Args:
        crystal: A batch of one.
        phases: Name and crystal, a batch of one, of each.
    """
    if not phases:
        return None
    from crystal_fidelity.matching import SAME_PHASE

    found, *known = crystals_to_structures(
        Crystals.concat([crystal.to("cpu"), *(phase for _, phase in phases)])
    )
    matcher = SAME_PHASE.matcher()
    names = (name for (name, _), one in zip(phases, known, strict=True) if matcher.fit(found, one))
    return next(names, None)


def origin_of(request: Request, crystal: Crystals) -> tuple[Origin, str]:
    """Tell what became of a request.

    Args:
        request: What was wanted.
        crystal: What was made, a batch of one.

    Returns:
        "known" and the name of the library's phase (or of the structure refined) that it is;
        "substituted" if it still is its template with other elements; "changed" if it no longer is
        the structure that was refined; "not in library"; or "not compared" if there was nothing to
        compare with.
    """
    start, phases = request.start, request.known_phases
    phase = phase_of(crystal, phases or ())
    if phase is not None:
        return "known", phase
    if start is not None and phase_of(crystal, [(start.name, start.crystal)]) is not None:
        return ("known", start.name) if start.same_composition else ("substituted", "")
    if phases is not None:
        return "not in library", ""
    return ("changed" if start is not None else "not compared"), ""
