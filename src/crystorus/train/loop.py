"""Train a network: from crystals and a configuration to a checkpoint (Algorithm 1, Table 1).

The folder of a run:

    run.json          settings, status and the digests of the data
    data/             stores built from sources that are not stores
    best/, last/      checkpoints of the averaged weights, see `crystorus.checkpoint`; with the
                      skeletons of the training crystals if some are noised inside space groups,
                      and with skeletons and scorer of a checkpoint that the run starts from
    state/last.ckpt   what a resumed run needs: weights, averages, optimizers, progress
    metrics.csv       losses; tensorboard/ the same
"""

import dataclasses
import hashlib
import math
import os
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from jaxtyping import Int
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader

from crystal_fidelity.files import ASIDE, atomic_path, disk_errors
from crystal_fidelity.provenance import git_commit, hardware, today, versions
from crystal_fidelity.workers import cores
from crystorus.checkpoint import (
    SCORER_CARD,
    SHIPPED,
    load_checkpoint,
    read_card,
    read_scorer_card,
    save_checkpoint,
    save_scorer,
)
from crystorus.config import Config, ConfigError, config_from_dict, config_to_dict
from crystorus.crystal_model import CrystalModel, build_diffusion, build_model, in_precision
from crystorus.data.batches import BatchSampler, CrystalDataset
from crystorus.data.store import STORE, CrystalStore, is_kind, open_or_build
from crystorus.diffusion.cell_prior import CellStatistics, fit_cell_statistics
from crystorus.diffusion.losses import Losses, draw_normals, losses_at_noise
from crystorus.diffusion.process import Denoiser, Diffusion
from crystorus.diffusion.space_groups import Skeletons, SpaceGroups
from crystorus.errors import OutputError, TrainingError
from crystorus.geometry import Crystals
from crystorus.geometry.space_groups import AtomImages
from crystorus.runs.folder import RunFolder, claim, read_record
from crystorus.terminal import log, progress
from crystorus.train.log import FIFTHS, METRICS, MetricsLog
from crystorus.train.optimizers import averaged, build_optimizers, rate_factor
from crystorus.train.options import check_settings, validation_fraction
from crystorus.train.processes import Processes, joined
from crystorus.train.quality import sample_quality
from crystorus.train.space_groups import SymmetricBatches, find_symmetry

STATE, BEST, LAST, FAILED = "state/last.ckpt", "best", "last", "failed-batch.safetensors"
NAMES = (BEST, LAST, "state", "data", METRICS, "tensorboard", FAILED)
MAY_CHANGE = ("epochs", "minutes", "cpu_minutes", "workers", "save_minutes", "accelerator")
"""Training settings of which a resumed run may have others: its length, and what decides no
number."""
NOISIEST = 0.2
"""`high_noise_fraction` of the draws fall in this part of t, next to T."""

_FEWEST = {"train": 8, "validation": 1}
_CHOICE_SEED, _VALIDATION_SEED = 1, 7
_GOLDEN = 0.618034


def train(config: Config, folder: Path, *, resume: bool = False) -> None:
    """Train a model; checkpoints, logs and the state to go on from appear in a folder.

    With `training.devices` above 1 the other processes are started here, unless torchrun or SLURM
    did: a script then has to call this from under `if __name__ == "__main__":`.

    Args:
        config: All settings.
        folder: The folder, which must not hold another run.
        resume: Go on with the run that is there, also a finished one if `config` has more epochs
            or minutes. On a CPU the result is that of a run that was never interrupted, bit for
            bit.

    Raises:
        TrainingError: If the run cannot start, or a loss or gradient is not finite.
        OutputError: If the folder holds something else or is in use, or there is nothing to resume.
        FileError: If the disk refuses.
        KeyboardInterrupt: After Ctrl-C, once the state is saved.
        SystemExit: With code 143 after a termination signal, once the state is saved.
    """
    check_settings(config)
    try:
        build_diffusion(config, CellStatistics.neutral())
    except ValueError as error:
        raise TrainingError(f"the diffusion section makes no process: {error}") from error
    with joined(config.training, _train, (config, folder, resume)) as processes:
        _train(processes, config, folder, resume)


