"""From requests to crystals in memory, in batches that fit, in this process or in several.

`make` is the one way in: the Python interface, the command line and campaigns use it.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, overload

import torch

from crystorus.checkpoint import SHIPPED, loaded_checkpoint
from crystorus.config import Precision, SamplerConfig
from crystorus.crystal_model import CrystalModel, ScoredBy
from crystorus.errors import GenerationError, RequestError
from crystorus.geometry.crystals import Crystals
from crystorus.networks.precision import has_fast_bf16
from crystorus.sample.choosing import OnStep, check_choice, choose_crystals
from crystorus.sample.options import Quality, RefineOptions, SampleOptions
from crystorus.sample.requests import Request
from crystorus.sample.start import Origin, give_skeletons, give_templates, origin_of, start_of
from crystorus.templates.skeletons import table_of

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

    from crystal_fidelity.workers import Workers
    from crystorus.templates.library import TemplateLibrary

TEMPLATE_SAMPLER = SamplerConfig("ode", 8, 0.0)
"""Sampling from a structure that is not noised: deterministic, so that it keeps the symmetry."""

FAST = SamplerConfig("bridge", 12, 100.0, last_fraction=0.27, temperature=0.3, over_relaxation=1.7)
"""Twelve steps at temperature 0.3 with over-relaxed displacements (1.7). No step is taken below
0.27 T: there the sample's error exceeds the noise that the network assumes."""

SLOW = SamplerConfig("bridge", 120, 20.0)
"""The exact posterior in many steps, drifting faster towards the end: `best` without a scorer."""

CANDIDATES: dict[Quality, int] = {"fast": 1, "default": 8, "best": 32}
"""Fast sampling runs per crystal where a scorer chooses among them. A hundred steps of one run find
the real crystal of 58.4 % of compositions, eight runs of twelve of 65.3 % (docs/choosing.md)."""

WINDOW_BATCHES = 16  # batches are sorted by size within windows, so that files grow in order
MAX_BATCH_ATOMS, MIN_BATCH_ATOMS = 1024, 128
BATCH_WORK = 50 * 1024
"""Atoms × network evaluations of a batch by default on a CPU, under a minute of one core: finished
batches are written, the one in flight is lost when the program is stopped."""

PAIR_BYTES = 6000
"""Memory of the default network per pair of atoms, measured at 100 to 1000 atoms (2200 to 5400)."""


@dataclass(frozen=True)
class SamplingPlan:
    """How requests are turned into crystals.

    Attributes:
        sampler: How noise is removed.
        template_sampler: The same for crystals that start at structures.
        candidates: Sampling runs from noise per crystal, of which the most probable is kept.
        keep_trajectory: Whether every step is kept.
        batch_atoms: Atoms per batch, padding counted.
    """

    sampler: SamplerConfig
    template_sampler: SamplerConfig = TEMPLATE_SAMPLER
    candidates: int = 1
    keep_trajectory: bool = False
    batch_atoms: int = MAX_BATCH_ATOMS


