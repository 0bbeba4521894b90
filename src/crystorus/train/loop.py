"""Train a network: from crystals and a configuration to a checkpoint (Algorithm 1, Table 1).

The folder of a run:

    run.json          settings, status and the digests of the data
    data/             stores built from sources that are not stores
    best/, last/      checkpoints of the averaged weights, see `crystorus.checkpoint`
    state/last.ckpt   what a resumed run needs: weights, averages, optimizer, progress
    metrics.csv       losses; tensorboard/ the same
"""

import dataclasses
import hashlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from safetensors.torch import save_file
from torch import Tensor

from crystal_fidelity.files import atomic_path, disk_errors
from crystal_fidelity.provenance import git_commit, hardware, today
from crystorus.checkpoint import load_checkpoint, save_checkpoint
from crystorus.config import Config, ConfigError, config_from_dict, config_to_dict
from crystorus.crystal_model import CrystalModel, build_diffusion, build_model, products_in
from crystorus.data.batching import BatchLoader, BatchSampler, CrystalDataset
from crystorus.data.store import CrystalStore, open_or_build
from crystorus.diffusion.algorithms import (
    Diffusion,
    Losses,
    draw_normals,
    losses_at_noise,
    training_losses,
)
from crystorus.diffusion.strain_process import CellStatistics, fit_cell_statistics
from crystorus.errors import OutputError, TrainingError
from crystorus.geometry import Crystals
from crystorus.runs.folder import RunFolder, claim, read_record
from crystorus.train.log import FIFTHS, METRICS, MetricsLog, ProgressLine
from crystorus.train.optimizers import averaged, build_optimizer, rate_factor
from crystorus.train.options import check_settings
from crystorus.train.processes import Processes, joined
from crystorus.train.quality import sample_quality

STATE, BEST, LAST, FAILED = "state/last.ckpt", "best", "last", "failed-batch.safetensors"
NAMES = (BEST, LAST, "state", "data", METRICS, "tensorboard", FAILED)
MAY_CHANGE = frozenset(
    f"training.{name}"
    for name in ("epochs", "minutes", "cpu_minutes", "workers", "save_minutes", "accelerator")
)
"""Settings that a resumed run may have otherwise: how long it is, and what decides no number."""
NOISIEST = 0.2
"""`high_noise_fraction` of the draws fall in this part of t, next to T."""

_FEWEST = 8
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
            datasets = _open_data(folder, config, run)
        processes.wait()
        if run is None:
            datasets = _open_data(folder, config)
        state = read_state(folder) if resume else None
        training = Training(config, folder, processes, device, *datasets)
        if state is not None:
            training.load(state)
        processes.wait()
        if training.is_over():
            return
        if run is not None and run.complete:
            run.reopen()
        with stop_signals() as stop, disk_errors(folder):
            training.run(stop)
        if run is not None:
            run.finish()


def _claim(folder: Path, config: Config, *, resume: bool) -> RunFolder:
    """Make the folder that of this run, or find the run there to be this one."""
    record = read_record(folder)
    # A run that ended before its data were open has done nothing: its settings bind nobody.
    never_began = record is not None and "data" not in record.get("facts", {})
    if (
        record is None
        and folder.is_dir()
        and any(p.suffix not in (".part", ".tmp") for p in folder.iterdir())
    ):
        raise OutputError(f"{folder} is not empty and holds no run: choose another folder")

    def adapt(settings: dict[str, Any]) -> dict[str, Any]:
        try:
            return config_to_dict(config_from_dict(settings))
        except (ConfigError, TypeError) as error:
            raise TrainingError(
                f"{folder} has settings this version does not know ({error}): resume with the "
                "crystorus version that started the run"
            ) from error

    return claim(
        folder,
        "train",
        config_to_dict(config),
        resume=resume,
        overwrite=never_began and not resume,
        names=NAMES,
        may_change=MAY_CHANGE,
        adapt=adapt,
    )


