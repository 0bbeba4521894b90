"""Known phases: pymatgen entries with energies, structures to relax, or the Materials Project.

Energies belong to a level, a name of what computed them. A hull of two levels compares what
cannot be compared, so it is refused unless it is asked for.
"""

import gzip
import hashlib
import json
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase import Atoms
from pymatgen.core import Composition, Structure

from crystorus.data.arrays import ReadingError
from crystorus.data.files import file_digest
from crystorus.data.reading import structure_arrays
from crystorus.hull.candidates import atoms_of, campaign_name, structures_of
from crystorus.hull.errors import ReferencesError
from crystorus.hull.materials_project import fetch_summaries
from crystorus.hull.state import INVALID, REFERENCE, VALID, Original

MATERIALS_PROJECT = "materials-project"
MP_LEVEL = "Materials Project (corrected DFT)"
DEFAULT = Path("data/mp-20/train.csv")
_ENTRY_CLASSES = ("ComputedEntry", "ComputedStructureEntry", "PDEntry")


@dataclass(frozen=True, eq=False)
class Known:
    """A known phase.

    Attributes:
        name: Its id.
        composition: Of any multiple of the formula unit.
        energy_per_atom: eV/atom, None where the source gives none.
        level: Of that energy.
        atoms: Its structure, None where the source gives none.
    """

    name: str
    composition: Composition
    energy_per_atom: float | None
    level: str
    atoms: Atoms | None


@dataclass(frozen=True, eq=False)
class Source:
    """One file or service of known phases.

    Attributes:
        label: Name and digest, by which a campaign knows it again.
        phases: Those within the system.
        skipped: How many of its structures could not be read.
    """

    label: str
    phases: tuple[Known, ...]
    skipped: int = 0

    def row_name(self, known: Known) -> str:
        """Return the name of a phase's rows: two files may give one id to two structures."""
        return f"{known.name}@{self.label[-6:]}"

    def originals(self, *, with_energies: bool = True) -> list[Original]:
        """Return the phases that have structures, for a campaign to relax.

        Args:
            with_energies: Those as well that come with an energy.
        """
        return [
            Original(
                self.row_name(p), REFERENCE, p.atoms, VALID, self.label, details={"id": p.name}
            )
            for p in self.phases
            if p.atoms is not None and (with_energies or p.energy_per_atom is None)
        ]


def default_sources() -> tuple[str, ...]:
    """Return MP-20's training crystals, where `crystorus data get mp-20` puts them.

    Raises:
        ReferencesError: If they are not there.
    """
    if not DEFAULT.is_file():
        raise ReferencesError(
            f"no references are named and {DEFAULT} is not there: run `crystorus data get mp-20`, "
            "or name known phases with --references FILE"
        )
    return (str(DEFAULT),)


def read_sources(names: Sequence[str], elements: Sequence[str], folder: Path) -> list[Source]:
    """Read known phases within a chemical system.

    Args:
        names: Files, or "materials-project".
        elements: Symbols of the system.
        folder: Where answers of services are kept.

    Raises:
        ReferencesError: If one of them cannot be read.
    """
    sources = []
    for name in dict.fromkeys(names):
        if name == MATERIALS_PROJECT:
            sources.append(_from_materials_project(elements, folder))
        elif is_entries_file(Path(name)):
            phases = read_entries(Path(name))
            within = [p for p in phases if set(p.composition.chemical_system_set) <= set(elements)]
            sources.append(Source(label_of(Path(name)), tuple(within)))
        else:
            sources.append(_from_structures(Path(name), elements))
    return sources


def is_entries_file(path: Path) -> bool:
    """Tell whether a name is that of a file of entries: JSON, plain or gzipped."""
    return path.name.lower().endswith((".json", ".json.gz"))


def read_entries(path: Path) -> list[Known]:
    """Read a JSON list of pymatgen entries.

    Raises:
        ReferencesError: If it is none.
    """
    listed = _read_json(path)
    listed = listed.get("entries", listed) if isinstance(listed, dict) else listed
    if not isinstance(listed, list) or not listed:
        raise ReferencesError(f"{path} holds no list of pymatgen entries: give a JSON list of them")
    return [_entry(one, number, path) for number, one in enumerate(listed, start=1)]


def missing_elements(compositions: Iterable[Composition], elements: Sequence[str]) -> list[str]:
    """Return the elements of which no elemental phase is among the compositions."""
    found = {next(iter(c)).symbol for c in compositions if len(c) == 1}
    return [symbol for symbol in elements if symbol not in found]


