"""A run on the screen: a bar with crystals/s and time left, a line per validation, on stderr."""

import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from crystorus.geometry import Crystals
from crystorus.train.callbacks import Evaluation
from crystorus.train.module import TrainingModule


class ProgressLine(Callback):
    """Shows how far a run is.

    Args:
        evaluation: Has the figures of the last validation.
    """

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation
        self.console = Console(stderr=True)
        self._bar: Progress | None = None
        self._start = (0.0, 0, 0.0)
        self._rate = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: TrainingModule) -> None:
        """Open the bar."""
        tally = pl_module.tally
        self._start = (tally.seconds, tally.crystals, pl_module.progress())
        if not trainer.is_global_zero or not self.console.is_terminal:
            return
        columns = [
            TextColumn("[bold]training"),
            BarColumn(),
            TextColumn("{task.percentage:.1f} %"),
            TextColumn("[cyan]{task.fields[state]}"),
        ]
        self._bar = Progress(*columns, console=self.console, refresh_per_second=2)
        bar = self._bar.add_task("training", total=1.0, state="")
        self._bar.update(bar, completed=self._start[2])
        self._bar.start()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: TrainingModule,
        outputs: Any,
        batch: Crystals,
        batch_idx: int,
    ) -> None:
        """Move the bar."""
        if self._bar is not None:
            done = pl_module.progress()
            state = f"epoch {trainer.current_epoch + 1}, {self._speed(pl_module, done)}"
            self._bar.update(self._bar.task_ids[0], completed=done, state=state)

    def _speed(self, module: TrainingModule, done: float) -> str:
        seconds = module.tally.seconds - self._start[0]
        crystals = module.tally.crystals - self._start[1]
        gained = done - self._start[2]
        if seconds <= 0 or gained <= 0:
            return "…"
        left = max(0.0, 1 - done) * seconds / gained
        return f"{crystals / seconds:.0f} crystals/s, {_clock(left)} left"

    def on_validation_end(self, trainer: pl.Trainer, pl_module: TrainingModule) -> None:
        """Print a line of figures."""
        if not trainer.is_global_zero:
            return
        f = self.evaluation.figures
        parts = [
            f"epoch {trainer.current_epoch + 1}",
            f"step {trainer.global_step}",
            f"val {f['val/loss']:.4f} (cell {f['val/cell']:.4f}, torus {f['val/torus']:.4f})",
        ]
        if "sample/valid" in f:
            parts.append(
                f"valid {100 * f['sample/valid']:.1f} %, match {100 * f['sample/match_rate']:.1f} %"
            )
        parts.append(self._speed(pl_module, pl_module.progress()))
        self.console.print(", ".join(parts), highlight=False, soft_wrap=True)

    def teardown(self, trainer: pl.Trainer, pl_module: TrainingModule, stage: str) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.gmtime(seconds)) if seconds < 86400 else "a day or more"