@dataclass(frozen=True, eq=False)
class GeneratedCrystals:
    """Finished crystals with what was asked for; indexing gives smaller ones of the same kind.

    Attributes:
        crystals: On the CPU; columns of `lattice` are the lattice vectors in Å.
        requests: What each of them was to be, with its seed, and the skeleton that it was made in.
        trajectory: Every step from noise to crystal, if it was asked for.
        scorer_error: By what each was chosen among its candidates; NaN where it was not.
        scored_by: What that is: -log of the scorer's confidence, or the denoising error.

    Examples:
        >>> import crystorus
        >>> made = crystorus.generate("NaCl", n=3, quality="fast", keep_trajectory=True)
        >>> made
        GeneratedCrystals(3 of NaCl)
        >>> made[0].to_ase()[0].get_chemical_formula()
        'ClNa'
        >>> len(made.trajectory_to_ase()[0])  # steps of the first crystal
        12
        >>> made.distinct().to_pymatgen()[0].reduced_formula
        'NaCl'
    """

    crystals: Crystals
    requests: tuple[Request, ...]
    trajectory: tuple[Crystals, ...] = ()
    scorer_error: tuple[float, ...] = ()
    scored_by: ScoredBy = "denoising_error"

    def __len__(self) -> int:
        return len(self.requests)

    @overload
    def __getitem__(self, index: int) -> "GeneratedCrystals": ...
    @overload
    def __getitem__(self, index: slice) -> "GeneratedCrystals": ...
    def __getitem__(self, index: int | slice) -> "GeneratedCrystals":
        chosen = range(len(self))[index]
        return self.select([chosen] if isinstance(chosen, int) else list(chosen))

    def __iter__(self) -> Iterator["GeneratedCrystals"]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        formulas = dict.fromkeys(request.composition.formula for request in self.requests)
        return f"GeneratedCrystals({len(self)} of {', '.join(formulas)})"

    def select(self, indices: Sequence[int]) -> "GeneratedCrystals":
        """Return the crystals at these places, in that order.

        Args:
            indices: Places, from 0.
        """
        return replace(
            self,
            crystals=self.crystals.select(indices),
            requests=tuple(self.requests[i] for i in indices),
            trajectory=tuple(step.select(indices) for step in self.trajectory),
            scorer_error=tuple(self.scorer_error[i] for i in indices),
        )

    @staticmethod
    def concat(parts: Sequence["GeneratedCrystals"]) -> "GeneratedCrystals":
        """Join batches and bring their crystals into the order of their indices.

        Sampling from templates takes fewer steps than from noise: the last one is repeated.

        Args:
            parts: Batches of one run.
        """
        longest = max(len(part.trajectory) for part in parts)
        trajectories = [
            (*part.trajectory, *part.trajectory[-1:] * (longest - len(part.trajectory)))
            for part in parts
        ]
        requests = tuple(request for part in parts for request in part.requests)
        joined = GeneratedCrystals(
            Crystals.concat([part.crystals for part in parts]),
            requests,
            tuple(map(Crystals.concat, zip(*trajectories, strict=True))),
            tuple(error for part in parts for error in part.scorer_error),
            parts[0].scored_by,
        )
        return joined.select(sorted(range(len(requests)), key=lambda i: requests[i].index))

    @property
    def confidence(self) -> tuple[float, ...]:
        """How sure the scorer is of each, 0 to 1; NaN where it was not asked."""
        if self.scored_by != "confidence":
            return (math.nan,) * len(self)
        return tuple(math.exp(-error) for error in self.scorer_error)

    def origins(self) -> list[tuple[Origin, str]]:
        """Return what each crystal is, as `origin` and `known_as` in the table; see `origin_of`."""
        return [
            origin_of(request, crystal)
            for request, crystal in zip(self.requests, self.crystals.split(), strict=True)
        ]

    def new(self) -> "GeneratedCrystals":
        """Return those that are no known phase of the library."""
        return self.select([n for n, (kind, _) in enumerate(self.origins()) if kind != "known"])

    def distinct(self) -> "GeneratedCrystals":
        """Return those that are not the same structure as one before them."""
        from crystal_fidelity.matching import unique
        from crystorus.data.convert import split

        return self.select(unique(split(self.crystals)).nonzero()[0].tolist())

    def to_ase(self) -> "list[Atoms]":
        """Return one `ase.Atoms` per crystal."""
        from crystorus.data.convert import crystals_to_atoms

        return crystals_to_atoms(self.crystals)

    def to_pymatgen(self) -> "list[Structure]":
        """Return one `pymatgen.core.Structure` per crystal."""
        from crystorus.data.convert import crystals_to_structures

        return crystals_to_structures(self.crystals)

    def trajectory_to_ase(self) -> "list[list[Atoms]]":
        """Return every step of every crystal: one list of `ase.Atoms` per crystal."""
        from crystorus.data.convert import crystals_to_atoms

        steps = [crystals_to_atoms(step) for step in self.trajectory]
        return [[step[i] for step in steps] for i in range(len(self))]