def _open_data(
    folder: Path, config: Config, run: RunFolder | None = None
) -> tuple[CrystalDataset, CrystalDataset]:
    """Open the crystals to train on, and a fixed choice of those to validate on.

    Sources that are not stores are converted once; the first process does it, and has `run`.
    """
    train_store = _open_store(folder, "train", config)
    validation_store = _open_store(folder, "validation", config)
    chosen = _small_enough(train_store, config, "data.train")
    if len(chosen) < _FEWEST:
        raise TrainingError(
            f"data.train has {len(chosen)} crystals of at most {config.data.max_atoms} atoms, at "
            f"least {_FEWEST} are needed: give more crystals or raise data.max_atoms"
        )
    held_out = _small_enough(validation_store, config, "data.validation")
    held_out = np.random.default_rng(_CHOICE_SEED).permutation(held_out)
    if config.training.validation_crystals:
        held_out = held_out[: config.training.validation_crystals]
    if run is not None:
        digests = {"train": train_store.header["sha256"]}
        digests["validation"] = validation_store.header["sha256"]
        for name, before in run.facts.get("data", digests).items():
            if before != digests[name]:
                raise TrainingError(
                    f"data.{name} has digest {digests[name][:12]}…, the run in {folder} began "
                    f"with {before[:12]}…: put the old data back, or start another run"
                )
        run.note(data=digests)
    return CrystalDataset(train_store, chosen), CrystalDataset(validation_store, held_out)


def _open_store(folder: Path, name: str, config: Config) -> CrystalStore:
    source, cache = Path(getattr(config.data, name)), folder / "data" / f"{name}.store"
    if not source.exists() and not cache.is_file():
        raise TrainingError(
            f'data.{name} = "{source}" does not exist: fetch MP-20 with `crystorus data get '
            f"mp-20`, or give data.{name}=… a file of crystals"
        )
    return open_or_build(source, cache, n_workers=min(4, os.cpu_count() or 1))


def _small_enough(store: CrystalStore, config: Config, setting: str) -> np.ndarray:
    chosen = np.flatnonzero(store.n_atoms <= config.data.max_atoms)
    if not len(chosen):
        raise TrainingError(
            f"{setting} has no crystal of at most {config.data.max_atoms} atoms: raise "
            "data.max_atoms or give other crystals"
        )
    return chosen


