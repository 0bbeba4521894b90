"""The state of a campaign, one ASE database that a kill at any instant leaves usable.

Every structure has two rows. The first, `stage=original`, is the structure as it came, with what
the screen said of it. The second, `stage=relaxed`, is set aside as `status=waiting` before any
structure is relaxed and filled in place when its relaxation ends: the numbers of the rows, and
all else but ASE's clock and random `unique_id`, do not depend on the order in which workers
finish, nor on how often the campaign was interrupted. Only one process writes.
"""

import contextlib
import errno
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ase.db
import numpy as np
from ase.db.row import AtomsRow

from crystal_fidelity.files import disk_errors
from crystal_fidelity.structures import MAX_ATOMIC_NUMBER
from crystorus.data.writers import safe_name
from crystorus.errors import CalculatorError, CampaignError, FileError
from crystorus.hull.candidates import (
    GENERATED,
    GENERATED_FILES,
    INVALID,
    REFERENCE,
    VALID,
    WAITING,
    InputStructure,
)
from crystorus.hull.options import CHGNET, POTENTIALS, RelaxSettings
from crystorus.hull.relax import USABLE, RelaxOutcome
from crystorus.runs.folder import REMEDY, claim

DATABASE = "campaign.db"
FORMAT = 2
FILES = (
    DATABASE, f"{DATABASE}-journal", GENERATED_FILES, "compositions.csv", "table.csv",
    "summary.json", "phases", "phases-symmetrised", "hull.svg", "hull.png", "report.html",
)  # fmt: skip
_NUMBERS = (
    "energy_per_atom", "volume_change", "steps", "original", "e_above_hull", "rank",
    "prototype_fraction", "share_of_votes",
)  # fmt: skip
_ROWS_PER_COMMIT = 500
_TABLES = {
    "systems", "species", "keys", "text_key_values", "number_key_values", "information",
    "sqlite_sequence",
}  # fmt: skip


