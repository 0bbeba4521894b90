"""Structures into a campaign: read, screened, near-duplicates marked, a batch per commit."""

import csv
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import ase.io
from ase import Atoms

from crystorus.data.arrays import CrystalArrays, ReadingError, niggli_reduce
from crystorus.data.preparing import crystal_of
from crystorus.data.reading import clean_name, read_records
from crystorus.hull.matching import NEAR, Gallery
from crystorus.hull.screening import ScreenLimits, screen
from crystorus.hull.state import (
    DUPLICATE,
    GENERATED,
    INVALID,
    VALID,
    Campaign,
    Original,
    Provenance,
)
from crystorus.sample.folder import CRYSTALS, TABLE

_PER_COMMIT = 50

Progress = Callable[[int], None]


def generated_structures(folder: Path) -> Iterator[Original]:
    """Yield the crystals of a folder that `crystorus sample` filled, those without atoms too."""
    frames = {
        int(atoms.info["index"]): atoms for atoms in ase.io.iread(folder / CRYSTALS, index=":")
    }
    with (folder / TABLE).open(newline="", encoding="utf-8") as text:
        for row in csv.DictReader(text):
            index = int(row["index"])
            details = {
                "index": index,
                "sample": int(row["sample"]),
                "seed": row["seed"],
                "formula_units": int(row["formula_units"]),
            }
            name = f"{index:05d}-{row['formula']}"
            atoms, reason = frames.get(index), ""
            if atoms is None:
                atoms, reason = Atoms(row["formula"]), "the model gave numbers that are not finite"
            status = INVALID if reason else VALID
            provenance = _provenance(row)
            yield Original(
                name, GENERATED, atoms, status, "sampled", reason, "", provenance, details
            )


def structures_of(
    path: Path, kind: str, source: str, *, within: Collection[str] = ()
) -> Iterator[Original]:
    """Yield the structures of a file or folder; what cannot be read is yielded as invalid.

    Cells come reduced: the graph of a strongly skewed one needs images without end.

    Args:
        path: The file or folder.
        kind: "generated" or "reference".
        source: What to call it.
        within: Symbols; rows of a table whose formula holds another element are passed over
            without being parsed.

    Raises:
        ReadingError: If the path as a whole cannot be read.
    """
    taken: dict[str, int] = {}
    for record in read_records(path):
        formula = record.extra.get("pretty_formula", "")
        if within and not set(re.findall("[A-Z][a-z]?", formula)) <= set(within):
            continue
        name = campaign_name(record.name)
        taken[name] = taken.get(name, 0) + 1
        if taken[name] > 1:
            name = f"{name}-again{taken[name] - 1}"
        details = {"id": record.name}
        try:
            crystal = niggli_reduce(crystal_of(record))
        except ReadingError as error:
            yield Original(name, kind, Atoms(), INVALID, source, str(error), details=details)
        else:
            yield Original(name, kind, atoms_of(crystal), VALID, source, details=details)


def atoms_of(crystal: CrystalArrays) -> Atoms:
    """Return arrays as ASE atoms."""
    return Atoms(
        numbers=crystal.atomic_numbers,
        scaled_positions=crystal.frac_coords,
        cell=crystal.lattice.T,
        pbc=True,
    )


def campaign_name(text: str) -> str:
    """Return an id as a name of files and rows."""
    return _no_number(clean_name(text))


def _no_number(text: str) -> str:
    """Return a text that ASE's database does not take for a number."""
    try:
        float(text)
    except ValueError:
        return text if text.lower() not in ("true", "false") else f"id-{text}"
    return f"id-{text}"


def _provenance(row: Mapping[str, str]) -> Provenance:
    share = row["share_of_votes"]
    return Provenance(_no_number(row["start"]), float(share) if share else None, row["origin"])


def import_originals(
    campaign: Campaign,
    originals: Iterable[Original],
    limits: ScreenLimits,
    *,
    kind: str,
    drop_duplicates: bool,
    on_progress: Progress = lambda done: None,
) -> None:
    """Screen structures and write them into the campaign, going on where a kill left off.

    Args:
        campaign: Where they go.
        originals: In an order that is the same every time.
        limits: Of the screen.
        kind: "generated" or "reference".
        drop_duplicates: Mark near-duplicates, so that only the first of each is relaxed.
        on_progress: Called with the number of structures seen.
    """
    known = campaign.names(kind)
    gallery = Gallery(NEAR)
    if drop_duplicates and known:
        for row in campaign.originals(kind):
            if row.status == VALID:
                gallery.add(row.name, row.toatoms())
    done, stream = 0, iter(originals)
    while batch := list(islice(stream, _PER_COMMIT)):
        fresh = [one for one in batch if one.name not in known]
        campaign.add(_judge(fresh, limits, gallery if drop_duplicates else None))
        known |= {one.name for one in fresh}
        done += len(batch)
        on_progress(done)


def _judge(
    originals: Sequence[Original], limits: ScreenLimits, gallery: Gallery | None
) -> list[Original]:
    judged = []
    for one in originals:
        status, reason, twin = one.status, one.reason, ""
        if status == VALID:
            reason = screen(one.atoms, limits)
            status = INVALID if reason else VALID
        if status == VALID and gallery is not None:
            twin = gallery.find(one.atoms)
            if twin:
                status = DUPLICATE
            else:
                gallery.add(one.name, one.atoms)
        judged.append(replace(one, status=status, reason=reason, duplicate_of=twin))
    return judged
