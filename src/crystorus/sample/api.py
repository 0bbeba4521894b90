"""Crystals from Python: `crystorus.generate("LiFeO2", n=4)`, as ASE or pymatgen objects."""

import functools
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, overload

from crystorus.checkpoint import SHIPPED, load_checkpoint
from crystorus.config import SamplerConfig
from crystorus.crystal_model import CrystalModel
from crystorus.geometry.crystals import Crystals
from crystorus.sample.choosing import check_candidates, check_choice
from crystorus.sample.errors import RequestError
from crystorus.sample.guiding import (
    GUIDED_SAMPLER,
    Guidance,
    Origin,
    StartName,
    choose_guidance,
    give_templates,
    origin_of,
)
from crystorus.sample.memory import FittingBatches
from crystorus.sample.plan import Request, check_requests, make_requests, plan_batches
from crystorus.sample.quality import Quality, sampler_at
from crystorus.sample.run import DEFAULT_BATCH_ATOMS
from crystorus.sample.walks import Model, Walks
from crystorus.sample.wanted import of_formulas
from crystorus.templates.library import TemplateLibrary, open_library
from crystorus.templates.prototypes import aflow_prototypes

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure


@dataclass(frozen=True, eq=False)
class GeneratedCrystals:
    """Crystals in the order of their requests; indexing gives smaller ones of the same kind.

    Attributes:
        crystals: The crystals as tensors, columns of `lattice` being the lattice vectors.
        requests: What each of them was to be, with its seed.
        trajectory: Every step from noise to crystal, if it was asked for.
        confidence: How sure the judge is of each, 0 to 1; NaN where it was not asked.
    """

    crystals: Crystals
    requests: tuple[Request, ...]
    trajectory: tuple[Crystals, ...] = ()
    confidence: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.requests)

    @overload
    def __getitem__(self, index: int) -> "GeneratedCrystals": ...
    @overload
    def __getitem__(self, index: slice) -> "GeneratedCrystals": ...
    def __getitem__(self, index: int | slice) -> "GeneratedCrystals":
        chosen = range(len(self))[index]
        return self._chosen([chosen] if isinstance(chosen, int) else list(chosen))

    def _chosen(self, indices: list[int]) -> "GeneratedCrystals":
        return GeneratedCrystals(
            self.crystals.select(indices),
            tuple(self.requests[i] for i in indices),
            tuple(step.select(indices) for step in self.trajectory),
            tuple(self.confidence[i] for i in indices) if self.confidence else (),
        )

    def __iter__(self) -> Iterator["GeneratedCrystals"]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        formulas = dict.fromkeys(request.composition.formula for request in self.requests)
        return f"GeneratedCrystals({len(self)} of {', '.join(formulas)})"

    def origins(self) -> list[tuple[Origin, str]]:
        """Return what each crystal is, as in the table's `origin` and `known_as`."""
        return [
            origin_of(request, crystal)
            for request, crystal in zip(self.requests, self.crystals.split(), strict=True)
        ]

    def new(self) -> "GeneratedCrystals":
        """Return those that are no known phase of the library."""
        return self._chosen([n for n, (kind, _) in enumerate(self.origins()) if kind != "known"])

    def to_ase(self) -> "list[Atoms]":
        """Return one `ase.Atoms` per crystal."""
        from crystorus.data.io import crystals_to_atoms

        return crystals_to_atoms(self.crystals)

    def to_pymatgen(self) -> "list[Structure]":
        """Return one `pymatgen.core.Structure` per crystal."""
        from crystorus.data.io import crystals_to_structures

        return crystals_to_structures(self.crystals)

    def trajectory_to_ase(self) -> "list[list[Atoms]]":
        """Return every step of every crystal: one list of `ase.Atoms` per crystal."""
        from crystorus.data.io import crystals_to_atoms

        steps = [crystals_to_atoms(step) for step in self.trajectory]
        return [[step[i] for step in steps] for i in range(len(self))]


def load(path: Path | str | None = None, *, device: str = "cpu") -> CrystalModel:
    """Load a checkpoint; the one that ships with the package by default.

    Raises:
        CheckpointError: If it is damaged, hostile or of a newer version.
    """
    return load_checkpoint(SHIPPED if path is None else Path(path), device=device)


@functools.lru_cache(maxsize=1)
def _shipped() -> CrystalModel:
    return load()


