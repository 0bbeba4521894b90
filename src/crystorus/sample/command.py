"""`crystorus sample` from its options to its files."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from crystorus.checkpoint import SHIPPED, load_checkpoint
from crystorus.config import Precision, SamplerConfig, SamplerName
from crystorus.data.compositions import Composition
from crystorus.networks.precision import has_fast_bf16
from crystorus.sample.choosing import check_candidates, check_choice
from crystorus.sample.errors import RequestError
from crystorus.sample.folder import RunFolder
from crystorus.sample.guiding import (
    GUIDED_SAMPLER,
    StartName,
    choose_guidance,
    give_templates,
)
from crystorus.sample.plan import Request, check_requests, make_requests
from crystorus.sample.quality import Quality, sampler_at
from crystorus.sample.refining import RefineOrder, structure_requests
from crystorus.sample.run import (
    DEFAULT_BATCH_ATOMS,
    Job,
    Summary,
    program_versions,
    run_settings,
    sample_to_folder,
)
from crystorus.sample.walks import Model
from crystorus.sample.wanted import of_formulas, of_structures, of_system
from crystorus.sample.workers import Crew
from crystorus.templates.library import open_library
from crystorus.templates.prototypes import aflow_prototypes
from crystorus.terminal import counter, crystal_progress, say, show_summary, tell_of_versions

PrecisionChoice = Literal["fp32", "bf16", "auto"]


@dataclass(frozen=True)
class SampleOrder:
    """What a user asked for, as they said it; None where they said nothing."""

    out: Path
    """Folder of the run."""
    formulas: tuple[str, ...] = ()
    """Formulas, if they named some."""
    units: str | None = None
    """Formula units per cell, comma-separated."""
    like: Path | None = None
    """Structures whose compositions to take."""
    system: str | None = None
    """A chemical system."""
    max_atoms: int | None = None
    """Atoms per cell of the system's compositions, at most."""
    n: int = 1
    """Crystals per composition."""
    seed: int = 0
    """Seed of the whole run."""
    sampler: SamplerName | None = None
    """Sampler by name."""
    steps: int | None = None
    """Denoising steps."""
    anti_annealing: float | None = None
    """See `SamplerConfig`."""
    quality: Quality | None = None
    """A measured way to sample, instead of the three above."""
    candidates: int = 1
    """Walks from noise per crystal, of which the likeliest is kept."""
    precision: PrecisionChoice | None = None
    """Precision of the network's products."""
    workers: int = 1
    """Processes that sample."""
    large: bool = False
    """Whether cells may have more atoms than the training crystals."""
    checkpoint: Path | None = None
    """A checkpoint folder."""
    device: str = "cpu"
    """Where the network runs."""
    batch_atoms: int = DEFAULT_BATCH_ATOMS
    """Atoms per batch."""
    symprec: float = 0.1
    """Symmetry tolerance in Å."""
    keep_trajectory: bool = False
    """Whether to write every step."""
    overwrite: bool = False
    """Whether to replace another run in the folder."""
    start: StartName | None = None
    """Where the walk begins: templates if there is a library, noise otherwise."""
    library: Path | None = None
    """A library of templates; the AFLOW prototypes of pymatgen if templates are asked for."""
    level: float | None = None
    """Share of the noise levels to go back to from a template."""
    noised: bool = False
    """Whether the templates are noised to that level."""
    new_only: bool = False
    """Whether crystals that are known phases in the library are left out."""


def carry_out(order: SampleOrder) -> Summary:
    """Make the crystals, showing progress on stderr and the outcome on stdout.

    Raises:
        RequestError: If the request makes no sense.
        OutputError: If the folder cannot take the crystals.
    """
    check_numbers(order)
    requests = make_requests(choose_compositions(order), n=order.n, seed=order.seed)
    check_device(order.device)
    model = load_checkpoint(order.checkpoint or SHIPPED, device=order.device)
    _check(requests, model, large=order.large)
    requests, guided = with_templates(order, requests, model)
    check_choice(order.candidates, requests)
    sampler = sampler_of(order, model, own_sampler(order, model))
    job = Job(
        requests,
        sampler,
        guided,
        order.symprec,
        order.keep_trajectory,
        large=order.large,
        new_only=order.new_only,
        candidates=order.candidates,
    )
    summary = _make(order, model, job)
    _tell_of_known(summary, job)
    return summary


