"""An output folder that a kill at any instant leaves resumable.

The truth is `.parts/`: one file per finished batch, complete or absent (written aside, synced,
renamed). Everything a user reads is written from it, and written again from it on a resume, so
that an interrupted run ends in the same bytes as one that was never interrupted.
"""

import csv
import io
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from crystorus.data.files import write_whole
from crystorus.sample.disk import append, disk_errors, lock_folder
from crystorus.sample.errors import OutputError

CRYSTALS = "crystals.extxyz"
TABLE = "table.csv"
RUN = "run.json"
PARTS = ".parts"
CIF = "cif"
SYMMETRISED = "cif-symmetrised"
TRAJECTORIES = "trajectories"
_NAMES = (RUN, PARTS, CRYSTALS, TABLE, CIF, SYMMETRISED, TRAJECTORIES)


@dataclass(frozen=True)
class Finished:
    """One finished crystal as the text of its files.

    Attributes:
        index: Its number everywhere.
        row: Its line of the table, by column.
        frame: Its frame of the extxyz file.
        files: Text of its own files, by path inside the folder.
    """

    index: int
    row: dict[str, str]
    frame: str
    files: dict[str, str]


class RunFolder:
    """The folder of one run; use it as a context manager, so that no second run writes there.

    Attributes:
        done: Finished crystals by index.
        complete: Whether the run was already finished when the folder was opened.
        versions: The programs that the run was begun with.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        *,
        versions: Mapping[str, str] | None = None,
        overwrite: bool = False,
    ) -> None:
        """Open or create the folder for a run of these settings.

        Args:
            path: The folder.
            settings: What the run is, in JSON's types: a folder made with others is refused.
            versions: With which programs it is made: recorded, not compared.
            overwrite: Replace another run's files instead of refusing them.

        Raises:
            OutputError: If the folder holds another run, is in use, or cannot be written.
        """
        self.path = path
        self._settings = json.loads(json.dumps(settings))
        self.versions = dict(versions or {})
        self._written = 0
        self.done: dict[int, Finished] = {}
        self.complete = False
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            self._lock = lock_folder(path)
            try:
                self._open(overwrite=overwrite)
            except BaseException:
                os.close(self._lock)
                raise

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if not self.complete:
                self._show_all(status="interrupted")
        except OSError:
            if kind is None:
                raise
        finally:
            os.close(self._lock)

    def commit(self, records: Sequence[Finished]) -> None:
        """Keep finished crystals for good, then show them in the files that users read.

        Raises:
            OutputError: If the disk is full or refuses; crystals committed before stay.
        """
        name = f"{records[0].index:09d}.json"
        text = json.dumps([asdict(record) for record in records])
        with disk_errors(self.path):
            write_whole(self.path / PARTS / name, text)
            self.done.update({record.index: record for record in records})
            self._show_files(records)
            self._show_in_order()

    def write_trajectory(self, name: str, text: str) -> None:
        """Write a crystal's trajectory whole or not at all; do it before its commit."""
        with disk_errors(self.path):
            (self.path / TRAJECTORIES).mkdir(exist_ok=True)
            write_whole(self.path / TRAJECTORIES / name, text)

    def rows(self) -> tuple[dict[str, str], ...]:
        """Return the rows of the table as it stands on disk."""
        with disk_errors(self.path), (self.path / TABLE).open(newline="", encoding="utf-8") as text:
            return tuple(csv.DictReader(text))

    def finish(self) -> None:
        """Mark the run complete and drop what only a resume needs."""
        with disk_errors(self.path):
            if os.name == "posix":
                os.sync()  # the crystals' own files too, before what could restore them goes
            self._show_all(status="complete")
            self.complete = True
            shutil.rmtree(self.path / PARTS)

    def _open(self, *, overwrite: bool) -> None:
        if overwrite:
            _remove_run(self.path)
        earlier = _read_run(self.path)
        if earlier is None:
            shutil.rmtree(self.path / PARTS, ignore_errors=True)
            (self.path / PARTS).mkdir()
            self._write_run("running")
            return
        _refuse_another(self.path, earlier.get("settings", {}), self._settings)
        self.versions = earlier.get("versions", self.versions)
        self.complete = earlier.get("status") == "complete"
        if self.complete:
            _refuse_incomplete(self.path)
            shutil.rmtree(self.path / PARTS, ignore_errors=True)
            return
        (self.path / PARTS).mkdir(exist_ok=True)
        self._recall()
        self._write_run("running")

    def _recall(self) -> None:
        for part in sorted((self.path / PARTS).iterdir()):
            if part.suffix != ".json":  # a batch that was being written when the run was killed
                part.unlink()
                continue
            try:
                records = [Finished(**fields) for fields in json.loads(part.read_text("utf-8"))]
            except (ValueError, TypeError):  # a disk that lost power: the batch is made again
                part.unlink()
                continue
            self.done.update({record.index: record for record in records})
        self._show_files(list(self.done.values()))
        for name in (CRYSTALS, TABLE):
            (self.path / name).unlink(missing_ok=True)
        self._show_in_order()

    def _show_files(self, records: Sequence[Finished]) -> None:
        for record in records:
            for name, text in record.files.items():
                target = self.path / name
                target.parent.mkdir(exist_ok=True)
                if not (target.exists() and target.read_bytes() == text.encode()):
                    target.write_bytes(text.encode())

    def _show_in_order(self) -> None:
        """Append the crystals that now follow the last shown one without a gap."""
        ready = []
        while self._written in self.done:
            ready.append(self.done[self._written])
            self._written += 1
        if ready:
            first = self._written == len(ready)
            append(self.path / CRYSTALS, "".join(record.frame for record in ready))
            append(self.path / TABLE, _table(ready, header=first))

    def _show_all(self, *, status: str) -> None:
        """Rewrite the shared files with every finished crystal, gaps allowed."""
        records = [self.done[index] for index in sorted(self.done)]
        write_whole(self.path / CRYSTALS, "".join(record.frame for record in records))
        write_whole(self.path / TABLE, _table(records, header=True))
        self._write_run(status)

    def _write_run(self, status: str) -> None:
        run = {"status": status, "settings": self._settings, "versions": self.versions}
        text = json.dumps(run, indent=2, ensure_ascii=False)
        write_whole(self.path / RUN, text + "\n")