def sampling_at(quality: Quality, model: CrystalModel) -> tuple[SamplerConfig, int]:
    """Return the sampler from noise of a quality, and how many candidates it makes.

    Where the checkpoint has a scorer, the likeliest of 1, 8 or 32 fast sampling runs. Without one,
    "default" is the checkpoint's own sampler and "best" takes 120 steps; both were chosen for the
    default preset (docs/performance.md). For `paper`, "fast" and "best" are its own sampler in a
    tenth of its steps and in as many as there are levels.

    Args:
        quality: "fast", "default" or "best".
        model: A loaded checkpoint.
    """
    own, levels = model.config.sampling, model.diffusion.steps
    if model.config.preset == "paper":
        steps = {"fast": max(own.steps // 10, 1), "default": own.steps, "best": levels}
        return replace(own, steps=steps[quality]), 1
    if quality == "default" and model.scorer is None:
        return own, 1
    measured = SLOW if quality == "best" and model.scorer is None else FAST
    sampler = replace(measured, steps=min(measured.steps, levels), precision=own.precision)
    return sampler, 1 if model.scorer is None else CANDIDATES[quality]


def plan_sampling(
    model: CrystalModel,
    requests: Sequence[Request],
    options: SampleOptions,
    *,
    library: "TemplateLibrary | None" = None,
    sampler: SamplerConfig | None = None,
    on_template: Callable[[int], None] = lambda done: None,
) -> tuple[tuple[Request, ...], SamplingPlan]:
    """Return the requests with the templates asked for, and how they are sampled.

    Args:
        model: A loaded checkpoint.
        requests: What is wanted.
        options: How.
        library: The opened library; without it, that of the options, else AFLOW's prototypes.
        sampler: From noise, and from templates if it adds no noise to them; the options' without.
        on_template: Called with the number of requests that were looked up.

    Raises:
        RequestError: If options do not fit the checkpoint, or contradict each other.
        ReadingError: If the library cannot be opened.
    """
    own, candidates = model.config.sampling, 1
    if sampler is None and not options.names_a_sampler:
        own, candidates = sampling_at(options.quality or "default", model)
    named = options.sampler or (sampler or TEMPLATE_SAMPLER).name
    if options.start_from != "noise" and not options.noised and named != TEMPLATE_SAMPLER.name:
        raise RequestError(
            f"the sampler {named} adds noise, which breaks the symmetry of templates: add noised "
            f"if that is wanted, or take the sampler {TEMPLATE_SAMPLER.name}"
        )
    from_noise = _with_options(sampler or own, options, model)
    from_templates = TEMPLATE_SAMPLER
    if options.start_from != "noise":
        deterministic = sampler or TEMPLATE_SAMPLER
        from_templates = (
            from_noise if options.noised else _with_options(deterministic, options, model)
        )
    if options.needs_library:
        from crystorus.templates.library import open_library
        from crystorus.templates.prototypes import aflow_prototypes

        if library is None:
            library = open_library(options.library) if options.library else aflow_prototypes()
        requests = give_templates(requests, library, model.statistics, options, on_done=on_template)
    if options.candidates is not None:
        check_choice(options.candidates, requests)
        candidates = options.candidates
    elif all(request.start is not None for request in requests):
        candidates = 1
    if model.skeletons:
        requests = give_skeletons(requests, table_of(model.skeletons), options, candidates)
    elif options.space_group not in ("known", "none"):
        raise RequestError(
            f"--space-group {options.space_group} needs a checkpoint with skeletons.safetensors: "
            "leave it out, or write that file with checkpoint.save_skeletons"
        )
    batch_atoms = options.batch_atoms or default_batch_atoms(
        candidates * from_noise.steps, options.device
    )
    return tuple(requests), SamplingPlan(
        from_noise, from_templates, candidates, options.keep_trajectory, batch_atoms
    )


def plan_refining(model: CrystalModel, options: RefineOptions) -> SamplingPlan:
    """Settle how structures are refined: by the checkpoint's sampler if they are noised.

    Args:
        model: The checkpoint.
        options: Say whether noise is added.
    """
    sampler = model.config.sampling if options.noised else TEMPLATE_SAMPLER
    batch_atoms = options.batch_atoms or default_batch_atoms(sampler.steps, options.device)
    return SamplingPlan(sampler, sampler, batch_atoms=batch_atoms)


def default_batch_atoms(evaluations: int, device: str) -> int:
    """Return how many atoms make a batch: fewer where each takes many network evaluations.

    Args:
        evaluations: Of the network per crystal.
        device: Such as cpu or cuda:1.
    """
    if device != "cpu":
        return MAX_BATCH_ATOMS
    return min(max(BATCH_WORK // evaluations, MIN_BATCH_ATOMS), MAX_BATCH_ATOMS)


def _with_options(own: SamplerConfig, options: SampleOptions, model: CrystalModel) -> SamplerConfig:
    """Return a sampler, changed where the options name something else."""
    sampler = replace(
        own,
        name=options.sampler or own.name,
        steps=own.steps if options.steps is None else options.steps,
        anti_annealing=(
            own.anti_annealing if options.anti_annealing is None else options.anti_annealing
        ),
        precision=_precision(options, model, own),
    )
    levels = model.diffusion.steps
    if not 1 <= sampler.steps <= levels:
        raise RequestError(
            f"{sampler.steps} steps were asked for: this checkpoint takes 1 to {levels}"
        )
    return sampler


def _precision(options: SampleOptions, model: CrystalModel, own: SamplerConfig) -> Precision:
    if options.precision is None:
        return own.precision
    if model.config.preset == "paper":
        if options.precision == "bf16":
            raise RequestError(
                "--precision bf16 is for the default preset, this checkpoint is of `paper`: leave "
                "it out"
            )
        return "fp32"
    if options.precision == "auto":
        return "bf16" if has_fast_bf16(options.device) else "fp32"
    return options.precision


def check_device(device: str) -> None:
    """Make sure that torch can compute there.

    Args:
        device: Such as cpu, cuda, cuda:1 or mps.

    Raises:
        RequestError: If it cannot.
    """
    try:
        torch.empty(1, device=device).cpu()  # `meta` holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:80]
        raise RequestError(f"--device {device} cannot be used ({reason}): try cpu") from error


def make(
    model: CrystalModel,
    requests: Sequence[Request],
    plan: SamplingPlan,
    *,
    workers: "Workers | None" = None,
    checkpoint: Path = SHIPPED,
    on_step: OnStep = lambda done, total: None,
) -> Iterator[GeneratedCrystals]:
    """Yield crystals as they are finished, batch by batch.

    A crystal depends on its own request, not on its batch or its worker. Where memory runs out the
    batch is halved.

    Args:
        model: A loaded checkpoint.
        requests: What to make, in any order; starts and plan from `plan_sampling`.
        plan: How.
        workers: Processes that sample; by default this one. Their batches come in any order.
        checkpoint: What the workers load: the folder of `model`.
        on_step: Called after every step with (steps done, steps of the batch); not with workers.

    Raises:
        GenerationError: If one crystal alone does not fit in memory, the model changes a
            composition, or a worker dies.
    """
    batches = group_requests(requests, batch_atoms=plan.batch_atoms)
    if workers is not None and (workers.processes > 1 or workers.scheduler):
        from crystal_fidelity.workers import Lost, run

        device = str(model.device)
        jobs = [(checkpoint, device, max(workers.processes, 1), batch, plan) for batch in batches]
        for _, result in run(_make_in_worker, jobs, workers):
            if isinstance(result, Lost):
                raise GenerationError(
                    f"a worker process died ({result.reason}): take fewer --workers; the same "
                    "command goes on from the finished crystals"
                )
            yield from result
        return
    yield from _make_batches(model, batches, plan, on_step)


def _make_in_worker(
    job: tuple[Path, str, int, tuple[Request, ...], SamplingPlan],
) -> list[GeneratedCrystals]:
    checkpoint, device, processes, batch, plan = job
    model = loaded_checkpoint(checkpoint, device)
    return list(_make_batches(model, [batch], plan, lambda done, total: None, beside=processes))


def _make_batches(
    model: CrystalModel,
    batches: Sequence[tuple[Request, ...]],
    plan: SamplingPlan,
    on_step: OnStep,
    *,
    beside: int = 1,
) -> Iterator[GeneratedCrystals]:
    """Make batches one after another, in halves where memory would run out or runs out.

    Args:
        model: A loaded checkpoint.
        batches: What to make.
        plan: How.
        on_step: Called after every step.
        beside: Processes that share the memory.
    """
    pairs, padded_atoms = _pairs_that_fit(model, beside), math.inf
    waiting = list(batches)
    while waiting:
        batch = waiting.pop(0)
        largest = max(request.n_atoms for request in batch)
        if largest**2 > pairs:
            raise GenerationError(
                f"a cell has {largest} atoms, for which memory does not suffice: what is free "
                f"takes {int(math.sqrt(pairs))} at most. Ask for smaller cells, free memory, or "
                "choose another --device"
            )
        made = None
        size = len(batch) * largest
        if len(batch) == 1 or (size * largest <= pairs and size <= padded_atoms):
            try:
                made = _make_batch(model, batch, plan, on_step)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
        if made is not None:
            yield made
            continue
        if len(batch) == 1:
            raise GenerationError(
                f"memory ran out on a single crystal of {largest} atoms: free memory, or choose "
                "another --device"
            )
        if size <= padded_atoms and size * largest <= pairs:  # it was tried
            padded_atoms = size // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        middle = (len(batch) + 1) // 2
        waiting[:0] = [batch[:middle], batch[middle:]]


def _make_batch(
    model: CrystalModel, batch: tuple[Request, ...], plan: SamplingPlan, on_step: OnStep
) -> GeneratedCrystals:
    """Make the crystals of one batch, which all begin at noise or all at structures."""
    atomic_numbers = torch.tensor([z for r in batch for z in r.composition.atomic_numbers])
    n_atoms = torch.tensor([request.n_atoms for request in batch])
    seeds = [request.seed for request in batch]
    from_noise = batch[0].start is None
    steps: list[Crystals] = []
    if from_noise and (plan.candidates > 1 or batch[0].skeletons):
        crystals, error, inside, steps = choose_crystals(
            model,
            atomic_numbers,
            n_atoms,
            seeds=seeds,
            skeletons=[r.skeletons for r in batch] if batch[0].skeletons else (),
            sampler=plan.sampler,
            candidates=plan.candidates,
            together=plan.batch_atoms // (len(batch) * int(n_atoms.max())),
            keep_trajectory=plan.keep_trajectory,
            on_step=on_step,
        )
        batch = tuple(
            replace(request, skeletons=(one,) if one else ())
            for request, one in zip(batch, inside, strict=True)
        )
    else:

        def after(done: int, total: int, present: Crystals) -> None:
            if plan.keep_trajectory:
                steps.append(present.to(device="cpu"))
            on_step(done, total)

        crystals = model.sample(
            atomic_numbers,
            n_atoms,
            seeds=seeds,
            sampler=plan.sampler if from_noise else plan.template_sampler,
            start=start_of(batch, model.diffusion.steps),
            on_step=after,
        ).to(device="cpu")
        error = torch.full((len(batch),), torch.nan)
    same = torch.equal(crystals.n_atoms, n_atoms) and torch.equal(
        crystals.atomic_numbers, atomic_numbers
    )
    if not same:
        raise GenerationError("the model changed a composition: report this with the checkpoint")
    return GeneratedCrystals(crystals, batch, tuple(steps), tuple(error.tolist()), model.scored_by)


def group_requests(requests: Sequence[Request], *, batch_atoms: int) -> list[tuple[Request, ...]]:
    """Group requests of similar size into batches of at most `batch_atoms` padded atoms.

    Requests are sorted by size within windows of consecutive indices only, so that files can grow
    in the order of the requests.

    Args:
        requests: What is wanted.
        batch_atoms: Crystals times atoms of the largest, at most.
    """
    total, batches = 0, []
    windows: list[list[Request]] = [[]]
    for request in requests:
        if total >= WINDOW_BATCHES * batch_atoms * len(windows):
            windows.append([])
        windows[-1].append(request)
        total += request.n_atoms
    for window in windows:
        # A batch begins at noise or at structures, noised or not, inside space groups or not.
        def kind(request: Request) -> tuple[bool, bool]:
            return request.start is not None, bool(request.skeletons)

        window.sort(key=lambda request: (*kind(request), request.n_atoms))
        for _, alike in groupby(window, key=kind):
            current: list[Request] = []
            for request in alike:  # the largest comes last: all are padded to it
                if current and (len(current) + 1) * request.n_atoms > batch_atoms:
                    batches.append(tuple(current))
                    current = []
                current.append(request)
            batches.append(tuple(current))
    return batches


def _pairs_that_fit(model: CrystalModel, beside: int) -> float:
    """Return how many pairs of atoms a batch may have, infinity where that is not known."""
    if model.config.preset != "default":
        return math.inf
    free = free_memory(str(model.device))
    return math.inf if free is None else 0.8 * free / beside / PAIR_BYTES


def free_memory(device: str) -> int | None:
    """Return the bytes that can still be taken on a device, None where that cannot be asked.

    On a CPU this is the least of what the machine, the control group (container, batch job) and
    `ulimit -v` leave.

    Args:
        device: Such as cpu or cuda:1.
    """
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    if device != "cpu":
        return None
    left = []
    with contextlib.suppress(OSError, ValueError, IndexError):  # not Linux
        lines = Path("/proc/meminfo").read_text().splitlines()
        left += [int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable:")]
    with contextlib.suppress(OSError, ValueError, IndexError):  # no control groups, or no limit
        inside = Path("/proc/self/cgroup").read_text().split("::", 1)[1].strip()
        for name in (inside, "/"):
            group = Path("/sys/fs/cgroup") / name.lstrip("/")
            if (group / "memory.max").is_file():
                stat = dict(x.split() for x in (group / "memory.stat").read_text().splitlines())
                used = int((group / "memory.current").read_text()) - int(stat["inactive_file"])
                left.append(int((group / "memory.max").read_text()) - used)
    with contextlib.suppress(OSError, ValueError, ImportError):  # not Unix
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            left.append(max(0, limit - taken))
    return min(left) if left else None


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception means that memory ran out, on whatever device.

    Args:
        error: What was raised.
    """
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    signs = (
        "out of memory",
        "not enough memory",
        "can't allocate memory",
        "cannot allocate memory",
    )
    return isinstance(error, RuntimeError) and any(s in str(error).lower() for s in signs)