def generate(
    formulas: str | Sequence[str],
    *,
    n: int = 1,
    z: int | Sequence[int] = 1,
    seed: int = 0,
    model: Model | None = None,
    sampler: SamplerConfig | None = None,
    quality: Quality | None = None,
    candidates: int = 1,
    library: TemplateLibrary | Path | str | None = None,
    start: StartName | None = None,
    level: float | None = None,
    noised: bool = False,
    new_only: bool = False,
    keep_trajectory: bool = False,
    batch_atoms: int = DEFAULT_BATCH_ATOMS,
    large: bool = False,
) -> GeneratedCrystals:
    """Make crystals of given formulas; the same seed gives the same crystals.

    Args:
        formulas: One formula or several.
        n: Crystals per formula and number of formula units.
        z: Formula units per cell, one number or several.
        seed: Seed of the whole call.
        model: A loaded checkpoint; the shipped one by default.
        sampler: How the noise is removed; by default the checkpoint's own way, and from templates
            a short deterministic walk.
        quality: "fast", "default" or "best": a measured sampler from noise, instead of naming one.
        candidates: Walks from noise per crystal, of which the one that the model finds likeliest
            is kept; time grows with them, and so does the match rate (docs/choosing.md).
        library: Known crystals to start from, or the file of `crystorus templates build`; the
            AFLOW prototypes that pymatgen carries if `start` asks for templates without it.
        start: "templates" if there is a library, else "noise"; "both" alternates. Samples that no
            template fits start at noise.
        level: Share of the noise levels to go back to from a template, 0 to 1; 0 is
            substitution alone, 0.2 without it.
        noised: Add the noise of that level; by default by the checkpoint's own sampler.
        new_only: Leave out the crystals that are known phases in the library: fewer come back.
        keep_trajectory: Keep every step.
        batch_atoms: Atoms per batch; halved where memory runs out.
        large: Allow more atoms per cell than the training crystals had.

    Raises:
        ReadingError: If the library cannot be opened.
        RequestError: If a formula does not fit the model, or the options contradict each other.
        GenerationError: If one crystal alone does not fit in memory.
    """
    units = ",".join(map(str, [z] if isinstance(z, int) else z))
    named = [formulas] if isinstance(formulas, str) else list(formulas)
    requests = make_requests(of_formulas(named, units), n=n, seed=seed)
    guidance = choose_guidance(
        start, library=library is not None, level=level, noised=noised, new_only=new_only
    )
    model = _shipped() if model is None else model
    unseen = check_requests(
        requests,
        max_atoms=model.max_atoms,
        trained_elements=model.trained_elements,
        large=large,
    )
    for warning in unseen:
        warnings.warn(warning, stacklevel=2)
    check_candidates(candidates)
    if quality is not None and sampler is not None:
        raise RequestError("both sampler and quality are given: leave one out")
    config, levels = model.config, model.diffusion.steps
    own = sampler or sampler_at(quality or "default", config.sampling, config.preset, levels)
    if guidance is not None:
        requests = give_templates(requests, _opened(library), model.statistics, guidance)
    check_choice(candidates, requests)
    made = _sample_all(
        model,
        requests,
        own,
        _guided_sampler(sampler, own, guidance),
        candidates=candidates,
        keep_trajectory=keep_trajectory,
        batch_atoms=batch_atoms,
    )
    return made.new() if new_only else made


def _opened(library: TemplateLibrary | Path | str | None) -> TemplateLibrary:
    if library is None:
        return aflow_prototypes()
    return library if isinstance(library, TemplateLibrary) else open_library(Path(library))


def _guided_sampler(
    sampler: SamplerConfig | None, own: SamplerConfig, guidance: Guidance | None
) -> SamplerConfig:
    """Return the walk from templates: the sampler given, or `own` where they are noised.

    Raises:
        RequestError: If the sampler given adds noise where none is wanted.
    """
    if guidance is None or guidance.start == "noise":
        return GUIDED_SAMPLER
    if sampler is None:
        return own if guidance.noised else GUIDED_SAMPLER
    if not guidance.noised and sampler.name != GUIDED_SAMPLER.name:
        raise RequestError(
            f"the sampler {sampler.name} adds noise, which breaks the symmetry of templates: give "
            f"noised=True if that is wanted, or a sampler named {GUIDED_SAMPLER.name}"
        )
    return sampler


def _sample_all(
    model: Model,
    requests: Sequence[Request],
    sampler: SamplerConfig,
    guided_sampler: SamplerConfig,
    *,
    candidates: int,
    keep_trajectory: bool,
    batch_atoms: int,
) -> GeneratedCrystals:
    walks = Walks(model, sampler, guided_sampler, candidates, keep_trajectory)
    batches = FittingBatches(walks.make)
    parts: list[GeneratedCrystals] = []
    for batch in plan_batches(requests, batch_atoms=batch_atoms):
        for part, walked in batches.run(batch):
            sure = [math.exp(-error) for error in walked.errors]
            if model.scored_by != "confidence":
                sure = [math.nan] * len(part)
            parts.append(GeneratedCrystals(walked.crystals, part, walked.film, tuple(sure)))
    return _in_order(parts)


def _in_order(parts: Sequence[GeneratedCrystals]) -> GeneratedCrystals:
    """Join batches into one and bring its crystals into the order of their indices.

    Walks from templates are shorter than those from noise: their last step is repeated.
    """
    longest = max(len(part.trajectory) for part in parts)
    trajectories = [
        (*part.trajectory, *part.trajectory[-1:] * (longest - len(part.trajectory)))
        for part in parts
    ]
    requests = [request for part in parts for request in part.requests]
    joined = GeneratedCrystals(
        Crystals.concat([part.crystals for part in parts]),
        tuple(requests),
        tuple(map(Crystals.concat, zip(*trajectories, strict=True))),
    )
    confidence = [sure for part in parts for sure in part.confidence]
    order = sorted(range(len(requests)), key=lambda i: requests[i].index)
    return GeneratedCrystals(
        joined.crystals.select(order),
        tuple(requests[i] for i in order),
        tuple(step.select(order) for step in joined.trajectory),
        tuple(confidence[i] for i in order),
    )
