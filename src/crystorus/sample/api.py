"""Crystals from Python: `crystorus.generate("LiFeO2", n=4)`, as ASE or pymatgen objects."""

import difflib
import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from crystal_fidelity.structures import Crystal
from crystal_fidelity.workers import Workers
from crystorus.checkpoint import SHIPPED, load_checkpoint, loaded_checkpoint
from crystorus.config import SamplerConfig
from crystorus.crystal_model import CrystalModel
from crystorus.data.convert import split, usable_crystals
from crystorus.errors import RequestError
from crystorus.sample.options import RefineOptions, RunOptions, SampleOptions, parse_units
from crystorus.sample.refine import refine_requests
from crystorus.sample.requests import (
    Request,
    check_requests,
    choose_compositions,
    make_requests,
    usable_structures,
)
from crystorus.sample.sampler import (
    GeneratedCrystals,
    SamplingPlan,
    make,
    plan_refining,
    plan_sampling,
)
from crystorus.terminal import progress

if TYPE_CHECKING:
    from crystorus.templates.library import TemplateLibrary

Options = TypeVar("Options", bound=RunOptions)
FILES_ONLY = frozenset({"out", "overwrite", "symprec"})
"""Options of the command line that say how files are written; nothing is written here."""


def load(path: Path | str | None = None, *, device: str = "cpu") -> CrystalModel:
    """Load a checkpoint.

    Args:
        path: Its folder; the one that ships with the package by default.
        device: Where the weights go: "cpu", "cuda", "cuda:1", "mps".

    Raises:
        CheckpointError: If it is damaged, hostile or of a newer version.

    Examples:
        >>> model = load()
        >>> model.max_atoms
        20
    """
    return load_checkpoint(SHIPPED if path is None else Path(path), device=device)


def generate(
    formulas: str | Sequence[str] = (),
    *,
    model: CrystalModel | None = None,
    sampler: SamplerConfig | str | None = None,
    library: "TemplateLibrary | Path | str | None" = None,
    **settings: Any,
) -> GeneratedCrystals:
    """Make crystals of given compositions; the same seed gives the same crystals.

    Args:
        formulas: One formula or several, such as "LiFeO2"; or leave them out and name `like` or
            `system` and `max_atoms`.
        model: A loaded checkpoint; by default that of the `checkpoint` folder, else the shipped
            one.
        sampler: How the noise is removed, by name or with all its settings; by default the
            checkpoint's own way, and from templates a short deterministic one.
        library: Known crystals to start from, or the file of `crystorus templates build`.
        settings: The fields of `SampleOptions`, such as `n=4`, `z=[1, 2]`, `seed=0`,
            `quality="fast"`, `candidates=8`, `keep_trajectory=True`.

    Returns:
        The crystals, in the order of the formulas; fewer with `new_only`.

    Raises:
        ReadingError: If the library or a file cannot be read.
        RequestError: If a setting is unknown or makes no sense, or a composition does not fit the
            model.
        GenerationError: If one crystal alone does not fit in memory.

    Examples:
        >>> crystals = generate("NaCl", n=2, quality="fast")
        >>> [str(atoms.symbols) for atoms in crystals.to_ase()]
        ['NaCl', 'NaCl']
    """
    config = sampler if isinstance(sampler, SamplerConfig) else None
    if config is not None and settings.get("quality") is not None:
        raise RequestError("both sampler and quality are given: leave one out")
    opened = None if library is None or isinstance(library, (str, Path)) else library
    if library is not None:
        settings["library"] = library if opened is None else opened.crystals.path
    if isinstance(sampler, str):
        settings["sampler"] = sampler
    options = options_of(SampleOptions, settings)
    named = [formulas] if isinstance(formulas, str) else list(formulas)
    requests = make_requests(choose_compositions(named, options), n=options.n, seed=options.seed)
    loaded = _checked(model, requests, options)
    requests, plan = plan_sampling(loaded, requests, options, library=opened, sampler=config)
    made = _make_all(loaded, requests, plan, options)
    return made.new() if options.new_only else made


