"""The output folder of `sample` and `refine`, which a kill at any instant leaves resumable.

The truth is `.parts/`: one file per finished batch, complete or absent. Everything a user reads is
written from it, and written again from it on a resume, so that an interrupted run ends in the same
bytes as one that was never interrupted.
"""

import csv
import hashlib
import io
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from crystal_fidelity.cells import least_distance, min_distance_ratio, niggli_reduce
from crystal_fidelity.files import disk_errors, write_atomic
from crystal_fidelity.matching import kinds
from crystal_fidelity.provenance import versions
from crystal_fidelity.structures import density
from crystal_fidelity.symmetry import dataset, group_of, sites_of
from crystal_fidelity.validity import invalid_reason
from crystorus.crystal_model import CrystalModel
from crystorus.data.convert import split
from crystorus.data.writers import cif_text, csv_text, dataset_cif_text, extxyz_text
from crystorus.errors import OutputError
from crystorus.geometry.crystals import Crystals
from crystorus.runs.folder import RunFolder, claim
from crystorus.sample.options import RunOptions
from crystorus.sample.requests import Request
from crystorus.sample.sampler import GeneratedCrystals, SamplingPlan
from crystorus.sample.start import origin_of

CRYSTALS, TABLE, PARTS = "crystals.extxyz", "table.csv", ".parts"
CIF, SYMMETRISED, TRAJECTORIES = "cif", "cif-symmetrised", "trajectories"
PROGRAMS = ("crystorus", "crystal-fidelity", "torch", "numpy", "ase", "gemmi", "moyopy")
COLUMNS = (
    "index", "formula", "formula_units", "n_atoms", "volume", "density", "space_group",
    "space_group_number", "sites", "space_group_asked", "space_group_proposed", "symprec",
    "least_distance", "min_distance_ratio", "valid", "confidence", "denoising_error", "sample",
    "seed", "start", "substitution", "level", "prototype_fraction", "origin", "known_as",
    "same_as", "cif_file", "cif_symmetrised_file",
)  # fmt: skip
"""Of the table."""
LAYOUT = 2
"""Of the table's columns; raise it when `COLUMNS` change. An unfinished folder of another layout is
then refused in a sentence, where its `.parts` would be taken for damaged and made again. 1 had
`cif`, `cif_symmetrised`, `exchange` and `share_of_votes`."""
MOST_COMPARED = 300
"""Crystals of one formula up to which repeats are looked for: a second to a minute for 300."""

_FREE = frozenset({"out", "overwrite", "device", "batch_atoms", "workers", "scheduler", "large"})
"""Options that say where and how fast crystals are made, not which."""
_INFO = ("formula", "formula_units", "space_group", "symprec", "valid", "seed", "start", "origin")
"""Columns that the frames of the extxyz file carry too."""


@dataclass(frozen=True)
class Record:
    """One finished crystal as the text of its files.

    Attributes:
        index: Its number everywhere.
        row: Its line of the table, by column.
        frame: Its frame of the extxyz file, empty if it has no files.
        files: Text of its own files, by path inside the folder.
    """

    index: int
    row: dict[str, str]
    frame: str
    files: dict[str, str]


def run_settings(
    requests: Sequence[Request], plan: SamplingPlan, model: CrystalModel, options: RunOptions
) -> dict[str, Any]:
    """Describe a run by what decides its crystals, for its folder to recognise it again.

    Args:
        requests: All crystals of the run.
        plan: How they are made.
        model: With which checkpoint.
        options: As the user gave them; recorded under "options" and not compared, since several
            ways of asking give the same crystals.
    """
    formulas = list(dict.fromkeys(request.composition.formula for request in requests))
    listing = [(r.index, r.composition.formula, r.seed, *_described(r)) for r in requests]
    given = {
        item.name: str(value) if isinstance(value, Path) else value
        for item in fields(options)
        if item.name not in _FREE and (value := getattr(options, item.name)) != item.default
    }
    from_structures = any(request.start is not None for request in requests)
    settings: dict[str, Any] = {
        "layout": LAYOUT,
        "seed": options.seed,
        "crystals": len(requests),
        "formulas": formulas if len(formulas) <= 20 else f"{len(formulas)} of them",
        "sampler": asdict(plan.sampler),
        "template_sampler": asdict(plan.template_sampler) if from_structures else None,
        "candidates": plan.candidates,
        "keep_trajectory": plan.keep_trajectory,
        "symprec_angstrom": options.symprec,
        "new_only": getattr(options, "new_only", False),
        "checkpoint_sha256": model.digest,
        "scorer_sha256": model.scorer_digest if plan.candidates > 1 else None,
        "requests_sha256": hashlib.sha256(json.dumps(listing).encode()).hexdigest(),
    }
    return json.loads(json.dumps(settings | {"options": given}))