class Campaign:
    """The folder of one campaign; use it as a context manager, so that no second one writes there.

    Attributes:
        path: The folder.
        settings: What decides its results.
        versions: The programs it was begun with.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        versions: Mapping[str, str],
        *,
        overwrite: bool = False,
    ) -> None:
        """Open or create a campaign of these settings.

        Args:
            path: The folder.
            settings: What decides the results, in JSON's types; another campaign is refused.
            versions: Of the programs.
            overwrite: Replace another campaign.

        Raises:
            CampaignError: If the database cannot be used.
            OutputError: If the folder holds another run, or is in use.
            FileError: If it cannot be written.
        """
        database = path / DATABASE
        recorded = None
        fresh = overwrite or not database.exists() or not database.stat().st_size
        if not fresh:
            recorded = read_metadata(database)
            fresh = recorded is None

        def adapt(theirs: dict[str, Any]) -> dict[str, Any]:
            """Compare with campaigns before `LAYOUT` only what they described as we do.

            Everything else of their sampling is taken to be ours, so that they go on.
            """
            before, now = theirs.get("sampling", {}), settings.get("sampling", {})
            if not before or "layout" in before:
                return theirs
            same = ("start", "library", "seed", "crystals", "checkpoint_sha256")
            return theirs | {"sampling": now | {k: before[k] for k in same if k in before}}

        self._folder = claim(
            path,
            "campaign",
            settings,
            overwrite=overwrite,
            versions=versions,
            names=FILES,
            # Of the table in `generated`, which refuses another layout itself if it is unfinished.
            may_change={"sampling.layout"},
            adapt=adapt,
            # A database that a kill left without settings is begun again.
            recorded=recorded or ({"settings": settings} if database.exists() else None),
        )
        self.path = path
        self.settings: dict[str, Any] = self._folder.settings
        self.versions = self._folder.versions
        self.changed_versions = self._folder.changed_versions(versions)
        try:
            with self._writing():
                if fresh:
                    for name in (DATABASE, f"{DATABASE}-journal"):
                        (path / name).unlink(missing_ok=True)
                self._db = ase.db.connect(database, use_lock_file=False)
                if fresh:
                    marked = {"format": FORMAT, "settings": settings, "versions": self.versions}
                    with self._db:
                        self._db.metadata = {"title": "crystorus campaign", "crystorus": marked}
        except BaseException:
            self._folder.__exit__()
            raise

    @classmethod
    def reopen(cls, path: Path) -> "Campaign":
        """Open the campaign of a folder with its own settings.

        Args:
            path: Its folder.

        Raises:
            CampaignError: If there is none.
        """
        found = read_metadata(path / DATABASE)
        if found is None:
            raise CampaignError(
                f"{path} holds a campaign that was stopped before it began: begin it again with "
                "the command that made it"
            )
        return cls(path, found["settings"], found["versions"])

    def __enter__(self) -> "Campaign":
        return self

    def __exit__(self, *raised: Any) -> None:
        self._folder.__exit__(*raised)

    def finish(self) -> None:
        """Mark the campaign complete."""
        self._folder.finish()

    @property
    def database(self) -> Path:
        """The database file."""
        return self.path / DATABASE

    @property
    def relaxation(self) -> RelaxSettings:
        """How its structures are relaxed."""
        return RelaxSettings.from_record(self.settings["relaxation"])

    def trust_potential(self, named: str) -> None:
        """Make sure that the user, and not the folder alone, names the code that is run.

        Args:
            named: The potential of the command line.

        Raises:
            CalculatorError: If the folder's is another one.
        """
        own = self.relaxation.potential
        if own not in (*POTENTIALS, named):
            raise CalculatorError(
                f"{self.database} names the potential {own}, and such a potential is a program "
                f"that is run: if you trust this folder, add --potential {own}"
            )
        if named not in (CHGNET, own):
            raise CalculatorError(
                f"{self.path} is a campaign with the potential {own}, not {named}: energies of "
                "two potentials never meet, so leave --potential out or choose another --out"
            )

    def originals(self, kind: str) -> list[AtomsRow]:
        """Return the original rows of a kind, in order.

        Args:
            kind: `generated` or `reference`.
        """
        return list(self._rows(f"kind={kind},stage=original"))

    def relaxed(self, kind: str) -> list[AtomsRow]:
        """Return the relaxed rows of a kind, waiting and failed ones included, in order.

        Args:
            kind: `generated` or `reference`.
        """
        return list(self._rows(f"kind={kind},stage=relaxed"))

    def count(self, selection: str) -> int:
        """Return how many rows meet an ASE selection such as "stage=relaxed,status=failed".

        Args:
            selection: In ASE's words.
        """
        with self._reading():
            return self._db.count(selection)

    def add(self, originals: Sequence[InputStructure]) -> None:
        """Write originals that are not there yet, in one transaction per few hundred.

        Args:
            originals: In an order that is the same every time.
        """
        there = {(r.kind, r.name) for r in self._rows("stage=original", plain=True)}
        missing = [one for one in originals if (one.kind, one.name) not in there]
        for start in range(0, len(missing), _ROWS_PER_COMMIT):
            with self._writing(), self._db:
                for one in missing[start : start + _ROWS_PER_COMMIT]:
                    self._db.write(one.atoms, _pairs(one), data=one.details)

    def fill(self, originals: Mapping[int, InputStructure]) -> None:
        """Write originals into rows that were set aside for them, all of them or none.

        Args:
            originals: By number of the row.
        """
        with self._writing(), self._db:
            for number, one in originals.items():
                self._db.write(one.atoms, _pairs(one), data=one.details, id=number)

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
                    self._db.write(row.toatoms(), pairs | started_from(row))
        return self.count(f"stage=relaxed,status={WAITING}")

    def record(self, outcomes: Sequence[RelaxOutcome]) -> None:
        """Fill the rows of finished relaxations, all of them or none.

        Args:
            outcomes: Of finished relaxations.
        """
        with self._writing(), self._db:
            for outcome in outcomes:
                before = self._db.get(id=outcome.id)
                pairs = {k: before.key_value_pairs[k] for k in before.key_value_pairs}
                pairs |= {"status": outcome.status, "steps": outcome.steps}
                if outcome.level:
                    pairs["level"] = outcome.level
                if outcome.status in USABLE:
                    grown = abs(outcome.atoms.get_volume()) / before.volume - 1
                    pairs |= {
                        "energy_per_atom": float(outcome.enthalpy or 0.0) / len(outcome.atoms),
                        "volume_change": grown,
                    }
                if outcome.reason:
                    pairs["reason"] = outcome.reason
                seconds = {"seconds": outcome.seconds, "cpu_seconds": outcome.cpu_seconds}
                self._db.write(outcome.atoms, pairs, data=seconds, id=outcome.id)

    def note(
        self, remarks: Mapping[int, Mapping[str, str | float]], drop: Sequence[str] = ()
    ) -> None:
        """Set key-value pairs of rows, dropping old ones first, all of them or none.

        Args:
            remarks: Pairs by number of the row.
            drop: Keys that are removed from all rows.
        """
        with self._writing(), self._db:
            for number, pairs in remarks.items():
                self._db.update(number, delete_keys=list(drop), **pairs)

    def _rows(self, selection: str, *, plain: bool = False) -> Iterator[AtomsRow]:
        with self._reading():
            for row in self._db.select(selection, sort="id", include_data=not plain):
                _check(row)
                yield row

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (
            sqlite3.DatabaseError, LookupError, ValueError, TypeError, AttributeError,
            RecursionError,
        ) as error:  # fmt: skip
            raise CampaignError(
                f"{self.database} cannot be read ({error}): restore it, or choose another --out"
            ) from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with disk_errors(self.database, remedy=REMEDY):
                try:
                    yield
                except sqlite3.OperationalError as error:
                    if "full" in str(error) or "disk I/O" in str(error):
                        raise OSError(errno.ENOSPC, str(error)) from error
                    raise
        except sqlite3.OperationalError as error:
            text = str(error)
            remedy = "check the disk, or choose another --out"
            if "locked" in text:
                remedy = "close the other program and run the same command again"
            raise FileError(f"{self.database} cannot be written ({text}): {remedy}") from error
        except sqlite3.DatabaseError as error:
            raise CampaignError(
                f"{self.database} is damaged ({error}): restore it, or choose another --out"
            ) from error


def _check(row: AtomsRow) -> None:
    """Make sure that a row of somebody else's database is one of a campaign.

    Raises:
        ValueError: If it is none.
    """
    pairs = row.key_value_pairs
    # A structure that could not be read is kept as one without atoms.
    some = row.natoms or pairs.get("status") == INVALID
    atoms = (row.numbers > 0).all() and (row.numbers <= MAX_ATOMIC_NUMBER).all() and some
    finite = np.isfinite(row.positions).all() and np.isfinite(row.cell).all()
    texts = all(isinstance(pairs.get(name), str) for name in ("name", "kind", "stage", "status"))
    plain = all(isinstance(value, str | int | float) for value in pairs.values())
    numbers = all(isinstance(pairs.get(name, 0), int | float) for name in _NUMBERS)
    if not (atoms and finite and texts and plain and numbers):
        raise ValueError(f"row {row.id} is none of a campaign")


def _pairs(one: InputStructure) -> dict[str, str | float]:
    return {
        "name": one.name, "kind": one.kind, "stage": "original", "status": one.status,
        "source": one.source, **one.pairs, **({"reason": one.reason} if one.reason else {}),
    }  # fmt: skip


def trajectory_file(folder: Path, name: str) -> Path:
    """Return where a campaign keeps a candidate's denoising; a name is never a path.

    Args:
        folder: Of the campaign.
        name: Of the candidate.
    """
    return folder / GENERATED_FILES / "trajectories" / f"{safe_name(name)}.extxyz"


def started_from(row: AtomsRow) -> dict[str, Any]:
    """Return where the sampling run to a row's structure began; empty for one that was given.

    Of its keys `start`, `prototype_fraction` (`share_of_votes` in earlier versions) and `origin` as
    in the table of `crystorus sample`.

    Args:
        row: Of the database.
    """
    found = {
        "start": row.get("start"),
        "prototype_fraction": row.get("prototype_fraction", row.get("share_of_votes")),
        "origin": row.get("origin"),
    }
    return {key: value for key, value in found.items() if value not in ("", None)}


def read_metadata(database: Path) -> dict[str, Any] | None:
    """Return what a campaign's database says of itself; None for one killed before it was marked.

    Args:
        database: `campaign.db` of a folder.

    Raises:
        CampaignError: If there is none, it is no campaign, or of another version.
    """
    if not database.is_file():
        raise CampaignError(
            f"{database.parent} holds no campaign: begin one with `crystorus hull` or `crystorus "
            "relax`"
        )
    try:
        with contextlib.closing(sqlite3.connect(database)) as plain:
            listed = plain.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            tables = {name for (name,) in listed}
            rows = "systems" in tables and plain.execute("SELECT 1 FROM systems").fetchone()
            marked = (
                "information" in tables
                and plain.execute("SELECT 1 FROM information WHERE name = 'metadata'").fetchone()
            )
        if tables <= _TABLES and not (rows or marked):  # killed while ASE created its tables
            return None
        connected = ase.db.connect(database, use_lock_file=False)
        found = dict(connected.metadata).get("crystorus")
    except (sqlite3.Error, OSError, ValueError, KeyError) as error:
        raise CampaignError(
            f"{database} is no ASE database ({error}): choose another --out"
        ) from error
    if not isinstance(found, dict):
        raise CampaignError(
            f"{database} was not made by crystorus: choose another --out, so that it stays whole"
        )
    if found.get("format") != FORMAT:
        versions = found.get("versions")
        made_by = versions.get("crystorus") if isinstance(versions, dict) else "another version"
        raise CampaignError(
            f"{database} has format {found.get('format')} (crystorus {made_by}), this version "
            f"reads format {FORMAT}: choose another --out, or use that version"
        )
    if not all(isinstance(found.get(key), dict) for key in ("settings", "versions")):
        raise CampaignError(f"{database} does not hold its settings any more: choose another --out")
    return found