def _train(processes: Processes, config: Config, folder: Path, resume: bool) -> None:
    """Train as one of the processes; the first one keeps the folder."""
    device = processes.device(config.training.accelerator)
    with ExitStack() as stack:
        run = None
        if processes.rank == 0:
            run = stack.enter_context(_claim(folder, config, resume=resume))
            datasets = _open_data(folder, config)
            digests = {name: data.store.header["sha256"] for name, data in datasets.items()}
            before = run.facts.get("data", digests)
            for name, digest in digests.items():
                if not isinstance(before, dict) or before.get(name) != digest:
                    raise TrainingError(
                        f"data.{name} has digest {digest[:12]}…, not that of the data which the "
                        f"run in {folder} began with: put the old data back, or start another run"
                    )
            run.note(data=digests)
        processes.wait()
        if run is None:
            datasets = _open_data(folder, config)
        training = Training(config, folder, processes, device, datasets)
        state = read_state(folder) if resume else None
        if state is not None:
            training.load(state)
        processes.wait()
        if training.fraction() < 1:
            if run is not None and run.complete:
                run.reopen()
            with StopSignal() as stop, disk_errors(folder):
                training.run(stop)
        elif run is not None:
            log("training", f"{folder} is finished: to go on, raise training.epochs or minutes")
        if run is not None and not run.complete:
            best = folder / BEST
            if (
                config.training.start_from
                and best.is_dir()  # no loss was finite where there is none
                and not read_card(best)["card"]["steps"]
            ):
                log("training", f"no step made val smaller: {best} has the weights of the start")
            run.finish()


def _claim(folder: Path, config: Config, *, resume: bool) -> RunFolder:
    """Make the folder that of this run, or find the run there to be this one."""
    remedy = "choose another folder"
    record = read_record(folder, remedy)
    there = (
        [p for p in folder.iterdir() if p.suffix not in (ASIDE, ".tmp")] if folder.is_dir() else []
    )
    if record is None and there:
        raise OutputError(f"{folder} is not empty and holds no run: {remedy}")

    def adapt(settings: dict[str, Any]) -> dict[str, Any]:
        try:
            return config_to_dict(config_from_dict(settings))
        except (ConfigError, TypeError) as error:
            raise TrainingError(
                f"{folder} has settings this version does not know ({error}): resume with the "
                "crystorus version that started the run"
            ) from error

    # A run that ended before its data were open has done nothing: its settings bind nobody.
    never_began = record is not None and "data" not in record.get("facts", {})
    return claim(
        folder,
        "train",
        config_to_dict(config),
        resume=resume,
        overwrite=never_began and not resume,
        names=NAMES,
        may_change={f"training.{name}" for name in MAY_CHANGE},
        adapt=adapt,
        remedy=remedy,
        replace="",
    )


def _open_data(folder: Path, config: Config) -> dict[str, CrystalDataset]:
    """Open the crystals to train on, and a fixed choice of those to validate on.

    Sources that are not stores are converted once; the first process does it. A fraction in place
    of a file for validation takes so many of the crystals to train on.
    """
    store, to_train = _open_source("train", folder, config)
    share = validation_fraction(config)
    other, usable = (store, to_train) if share else _open_source("validation", folder, config)
    to_validate = np.random.default_rng(_CHOICE_SEED).permutation(usable)
    if share:
        apart = max(1, round(share * len(to_validate)))
        to_validate, to_train = to_validate[:apart], np.sort(to_validate[apart:])
    most = config.training.validation_crystals or None
    found = {
        "train": CrystalDataset(store, to_train),
        "validation": CrystalDataset(other, to_validate[:most]),
    }
    taken = f" besides the {share:g} of data.validation" if share else ""
    lower = ", lower data.validation" if share else ""
    for name, fewest in _FEWEST.items():
        if len(found[name]) < fewest:
            raise TrainingError(
                f"data.{name} has {len(found[name])} crystals of at most {config.data.max_atoms} "
                f"atoms{taken}, at least {fewest} are needed: give more crystals{lower} or raise "
                "data.max_atoms"
            )
    return found


def _open_source(name: str, folder: Path, config: Config) -> tuple[CrystalStore, np.ndarray]:
    """Open what data.`name` names, and choose the crystals that are not too large."""
    source, cache = Path(getattr(config.data, name)), folder / "data" / f"{name}.store"
    if not source.exists() and not cache.is_file():
        raise TrainingError(
            f'data.{name} = "{source}" does not exist: fetch MP-20 with `crystorus data get '
            f"mp-20`, or give data.{name}=… a file of crystals"
        )
    if not (is_kind(source, STORE) or cache.is_file()):
        log("plan", f"the structures of {source} are read once, into {cache}")
    with progress(f"reading {source.name}", "structures") as update:
        n_workers = min(4, os.cpu_count() or 1)
        store = open_or_build(source, cache, n_workers=n_workers, progress=update)
    return store, np.flatnonzero(store.n_atoms <= config.data.max_atoms)


