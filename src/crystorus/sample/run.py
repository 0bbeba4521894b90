"""From requests to an output folder, batch by batch."""

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from crystorus.config import SamplerConfig
from crystorus.geometry.crystals import Crystals
from crystorus.sample.folder import Finished, RunFolder
from crystorus.sample.guiding import GUIDED_SAMPLER
from crystorus.sample.memory import FittingBatches
from crystorus.sample.plan import Request, check_requests, plan_batches
from crystorus.sample.texts import finish_crystal, trajectory_text
from crystorus.sample.walks import Model, Walked, Walks
from crystorus.sample.workers import Crew, share_out

DEFAULT_BATCH_ATOMS = 1024
_PROGRAMS = ("crystorus", "torch", "numpy", "ase", "gemmi", "moyopy")


@dataclass(frozen=True)
class Job:
    """Everything that decides which crystals a run makes and what its files say of them."""

    requests: tuple[Request, ...]
    """The crystals wanted."""
    sampler: SamplerConfig
    """How the noise is removed."""
    guided_sampler: SamplerConfig = GUIDED_SAMPLER
    """The same for crystals that start at known ones."""
    symprec: float = 0.1
    """Tolerance in Å within which space groups are found and cells symmetrised."""
    keep_trajectory: bool = False
    """Whether every step of every crystal is written too."""
    large: bool = False
    """Whether cells may have more atoms than the training crystals."""
    new_only: bool = False
    """Whether known phases are left out of the files."""
    candidates: int = 1
    """Walks from noise per crystal, of which the likeliest is kept."""


@dataclass(frozen=True)
class Progress:
    """How far a run is: finished crystals, those of the batch in flight counted by its steps."""

    done: float
    total: int


@dataclass(frozen=True)
class Summary:
    """What a run left behind.

    Attributes:
        rows: The table's rows, by index.
        made: Crystals made by this call.
        kept: Crystals that an earlier, interrupted call had made.
        elapsed_s: Seconds of this call.
    """

    rows: tuple[dict[str, str], ...]
    made: int
    kept: int
    elapsed_s: float


def run_settings(job: Job, *, seed: int, checkpoint: str, judge: str = "") -> dict[str, Any]:
    """Describe a run by what decides its crystals, for its folder to recognise it again.

    Batch size and device are left out: they decide how fast, not what.
    """
    compositions = list(dict.fromkeys(request.composition.formula for request in job.requests))
    listing = [(r.index, r.composition.formula, r.seed, *_start(r)) for r in job.requests]
    guided = [request.known for request in job.requests if request.known is not None]
    about_guided = {
        "started_at_known": len(guided),
        "guided_sampler": _described(job.guided_sampler),
    }
    return {
        "seed": seed,
        "crystals": len(job.requests),
        "formulas": compositions if len(compositions) <= 20 else f"{len(compositions)} of them",
        "sampler": _described(job.sampler),
        "symprec_angstrom": job.symprec,
        "keep_trajectory": job.keep_trajectory,
        "checkpoint_sha256": checkpoint,
        "requests_sha256": hashlib.sha256(json.dumps(listing).encode()).hexdigest(),
        **(about_guided if guided else {}),
        **({"candidates": job.candidates} if job.candidates > 1 else {}),
        **({"judge_sha256": judge} if job.candidates > 1 and judge else {}),
        **({"new_only": _phases_digest(job.requests)} if job.new_only else {}),
    }


def _described(sampler: SamplerConfig) -> dict[str, Any]:
    """Return a sampler's settings; what came later is left out where it changes nothing."""
    usual = SamplerConfig()
    later = {
        name: getattr(usual, name)
        for name in (
            "first_fraction",
            "last_fraction",
            "temperature",
            "over_relaxation",
            "final_refinement_steps",
            "precision",
        )
    }
    return {k: v for k, v in asdict(sampler).items() if k not in later or v != later[k]}


def _start(request: Request) -> tuple[object, ...]:
    """Return what decides a crystal's start, nothing for noise."""
    known = request.known
    if known is None:
        return ()
    parts = (known.crystal.lattice, known.crystal.frac_coords, known.crystal.atomic_numbers)
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.round(part.double().numpy(), 3).tobytes())
    held = list(known.held_atoms)
    return known.name, known.level, known.noised, held, known.held_cell, digest.hexdigest()


def _phases_digest(requests: Sequence[Request]) -> str:
    """Return what decides which crystals count as known."""
    names = {r.composition.formula: [phase.name for phase in r.phases] for r in requests}
    return hashlib.sha256(json.dumps(names, sort_keys=True).encode()).hexdigest()


