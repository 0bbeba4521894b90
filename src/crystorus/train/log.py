"""The figures of a training: `metrics.csv`, and TensorBoard where it is installed."""

import csv
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    *("val/symmetric_cell", "val/symmetric_torus"),
    *(f"val/symmetric_cell_{i}" for i in range(1, FIFTHS + 1)),
    *(f"val/symmetric_torus_{i}" for i in range(1, FIFTHS + 1)),
)
"""Losses with a number are those of a fifth of t, the fifth one the noisiest; `symmetric` ones are
of noise inside the crystals' space groups, where training has some, the others of free noise."""

_CELL = re.compile("[-+.0-9a-z]{0,30}")
"""What `MetricsLog` writes; lines of other cells are dropped."""
_DIGITS = {"minutes": 15}  # the rate near a run's end is told by the little that is left of them


class MetricsLog:
    """One table of a fixed set of columns, a line per entry, written at once; TensorBoard too.

    Args:
        folder: Folder of the run.
        last_step: A run that goes on from this step drops the lines after it.
    """

    def __init__(self, folder: Path, *, last_step: int) -> None:
        self.path = folder / METRICS
        old = self.path.read_bytes() if self.path.is_file() else b""
        names, *rows = (line.split(",") for line in old.decode(errors="replace").split("\n"))
        kept = [
            dict(zip(names, row, strict=True))
            for row in rows
            if names[0] == "step" and len(row) == len(names) and all(map(_CELL.fullmatch, row))
            if row[0].isdecimal() and int(row[0]) <= last_step
        ]
        # Earlier versions had fewer columns.
        table = [COLUMNS, *([row.get(name, "") for name in COLUMNS] for row in kept)]
        write_atomic(self.path, "".join(",".join(row) + "\n" for row in table))
        self._board: Any = None
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=last_step + 1)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Append a line; what it lacks stays empty.

        Args:
            step: Of the training.
            figures: By column.
        """
        row = {"step": step} | {k: f"{v:.{_DIGITS.get(k, 8)}g}" for k, v in figures.items()}
        with self.path.open("a", newline="") as stream:
            csv.DictWriter(stream, COLUMNS, lineterminator="\n").writerow(row)
        for name, value in figures.items() if self._board is not None else ():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what TensorBoard still holds back."""
        if self._board is not None:
            self._board.close()