def _tell_of_known(summary: Summary, job: Job) -> None:
    """Say how many crystals are phases that the library knows."""
    known = sum(row["origin"] == "known" for row in summary.rows)
    if known:
        fate = "left out of the files" if job.new_only else "`--new-only` leaves them out"
        say("note", f"{known} crystals are known phases, see known_as in the table: {fate}")


def _check(requests: Sequence[Request], model: Model, *, large: bool = False) -> None:
    """Refuse what the model cannot hold, warn of what it never saw."""
    for warning in check_requests(
        requests,
        max_atoms=model.max_atoms,
        trained_elements=model.trained_elements,
        large=large,
    ):
        say("warning", warning)


def _make(order: SampleOrder | RefineOrder, model: Model, job: Job) -> Summary:
    requests = job.requests
    compositions = len({request.composition for request in requests})
    say("plan", f"{len(requests)} crystals of {compositions} compositions into {order.out}")
    settings = run_settings(
        job, seed=order.seed, checkpoint=model.digest, judge=model.scorer_digest
    )
    with RunFolder(
        order.out, settings, versions=program_versions(), overwrite=order.overwrite
    ) as folder:
        _tell_of_earlier(folder, len(requests))
        with crystal_progress(len(requests), kept=len(folder.done)) as move:
            summary = sample_to_folder(
                model,
                job,
                folder,
                batch_atoms=order.batch_atoms,
                on_progress=lambda progress: move(progress.done),
                crew=Crew(order.workers, order.checkpoint or SHIPPED),
            )
    show_summary(summary.rows, made=summary.made, seconds=summary.elapsed_s)
    return summary


def refine(order: RefineOrder) -> Summary:
    """Walk given structures part of the way back to noise, and forth again.

    Raises:
        RequestError: If the request makes no sense.
        OutputError: If the folder cannot take the crystals.
    """
    if not 0 < order.level <= 1:
        raise RequestError(f"--level is {order.level:g}: give a share of the noise, above 0 to 1")
    check_numbers(order)
    requests = structure_requests(order)
    check_device(order.device)
    model = load_checkpoint(order.checkpoint or SHIPPED, device=order.device)
    _check(requests, model)
    sampler = model.config.sampling if order.noised else GUIDED_SAMPLER
    return _make(order, model, Job(requests, sampler, sampler, order.symprec))


def choose_compositions(order: SampleOrder) -> list[Composition]:
    """Return the compositions an order names, refusing options that would be ignored.

    Raises:
        RequestError: If none or several of formulas, --like and --system are given, or an
            option has nothing to act on.
    """
    named = {
        "formulas": bool(order.formulas),
        "--like": order.like is not None,
        "--system": order.system is not None,
    }
    given = [name for name, present in named.items() if present]
    if len(given) != 1:
        raise RequestError(
            f"{' and '.join(given) or 'no composition'} given: give either formulas, or --like "
            "FILE, or --system Li-Fe-O"
        )
    if order.units is not None and not order.formulas:
        raise RequestError(f"--z {order.units} says nothing about {given[0]}: leave it out")
    if order.max_atoms is not None and order.system is None:
        raise RequestError(f"--max-atoms {order.max_atoms} goes with --system only: leave it out")
    if order.like is not None:
        return of_structures(order.like)
    if order.system is not None:
        if order.max_atoms is None:
            raise RequestError(f"--system {order.system} needs --max-atoms, as in --max-atoms 20")
        return of_system(order.system, order.max_atoms)
    return of_formulas(order.formulas, order.units or "1")


def with_templates(
    order: SampleOrder, requests: tuple[Request, ...], model: Model
) -> tuple[tuple[Request, ...], SamplerConfig]:
    """Give the requests the templates an order asks for; returns the walk from them too.

    Raises:
        RequestError: If an option has nothing to act on, or the level is no share.
        ReadingError: If the library cannot be opened.
    """
    guidance = choose_guidance(
        order.start,
        library=order.library is not None,
        level=order.level,
        noised=order.noised,
        new_only=order.new_only,
        names_a_walk=_names_a_walk(order),
    )
    if guidance is None:
        return requests, GUIDED_SAMPLER
    library = open_library(order.library) if order.library else aflow_prototypes()
    with counter("templates") as progress:
        guided = give_templates(requests, library, model.statistics, guidance, on_done=progress)
    if guidance.start == "noise":
        return guided, GUIDED_SAMPLER
    lacking = [request for request in guided if request.known is None]
    say("plan", f"{len(guided) - len(lacking)} crystals start at templates, of {len(library)}")
    if guidance.start == "templates" and lacking:
        names = list(dict.fromkeys(request.composition.formula for request in lacking))
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        say(
            "note",
            f"no further template fits {', '.join(names[:3])}{more}: {len(lacking)} crystals start "
            "at noise",
        )
    if order.noised:
        return guided, sampler_of(order, model, own_sampler(order, model))
    return guided, guided_sampler(order, model)


