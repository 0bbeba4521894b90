"""From requests to requests that start at templates, and what came of the templates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pymatgen.analysis.structure_matcher import StructureMatcher

from crystorus.config import SamplerConfig
from crystorus.data.compositions import Composition
from crystorus.data.io import crystals_to_structures
from crystorus.diffusion.cell_prior import CellStatistics
from crystorus.diffusion.sampling import Start
from crystorus.geometry import Crystals
from crystorus.sample.errors import RequestError
from crystorus.sample.plan import Known, Phase, Request
from crystorus.templates.library import TemplateLibrary
from crystorus.templates.retrieval import Template as Candidate, find_templates, substitute

StartName = Literal["noise", "templates", "both"]
Origin = Literal["known", "substituted", "new"]
GUIDED_SAMPLER = SamplerConfig("ode", 8, 0.0)
"""The walk from a template: deterministic, so that it keeps the template's symmetry."""
GUIDED_LEVEL = 0.2
"""Share of the noise levels that the walk from a template goes back to."""


@dataclass(frozen=True)
class Guidance:
    """How requests are given templates.

    Attributes:
        start: "templates" gives every sample one while there are any, "both" every other sample,
            "noise" none.
        level: Share of the noise levels to go back to, 0 to 1; 0 is substitution alone.
        noised: Whether noise of that level is added to the template.
        new_only: Whether templates that give a known phase of the composition are passed over.
    """

    start: StartName = "templates"
    level: float = GUIDED_LEVEL
    noised: bool = False
    new_only: bool = False


def choose_guidance(
    start: StartName | None,
    *,
    library: bool,
    level: float | None,
    noised: bool,
    new_only: bool,
    names_a_walk: bool = False,
) -> Guidance | None:
    """Return how templates are to be used, None if no library is needed.

    Args:
        start: As asked for; templates if there is a library, noise otherwise.
        library: Whether a library is named.
        level: As asked for.
        noised: Whether noise is to be added.
        new_only: Whether known phases are to be left out.
        names_a_walk: Whether a sampler or its settings are named.

    Raises:
        RequestError: If an option has nothing to act on, or the level is no share.
    """
    start = start or ("templates" if library else "noise")
    if start == "noise":
        if new_only and not library:
            raise RequestError(
                "--new-only has nothing to compare with: name a --library, or take --start "
                "templates"
            )
        for option, given in (
            ("--library", library and not new_only),
            ("--level", level is not None),
            ("--noised", noised),
        ):
            if given:
                raise RequestError(f"{option} says nothing about --start noise: leave one out")
        return Guidance(start, new_only=True) if new_only else None
    level = GUIDED_LEVEL if level is None else level
    if not 0 <= level <= 1:
        raise RequestError(f"--level is {level:g}: give a share of the noise, 0 to 1")
    if level == 0 and (noised or names_a_walk):
        raise RequestError(
            "--level 0 is substitution alone, without a walk: leave out --noised, --sampler, "
            "--steps and --anti-annealing, or give a higher level"
        )
    return Guidance(start, level, noised, new_only)


