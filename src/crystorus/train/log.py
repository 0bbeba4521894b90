"""What a training tells: `metrics.csv`, TensorBoard where it is installed, a line on the screen."""

import csv
import importlib.util
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from crystal_fidelity.files import write_atomic

FIFTHS = 5
METRICS = "metrics.csv"
COLUMNS = (
    *("step", "epoch", "crystals", "minutes", "learning_rate"),
    *("train/loss", "train/cell", "train/torus", "train/gradient_norm"),
    *("val/loss", "val/cell", "val/torus"),
    *(f"val/cell_{i}" for i in range(1, FIFTHS + 1)),
    *(f"val/torus_{i}" for i in range(1, FIFTHS + 1)),
    *("sample/valid", "sample/match_rate", "sample/match_rmse"),
)
"""Losses with a number are those of a fifth of t, the fifth one the noisiest."""

_DIGITS = {"minutes": 15}  # the rate near a run's end is told by the little that is left of them


class MetricsLog:
    """One table of a fixed set of columns, a line per entry, written at once; TensorBoard too.

    Args:
        folder: Folder of the run.
        last_step: A run that goes on from this step drops the lines after it.
    """

    def __init__(self, folder: Path, *, last_step: int) -> None:
        self.path = folder / METRICS
        rows = []
        if self.path.is_file():
            with self.path.open(newline="") as stream:
                rows = [r for r in csv.reader(stream) if len(r) == len(COLUMNS)][1:]
        kept = [row for row in rows if row[0].isdigit() and int(row[0]) <= last_step]
        write_atomic(self.path, "".join(",".join(row) + "\n" for row in [list(COLUMNS), *kept]))
        self._board: Any = None
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=last_step + 1)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Append a line; quantities that it lacks stay empty."""
        row = {"step": step} | {k: f"{v:.{_DIGITS.get(k, 8)}g}" for k, v in metrics.items()}
        with self.path.open("a", newline="") as stream:
            csv.DictWriter(stream, COLUMNS, lineterminator="\n").writerow(row)
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what TensorBoard still holds back."""
        if self._board is not None:
            self._board.close()


class ProgressLine:
    """A bar with crystals/s and the time left, and a line per validation, on stderr.

    Args:
        done: Fraction of the run that is over at the start.
        seconds: Seconds spent in steps at the start.
        crystals: Crystals seen at the start.
    """

    def __init__(self, done: float, seconds: float, crystals: int) -> None:
        self._start = (done, seconds, crystals)
        self._state = "epoch 1, …"
        console = Console(stderr=True)
        columns = [
            TextColumn("[bold]training"),
            BarColumn(),
            TextColumn("{task.percentage:.1f} %"),
            TextColumn("[cyan]{task.fields[state]}"),
        ]
        self._bar = Progress(
            *columns, console=console, refresh_per_second=2, disable=not console.is_terminal
        )
        self._task = self._bar.add_task("training", total=1.0, completed=done, state="")
        self._bar.start()

    def _speed(self, done: float, seconds: float, crystals: int) -> str:
        gained, spent, seen = (
            now - then for now, then in zip((done, seconds, crystals), self._start, strict=True)
        )
        if spent <= 0 or gained <= 0:
            return "…"
        left = max(0.0, 1 - done) * spent / gained
        clock = time.strftime("%H:%M:%S", time.gmtime(left)) if left < 86400 else "a day or more"
        return f"{seen / spent:.0f} crystals/s, {clock} left"

    def update(self, epoch: int, done: float, seconds: float, crystals: int) -> None:
        """Set the bar: the epoch from 0, and the arguments of the class as they are now."""
        self._state = f"epoch {epoch + 1}, {self._speed(done, seconds, crystals)}"
        self._bar.update(self._task, completed=done, state=self._state)

    def validated(self, step: int, figures: dict[str, float]) -> None:
        """Print a line of figures."""
        epoch, speed = self._state.split(", ", 1)
        parts = [
            epoch,
            f"step {step}",
            "val {val/loss:.4f} (cell {val/cell:.4f}, torus {val/torus:.4f})".format_map(figures),
        ]
        if "sample/valid" in figures:
            valid, matched = 100 * figures["sample/valid"], 100 * figures["sample/match_rate"]
            parts.append(f"valid {valid:.1f} %, match {matched:.1f} %")
        self._bar.console.print(", ".join([*parts, speed]), highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Close the bar."""
        self._bar.stop()