def _names_a_walk(order: SampleOrder) -> bool:
    return any(given is not None for given in (order.sampler, order.steps, order.anti_annealing))


def guided_sampler(order: SampleOrder, model: Model) -> SamplerConfig:
    """Return the walk from a template that is not noised, changed where the order says so.

    Raises:
        RequestError: If the sampler named adds noise.
    """
    if order.sampler not in (None, GUIDED_SAMPLER.name):
        raise RequestError(
            f"--sampler {order.sampler} adds noise, which breaks the symmetry of templates: add "
            f"--noised if that is wanted, or take --sampler {GUIDED_SAMPLER.name}"
        )
    return sampler_of(order, model, GUIDED_SAMPLER)


def own_sampler(order: SampleOrder, model: Model) -> SamplerConfig:
    """Return the walk of the quality an order asks for; without one, the checkpoint's.

    Raises:
        RequestError: If the order names a quality and a walk of its own.
    """
    if order.quality is None:
        return model.config.sampling
    if _names_a_walk(order):
        raise RequestError(
            f"--quality {order.quality} is a sampler with its steps: leave it out, or "
            "--sampler, --steps and --anti-annealing"
        )
    config = model.config
    return sampler_at(order.quality, config.sampling, config.preset, model.diffusion.steps)


def sampler_of(order: SampleOrder, model: Model, own: SamplerConfig) -> SamplerConfig:
    """Return the sampler an order names, `own` where it is silent.

    Raises:
        RequestError: If there are no steps, more than the model has noise levels, or products
            of a precision that the model has not.
    """
    sampler = replace(
        own,
        name=order.sampler or own.name,
        steps=own.steps if order.steps is None else order.steps,
        anti_annealing=own.anti_annealing if order.anti_annealing is None else order.anti_annealing,
        precision=_precision(order, model, own),
    )
    levels = model.diffusion.steps
    if not 1 <= sampler.steps <= levels:
        raise RequestError(
            f"{sampler.steps} steps were asked for: this checkpoint takes 1 to {levels}"
        )
    if not math.isfinite(sampler.anti_annealing):
        raise RequestError(f"--anti-annealing is {sampler.anti_annealing}: give a finite number")
    return sampler


def _precision(order: SampleOrder, model: Model, own: SamplerConfig) -> Precision:
    if order.precision is None:
        return own.precision
    if model.config.preset == "paper":
        if order.precision == "bf16":
            raise RequestError(
                "--precision bf16 is for the default preset, this checkpoint is of `paper`: leave "
                "it out"
            )
        return "fp32"
    if order.precision == "auto":
        return "bf16" if has_fast_bf16(order.device) else "fp32"
    return order.precision


def check_numbers(order: SampleOrder | RefineOrder) -> None:
    """Refuse numbers that make no sense before anything is loaded.

    Raises:
        RequestError: If the symmetry tolerance is no length, a batch holds no atoms, or no
            process works.
    """
    if not 0 < order.symprec < math.inf:
        raise RequestError(f"--symprec is {order.symprec:g} Å: give a length above 0, as in 0.1")
    if order.batch_atoms < 1:
        raise RequestError(f"--batch-atoms is {order.batch_atoms}: give 1 or more")
    if isinstance(order, SampleOrder):
        check_candidates(order.candidates)
    if order.workers < 1:
        raise RequestError(f"--workers is {order.workers}: give 1 process or more")
    if order.workers > 1 and order.device != "cpu":
        raise RequestError(f"--workers {order.workers} is for --device cpu: leave it out")


def check_device(device: str) -> None:
    """Make sure that torch can compute there.

    Raises:
        RequestError: If it cannot.
    """
    try:
        torch.empty(1, device=device).cpu()  # `meta` holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:80]
        raise RequestError(f"--device {device} cannot be used ({reason}): try cpu") from error


def _tell_of_earlier(folder: RunFolder, total: int) -> None:
    if folder.complete:
        say("note", f"{folder.path} already holds all {total} crystals of this run")
    elif folder.done:
        say("note", f"going on from {len(folder.done)} finished crystals in {folder.path}")
    tell_of_versions("run", folder.versions, program_versions())
