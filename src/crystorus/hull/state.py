"""The state of a campaign: one ASE database that a kill at any instant leaves usable.

Every structure has two rows. The first, `stage=original`, is the structure as it came, with what
the screen said of it. The second, `stage=relaxed`, is set aside as `status=waiting` before any
structure is relaxed and filled in place when its relaxation ends: the numbers of the rows, and
all else but ASE's clock and random `unique_id`, do not depend on the order in which workers
finish, nor on how often the campaign was interrupted. Only one process writes.
"""

import contextlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import ase.db
from ase import Atoms
from ase.db.row import AtomsRow

from crystorus.hull.errors import CampaignError
from crystorus.hull.relaxation import USABLE, RelaxOutcome
from crystorus.sample.disk import disk_errors, lock_folder
from crystorus.sample.errors import OutputError

DATABASE = "campaign.db"
FORMAT = 2
GENERATED, REFERENCE = "generated", "reference"
NOISE = "noise"
VALID, INVALID, DUPLICATE, WAITING = "valid", "invalid", "duplicate", "waiting"
_ROWS_PER_COMMIT = 500


@dataclass(frozen=True)
class Provenance:
    """Where the walk to a generated crystal began; empty for a structure that was given.

    Attributes:
        start: The template's id, or `NOISE`.
        share_of_votes: Those for the template's prototype, 0 to 1; None for noise.
        origin: "known", "substituted" or "new", as in the table of `crystorus sample`.
    """

    start: str = ""
    share_of_votes: float | None = None
    origin: str = ""

    @classmethod
    def of(cls, row: AtomsRow) -> "Provenance":
        """Read it from a row."""
        return cls(row.get("start", ""), row.get("share_of_votes"), row.get("origin", ""))

    @property
    def pairs(self) -> dict[str, str | float]:
        """As the key-value pairs of a row, those that say something."""
        return {k: v for k, v in asdict(self).items() if v not in ("", None)}


@dataclass(frozen=True, eq=False)
class Original:
    """A structure as it came.

    Attributes:
        name: Unique in the campaign.
        kind: "generated" or "reference".
        atoms: The structure; symbols alone where there is none.
        status: "valid", "invalid" or "duplicate".
        source: Where it came from.
        reason: Why it is not valid.
        duplicate_of: The valid structure that it repeats.
        provenance: Where its walk began.
        details: What else is known of it, in JSON's types.
    """

    name: str
    kind: str
    atoms: Atoms
    status: str
    source: str
    reason: str = ""
    duplicate_of: str = ""
    provenance: Provenance = field(default_factory=Provenance)
    details: dict[str, Any] = field(default_factory=dict)


