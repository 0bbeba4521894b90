"""What happens around the steps: time, validation, checkpoints, the log, saving the state."""

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from crystorus.checkpoint import save_checkpoint
from crystorus.geometry import Crystals
from crystorus.train.averaging import Averaging
from crystorus.train.card import hardware, today
from crystorus.train.errors import Interrupted
from crystorus.train.folder import BEST, LAST, STATE
from crystorus.train.module import FIFTHS, TrainingModule, Window
from crystorus.train.quality import sample_quality


class StopSignal:
    """Ctrl-C as a wish: the first is granted between two steps, the second at once."""

    def __init__(self) -> None:
        self.wanted = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take Ctrl-C as such a wish inside the block."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._receive)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _receive(self, number: int, frame: object) -> None:
        if self.wanted:
            raise Interrupted
        self.wanted = True


class Conductor(Callback):
    """Counts time and crystals, and ends the run when they are used up.

    Args:
        stop: Whether the user wants to stop.
    """

    def __init__(self, stop: StopSignal) -> None:
        self.stop = stop
        self.stopping = False
        self._last = (0.0, 0.0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: TrainingModule) -> None:
        """Start the clocks."""
        self._last = time.monotonic(), time.process_time()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: TrainingModule) -> None:
        """Leave validation out of the time."""
        self._last = time.monotonic(), time.process_time()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: TrainingModule,
        outputs: Any,
        batch: Crystals,
        batch_idx: int,
    ) -> None:
        """Add a step; all processes agree on the figures."""
        now = time.monotonic(), time.process_time()
        spent, cpu = now[0] - self._last[0], now[1] - self._last[1]
        self._last = now
        crystals = len(batch)
        stop = self.stop.wanted or trainer.received_sigterm
        if trainer.world_size > 1:
            figures = torch.tensor(
                [spent, crystals, stop, cpu], dtype=torch.float32, device=pl_module.device
            )
            figures = trainer.strategy.reduce(figures, reduce_op="sum")
            spent, crystals, stop = figures[0].item(), int(figures[1]), bool(figures[2] > 0)
            spent, cpu = spent / trainer.world_size, figures[3].item()
        self.stopping = stop
        pl_module.tally.crystals += crystals
        pl_module.measure(spent, cpu)
        if is_over(pl_module):
            trainer.should_stop = True
        if trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1


def is_over(module: TrainingModule) -> bool:
    """Tell whether a run that is limited in time has used it up."""
    return module.tally.share_of_time(module.settings) >= 1


class TrainingLog(Callback):
    """Writes the mean losses of every `log_every` steps."""

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: TrainingModule,
        outputs: Any,
        batch: Crystals,
        batch_idx: int,
    ) -> None:
        """Write a line if it is due."""
        window, settings = pl_module.window, pl_module.settings
        if window.steps < settings.log_every:
            return
        cell, torus = window.cell / window.crystals, window.torus / window.crystals
        metrics = position(trainer, pl_module) | {
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "train/loss": torus + settings.cell_weight * cell,
            "train/cell": cell,
            "train/torus": torus,
            "train/gradient_norm": window.gradient / window.steps,
        }
        write(trainer, metrics)
        pl_module.window = Window()


def position(trainer: pl.Trainer, module: TrainingModule) -> dict[str, float]:
    """Return how far a run is, for a line of the log."""
    tally = module.tally
    return {
        "epoch": trainer.current_epoch,
        "crystals": tally.crystals,
        "minutes": tally.seconds / 60,
    }


def write(trainer: pl.Trainer, metrics: dict[str, float]) -> None:
    """Write a line to every log."""
    for logger in trainer.loggers:
        logger.log_metrics(metrics, trainer.global_step)