def read_state(folder: Path) -> dict[str, Any] | None:
    """Read the saved state of a run; None if it was ended before the first was saved.

    Nothing in the file is executed: it may hold tensors and plain values only.

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
        return {key: state[key] for key in ("progress", "weights", "average", "optimizer")}
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TrainingError(
            f"{path} cannot be resumed from ({first[:120]}): it is damaged or not ours; start "
            f"another run with training.start_from={folder / LAST}"
        ) from error


def _from_lightning(state: dict[str, Any]) -> dict[str, Any]:
    """Translate a state that version 0.1.0 saved."""
    window, evaluation = state["window"], state["callbacks"]["Evaluation"]
    progress = Progress(
        step=state["global_step"],
        best=evaluation["best"],
        figures=evaluation["figures"],
        window=[window[k] for k in ("cell", "torus", "gradient", "crystals", "steps")],
        **state["tally"],
    )
    weights, mean = (
        {name.removeprefix("denoiser."): value for name, value in state[key].items()}
        for key in ("current_model_state", "state_dict")
    )
    average = {f"module.{name}": value for name, value in mean.items()}
    average["n_averaged"] = state["averaging_state"]["n_averaged"]
    return {
        "progress": dataclasses.asdict(progress),
        "weights": weights,
        "average": average,
        "optimizer": state["optimizer_states"][0],
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


@dataclass
class StopSignal:
    """The signal that asked the run to stop, 0 before there is one."""

    number: int = 0


@contextmanager
def stop_signals() -> Iterator[StopSignal]:
    """Defer SIGINT and SIGTERM: the first stops after the present step, the second at once."""
    stop = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def receive(number: int, frame: object) -> None:
        if stop.number:
            _stop(number)
        stop.number = number

    before = {n: signal.signal(n, receive) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int) -> None:
    """Leave because of a signal."""
    if number == signal.SIGTERM:
        raise SystemExit(128 + number)
    raise KeyboardInterrupt


class Training:
    """A run in one process: the network, its average, the optimizer, the batches, the progress.

    Args:
        config: All settings.
        folder: Where the first process writes.
        processes: The place of this process among all.
        device: Where it works.
        train_set: Crystals to train on.
        validation_set: Crystals to validate on.

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
        train_set: CrystalDataset,
        validation_set: CrystalDataset,
    ) -> None:
        self.config, self.settings = config, config.training
        self.folder, self.processes, self.device = folder, processes, device
        self.train_set, self.validation_set = train_set, validation_set
        self.model = _initial_model(config, train_set)
        self.diffusion = self.model.diffusion
        self.denoiser = self.model.denoiser.to(device)
        self.average = averaged(self.denoiser, self.settings.ema_decay)
        self.optimizer = build_optimizer(self.denoiser, self.settings)
        self.limit = self.settings.loss_limit or math.inf
        self.batches = self._loader(train_set, self.settings.seed, self.settings.workers)
        self.validation = self._loader(validation_set, 0, workers=0, fixed=True)
        self.progress = Progress()
        self._clock = (time.monotonic(), time.process_time())
        self._saved_at = 0.0

    def _loader(
        self, dataset: CrystalDataset, seed: int, workers: int, *, fixed: bool = False
    ) -> BatchLoader:
        try:
            sampler = BatchSampler(
                dataset.n_atoms,
                batch_size=self.settings.batch_size,
                batch_pairs=self.settings.batch_pairs,
                seed=seed,
                rank=self.processes.rank,
                world=self.processes.world,
                fixed=fixed,
            )
        except ValueError as error:
            raise TrainingError(str(error)) from error
        return BatchLoader(dataset, sampler, workers=workers)

    def run(self, stop: StopSignal) -> None:
        """Take steps until the run is over, or a signal asks to stop.

        Raises:
            TrainingError: If a loss or a gradient is not finite; the batch is saved.
            KeyboardInterrupt: After SIGINT, once the state is saved; SystemExit after SIGTERM.
        """
        s, p = self.settings, self.progress
        self.log = self.line = None
        if self.processes.rank == 0:
            self.log = MetricsLog(self.folder, last_step=p.step)
            self.line = ProgressLine(self.fraction(), p.seconds, p.crystals)
        self._saved_at = p.seconds
        self._clock = (time.monotonic(), time.process_time())
        try:
            while not self.is_over():
                epoch, done = divmod(p.step, len(self.batches))
                self.batches.batches.set_epoch(epoch)
                self.batches.batches.start = done
                for batch in self.batches:
                    self.step(batch.to(self.device))
                    stopping = self._count(len(batch), stop)
                    self._report(epoch)
                    if self.is_over() or p.step == (epoch + 1) * len(self.batches):
                        break
                    if stopping or p.seconds - self._saved_at >= 60 * s.save_minutes:
                        self.save()
                    if stopping:
                        _stop(stopping)
                if (epoch + 1) % s.validate_every == 0 or self.is_over():
                    self.validate(epoch)
                self.save()
                if stopping:
                    _stop(stopping)
        finally:
            if self.log is not None and self.line is not None:
                self.log.close()
                self.line.close()

    def step(self, batch: Crystals) -> None:
        """Take one step of the optimizer: noise the crystals, predict, and follow the gradient.

        Source: [Klipfel24] Algorithm 1.
        """
        s, p = self.settings, self.progress
        factor = rate_factor(p.step, self.fraction(), warmup_steps=s.warmup_steps, decay=s.decay)
        for group in self.optimizer.param_groups:
            group["lr"] = s.learning_rate * factor
        t, losses = self.backward(batch)
        self.processes.average_gradients(self.denoiser.parameters())
        norm = torch.nn.utils.clip_grad_norm_(self.denoiser.parameters(), s.clip_norm or math.inf)
        sums = torch.stack([losses.cell.sum(), losses.torus.sum(), norm])
        bad = self.processes.sum((~sums.isfinite()).sum())
        if bad:
            raise TrainingError(self._leave(batch, t, losses, float(norm)))
        self.optimizer.step()
        self.average.update_parameters(self.denoiser)
        shown = torch.stack([losses.cell, losses.torus]).clamp(max=self.limit).sum(1).tolist()
        added = (*shown, float(norm), len(batch), 1)
        p.window = [a + b for a, b in zip(p.window, added, strict=True)]
        p.step += 1

    def backward(self, batch: Crystals) -> tuple[Int[Tensor, " crystals"], Losses]:
        """Evaluate the gradients of a batch; returns the noise levels drawn and the losses."""
        s, place = self.settings, self.processes
        generator = step_generator(s.seed, self.progress.step, place.rank)
        t = draw_steps(
            len(batch),
            self.diffusion.steps,
            high_noise_fraction=s.high_noise_fraction,
            generator=generator,
        ).to(self.device)
        self.optimizer.zero_grad()
        with products_in(self.denoiser, s.precision):
            losses = accumulate_gradients(
                self.denoiser,
                self.diffusion,
                batch,
                t,
                generator,
                cell_weight=s.cell_weight,
                limit=self.limit,
                piece_atoms=s.cpu_atoms if self.device.type == "cpu" else 0,
            )
        return t, losses

    def _leave(self, batch: Crystals, t: Tensor, losses: Losses, norm: float) -> str:
        """Save a batch that gives nothing finite, for inspection; returns what happened."""
        path, step, rank = self.folder / FAILED, self.progress.step, self.processes.rank
        path = path.with_stem(f"{path.stem}-{rank}") if rank else path
        tensors = {k: getattr(batch, k) for k in ("lattice", "frac_coords", "atomic_numbers")}
        tensors |= {"n_atoms": batch.n_atoms, "t": t}
        tensors |= {"cell_loss": losses.cell, "torus_loss": losses.torus}
        about = {"step": step, "seed": self.settings.seed, "rank": rank}
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in tensors.items()},
            path,
            {k: str(v) for k, v in about.items()},
        )
        finite = bool(torch.isfinite(losses.cell).all() and torch.isfinite(losses.torus).all())
        what = f"gradient norm {norm}" if finite else "a loss that is not finite"
        return (
            f"step {step} has {what}: the batch is in {path}, the weights before it in "
            f"{self.folder / LAST}; lower training.learning_rate and start another run with "
            f"training.start_from={self.folder / LAST}, or leave the crystal out"
        )

    def _count(self, crystals: int, stop: StopSignal) -> int:
        """Add a step to what is used up; all processes agree on it.

        Returns:
            The signal to stop for, or 0.
        """
        p, before = self.progress, self._clock
        self._clock = (time.monotonic(), time.process_time())
        spent, cpu = (now - then for now, then in zip(self._clock, before, strict=True))
        p.wall_seconds += spent
        p.cpu_seconds += cpu
        stopping, world = stop.number, self.processes.world
        if world > 1:
            figures = torch.tensor([spent, crystals, cpu], dtype=torch.float32, device=self.device)
            signals = torch.tensor(stopping, device=self.device)
            spent, crystals, cpu = self.processes.sum(figures).tolist()
            spent, crystals = spent / world, int(crystals)
            stopping = int(self.processes.sum(signals))
            stopping = stopping if stopping in (0, signal.SIGTERM) else signal.SIGINT
        p.seconds += spent
        p.step_cpu_seconds += cpu
        p.crystals += crystals
        return stopping

    def _report(self, epoch: int) -> None:
        """Move the bar, and write the mean losses of every `log_every` steps."""
        p = self.progress
        if self.line is not None:
            self.line.update(epoch, self.fraction(), p.seconds, p.crystals)
        cell, torus, gradient, crystals, steps = p.window
        if steps < self.settings.log_every:
            return
        metrics = {
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "train/loss": torus / crystals + self.settings.cell_weight * (cell / crystals),
            "train/cell": cell / crystals,
            "train/torus": torus / crystals,
            "train/gradient_norm": gradient / steps,
        }
        self._write(epoch, metrics)
        p.window = [0.0] * 5

    def _write(self, epoch: int, metrics: dict[str, float]) -> None:
        p = self.progress
        place = {"epoch": epoch, "crystals": p.crystals, "minutes": p.seconds / 60}
        if self.log is not None:
            self.log.write(p.step, place | metrics)

    def fraction_of_time(self) -> float:
        """Return the fraction of the wall time or of the CPU time of the run that is spent."""
        p, s = self.progress, self.settings
        limits = ((p.seconds, s.minutes), (p.step_cpu_seconds, s.cpu_minutes))
        return max((spent / (60 * limit) for spent, limit in limits if limit > 0), default=0.0)

    def fraction(self) -> float:
        """Return the fraction of the run that is over: of its steps, minutes or CPU minutes."""
        steps = self.settings.epochs * len(self.batches)
        return max(self.progress.step / steps, self.fraction_of_time())

    def is_over(self) -> bool:
        """Tell whether nothing is left to do."""
        return self.fraction() >= 1

    @torch.no_grad()
    def validate(self, epoch: int) -> None:
        """Evaluate the averaged weights, sample if due, and keep `last/` and perhaps `best/`."""
        p = self.progress
        self.average.eval()
        figures = self.validation_losses()
        if self.processes.rank == 0:
            if self._sample_is_due(epoch):
                figures |= self._sample()
            self._write(epoch, figures)
            if self.line is not None:
                self.line.validated(p.step, figures)
        p.figures = figures
        better = figures["val/loss"] < p.best
        p.best = min(p.best, figures["val/loss"])
        if better:
            self.export(self.folder / BEST)
        self._spend_outside_steps()

    def validation_losses(self) -> dict[str, float]:
        """Return the losses at noise levels and noise that are the same every time."""
        kind = torch.float32 if self.device.type == "mps" else torch.float64
        sums = torch.zeros(FIFTHS, 3, dtype=kind, device=self.device)
        steps, place = self.diffusion.steps, self.processes
        for number, batch in enumerate(self.validation):
            crystals = batch.to(self.device)
            generator = step_generator(_VALIDATION_SEED, number * place.world + place.rank, 0)
            u = (torch.arange(len(batch)) * _GOLDEN + torch.rand(1, generator=generator)) % 1
            t = ((u * steps).long().clamp(0, steps - 1) + 1).to(self.device)
            losses = training_losses(self.average, self.diffusion, crystals, t, generator)
            rows = torch.stack([losses.cell, losses.torus, torch.ones_like(losses.cell)], -1)
            of_batch = torch.zeros_like(sums)
            fifth = (t - 1) * FIFTHS // steps
            sums += of_batch.index_add_(0, fifth, rows.clamp(max=self.limit).to(kind))
        sums = place.sum(sums).double().cpu()
        cell, torus, _ = (sums.sum(0) / sums[:, 2].sum()).tolist()
        figures = {
            "val/loss": torus + self.settings.cell_weight * cell,
            "val/cell": cell,
            "val/torus": torus,
        }
        for i, (cell, torus) in enumerate((sums[:, :2] / sums[:, 2:]).tolist(), start=1):
            figures |= {f"val/cell_{i}": cell, f"val/torus_{i}": torus}
        return figures

    def _sample_is_due(self, epoch: int) -> bool:
        every, number = self.settings.sample_every, epoch + 1
        return (
            every > 0
            and self.settings.sample_crystals > 0
            and (number % every == 0 or self.is_over())
        )

    def _sample(self) -> dict[str, float]:
        count = min(self.settings.sample_crystals, len(self.validation_set))
        found = sample_quality(
            self.average,
            self.diffusion,
            self.config.sampling,
            self.validation_set[range(count)],
            device=self.device,
        )
        return {
            "sample/valid": found.valid,
            "sample/match_rate": found.match_rate,
            "sample/match_rmse": found.rmse,
        }

    def _spend_outside_steps(self) -> None:
        """Leave the time since the last step out of what the limits count."""
        before = self._clock
        self._clock = (time.monotonic(), time.process_time())
        self.progress.wall_seconds += self._clock[0] - before[0]
        self.progress.cpu_seconds += self._clock[1] - before[1]

    def export(self, folder: Path) -> None:
        """Write the averaged weights as a checkpoint with its card, as the first process."""
        if self.processes.rank != 0:
            return
        p = self.progress
        card = {
            "preset": self.config.preset,
            "parameters": sum(parameter.numel() for parameter in self.denoiser.parameters()),
            "data": {
                "train": _described(self.train_set),
                "validation": _described(self.validation_set),
            },
            "start_from": self.settings.start_from,
            "crystorus": _own_version(),
            "commit": git_commit(__file__),
            "torch": torch.__version__,
            "date": today(),
            "hardware": hardware(str(self.device)),
            "processes": self.processes.world,
            "steps": p.step,
            "epochs": round(p.step / len(self.batches), 3),
            "crystals_seen": p.crystals,
            "training_minutes": round(p.seconds / 60, 3),
            "training_cpu_minutes": round(p.step_cpu_seconds / 60, 3),
            "wall_minutes": round(p.wall_seconds / 60, 3),
            "cpu_minutes": round(p.cpu_seconds / 60, 3),
            "figures": {k: v for k, v in p.figures.items() if v == v},
        }
        model = dataclasses.replace(self.model, denoiser=self.average.module, card=card)
        save_checkpoint(model, folder)

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
            "optimizer": self.optimizer.state_dict(),
        }
        path = self.folder / STATE
        path.parent.mkdir(exist_ok=True)
        with atomic_path(path) as aside:
            torch.save(state, aside)

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            TrainingError: If it is of another network.
        """
        try:
            self.progress = Progress(**state["progress"])
            self.denoiser.load_state_dict(state["weights"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise TrainingError(
                f"{self.folder / STATE} is the state of another network ({str(error)[:120]}): "
                f"start another run with training.start_from={self.folder / LAST}"
            ) from error


def _initial_model(config: Config, train_set: CrystalDataset) -> CrystalModel:
    """Return the model to train, with new weights or those of `start_from`."""
    crystals = train_set[range(len(train_set))]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        model = build_model(config, fit_cell_statistics(crystals))
    if config.training.start_from:
        path = Path(config.training.start_from)
        source = load_checkpoint(path)
        mine, theirs = model.config, source.config
        if (mine.preset, mine.network) != (theirs.preset, theirs.network):
            raise TrainingError(
                f"training.start_from = {path} has preset {theirs.preset} and network "
                f"{theirs.network}, the configuration {mine.preset} and {mine.network}: make the "
                "network settings equal"
            )
        model.denoiser.load_state_dict(source.denoiser.state_dict())
    return dataclasses.replace(
        model,
        trained_elements=frozenset(crystals.atomic_numbers.unique().tolist()),
        max_atoms=int(crystals.n_atoms.max()),
    )


def _described(dataset: CrystalDataset) -> dict[str, Any]:
    header = dataset.store.header
    return {
        "crystals": len(dataset),
        "sha256": header["sha256"],
        "sources": header.get("sources", []),
    }


def _own_version() -> str:
    with suppress(PackageNotFoundError):
        return version("crystorus")
    return "unknown"


def accumulate_gradients(
    denoiser: torch.nn.Module,
    diffusion: Diffusion,
    batch: Crystals,
    t: Int[Tensor, " crystals"],
    generator: torch.Generator,
    *,
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
        cell_weight: Weight of L^ρ beside L^x.
        limit: A crystal's losses count up to this.
        piece_atoms: Atoms worked on at a time; one crystal may have more. 0 means all.

    Returns:
        The losses of every crystal, without limit and without gradients.

    Source: [Klipfel24] Algorithm 1, lines 3 to 7.
    """
    atoms, cells = draw_normals(batch, generator)
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
    """Return the source of the noise of one step of one process, the same whenever it is run."""
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
    Deviation: the noisiest levels, where there is little to learn, can be drawn less often.
    """
    u = torch.rand(count, generator=generator)
    noisiest = torch.rand(count, generator=generator) < high_noise_fraction
    u = torch.where(noisiest, 1 - NOISIEST + NOISIEST * u, (1 - NOISIEST) * u)
    return (u * steps).long().clamp(0, steps - 1) + 1