def read_state(folder: Path) -> dict[str, Any] | None:
    """Read the saved state of a run; None if it was ended before the first was saved.

    Nothing in the file is executed: it may hold tensors and plain values only.

    Args:
        folder: Of the run.

    Raises:
        TrainingError: If the file is damaged or hostile.
    """
    path = folder / STATE
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if "pytorch-lightning_version" in state:
            state = _from_lightning(state)
        return {key: state[key] for key in ("progress", "weights", "average", "optimizers")}
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TrainingError(
            f"{path} cannot be resumed from ({first[:120]}): it is damaged or not ours; start "
            f"another run with training.start_from={folder / LAST}"
        ) from error


def _from_lightning(state: dict[str, Any]) -> dict[str, Any]:
    """Translate a state that version 0.1.0 saved."""
    window, evaluation = state["window"], state["callbacks"]["Evaluation"]
    progress = {"step": state["global_step"], **evaluation, **state["tally"]}
    progress["window"] = [window[k] for k in ("cell", "torus", "gradient", "crystals", "steps")]
    weights, mean = (
        {name.removeprefix("denoiser."): value for name, value in state[key].items()}
        for key in ("current_model_state", "state_dict")
    )
    average = {f"module.{name}": value for name, value in mean.items()}
    average["n_averaged"] = state["averaging_state"]["n_averaged"]
    # Muon and Adam were one optimizer of two groups, whose parameters were numbered through.
    both, optimizers = state["optimizer_states"][0], []
    for group in both["param_groups"]:
        old = group["params"]
        own = {new: both["state"][n] for new, n in enumerate(old) if n in both["state"]}
        groups = [group | {"params": list(range(len(old)))}]
        optimizers.append({"state": own, "param_groups": groups})
    return {
        "progress": progress,
        "weights": weights,
        "average": average,
        "optimizers": optimizers,
    }


@dataclass
class Progress:
    """How far a run is and what it has used up; part of the saved state."""

    step: int = 0
    """Optimizer steps taken."""
    crystals: int = 0
    """Crystals seen by all processes together."""
    seconds: float = 0.0
    """Wall time of training steps, without validation."""
    step_cpu_seconds: float = 0.0
    """CPU time of training steps, without validation, of all processes together."""
    wall_seconds: float = 0.0
    """Wall time of everything."""
    cpu_seconds: float = 0.0
    """CPU time of everything, of this process."""
    best: float = math.inf
    """Least validation loss so far."""
    figures: dict[str, float] = field(default_factory=dict)
    """Those of the last validation."""
    window: list[float] = field(default_factory=lambda: [0.0] * 5)
    """Since the last line of the log: sums of cell loss and torus loss over crystals and of the
    gradient norm over steps, crystals, steps."""