class Campaign:
    """The folder of one campaign; use it as a context manager, so that no second one writes there.

    Attributes:
        path: The folder.
        settings: What decides its results.
        versions: The programs it was begun with.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], versions: Mapping[str, str]):
        """Open or create a campaign of these settings.

        Raises:
            CampaignError: If the folder holds another campaign, or its database cannot be used.
            OutputError: If the folder is in use or cannot be written.
        """
        self.path = path
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self.versions = dict(versions)
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            self._lock = lock_folder(path)
        try:
            with self._writing():
                self._open()
        except BaseException:
            os.close(self._lock)
            raise

    @classmethod
    def reopen(cls, path: Path) -> "Campaign":
        """Open the campaign of a folder with its own settings.

        Raises:
            CampaignError: If there is none.
        """
        found = read_metadata(path / DATABASE)
        return cls(path, found["settings"], found["versions"])

    def __enter__(self) -> "Campaign":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._lock)

    @property
    def database(self) -> Path:
        """The database file."""
        return self.path / DATABASE

    def names(self, kind: str) -> set[str]:
        """Return the names of the originals of a kind."""
        return {row.name for row in self._rows(f"kind={kind},stage=original", plain=True)}

    def originals(self, kind: str) -> list[AtomsRow]:
        """Return the original rows of a kind, in order."""
        return list(self._rows(f"kind={kind},stage=original"))

    def relaxed(self, kind: str) -> list[AtomsRow]:
        """Return the relaxed rows of a kind, waiting and failed ones included, in order."""
        return list(self._rows(f"kind={kind},stage=relaxed"))

    def waiting(self) -> list[AtomsRow]:
        """Return the rows still to be relaxed, in order."""
        return list(self._rows(f"stage=relaxed,status={WAITING}"))

    def count(self, selection: str) -> int:
        """Return how many rows meet an ASE selection such as "stage=relaxed,status=failed"."""
        with self._reading():
            return self._db.count(selection)

    def add(self, originals: Sequence[Original]) -> None:
        """Write originals that are not there yet, in one transaction per few hundred."""
        for start in range(0, len(originals), _ROWS_PER_COMMIT):
            with self._writing(), self._db:
                for one in originals[start : start + _ROWS_PER_COMMIT]:
                    pairs = {
                        "name": one.name, "kind": one.kind, "stage": "original",
                        "status": one.status, "source": one.source, **one.provenance.pairs,
                    }  # fmt: skip
                    said = {"reason": one.reason, "duplicate_of": one.duplicate_of}
                    pairs |= {key: value for key, value in said.items() if value}
                    self._db.write(one.atoms, pairs, data=one.details)

    def set_aside(self) -> int:
        """Give every valid original its relaxed row, waiting; return how many rows wait."""
        taken = {(r.kind, r.name) for r in self._rows("stage=relaxed", plain=True)}
        missing = [
            row
            for kind in (REFERENCE, GENERATED)
            for row in self._rows(f"kind={kind},stage=original,status={VALID}")
            if (row.kind, row.name) not in taken
        ]
        for start in range(0, len(missing), _ROWS_PER_COMMIT):
            with self._writing(), self._db:
                for row in missing[start : start + _ROWS_PER_COMMIT]:
                    pairs = {"name": row.name, "kind": row.kind, "stage": "relaxed"}
                    pairs |= {"status": WAITING, "source": row.source, "original": row.id}
                    pairs |= Provenance.of(row).pairs
                    self._db.write(row.toatoms(), pairs)
        return self.count(f"stage=relaxed,status={WAITING}")

    def record(self, outcomes: Sequence[RelaxOutcome], level: str) -> None:
        """Fill the rows of finished relaxations, all of them or none."""
        with self._writing(), self._db:
            for outcome in outcomes:
                before = self._db.get(id=outcome.id)
                pairs = {k: before.key_value_pairs[k] for k in before.key_value_pairs}
                pairs |= {"status": outcome.status, "steps": outcome.steps, "level": level}
                if outcome.status in USABLE:
                    grown = abs(outcome.atoms.get_volume()) / before.volume - 1
                    pairs |= {
                        "energy_per_atom": float(outcome.energy or 0.0) / len(outcome.atoms),
                        "volume_change": grown,
                    }
                if outcome.reason:
                    pairs["reason"] = outcome.reason
                seconds = {"seconds": outcome.seconds, "cpu_seconds": outcome.cpu_seconds}
                self._db.write(outcome.atoms, pairs, data=seconds, id=outcome.id)

    def note(self, remarks: Mapping[int, Mapping[str, str | float]], drop: Sequence[str]) -> None:
        """Set key-value pairs of rows, dropping old ones first, all of them or none."""
        with self._writing(), self._db:
            for number, pairs in remarks.items():
                self._db.update(number, delete_keys=list(drop), **pairs)

    def _open(self) -> None:
        fresh = not self.database.exists() or self.database.stat().st_size == 0
        if not fresh:
            earlier = read_metadata(self.database, allow_unmarked=True)
            if earlier:
                _refuse_another(self.path, earlier["settings"], self.settings)
                self.versions = earlier["versions"]
        self._db = ase.db.connect(self.database, use_lock_file=False)
        if fresh or not self._db.metadata:
            marked = {"format": FORMAT, "settings": self.settings, "versions": self.versions}
            with self._db:
                self._db.metadata = {"title": "crystorus campaign", "crystorus": marked}

    def _rows(self, selection: str, *, plain: bool = False) -> Iterator[AtomsRow]:
        with self._reading():
            yield from self._db.select(selection, sort="id", include_data=not plain)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.DatabaseError, KeyError, ValueError) as error:
            raise CampaignError(
                f"{self.database} cannot be read ({error}): restore it, or choose another --out"
            ) from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with disk_errors(self.path):
                yield
        except sqlite3.OperationalError as error:
            raise OutputError(_sqlite_trouble(self.database, error)) from error
        except sqlite3.DatabaseError as error:
            raise CampaignError(
                f"{self.database} is damaged ({error}): restore it, or choose another --out"
            ) from error


def read_metadata(database: Path, *, allow_unmarked: bool = False) -> dict[str, Any]:
    """Return what a campaign's database says of itself; empty for one killed before it was marked.

    Raises:
        CampaignError: If there is none, it is no campaign, or of another version.
    """
    if not database.is_file():
        raise CampaignError(
            f"{database.parent} holds no campaign: begin one with `crystorus hull` or `crystorus "
            "relax`"
        )
    try:
        connected = ase.db.connect(database, use_lock_file=False)
        found = dict(connected.metadata).get("crystorus")
        n_rows = connected.count()
    except (sqlite3.Error, OSError, ValueError, KeyError) as error:
        raise CampaignError(
            f"{database} is no ASE database ({error}): choose another --out"
        ) from error
    if found is None:
        if allow_unmarked and n_rows == 0:
            return {}
        raise CampaignError(
            f"{database} was not made by crystorus: choose another --out, so that it stays whole"
        )
    if found.get("format") != FORMAT:
        made_by = found.get("versions", {}).get("crystorus", "another version")
        raise CampaignError(
            f"{database} has format {found.get('format')} (crystorus {made_by}), this version "
            f"reads format {FORMAT}: choose another --out, or use that version"
        )
    return found


def remove_campaign(path: Path, names: Sequence[str]) -> None:
    """Delete the files of a campaign, and nothing else of its folder."""
    with disk_errors(path):
        for name in names:
            target = path / name
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)


def _refuse_another(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    for key in ours:
        if theirs.get(key) != ours[key]:
            before, now = _difference(theirs.get(key), ours[key])
            raise CampaignError(
                f"{path} holds another campaign: its {key} is {before}, yours is {now}. Choose "
                "another --out, or --overwrite to replace that campaign"
            )


def _difference(theirs: Any, ours: Any) -> tuple[str, str]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        keys = [k for k in ours if theirs.get(k) != ours[k]]
        theirs, ours = ({k: d.get(k) for k in keys} for d in (theirs, ours))
    short = [json.dumps(value, ensure_ascii=False) for value in (theirs, ours)]
    return tuple(s if len(s) <= 80 else s[:77] + "…" for s in short)  # type: ignore[return-value]


def _sqlite_trouble(database: Path, error: sqlite3.OperationalError) -> str:
    text = str(error)
    if "full" in text or "disk I/O" in text:
        free = shutil.disk_usage(database.parent).free / 2**20
        return (
            f"no space left for {database} ({free:.1f} MiB free): make room and run the same "
            "command again; finished work is kept"
        )
    if "locked" in text:
        return f"{database} is locked by another program: close it and run the same command again"
    return f"{database} cannot be written ({text}): check the disk, or choose another --out"