def check_span(compositions: Iterable[Composition], elements: Sequence[str], where: str) -> None:
    """Make sure that every element has a phase, without which there is no hull.

    Raises:
        ReferencesError: Naming the elements that have none.
    """
    missing = missing_elements(compositions, elements)
    if missing:
        raise ReferencesError(
            f"{where} do not span {'-'.join(elements)}: there is no elemental phase of "
            f"{' and '.join(missing)}. Add one with another --references FILE"
        )


def check_levels(levels: Iterable[str], *, mix: bool) -> None:
    """Refuse energies that were computed in different ways.

    Raises:
        ReferencesError: If there are several levels and mixing was not asked for.
    """
    named = sorted(set(levels))
    if len(named) > 1 and not mix:
        raise ReferencesError(
            f"energies of {len(named)} levels would meet on one hull: {'; '.join(named)}. Give "
            "references with structures, which are relaxed by the same calculator, or take the "
            "error upon you with --mix-energy-levels"
        )


def _from_structures(path: Path, elements: Sequence[str]) -> Source:
    label, phases, skipped = "", [], 0
    try:
        for one in structures_of(path, REFERENCE, "", within=elements):
            if one.status == INVALID:
                skipped += 1
            elif set(one.atoms.get_chemical_symbols()) <= set(elements):
                formula = Composition(one.atoms.get_chemical_formula())
                phases.append(Known(one.name, formula, None, "", one.atoms))
        label = label_of(path)
    except ReadingError as error:
        raise ReferencesError(
            f"known phases: {error}; a file of pymatgen entries ends in .json or .json.gz"
        ) from error
    return Source(label, tuple(phases), skipped)


def _from_materials_project(elements: Sequence[str], folder: Path) -> Source:
    cache = folder / f"{MATERIALS_PROJECT}-{'-'.join(sorted(elements))}.json"
    phases, skipped = [], 0
    for one in fetch_summaries(elements, cache):
        try:
            structure = Structure.from_dict(one["structure"])
            atoms = atoms_of(structure_arrays(structure))
            name = str(one["material_id"])
        except (KeyError, TypeError, ValueError):
            skipped += 1
            continue
        energy = one.get("energy_per_atom")
        given = None if energy is None else float(energy)
        phases.append(Known(name, structure.composition, given, MP_LEVEL, atoms))
    return Source(f"{MATERIALS_PROJECT} {file_digest(cache)[:12]}", tuple(phases), skipped)


def label_of(path: Path) -> str:
    """Return name and digest of a file or of a folder's files."""
    if path.is_dir():
        digest = hashlib.sha256()
        for file in sorted(p for p in path.iterdir() if p.is_file()):
            digest.update(f"{file.name} {file_digest(file)}\n".encode())
        return f"{path.name} {digest.hexdigest()[:12]}"
    return f"{path.name} {file_digest(path)[:12]}"


def _read_json(path: Path) -> Any:
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8") as stream:
            return json.load(stream)
    except FileNotFoundError as error:
        raise ReferencesError(f"{path} does not exist: name another file") from error
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ReferencesError(
            f"{path} is no JSON, or cut short ({str(error)[:80]}): fetch it again"
        ) from error


def _entry(one: Any, number: int, path: Path) -> Known:
    """Read one entry without letting the file say which Python module to import."""
    kind = one.get("@class") if isinstance(one, dict) else None
    if kind not in _ENTRY_CLASSES:
        raise ReferencesError(
            f"{path}, entry {number} is {kind or type(one).__name__}: only "
            f"{', '.join(_ENTRY_CLASSES)} are read"
        )
    try:
        composition = Composition(one["composition"])
        # `correction` is the sum of the entry's adjustments, where it has any.
        energy = float(one["energy"]) + float(one.get("correction") or 0.0)
        structure = one.get("structure")
        atoms = structure and atoms_of(structure_arrays(Structure.from_dict(structure)))
    except (KeyError, TypeError, ValueError) as error:
        raise ReferencesError(f"{path}, entry {number} cannot be read ({error})") from error
    if not (composition and math.isfinite(energy)):
        raise ReferencesError(
            f"{path}, entry {number} has no atoms or no finite energy: correct it"
        )
    name = campaign_name(str(one.get("entry_id") or one.get("name") or f"entry-{number}"))
    level = f"entries of {path.name}"
    return Known(name, composition, energy / composition.num_atoms, level, atoms or None)