def _prototype_fraction(request: Request) -> str:
    """Return how far known crystals speak for what a crystal began at (`docs/tables.md`)."""
    if request.start is not None:
        share = request.start.prototype_fraction
    else:
        share = request.skeletons[0].weight if request.skeletons else None
    return "" if share is None else f"{share:.3f}"


def _described(request: Request) -> tuple[object, ...]:
    """Return what decides a crystal's start, and what it is compared with; nothing for noise."""
    phases = request.known_phases
    compared = () if phases is None else ([name for name, _ in phases],)
    start = request.start
    if start is None:
        inside = [list(one.skeleton) for one in request.skeletons]
        return (*([inside] if inside else []), *compared)
    digest = hashlib.sha256()
    for part in (start.crystal.lattice, start.crystal.frac_coords, start.crystal.atomic_numbers):
        digest.update(np.round(part.double().numpy(), 3).tobytes())
    held = list(start.held_atoms)
    about = (start.name, start.level, start.noised, held, start.held_cell, digest.hexdigest())
    return (*about, *compared)


class OutputFolder:
    """The folder of one run; use it as a context manager, so that no second run writes there.

    Attributes:
        done: Finished crystals by index.
        run: The claimed folder: whether the run was there, is complete, its first versions.
    """

    def __init__(
        self, path: Path, settings: dict[str, Any], *, total: int, overwrite: bool = False
    ) -> None:
        """Open or create the folder for a run of these settings.

        Args:
            path: The folder.
            settings: Of `run_settings`: a folder made with others is refused.
            total: Crystals of the run.
            overwrite: Replace another run's files instead of refusing them.

        Raises:
            OutputError: If the folder holds another run or is in use.
            FileError: If it cannot be written.
        """

        def adapt(recorded: dict[str, Any]) -> dict[str, Any]:
            if recorded.get("layout") != LAYOUT:
                raise OutputError(
                    f"{path} holds a run of another version of crystorus, whose table has other "
                    "columns: finish it with that version, choose another --out, or --overwrite "
                    "to replace it"
                )
            return recorded

        self.path, self.total = path, total
        self.done: dict[int, Record] = {}
        self._written = 0
        self.run: RunFolder = claim(
            path,
            "sample",
            settings,
            overwrite=overwrite,
            versions=versions(PROGRAMS),
            names=(CRYSTALS, TABLE, CIF, SYMMETRISED, TRAJECTORIES, PARTS),
            may_change={f"options.{name}" for name in settings["options"]},
            adapt=adapt,
        )
        try:
            with disk_errors(path):
                if self.run.complete:
                    self._refuse_incomplete()
                    shutil.rmtree(path / PARTS, ignore_errors=True)
                else:
                    (path / PARTS).mkdir(exist_ok=True)
                    self._recall()
        except BaseException:
            self.run.__exit__()
            raise

    def __enter__(self) -> "OutputFolder":
        return self

    def __exit__(self, *raised: Any) -> None:
        try:
            if not self.run.complete:
                with disk_errors(self.path):
                    self._show_all()
        except Exception:
            if not any(raised):
                raise
        finally:
            self.run.__exit__(*raised)

    def commit(self, made: GeneratedCrystals, *, symprec: float, new_only: bool = False) -> None:
        """Keep finished crystals for good, then show them in the files that users read.

        Args:
            made: The crystals, with the trajectories to be written.
            symprec: Symmetry tolerance in Å.
            new_only: Whether known phases are left out of the files.

        Raises:
            FileError: If the disk is full or refuses; crystals committed before stay.
        """
        records = [
            describe(one, total=self.total, symprec=symprec, new_only=new_only) for one in made
        ]
        with disk_errors(self.path):
            for record, one in zip(records, made if made.trajectory else (), strict=False):
                if not (new_only and record.row["origin"] == "known"):
                    (self.path / TRAJECTORIES).mkdir(exist_ok=True)
                    name = f"{file_stem(record.index, record.row['formula'], self.total)}.extxyz"
                    write_atomic(self.path / TRAJECTORIES / name, trajectory_text(one))
            text = json.dumps([asdict(record) for record in records])
            write_atomic(self.path / PARTS / f"{records[0].index:09d}.json", text)
            self.done.update({record.index: record for record in records})
            self._show_files(records)
            self._show_in_order()

    def rows(self) -> list[dict[str, str]]:
        """Return the rows of the table as it stands on disk."""
        with disk_errors(self.path), (self.path / TABLE).open(newline="", encoding="utf-8") as text:
            return list(csv.DictReader(text))

    def finish(self) -> None:
        """Mark the run complete and drop what only a resume needs."""
        with disk_errors(self.path):
            self._mark_repeats()
            self._show_all()
            if os.name == "posix":
                os.sync()  # the crystals' own files too, before what could restore them goes
            self.run.finish()
            shutil.rmtree(self.path / PARTS)

    def _recall(self) -> None:
        for part in sorted((self.path / PARTS).iterdir()):
            try:
                if part.suffix != ".json":  # a batch that was being written at a kill
                    raise ValueError
                records = [Record(**values) for values in json.loads(part.read_text("utf-8"))]
                for record in records:
                    self._check(record)
            except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
                # Or a disk that lost power, or a stranger's file: the batch is made again.
                part.unlink()
                continue
            self.done.update({record.index: record for record in records})
        self._show_files(list(self.done.values()))
        for name in (CRYSTALS, TABLE):
            (self.path / name).unlink(missing_ok=True)
        self._show_in_order()

    def _check(self, record: Record) -> None:
        """Make sure that a record read from disk is one of this run and stays in its folder."""
        stem = file_stem(record.index, record.row["formula"], self.total)
        places = {f"{folder}/{stem}.cif" for folder in (CIF, SYMMETRISED)}
        texts = (record.frame, *record.row.values(), *record.files.values())
        if (
            not 0 <= record.index < self.total
            or tuple(record.row) != COLUMNS
            or not places.issuperset(record.files)
            or not record.row["formula"].isalnum()
            or not all(isinstance(text, str) for text in texts)
        ):
            raise ValueError

    def _show_files(self, records: Sequence[Record]) -> None:
        for record in records:
            for name, text in record.files.items():
                target = self.path / name
                target.parent.mkdir(exist_ok=True)
                if not (target.exists() and target.read_bytes() == text.encode()):
                    # Not atomic, which would take an fsync per crystal: a torn file is written
                    # again from `.parts` on a resume.
                    target.write_bytes(text.encode())

    def _show_in_order(self) -> None:
        """Append the crystals that now follow the last shown one without a gap."""
        ready = []
        while self._written in self.done:
            ready.append(self.done[self._written])
            self._written += 1
        if ready:
            frames = "".join(record.frame for record in ready)
            lines = csv_text(COLUMNS, [record.row for record in ready])
            if self._written > len(ready):  # the header is there
                lines = lines.partition("\n")[2]
            for name, text in ((CRYSTALS, frames), (TABLE, lines)):
                with (self.path / name).open("ab") as stream:
                    stream.write(text.encode())
                    stream.flush()
                    os.fsync(stream.fileno())

    def _show_all(self) -> None:
        """Rewrite the shared files with every finished crystal, gaps allowed."""
        records = [self.done[index] for index in sorted(self.done)]
        write_atomic(self.path / CRYSTALS, "".join(record.frame for record in records))
        table = csv_text(COLUMNS, [record.row for record in records])
        write_atomic(self.path / TABLE, table)

    def _mark_repeats(self) -> None:
        """Name in `same_as` the first crystal of the run that is the same as a later one."""
        records = [self.done[index] for index in sorted(self.done) if self.done[index].frame]
        count = Counter(record.row["formula"] for record in records)
        several = [r for r in records if 1 < count[r.row["formula"]] <= MOST_COMPARED]
        if several:
            import ase.io  # which takes most of a second

            frames = io.StringIO("".join(record.frame for record in several))
            firsts = kinds(ase.io.read(frames, index=":", format="extxyz"))
            for place, (record, first) in enumerate(zip(several, firsts, strict=True)):
                repeated = 0 <= first < place  # -1 is a cell that no comparison takes
                record.row["same_as"] = str(several[first].index) if repeated else ""

    def _refuse_incomplete(self) -> None:
        """Refuse a finished run of which a file was taken away since."""
        names = [CRYSTALS, TABLE]
        if (self.path / TABLE).is_file():
            files = ("cif_file", "cif_symmetrised_file")
            names += [row.get(c) or CRYSTALS for row in self.rows() for c in files]
        missing = next((name for name in names if not (self.path / name).is_file()), None)
        if missing:
            raise OutputError(
                f"{self.path} holds this run, finished, but {missing} is gone: put it back, choose "
                "another --out, or --overwrite to make all crystals again"
            )