def _table(records: Sequence[Finished], *, header: bool) -> str:
    if not records:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0].row), lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(record.row for record in records)
    return text.getvalue()


def _remove_run(path: Path) -> None:
    for name in _NAMES:
        target = path / name
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)


def _read_run(path: Path) -> dict[str, Any] | None:
    record = path / RUN
    if record.exists():
        try:
            run = json.loads(record.read_text("utf-8"))
            return run | {name: dict(run[name]) for name in ("settings", "versions")}
        except (ValueError, TypeError, KeyError) as error:
            raise OutputError(
                f"{record} is not the record of a run: choose another --out, or --overwrite"
            ) from error
    taken = [name for name in _NAMES if name != PARTS and (path / name).exists()]
    if taken:
        raise OutputError(
            f"{path} already holds {', '.join(taken)} of unknown origin: choose another --out, or "
            "--overwrite to replace them"
        )
    return None


def _refuse_another(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    differing = [key for key in ours if theirs.get(key) != ours[key]]
    if differing:
        key = differing[0]
        raise OutputError(
            f"{path} holds another run: its {key} is {_short(theirs.get(key))}, yours is "
            f"{_short(ours[key])}. Choose another --out, or --overwrite to replace that run"
        )


def _refuse_incomplete(path: Path) -> None:
    """Refuse a finished run of which a file was taken away since."""
    names = [CRYSTALS, TABLE]
    if (path / TABLE).is_file():
        with (path / TABLE).open(newline="", encoding="utf-8", errors="replace") as text:
            rows = list(csv.DictReader(text))
        names += [row.get(c) or CRYSTALS for row in rows for c in ("cif", "cif_symmetrised")]
    missing = next((name for name in names if not (path / name).is_file()), None)
    if missing:
        raise OutputError(
            f"{path} holds this run, finished, but {missing} is gone: put it back, choose another "
            "--out, or --overwrite to make all crystals again"
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"