def program_versions(more: Sequence[str] = ()) -> dict[str, str]:
    """Return the versions of what makes and writes the crystals, and of `more` packages."""
    names = (*_PROGRAMS, *more)
    return {"python": platform.python_version()} | {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # run from a source tree
        return "not installed"


def sample_to_folder(
    model: Model,
    job: Job,
    folder: RunFolder,
    *,
    batch_atoms: int = DEFAULT_BATCH_ATOMS,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    crew: Crew | None = None,
) -> Summary:
    """Make what is still missing of a run, committing every batch to its folder.

    Args:
        model: A loaded checkpoint.
        job: What to make.
        folder: The run's open folder.
        batch_atoms: Atoms per batch, padding counted; halved where memory runs out.
        on_progress: Called at every step of every batch; with a crew, after every batch.
        crew: Processes that make the batches; this one without it.

    Raises:
        RequestError: If a composition does not fit the model.
        OutputError: If the disk is full; what is finished stays.
        GenerationError: If one crystal alone does not fit in memory, or a worker dies.
    """
    check_requests(
        job.requests,
        max_atoms=model.max_atoms,
        trained_elements=model.trained_elements,
        large=job.large,
    )
    began = time.monotonic()
    kept = len(folder.done)
    if not folder.complete:
        batches = plan_batches(job.requests, batch_atoms=batch_atoms)
        left = [tuple(r for r in batch if r.index not in folder.done) for batch in batches]
        for made in _make_all(model, job, [batch for batch in left if batch], on_progress, crew):
            for name, text in made.trajectories:
                folder.write_trajectory(name, text)
            folder.commit(made.records)
            on_progress(Progress(len(folder.done), len(job.requests)))
        folder.finish()
    made_now = len(folder.done) - kept
    return Summary(folder.rows(), made_now, len(job.requests) - made_now, time.monotonic() - began)


@dataclass(frozen=True)
class Made:
    """A finished batch, or as much of it as fits in memory at once."""

    records: tuple[Finished, ...]
    """Its crystals."""
    trajectories: tuple[tuple[str, str], ...]
    """Name and text of their films, if the job keeps them."""


@dataclass(frozen=True)
class _Task:
    """One batch as a worker is given it."""

    batch: tuple[Request, ...]
    job: Job
    """The job without its requests."""
    total: int
    """Crystals of the whole run."""


def _make_all(
    model: Model,
    job: Job,
    batches: Sequence[tuple[Request, ...]],
    on_progress: Callable[[Progress], None],
    crew: Crew | None,
) -> Iterator[Made]:
    """Yield the batches as they are finished: in their order, unless there are workers."""
    total = len(job.requests)
    if crew is not None and crew.processes > 1 and len(batches) > 1:
        tasks = [_Task(batch, replace(job, requests=()), total) for batch in batches]
        for parts in share_out(_make_batch, tasks, crew):
            yield from parts
        return
    maker = _Maker(model, job, total, on_progress, done=total - sum(map(len, batches)))
    fitting = FittingBatches(maker.make)
    for batch in batches:
        for part, walked in fitting.run(batch):
            yield maker.finish(part, walked)


def _make_batch(model: Model, task: _Task) -> list[Made]:
    """Make one batch in a worker."""
    maker = _Maker(model, task.job, task.total)
    return [maker.finish(*made) for made in FittingBatches(maker.make).run(task.batch)]


class _Maker:
    """Makes batches and describes them, telling how far it is."""

    def __init__(
        self,
        model: Model,
        job: Job,
        total: int,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        *,
        done: int = 0,
    ) -> None:
        self._job, self._total = job, total
        self._on_progress, self._done = on_progress, done
        self._judged_by = model.scored_by
        self._walks = Walks(
            model, job.sampler, job.guided_sampler, job.candidates, job.keep_trajectory
        )

    def make(self, batch: Sequence[Request]) -> Walked:
        def on_step(step: int, steps: int, crystals: Crystals) -> None:
            share = len(batch) * step / steps
            self._on_progress(Progress(self._done + share, self._total))

        return self._walks.make(batch, on_step)

    def finish(self, batch: Sequence[Request], walked: Walked) -> Made:
        job, crystals = self._job, walked.crystals.split()
        records = [
            finish_crystal(
                request,
                crystal,
                symprec=job.symprec,
                total=self._total,
                new_only=job.new_only,
                error=error,
                scored_by=self._judged_by,
            )
            for request, crystal, error in zip(batch, crystals, walked.errors, strict=True)
        ]
        steps = [step.split() for step in walked.film]
        films = [
            trajectory_text(request, [step[position] for step in steps], total=self._total)
            for position, (request, record) in enumerate(zip(batch, records, strict=True))
            if job.keep_trajectory and not (job.new_only and record.row["origin"] == "known")
        ]
        self._done += len(records)
        return Made(tuple(records), tuple(films))