def give_templates(
    requests: Sequence[Request],
    library: TemplateLibrary,
    statistics: CellStatistics,
    guidance: Guidance,
    *,
    on_done: Callable[[int], None] = lambda done: None,
) -> tuple[Request, ...]:
    """Return the requests with templates to start from, the likeliest prototype first.

    The samples of a composition take one prototype each; where they run out, and for
    compositions that no template fits, the rest start at noise. All of them are told the
    library's phases of their reduced formula.

    Args:
        requests: What is wanted.
        library: Where to look.
        statistics: Give the volumes.
        guidance: How.
        on_done: Called with the number of requests seen so far.
    """
    every = 2 if guidance.start == "both" else 1
    wanted: dict[Composition, int] = {}
    for request in requests:
        wanted[request.composition] = max(wanted.get(request.composition, 0), request.sample + 1)
    found: dict[Composition, list[Known]] = {}
    phases: dict[Composition, tuple[Phase, ...]] = {}
    result = []
    for done, request in enumerate(requests, start=1):
        composition, sample = request.composition, request.sample
        if composition not in found:
            phases[composition] = phases_of(library, composition)
            limit = 0 if guidance.start == "noise" else -(-wanted[composition] // every)
            passed_over = phases[composition] if guidance.new_only else ()
            found[composition] = _starts(
                library, composition, statistics, guidance, limit, passed_over
            )
        turn, rest = divmod(sample, every)
        there = rest == 0 and turn < len(found[composition])
        known = found[composition][turn] if there else None
        result.append(replace(request, known=known, phases=phases[composition]))
        on_done(done)
    return tuple(result)


def phases_of(library: TemplateLibrary, composition: Composition) -> tuple[Phase, ...]:
    """Return the library's crystals of a reduced formula."""
    return tuple(
        Phase(library.ids[index], library.template(index).to(dtype=torch.float32))
        for index in library.phases(composition)
    )


def _starts(
    library: TemplateLibrary,
    composition: Composition,
    statistics: CellStatistics,
    guidance: Guidance,
    limit: int,
    passed_over: tuple[Phase, ...],
) -> list[Known]:
    """Return the first `limit` templates, those left out that give one of the phases."""
    if limit == 0:
        return []
    spare = 4 * len(passed_over)  # a phase may be like several prototypes
    starts: list[Known] = []
    for candidate in find_templates(library, composition, limit=limit + spare):
        known = _known(library, candidate, statistics, guidance)
        if phase_of(known.crystal, passed_over) is None:
            starts.append(known)
            if len(starts) == limit:
                break
    return starts


def _known(
    library: TemplateLibrary,
    candidate: Candidate,
    statistics: CellStatistics,
    guidance: Guidance,
) -> Known:
    return Known(
        candidate.template_id,
        substitute(library, candidate, statistics).to(dtype=torch.float32),
        guidance.level,
        guidance.noised,
        share=candidate.prototype_fraction,
        same_composition=candidate.same_composition,
        exchange=candidate.substitution,
    )


def start_of(batch: Sequence[Request], levels: int) -> Start | None:
    """Return where the walk of a batch begins, None for pure noise.

    Args:
        batch: Requests that all start at noise or all at known crystals.
        levels: T of the model.
    """
    known = [request.known for request in batch if request.known is not None]
    if not known:
        return None
    sizes = [int(one.crystal.n_atoms[0]) for one in known]
    held = torch.zeros(sum(sizes), dtype=torch.bool)
    first = 0
    for one, size in zip(known, sizes, strict=True):
        held[[first + place for place in one.held_atoms]] = True
        first += size
    cells = torch.tensor([one.held_cell for one in known])
    return Start(
        Crystals.concat([one.crystal for one in known]),
        torch.tensor([max(round(one.level * levels), int(one.level > 0)) for one in known]),
        held_atoms=held if bool(held.any()) else None,
        held_cells=cells if bool(cells.any()) else None,
        noised=known[0].noised,
    )


def still_holds(crystal: Crystals, known: Known) -> bool:
    """Tell whether a crystal is still the structure that it started from.

    By StructureMatcher with its default tolerances (ltol 0.2, stol 0.3, angle 5°).
    """
    found, was = crystals_to_structures(Crystals.concat([crystal.to("cpu"), known.crystal]))
    return bool(StructureMatcher().fit(found, was))


def phase_of(crystal: Crystals, phases: Sequence[Phase]) -> str | None:
    """Return the name of the first phase that a crystal is, by `still_holds`' measure, or None."""
    if not phases:
        return None
    alike = [phase.crystal for phase in phases]
    found, *known = crystals_to_structures(Crystals.concat([crystal.to("cpu"), *alike]))
    matcher = StructureMatcher()
    names = (p.name for p, one in zip(phases, known, strict=True) if matcher.fit(found, one))
    return next(names, None)


def origin_of(request: Request, crystal: Crystals) -> tuple[Origin, str]:
    """Tell what became of a request.

    Returns:
        "known" and the library's name of the phase (or of the file refined) that it is,
        "substituted" if it still is its template with other elements, or "new".
    """
    phase = phase_of(crystal, request.phases)
    if phase is not None:
        return "known", phase
    known = request.known
    if known is None or not still_holds(crystal, known):
        return "new", ""
    return ("known", known.name) if known.same_composition else ("substituted", "")
