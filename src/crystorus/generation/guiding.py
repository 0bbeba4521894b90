"""From requests to requests that start at templates, and what came of the templates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pymatgen.analysis.structure_matcher import StructureMatcher

from crystorus.data.compositions import Composition
from crystorus.data.io import crystals_to_structures
from crystorus.diffusion.algorithms import SamplerConfig, Start
from crystorus.diffusion.strain_process import CellStatistics
from crystorus.generation.plan import Known, Request
from crystorus.geometry import Crystals
from crystorus.templates.library import TemplateLibrary
from crystorus.templates.retrieval import Candidate, find_templates, substitute

StartName = Literal["noise", "templates", "both"]
GUIDED_SAMPLER = SamplerConfig("ode", 8, 0.0)
"""The walk from a template: deterministic, so that it keeps the template's symmetry."""
GUIDED_LEVEL = 0.2
"""Share of the noise levels that the walk from a template goes back to."""


@dataclass(frozen=True)
class Guidance:
    """How requests are given templates.

    Attributes:
        start: "templates" gives every sample one while there are any, "both" every other sample.
        level: Share of the noise levels to go back to, 0 to 1; 0 is substitution alone.
        noised: Whether noise of that level is added to the template.
    """

    start: StartName = "templates"
    level: float = GUIDED_LEVEL
    noised: bool = False


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
    compositions that no template fits, the rest start at noise.

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
    found: dict[Composition, list[Candidate]] = {}
    result = []
    for done, request in enumerate(requests, start=1):
        composition, sample = request.composition, request.sample
        if composition not in found:
            limit = -(-wanted[composition] // every)
            found[composition] = find_templates(library, composition, limit=limit)
        turn, rest = divmod(sample, every)
        if rest == 0 and turn < len(found[composition]):
            known = _known(library, found[composition][turn], statistics, guidance)
            request = replace(request, known=known)
        result.append(request)
        on_done(done)
    return tuple(result)


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
        share=candidate.share,
        same_composition=candidate.same_composition,
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