def refine(
    structures: Any, *, model: CrystalModel | None = None, **settings: Any
) -> GeneratedCrystals:
    """Repair or perturb structures.

    Args:
        structures: A file or folder; crystals from `generate`; one `ase.Atoms` or
            `pymatgen.core.Structure`, or several.
        model: A loaded checkpoint; by default that of the `checkpoint` folder, else the shipped
            one.
        settings: The fields of `RefineOptions`, such as `level=0.2`, `hold="O"`, `hold_cell=True`.

    Returns:
        `n` crystals per structure; `origins()` says which still are what they were.

    Raises:
        ReadingError: If a structure cannot be read.
        RequestError: If a setting is unknown or makes no sense, or a structure does not fit.
        GenerationError: If one crystal alone does not fit in memory.

    Examples:
        >>> from ase.build import bulk
        >>> repaired = refine(bulk("NaCl", "rocksalt", a=6.2))
        >>> len(repaired)
        1
    """
    options = options_of(RefineOptions, settings)
    requests = refine_requests(_structures(structures), options)
    loaded = _checked(model, requests, options)
    return _make_all(loaded, requests, plan_refining(loaded, options), options)


def options_of(kind: type[Options], settings: dict[str, Any]) -> Options:
    """Make options from keywords.

    Args:
        kind: `SampleOptions` or `RefineOptions`.
        settings: Values by name; text stands for a path where a path is wanted.

    Raises:
        RequestError: If a name is unknown, answered with the nearest, or a value makes no sense.
    """
    types = {item.name: item.type for item in fields(kind)}
    for name in settings:
        if name in FILES_ONLY:
            raise RequestError(
                f"{name} is an option of the command line: nothing is written here, leave it out"
            )
        if name not in types:
            near = difflib.get_close_matches(name, types, n=1, cutoff=0.5)
            remedy = f"did you mean {near[0]}?" if near else f"choose of {', '.join(types)}"
            raise RequestError(f"there is no setting {name!r}: {remedy}")
    values: dict[str, Any] = {
        name: Path(value) if isinstance(value, str) and "Path" in str(types[name]) else value
        for name, value in settings.items()
    }
    if "z" in values:
        values["z"] = parse_units(values["z"])
    if "space_group" in values:
        values["space_group"] = str(values["space_group"])
    return kind(**values)


def _with_settings(function: Callable[..., Any], kind: type[RunOptions]) -> None:
    """Give a function the signature that its options have, for `help` and completion."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind != p.VAR_KEYWORD]
    named = {p.name for p in own} | FILES_ONLY
    keywords = [
        inspect.Parameter(
            item.name, inspect.Parameter.KEYWORD_ONLY, default=item.default, annotation=item.type
        )
        for item in fields(kind)
        if item.name not in named
    ]
    function.__signature__ = signature.replace(parameters=own + keywords)  # type: ignore[attr-defined]


_with_settings(generate, SampleOptions)
_with_settings(refine, RefineOptions)


def _structures(given: Any) -> list[Crystal]:
    if isinstance(given, (str, Path)):
        return usable_structures(Path(given))
    if isinstance(given, GeneratedCrystals):
        given = split(given.crystals, [f"crystal {request.index}" for request in given.requests])
    return usable_crystals(given)


def _checked(
    model: CrystalModel | None, requests: Sequence[Request], options: RunOptions
) -> CrystalModel:
    """Return the model, if the requests fit it."""
    if model is not None and options.checkpoint is not None:
        raise RequestError("both model and checkpoint are given: leave one out")
    if model is not None and (options.workers > 1 or options.scheduler):
        raise RequestError("workers load a checkpoint themselves: give its folder, not a model")
    if model is None:
        usual = options.checkpoint is None and options.device == "cpu"
        model = loaded_checkpoint() if usual else load(options.checkpoint, device=options.device)
    for warning in check_requests(requests, model, large=options.large):
        warnings.warn(warning, stacklevel=4)
    return model


def _make_all(
    model: CrystalModel,
    requests: Sequence[Request],
    plan: SamplingPlan,
    options: RunOptions,
) -> GeneratedCrystals:
    workers = Workers(options.workers, options.scheduler)
    parts: list[GeneratedCrystals] = []
    with progress("sampling", "crystals", total=len(requests)) as update:

        def on_step(step: int, steps: int) -> None:
            update(min(sum(map(len, parts)) + step / steps, len(requests)))

        for part in make(
            model,
            requests,
            plan,
            workers=workers,
            checkpoint=options.checkpoint or SHIPPED,
            on_step=on_step,
        ):
            parts.append(part)
            update(sum(map(len, parts)))
    return GeneratedCrystals.concat(parts)