def file_stem(index: int, formula: str, total: int) -> str:
    """Return the name of a crystal's files: its index, padded, and its reduced formula.

    Args:
        index: Of the crystal, from 0.
        formula: Reduced.
        total: Crystals of the run, which decides the padding.
    """
    return f"{index:0{max(5, len(str(total - 1)))}d}-{formula}"


def describe(
    made: GeneratedCrystals, *, total: int, symprec: float, new_only: bool = False
) -> Record:
    """Describe one crystal in full: its CIF as made and symmetrised, extxyz frame and table row.

    A crystal that is not finite keeps its line in the table, marked invalid, and has no files; a
    known phase has none if only new ones are wanted.

    Args:
        made: One crystal.
        total: Crystals of the run, for the width of the index in file names.
        symprec: Symmetry tolerance in Å.
        new_only: Whether known phases are left out.
    """
    (request,), crystal, start = made.requests, made.crystals, made.requests[0].start
    error, inside = made.scorer_error[0], request.skeletons
    score = math.exp(-error) if made.scored_by == "confidence" else error
    scored = f"{score:.4f}" if math.isfinite(error) else ""
    row = dict.fromkeys(COLUMNS, "") | {
        "index": str(request.index),
        "formula": request.composition.reduced_formula,
        "formula_units": str(request.composition.formula_units),
        "n_atoms": str(request.n_atoms),
        "valid": "False",
        "confidence": scored if made.scored_by == "confidence" else "",
        "denoising_error": scored if made.scored_by == "denoising_error" else "",
        "sample": str(request.sample),
        "seed": str(request.seed),
        "start": "noise" if start is None else start.name,
        "substitution": "" if start is None else start.substitution,
        "level": "" if start is None else f"{start.level:g}",
        "prototype_fraction": _prototype_fraction(request),
        "space_group_asked": request.space_group,
        "space_group_proposed": str(inside[0].skeleton.group) if inside else "",
    }
    volume = float(crystal.volume[0])
    finite = crystal.lattice.isfinite().all() and crystal.frac_coords.isfinite().all()
    if not (finite and 0 < volume < math.inf):
        return Record(request.index, row, "", {})
    (one,) = split(crystal)
    reduced = niggli_reduce(one)
    least = least_distance(reduced, reduced=True)
    data = dataset(one, symprec, least=least)
    symbol, number = group_of(data)
    origin, known_as = origin_of(request, crystal)
    row |= {
        "volume": f"{volume:.4f}",
        "density": f"{density(one):.4f}",
        "space_group": symbol,
        "space_group_number": str(number),
        "sites": " ".join(sites_of(data) or ["1a"] * len(one)),
        "symprec": f"{symprec:g}",
        "least_distance": f"{least:.4f}",
        "min_distance_ratio": f"{min_distance_ratio(reduced, reduced=True):.3f}",
        "valid": str(not invalid_reason(volume, least)),
        "origin": origin,
        "known_as": known_as,
    }
    if new_only and origin == "known":
        return Record(request.index, row, "", {})
    name = file_stem(request.index, row["formula"], total)
    files = {
        f"{CIF}/{name}.cif": cif_text(crystal, name),
        f"{SYMMETRISED}/{name}.cif": dataset_cif_text(crystal, data, name, symprec),
    }
    row["cif_file"], row["cif_symmetrised_file"] = files
    info: dict[str, Any] = {"index": request.index} | {key: row[key] for key in _INFO}
    info |= {"formula_units": int(row["formula_units"]), "seed": request.seed}
    info |= {"symprec": symprec, "valid": row["valid"] == "True"}
    if scored:
        info[made.scored_by] = float(scored)
    return Record(request.index, row, extxyz_text(crystal, [info]), files)


def trajectory_text(made: GeneratedCrystals) -> str:
    """Return the extxyz text with every step of one crystal.

    Args:
        made: One crystal with its trajectory.
    """
    index = made.requests[0].index
    infos = [{"index": index, "step": n + 1} for n in range(len(made.trajectory))]
    return extxyz_text(Crystals.concat(made.trajectory), infos)
