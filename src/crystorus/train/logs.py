"""The log of a run: `metrics.csv`, and TensorBoard where it is installed."""

import csv
import importlib.util
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from crystorus.data.files import write_whole
from crystorus.train.module import FIFTHS

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


class CsvLog(Logger):
    """One table of a fixed set of columns, a line per entry, written at once.

    Args:
        folder: Folder of the run.
        last_step: A run that goes on from this step drops the lines after it.
    """

    def __init__(self, folder: Path, *, last_step: int = 0) -> None:
        super().__init__()
        self.path = folder / METRICS
        self._last_step = last_step
        self._ready = False

    @property
    def name(self) -> str:
        """Name of this log."""
        return "csv"

    @property
    def version(self) -> int:
        """There is one."""
        return 0

    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Do nothing: the configuration is in `run.json`."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a line."""
        if not self._ready:
            self._open()
        row = {"step": step} | {k: f"{v:.{_DIGITS.get(k, 8)}g}" for k, v in metrics.items()}
        with self.path.open("a", newline="") as stream:
            csv.DictWriter(stream, COLUMNS, lineterminator="\n").writerow(row)

    def _open(self) -> None:
        rows = []
        if self.path.is_file():
            with self.path.open(newline="") as stream:
                rows = [r for r in csv.reader(stream) if len(r) == len(COLUMNS)][1:]
        kept = [row for row in rows if row[0].isdigit() and int(row[0]) <= self._last_step]
        text = "".join(",".join(row) + "\n" for row in [list(COLUMNS), *kept])
        write_whole(self.path, text)
        self._ready = True


def build_loggers(folder: Path, *, last_step: int) -> list[Logger]:
    """Return the logs of a run."""
    loggers: list[Logger] = [CsvLog(folder, last_step=last_step)]
    if importlib.util.find_spec("tensorboard") is not None:
        loggers.append(
            TensorBoardLogger(folder, name="tensorboard", version="", purge_step=last_step + 1)
        )
    return loggers