class StopSignal:
    """Defers SIGINT and SIGTERM inside the block: the first is noted, the second stops at once.

    Attributes:
        number: The signal that came; 0 before.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            numbers = (signal.SIGINT, signal.SIGTERM)
            self._before = {n: signal.signal(n, self._receive) for n in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame: object) -> None:
        if self.number:
            self.leave(number)
        self.number = number

    def leave(self, number: int) -> NoReturn:
        """End as a signal asks to, in the way of whoever handled it before.

        Args:
            number: Of the signal.
        """
        handler = self._before.get(number)
        if callable(handler):  # raises KeyboardInterrupt, or what the command line makes of it
            handler(number, None)
        raise SystemExit(128 + number)


class Training:
    """A run in one process: the network, its average, the optimizers, the batches, the progress.

    Args:
        config: All settings.
        folder: Where the first process writes.
        processes: The place of this process among all.
        device: Where it works.
        datasets: Crystals to "train" on and for "validation".

    Raises:
        TrainingError: If `start_from` is another network, or there are fewer batches than
            processes.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        processes: Processes,
        device: torch.device,
        datasets: dict[str, CrystalDataset],
    ) -> None:
        self.config, self.settings, self.folder = config, config.training, folder
        self.processes, self.device, self.datasets = processes, device, datasets
        self.model = _initial_model(config, datasets["train"])
        self.denoiser, self.diffusion = self.model.denoiser.to(device), self.model.diffusion
        self.average = averaged(self.denoiser, self.settings.ema_decay)
        self.optimizers = build_optimizers(self.denoiser, self.settings)
        self.limit = self.settings.loss_limit or math.inf
        self.images: dict[str, Sequence[AtomImages]] = {}
        if self.settings.symmetric_fraction:
            self._find_symmetry()
        self.batches = self._loader("train", self.settings.seed, workers=self.settings.workers)
        self.validation = self._loader("validation", 0, fixed=True)
        self.made_with = {
            "crystorus": versions(["crystorus"]).get("crystorus", "unknown"),
            "commit": git_commit(__file__),  # that this process runs, whatever comes meanwhile
            "torch": str(torch.__version__),  # with the build, which the package may leave out
            "hardware": hardware(str(device)),
        }
        self.progress = Progress()
        self.log: MetricsLog | None = None
        self._clock = (time.monotonic(), time.process_time())
        self._saved_at = 0.0

    def _loader(
        self, name: str, seed: int, *, workers: int = 0, fixed: bool = False
    ) -> DataLoader[Any]:
        try:
            sampler = BatchSampler(
                self.datasets[name].n_atoms,
                batch_size=self.settings.batch_size,
                batch_pairs=self.settings.batch_pairs,
                seed=seed,
                rank=self.processes.rank,
                world=self.processes.world,
                fixed=fixed,
            )
        except ValueError as error:
            raise TrainingError(str(error)) from error
        batches = SymmetricBatches(self.datasets[name], self.images.get(name))
        return DataLoader(batches, sampler=sampler, batch_size=None, num_workers=workers)

    def _find_symmetry(self) -> None:
        """Find the space groups of all crystals; the first process shows how far it is."""
        alone = self.processes.world == 1
        for name, crystals in self.datasets.items():
            shown = progress("space groups", "crystals") if self.processes.rank == 0 else None
            with shown or nullcontext(lambda done, total: None) as update:
                skeletons, self.images[name] = find_symmetry(
                    crystals, workers=min(4, cores()) if alone else 1, progress=update
                )
            if name == "train":
                # Those that `start_from` has count once, or its own crystals would count twice.
                before = self.model.skeletons
                known = set(before)
                added = [one for one in skeletons if one not in known]
                self.model.skeletons = Skeletons.of([*before, *added])

    def fraction(self) -> float:
        """Return the fraction of the run that is over: of its steps, minutes or CPU minutes."""
        s, p = self.settings, self.progress
        limits = ((p.seconds, s.minutes), (p.step_cpu_seconds, s.cpu_minutes))
        done = p.step / (s.epochs * len(self.batches))
        return max(done, *(spent / (60 * limit) if limit > 0 else 0.0 for spent, limit in limits))

    def run(self, stop: StopSignal) -> None:
        """Take steps until the run is over, or a signal asks to stop.

        Args:
            stop: Looked at after every step; the state is saved before it is obeyed.

        Raises:
            TrainingError: If a loss or a gradient is not finite; the batch is saved.
            KeyboardInterrupt: After SIGINT; SystemExit after SIGTERM.
        """
        s, p = self.settings, self.progress
        self._saved_at = p.seconds
        with ExitStack() as stack:
            if self.processes.rank == 0:
                self.log = MetricsLog(self.folder, last_step=p.step)
                stack.callback(self.log.close)
                update = stack.enter_context(progress("training", "crystals", done=p.crystals))
            self._spend()
            planned = s.epochs * len(self.batches)
            if planned < 2 * s.warmup_steps and self.log is not None:
                log(
                    "training",
                    f"the learning rate rises for {s.warmup_steps} of at most {planned} steps: for "
                    f"so few crystals set training.warmup_steps={planned // 10}",
                )
            if s.start_from and not p.step:
                self.validate(-1)
            while self.fraction() < 1:
                epoch, done = divmod(p.step, len(self.batches))
                order = self.batches.sampler
                assert isinstance(order, BatchSampler)
                order.set_epoch(epoch)
                order.start = done
                for batch, groups in self.batches:
                    self.step(batch.to(self.device), groups)
                    stopping = self._count(len(batch), stop.number)
                    self._report(epoch)
                    if self.log is not None:
                        update(p.crystals, p.crystals / min(self.fraction(), 1))
                    if self.fraction() >= 1 or p.step == (epoch + 1) * len(self.batches):
                        break
                    if stopping or p.seconds - self._saved_at >= 60 * s.save_minutes:
                        self.save()
                    if stopping:
                        stop.leave(stopping)
                if (epoch + 1) % s.validate_every == 0 or self.fraction() >= 1:
                    self.validate(epoch)
                self.save()
                if stopping:
                    stop.leave(stopping)

    def step(self, batch: Crystals, groups: SpaceGroups | None) -> None:
        """Take one step of the optimizers: noise the crystals, predict, follow the gradient.

        Args:
            batch: Clean crystals.
            groups: Their space groups, in which `symmetric_fraction` of them are noised.

        Raises:
            TrainingError: If a loss or a gradient is not finite; the batch is saved.

        Source: [Klipfel24] Algorithm 1.
        """
        s, p = self.settings, self.progress
        factor = rate_factor(p.step, self.fraction(), warmup_steps=s.warmup_steps, decay=s.decay)
        t, losses = self.backward(batch, groups)
        self.processes.average_gradients(self.denoiser.parameters())
        norm = torch.nn.utils.clip_grad_norm_(self.denoiser.parameters(), s.clip_norm or math.inf)
        sums = torch.stack([losses.cell.sum(), losses.torus.sum(), norm])
        if self.processes.sum((~sums.isfinite()).sum()):  # on all processes or on none
            raise TrainingError(self._leave_behind(batch, t, losses, float(norm)))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = s.learning_rate * factor
            optimizer.step()
        self.average.update_parameters(self.denoiser)
        shown = torch.stack([losses.cell, losses.torus]).clamp(max=self.limit).sum(1).tolist()
        added = (*shown, float(norm), len(batch), 1)
        p.window = [a + b for a, b in zip(p.window, added, strict=True)]
        p.step += 1

    def backward(
        self, batch: Crystals, groups: SpaceGroups | None
    ) -> tuple[Int[Tensor, " crystals"], Losses]:
        """Evaluate the gradients of a batch; returns the noise levels drawn and the losses.

        Args:
            batch: Clean crystals.
            groups: Space groups that they are noised in; None for none.
        """
        s = self.settings
        generator = step_generator(s.seed, self.progress.step, self.processes.rank)
        t = draw_steps(
            len(batch),
            self.diffusion.steps,
            high_noise_fraction=s.high_noise_fraction,
            generator=generator,
        ).to(self.device)
        if groups is not None:
            free = torch.rand(len(batch), generator=generator) >= s.symmetric_fraction
            groups = groups.without(free, batch.crystal_of_atom.cpu()).to(self.device)
        self.denoiser.zero_grad()
        losses = accumulate_gradients(
            in_precision(self.denoiser, s.precision),
            self.diffusion,
            batch,
            t,
            generator,
            groups=groups,
            cell_weight=s.cell_weight,
            limit=self.limit,
            piece_atoms=s.cpu_atoms if self.device.type == "cpu" else 0,
        )
        return t, losses

    def _leave_behind(self, batch: Crystals, t: Tensor, losses: Losses, norm: float) -> str:
        """Save a batch that gives nothing finite, for inspection; returns what happened."""
        step, rank, last = self.progress.step, self.processes.rank, self.folder / LAST
        path = self.folder / (f"{rank}-{FAILED}" if rank else FAILED)
        tensors = vars(batch) | {"t": t, "cell_loss": losses.cell, "torus_loss": losses.torus}
        kept = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        save_file(kept, path, {"step": str(step), "seed": str(self.settings.seed)})
        finite = bool(torch.isfinite(losses.cell).all() and torch.isfinite(losses.torus).all())
        what = f"gradient norm {norm}" if finite else "a loss that is not finite"
        return (
            f"step {step} has {what}: the batch is in {path}, the weights before it in {last}; "
            "lower training.learning_rate and start another run with "
            f"training.start_from={last}, or leave the crystal out"
        )

    def _spend(self) -> tuple[float, float]:
        """Count the wall time and the CPU time since the last call, and return them."""
        before, self._clock = self._clock, (time.monotonic(), time.process_time())
        wall, cpu = (now - then for now, then in zip(self._clock, before, strict=True))
        self.progress.wall_seconds += wall
        self.progress.cpu_seconds += cpu
        return wall, cpu

    def _count(self, crystals: int, signal_number: int) -> int:
        """Count a step; returns the signal to stop for, or 0. All processes agree."""
        p, world = self.progress, self.processes.world
        wall, cpu = self._spend()
        if world > 1:
            figures = torch.tensor(
                [wall / world, cpu, crystals, signal_number == signal.SIGINT, signal_number > 0],
                dtype=torch.float32,
                device=self.device,
            )
            wall, cpu, seen, interrupts, stops = self.processes.sum(figures).tolist()
            crystals = int(seen)
            signal_number = (signal.SIGINT if interrupts else signal.SIGTERM) if stops else 0
        p.seconds += wall
        p.step_cpu_seconds += cpu
        p.crystals += crystals
        return signal_number

    def _report(self, epoch: int) -> None:
        """Write the mean losses of every `log_every` steps."""
        cell, torus, gradient, crystals, steps = self.progress.window
        if steps >= self.settings.log_every:
            figures = {
                "learning_rate": self.optimizers[0].param_groups[0]["lr"],
                "train/loss": torus / crystals + self.settings.cell_weight * (cell / crystals),
                "train/cell": cell / crystals,
                "train/torus": torus / crystals,
                "train/gradient_norm": gradient / steps,
            }
            self._write(epoch, figures)
            self.progress.window = [0.0] * 5

    def _write(self, epoch: int, figures: dict[str, float]) -> None:
        p = self.progress
        place = {"epoch": epoch, "crystals": p.crystals, "minutes": p.seconds / 60}
        if self.log is not None:
            self.log.write(p.step, place | figures)

    @torch.no_grad()
    def validate(self, epoch: int) -> None:
        """Evaluate the averaged weights, sample if that is due, and keep them if they are best.

        Args:
            epoch: Its number, from 0; -1 before the first step.
        """
        s, p = self.settings, self.progress
        self.average.eval()
        p.figures = figures = self.validation_losses()
        if self.processes.rank == 0:
            due = p.step and s.sample_every
            due = due and ((epoch + 1) % s.sample_every == 0 or self.fraction() >= 1)
            count = min(s.sample_crystals, len(self.datasets["validation"]))
            if due and count:
                references = self.datasets["validation"][range(count)]
                model = (self.average, self.diffusion, self.config.sampling)
                found = sample_quality(*model, references, device=self.device)
                figures |= {f"sample/{name}": value for name, value in found.items()}
            self._write(epoch, figures)
            self._log_validation(epoch)
        better = figures["val/loss"] < p.best
        p.best = min(p.best, figures["val/loss"])
        if better:
            self.export(self.folder / BEST)
        self._spend()

    def _log_validation(self, epoch: int) -> None:
        p = self.progress
        line = "val {val/loss:.4f} (cell {val/cell:.4f}, torus {val/torus:.4f}"
        if "val/symmetric_cell" in p.figures:
            line += "; in space groups {val/symmetric_cell:.4f}, {val/symmetric_torus:.4f}"
        line += ")"
        if "sample/valid" in p.figures:
            line += ", valid {sample/valid:.1%}, match {sample/match_rate:.1%}"
        line = line.format_map(p.figures)
        if not p.step:
            log("training", f"before training, {line}")
            return
        left = p.seconds * (1 / self.fraction() - 1) / 60
        speed = f"{p.crystals / p.seconds:.0f} crystals/s, {max(left, 0):.0f} min left"
        log("training", f"epoch {epoch + 1}, step {p.step}, {line}, {speed}")

    def validation_losses(self) -> dict[str, float]:
        """Return the losses at noise levels and noise that are the same every time.

        Where training noises inside space groups all crystals are noised in both ways; the loss is
        that of the fraction that training has of each.
        """
        kind = torch.float32 if self.device.type == "mps" else torch.float64
        inside = self.settings.symmetric_fraction
        parts = {"": 1 - inside} | ({"symmetric_": inside} if self.images else {})
        sums = torch.zeros(len(parts), FIFTHS, 3, dtype=kind, device=self.device)
        steps, world = self.diffusion.steps, self.processes.world
        for number, (batch, groups) in enumerate(self.validation):
            crystals = batch.to(self.device)
            generator = step_generator(_VALIDATION_SEED, number * world + self.processes.rank, 0)
            u = (torch.arange(len(batch)) * _GOLDEN + torch.rand(1, generator=generator)) % 1
            t = ((u * steps).long().clamp(0, steps - 1) + 1).to(self.device)
            noises = [draw_normals(crystals, generator)]
            if groups is not None:
                noises.append(groups.to(self.device).project_noise(*noises[0], crystals.lattice))
            for way, noise in enumerate(noises):
                losses = losses_at_noise(self.average, self.diffusion, crystals, t, *noise)
                rows = torch.stack([losses.cell, losses.torus, torch.ones_like(losses.cell)], -1)
                rows, fifth = rows.clamp(max=self.limit).to(kind), (t - 1) * FIFTHS // steps
                sums[way].index_add_(0, fifth, rows)
        sums = self.processes.sum(sums).double().cpu()
        sums = torch.cat([sums.sum(1, keepdim=True), sums], 1)  # all levels, then every fifth
        figures = {"val/loss": 0.0}
        for (name, part), means in zip(parts.items(), sums[..., :2] / sums[..., 2:], strict=True):
            for place, (cell, torus) in enumerate(means.tolist()):
                end = f"_{place}" if place else ""
                figures |= {f"val/{name}cell{end}": cell, f"val/{name}torus{end}": torus}
            loss = (
                figures[f"val/{name}torus"] + self.settings.cell_weight * figures[f"val/{name}cell"]
            )
            figures["val/loss"] += part * loss
        return figures

    def export(self, folder: Path) -> None:
        """Write the averaged weights as a checkpoint with its card, as the first process.

        Args:
            folder: Of the checkpoint.
        """
        if self.processes.rank != 0:
            return
        p = self.progress
        data = {
            name: {"crystals": len(dataset), "sha256": dataset.store.header["sha256"]}
            | {"sources": dataset.store.header.get("sources", [])}
            for name, dataset in self.datasets.items()
        }
        card = {
            "preset": self.config.preset,
            "parameters": sum(parameter.numel() for parameter in self.denoiser.parameters()),
            "data": data,
            "start_from": self.settings.start_from,
            **self.made_with,
            "date": today(),
            "processes": self.processes.world,
            "steps": p.step,
            "epochs": round(p.step / len(self.batches), 3),
            "crystals_seen": p.crystals,
            "training_minutes": round(p.seconds / 60, 3),
            "training_cpu_minutes": round(p.step_cpu_seconds / 60, 3),
            "wall_minutes": round(p.wall_seconds / 60, 3),
            "cpu_minutes": round(p.cpu_seconds / 60, 3),
            "figures": {k: v for k, v in p.figures.items() if not math.isnan(v)},
        }
        model = dataclasses.replace(self.model, denoiser=self.average.module, card=card)
        save_checkpoint(model, folder)
        if model.scorer is not None and not (folder / SCORER_CARD).exists():
            theirs = read_scorer_card(_start_of(self.config)) or {}
            since = f"the crystals of checkpoint {self.model.digest}; its figures are of those"
            save_scorer(model.scorer, folder, {"fitted_with": since} | theirs.get("card", {}))

    def save(self) -> None:
        """Write `last/` and the state, each whole or not at all, as the first process."""
        self._saved_at = self.progress.seconds
        if self.processes.rank != 0:
            return
        self.export(self.folder / LAST)
        state = {
            "progress": dataclasses.asdict(self.progress),
            "weights": self.denoiser.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        path = self.folder / STATE
        path.parent.mkdir(exist_ok=True)
        with atomic_path(path) as aside:
            torch.save(state, aside)

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Args:
            state: As `read_state` gives it.

        Raises:
            TrainingError: If it is of another network, or its cells are in other units.
        """
        last = self.folder / LAST
        if self.settings.start_from and last.is_dir():
            units = zip(
                dataclasses.astuple(load_checkpoint(last).statistics),
                dataclasses.astuple(self.model.statistics),
                strict=True,
            )
            # Until 0.2.0 a run with start_from took those of its own crystals.
            if not all(torch.allclose(theirs, mine) for theirs, mine in units):
                raise TrainingError(
                    f"the run in {self.folder} was begun by an earlier version, with cells in "
                    "other units: finish it with that version, or start another run with "
                    f"training.start_from={last}"
                )
        try:
            self.progress = Progress(**state["progress"])
            self.denoiser.load_state_dict(state["weights"])
            self.average.load_state_dict(state["average"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                # Rates and decays are of the settings, whatever the file says.
                groups = optimizer.state_dict()["param_groups"]
                optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
                if any(float(one.get("step", 0)) < 0 for one in optimizer.state.values()):
                    raise ValueError("an optimizer has taken a negative number of steps")
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise TrainingError(
                f"{self.folder / STATE} is the state of another network ({str(error)[:120]}): "
                f"start another run with training.start_from={self.folder / LAST}"
            ) from error


def _initial_model(config: Config, train_set: CrystalDataset) -> CrystalModel:
    """Return the model to train: a new one, or that of `start_from` and all that it knows."""
    crystals = train_set[range(len(train_set))]
    start = config.training.start_from and _start_of(config)
    source = load_checkpoint(start) if start else None
    # Weights hold for cells in units of the statistics that they were trained with.
    statistics = source.statistics if source else fit_cell_statistics(crystals)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        model = build_model(config, statistics)
    model.trained_elements = frozenset(crystals.atomic_numbers.unique().tolist())
    model.max_atoms = int(crystals.n_atoms.max())
    if source is None:
        return model
    mine, theirs = model.config, source.config
    if (mine.preset, mine.network) != (theirs.preset, theirs.network):
        raise TrainingError(
            f"training.start_from = {start} has preset {theirs.preset} and network "
            f"{theirs.network}, the configuration {mine.preset} and {mine.network}: make the "
            "network settings equal"
        )
    model.denoiser.load_state_dict(source.denoiser.state_dict())
    model.trained_elements |= source.trained_elements
    model.max_atoms = max(model.max_atoms, source.max_atoms)
    model.skeletons, model.digest = source.skeletons, source.digest
    if mine.diffusion == theirs.diffusion:  # the scorer is told one of its noise levels
        model.scorer = source.scorer
    return model


def _start_of(config: Config) -> Path:
    """Return the checkpoint that a run starts from."""
    named = config.training.start_from
    return SHIPPED if named == "shipped" else Path(named)


def accumulate_gradients(
    denoiser: Denoiser,
    diffusion: Diffusion,
    batch: Crystals,
    t: Int[Tensor, " crystals"],
    generator: torch.Generator,
    *,
    groups: SpaceGroups | None = None,
    cell_weight: float = 1.0,
    limit: float = math.inf,
    piece_atoms: int = 0,
) -> Losses:
    """Add the gradients of the mean loss of a batch to those of the network's parameters.

    The batch can go through in pieces, each backward at once, so that memory does not grow with
    the batch. The noise is drawn for the batch, whatever the pieces.

    Args:
        denoiser: The network.
        diffusion: The forward process.
        batch: Clean crystals.
        t: Step of each crystal, 1 … T.
        generator: Source of the noise.
        groups: Space groups that the noise keeps.
        cell_weight: Weight of L^ρ beside L^x.
        limit: A crystal's losses count up to this.
        piece_atoms: Atoms worked on at a time; one crystal may have more. 0 means all.

    Returns:
        The losses of every crystal, without limit and without gradients.

    Source: [Klipfel24] Algorithm 1, lines 3 to 7.
    """
    atoms, cells = draw_normals(batch, generator)
    if groups is not None:
        atoms, cells = groups.project_noise(atoms, cells, batch.lattice)
    pieces = batch_pieces(batch, piece_atoms)
    found = []
    for chosen, rows in pieces:
        part = batch if len(pieces) == 1 else batch.select(range(len(batch))[chosen])
        losses = losses_at_noise(denoiser, diffusion, part, t[chosen], atoms[rows], cells[chosen])
        cell, torus = losses.cell.clamp(max=limit), losses.torus.clamp(max=limit)
        ((torus.sum() + cell_weight * cell.sum()) / len(batch)).backward()
        found.append(torch.stack([losses.cell.detach(), losses.torus.detach()]))
    return Losses(*torch.cat(found, 1))


def batch_pieces(batch: Crystals, piece_atoms: int) -> list[tuple[slice, slice]]:
    """Divide a batch into runs of crystals of at most so many atoms, or of one crystal.

    Args:
        batch: The crystals.
        piece_atoms: Atoms per piece; 0 means all at once.

    Returns:
        Crystals and atoms of each piece.
    """
    start = [0, *torch.cumsum(batch.n_atoms, 0).tolist()]
    pieces, first = [], 0
    for i in range(1, len(batch) + 1):
        if i == len(batch) or (piece_atoms > 0 and start[i + 1] - start[first] > piece_atoms):
            pieces.append((slice(first, i), slice(start[first], start[i])))
            first = i
    return pieces


def step_generator(seed: int, step: int, rank: int) -> torch.Generator:
    """Return the source of the noise of one step of one process, the same whenever it is run.

    Args:
        seed: Of the run.
        step: From 0.
        rank: Of the process, from 0.
    """
    digest = hashlib.blake2b(f"{seed} {step} {rank}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def draw_steps(
    count: int, steps: int, *, high_noise_fraction: float, generator: torch.Generator
) -> Int[Tensor, " count"]:
    """Draw t in 1 … T: uniform within the noisiest fifth and within the rest.

    Args:
        count: How many.
        steps: T.
        high_noise_fraction: Fraction of the draws in the noisiest fifth; 0.2 is uniform.
        generator: Source of randomness.

    Source: [Klipfel24] Algorithm 1, line 2.
    Deviation: the noisiest levels can be drawn less often. Hardly anything of positions can be
        learnt there: of the variance of their target about (n - 1) exp(-4π²σ²) can be explained,
        since only differences of two atoms' coordinates tell anything, 0.13 (n - 1) to
        5e-5 (n - 1) for σ = 0.229 to 0.5. Cells, which share t, are learnt (docs/experiments.md).
    """
    u = torch.rand(count, generator=generator)
    noisiest = torch.rand(count, generator=generator) < high_noise_fraction
    u = torch.where(noisiest, 1 - NOISIEST + NOISIEST * u, (1 - NOISIEST) * u)
    return (u * steps).long().clamp(0, steps - 1) + 1
