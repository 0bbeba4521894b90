"""The crystals of an output folder, or of any file of structures, with what the table says."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from crystal_fidelity.reading import iter_structures
from crystal_fidelity.structures import Crystal, Entry
from crystorus.data.compositions import Composition
from crystorus.data.writers import safe_name
from crystorus.errors import ReadingError, RequestError
from crystorus.results.options import ChoiceOptions

TABLE, CAMPAIGN = "table.csv", "campaign.db"
_FILES = ("cif_file", "file")  # as made or relaxed; of `sample` and of `hull`


@dataclass(frozen=True, eq=False)
class Result:
    """A crystal of a run.

    Attributes:
        name: Of its files.
        entry: The crystal as it was made or relaxed, or why there is none.
        row: Its line of the table, by column.
    """

    name: str
    entry: Entry | None
    row: Mapping[str, str]


def read_results(path: Path, options: ChoiceOptions) -> list[Result]:
    """Read the crystals of an output folder in the order of its table, or those of a file.

    Args:
        path: A folder that `sample`, `refine`, `predict`, `hull` or `rank` wrote; or structures in
            any format that crystal-fidelity reads.
        options: Which of them.

    Raises:
        RequestError: If there is none, or none of a name.
        ReadingError: If a file as a whole cannot be read.
    """
    if (path / TABLE).is_file():
        with (path / TABLE).open(newline="", encoding="utf-8") as stream:
            found = [_of_row(path, row) for row in csv.DictReader(stream)]
    elif (path / CAMPAIGN).is_file():  # of `relax`, or not ranked yet
        found = [
            replace(one, row={**one.row, **one.entry.info})
            for one in _of_structures(path / CAMPAIGN, stage="relaxed", kind="generated")
            if isinstance(one.entry, Crystal)
        ]
    else:
        try:
            found = _of_structures(path)
        except ReadingError as error:
            if not path.is_dir():
                raise
            inside = sorted(one.parent for one in path.glob(f"*/{TABLE}"))
            such = f", such as {inside[0]}" if inside else ""
            raise RequestError(
                f"{path} holds neither {TABLE} nor {CAMPAIGN} nor structures: name a folder that a "
                f"command wrote{such}, or a file of structures"
            ) from error
    if options.name:
        named = {one.name: one for one in found}
        if missing := [name for name in options.name if name not in named]:
            raise RequestError(
                f"{path} has no crystal {missing[0]}: name one as its files are, such as "
                f"{found[0].name}"
            )
        found = [named[name] for name in options.name]
    chosen = found[: options.best]
    if not chosen:
        raise RequestError(f"{path} holds no crystals: there is nothing to show")
    return chosen


def _of_row(folder: Path, row: Mapping[str, str]) -> Result:
    file = next((row[key] for key in _FILES if row.get(key)), "")
    name = row.get("name") or Path(file).stem or f"{int(row['index']):05d}-{row['formula']}"
    if not file or not (folder / file).is_file():
        return Result(name, None, row)
    (entry,) = iter_structures(folder / file)
    return Result(name, entry, row)


def _of_structures(path: Path, **info: str) -> list[Result]:
    """Return the structures of a file; of a database, those of some key-value pairs."""
    results, taken = list[Result](), dict[str, int]()
    for entry in iter_structures(path):
        if info and (not isinstance(entry, Crystal) or not info.items() <= entry.info.items()):
            continue
        name = safe_name(entry.name)
        taken[name] = taken.get(name, 0) + 1
        name += f"-{taken[name]}" if taken[name] > 1 else ""
        row = {"reason": ""}
        if isinstance(entry, Crystal):
            formula = Composition.of(entry.atomic_numbers.tolist()).reduced_formula
            row = {"formula": formula, "n_atoms": str(len(entry))}
        else:
            row = {"formula": "", "reason": entry.reason}
        results.append(Result(name, entry, row))
    return results


def crystals_of(results: Sequence[Result]) -> dict[str, Crystal]:
    """Return the crystals that could be read, by name.

    Args:
        results: Of `read_results`.
    """
    return {one.name: one.entry for one in results if isinstance(one.entry, Crystal)}
