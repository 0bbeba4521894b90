"""The sampling stage: crystals of the chosen compositions, in a folder of `crystorus sample`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crystorus.checkpoint import SHIPPED, load_checkpoint
from crystorus.data.compositions import Composition
from crystorus.data.files import file_digest
from crystorus.hull.errors import SpaceError
from crystorus.sample.choosing import check_candidates, check_choice
from crystorus.sample.command import (
    SampleOrder,
    check_device,
    own_sampler,
    sampler_of,
    with_templates,
)
from crystorus.sample.folder import RunFolder
from crystorus.sample.guiding import StartName
from crystorus.sample.plan import Request, check_requests, make_requests
from crystorus.sample.quality import Quality
from crystorus.sample.run import Job, Progress, program_versions, run_settings, sample_to_folder
from crystorus.sample.walks import Model

FOLDER = "generated"


@dataclass(frozen=True)
class Sampling:
    """How many crystals are made, and how."""

    n: int = 2
    """Crystals per composition."""
    budget: int = 200
    """Crystals of the campaign, at most."""
    seed: int = 0
    """Same seed, same crystals."""
    steps: int | None = None
    """Denoising steps; the checkpoint's own where None."""
    checkpoint: Path | None = None
    """A checkpoint folder; the shipped one where None."""
    start: StartName | None = None
    """Where samples begin: with a library at templates while there are any, else at noise."""
    library: Path | None = None
    """A library of templates; AFLOW's prototypes if templates are asked for without one."""
    device: str = "cpu"
    """Where the network runs."""
    batch_atoms: int = 1024
    """Atoms per batch."""
    keep_trajectories: bool = True
    """Whether every denoising step is written, for the report to show."""
    quality: Quality | None = None
    """A measured walk from noise by name, in the place of `steps`."""
    candidates: int = 1
    """Walks from noise per crystal, of which the likeliest is kept."""


@dataclass(frozen=True, eq=False)
class SamplingRun:
    """A loaded model and what it is to make."""

    model: Model
    job: Job
    settings: dict[str, Any]
    warnings: tuple[str, ...]


def plan_sampling(sampling: Sampling, compositions: Sequence[Composition]) -> SamplingRun:
    """Load the model and settle which crystals it makes.

    Raises:
        SpaceError: If the budget holds no crystal.
        RequestError: If the request makes no sense, or does not fit the model.
        ReadingError: If the library cannot be opened.
    """
    requests = choose_requests(sampling, compositions)
    check_candidates(sampling.candidates)
    check_device(sampling.device)
    model = load_checkpoint(sampling.checkpoint or SHIPPED, device=sampling.device)
    warnings = check_requests(
        requests, max_atoms=model.max_atoms, trained_elements=model.trained_elements
    )
    start = sampling.start or ("noise" if sampling.library is None else "templates")
    order = SampleOrder(
        out=Path(),
        steps=sampling.steps,
        start=start,
        library=sampling.library,
        quality=sampling.quality,
        candidates=sampling.candidates,
    )
    sampler = sampler_of(order, model, own_sampler(order, model))
    requests, guided_sampler = with_templates(order, requests, model)
    check_choice(order.candidates, requests)
    job = Job(
        requests,
        sampler,
        guided_sampler,
        keep_trajectory=sampling.keep_trajectories,
        candidates=order.candidates,
    )
    settings = _starts(start, sampling.library)
    settings |= run_settings(
        job, seed=sampling.seed, checkpoint=model.digest, judge=model.scorer_digest
    )
    return SamplingRun(model, job, settings, tuple(warnings))


def _starts(start: StartName, library: Path | None) -> dict[str, Any]:
    """Describe where samples begin, for a folder to recognise its campaign."""
    if start == "noise":
        return {"start": start}
    named = f"{library.name} {file_digest(library)[:12]}" if library else "AFLOW prototypes"
    return {"start": start, "library": named}


def choose_requests(sampling: Sampling, compositions: Sequence[Composition]) -> tuple[Request, ...]:
    """Return the crystals that the budget allows, in the order of the compositions.

    Raises:
        SpaceError: If the budget holds no crystal.
    """
    if sampling.budget < 1:
        raise SpaceError(f"--budget {sampling.budget}: give the campaign 1 crystal or more")
    reached = -(-sampling.budget // max(sampling.n, 1))
    requests = make_requests(compositions[:reached], n=sampling.n, seed=sampling.seed)
    return requests[: sampling.budget]


def sample(
    run: SamplingRun, sampling: Sampling, folder: Path, on_progress: Callable[[Progress], None]
) -> None:
    """Make what is still missing of the crystals.

    Raises:
        OutputError: If the folder holds other crystals, or the disk is full.
    """
    with RunFolder(folder, run.settings, versions=program_versions()) as opened:
        sample_to_folder(
            run.model,
            run.job,
            opened,
            batch_atoms=sampling.batch_atoms,
            on_progress=on_progress,
        )