class Evaluation(Callback):
    """Validates, samples, and keeps the best and the last weights as checkpoints.

    It must come before `Averaging` among the callbacks: the averaged weights are in place while
    it works.

    Args:
        folder: Folder of the run.
        origin: The part of the card that stays the same.
        references: Validation crystals whose compositions are sampled.
    """

    def __init__(self, folder: Path, origin: dict[str, Any], references: Crystals | None) -> None:
        self.folder, self.origin, self.references = folder, origin, references
        self.best = float("inf")
        self.figures: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the best loss and the last figures."""
        return {"best": self.best, "figures": dict(self.figures)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from saved ones."""
        self.best, self.figures = state_dict["best"], dict(state_dict["figures"])

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: TrainingModule) -> None:
        """Begin with no losses."""
        pl_module.validated = []

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: TrainingModule) -> None:
        """Reduce, log, sample if due, save."""
        figures = self._losses(trainer, pl_module)
        if trainer.is_global_zero:
            if self._sample_is_due(trainer, pl_module):
                figures |= self._sample(pl_module)
            write(trainer, position(trainer, pl_module) | figures)
        self.figures = figures
        better = figures["val/loss"] < self.best
        if better:
            self.best = figures["val/loss"]
        if trainer.is_global_zero:
            for name in [LAST, *([BEST] if better else [])]:
                self.export(trainer, pl_module, self.folder / name)

    def _losses(self, trainer: pl.Trainer, module: TrainingModule) -> dict[str, float]:
        device = module.device
        kind = torch.float32 if device.type == "mps" else torch.float64
        zero = torch.zeros(FIFTHS, 3, dtype=kind, device=device)
        sums = trainer.strategy.reduce(sum(module.validated, zero), reduce_op="sum").double().cpu()
        module.validated = []
        cell, torus, _ = (sums.sum(0) / sums[:, 2].sum()).tolist()
        figures = {
            "val/loss": torus + module.settings.cell_weight * cell,
            "val/cell": cell,
            "val/torus": torus,
        }
        means = (sums[:, :2] / sums[:, 2:]).tolist()
        for i, (cell, torus) in enumerate(means, start=1):
            figures |= {f"val/cell_{i}": cell, f"val/torus_{i}": torus}
        return figures

    def _sample_is_due(self, trainer: pl.Trainer, module: TrainingModule) -> bool:
        every = module.settings.sample_every
        if not every or self.references is None:
            return False
        number = trainer.current_epoch + 1
        return number % every == 0 or number == trainer.max_epochs or trainer.should_stop

    def _sample(self, module: TrainingModule) -> dict[str, float]:
        assert self.references is not None
        found = sample_quality(
            module.denoiser,
            module.model.diffusion,
            module.model.config.sampling,
            self.references,
            device=module.device,
        )
        return {
            "sample/valid": found.valid,
            "sample/match_rate": found.match_rate,
            "sample/match_rmse": found.rmse,
        }

    def export(self, trainer: pl.Trainer, module: TrainingModule, folder: Path) -> None:
        """Write the module's present weights as a checkpoint, with its card."""
        tally = module.tally
        card = self.origin | {
            "date": today(),
            "hardware": hardware(module.device),
            "processes": trainer.world_size,
            "steps": trainer.global_step,
            "epochs": round(trainer.global_step / trainer.num_training_batches, 3),
            "crystals_seen": tally.crystals,
            "training_minutes": round(tally.seconds / 60, 3),
            "training_cpu_minutes": round(tally.step_cpu_seconds / 60, 3),
            "wall_minutes": round(tally.wall_seconds / 60, 3),
            "cpu_minutes": round(tally.cpu_seconds / 60, 3),
            "figures": {k: v for k, v in self.figures.items() if v == v},
        }
        save_checkpoint(
            dataclasses.replace(module.model, denoiser=module.denoiser, card=card), folder
        )


class Keeper(Callback):
    """Saves the state of the run at the end of epochs and every few minutes in between.

    It must be the last of the callbacks: what it saves is a finished step.

    Args:
        folder: Folder of the run.
        conductor: Knows whether the user wants to stop.
        evaluation: Exports checkpoints.
        averaging: Has the averaged weights.
    """

    def __init__(
        self, folder: Path, conductor: Conductor, evaluation: Evaluation, averaging: Averaging
    ) -> None:
        self.path, self.folder = folder / STATE, folder
        self.conductor, self.evaluation, self.averaging = conductor, evaluation, averaging
        self._saved_at = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: TrainingModule) -> None:
        """Count from here."""
        self._saved_at = pl_module.tally.seconds

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: TrainingModule,
        outputs: Any,
        batch: Crystals,
        batch_idx: int,
    ) -> None:
        """Save if it is due or the user wants to stop.

        Raises:
            Interrupted: Once the state is saved, if the user wants to stop.
        """
        if trainer.is_last_batch or trainer.should_stop:
            return  # the end of the epoch comes at once
        waited = pl_module.tally.seconds - self._saved_at
        if waited >= 60 * pl_module.settings.save_minutes or self.conductor.stopping:
            self.save(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: TrainingModule) -> None:
        """Save.

        Raises:
            Interrupted: Once the state is saved, if the user wants to stop.
        """
        self.save(trainer, pl_module)

    def save(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """Write `last/` and the state, each whole or not at all."""
        if trainer.is_global_zero:
            self.path.parent.mkdir(exist_ok=True)
            with self.averaging.applied(module):
                self.evaluation.export(trainer, module, self.folder / LAST)
        partial = self.path.with_suffix(".partial")
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            with partial.open("rb") as stream:
                os.fsync(stream.fileno())
            partial.replace(self.path)
        self._saved_at = module.tally.seconds
        if self.conductor.stopping:
            raise Interrupted
