"""Known phases: pymatgen entries with energies, structures to relax, or the Materials Project.

Energies belong to a level, a name of what computed them. A hull of two levels compares what
cannot be compared, so it is refused unless it is asked for.
"""

import hashlib
import itertools
import json
import math
import os
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from pymatgen.core import Composition, Element

from crystal_fidelity.files import file_digest, write_atomic
from crystal_fidelity.reading import open_text
from crystal_fidelity.structures import checked
from crystorus.data.compositions import Composition as CellComposition
from crystorus.data.writers import safe_name
from crystorus.errors import ReadingError, ReferencesError
from crystorus.hull.candidates import INVALID, niggli_atoms, structures_of
from crystorus.hull.options import MATERIALS_PROJECT

MP_LEVEL = "Materials Project (corrected DFT)"
KEY_VARIABLES = ("MP_API_KEY", "PMG_MAPI_KEY")
ENDPOINT_VARIABLE = "MP_API_ENDPOINT"
ENDPOINT = "https://api.materialsproject.org/"
_FIELDS = ("material_id", "formula_pretty", "energy_per_atom", "structure", "deprecated")
_KEY_LENGTH, _PER_PAGE, _TIMEOUT_S = 32, 1000, 60
_FAILURES = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
_ENTRY_CLASSES = ("ComputedEntry", "ComputedStructureEntry", "PDEntry")
_GGA = ("GGA", "GGA+U", "PBE", "PBE+U")
_SPECIES = re.compile(r"([A-Z][a-z]?)[\d.]*[+-]?")
_HYDROGEN = {"D": "H", "T": "H"}


@dataclass(frozen=True, eq=False)
class Known:
    """A known phase.

    Attributes:
        name: Its id, with its file where another file has the same id.
        source: Name and digest of its file or service.
        composition: Of any multiple of the formula unit, elements without oxidation states.
        energy_per_atom: eV/atom, None where the source gives none.
        level: Of that energy.
        atoms: Its structure, None where the source gives none.
        row: Name of its rows in a campaign's database: two files may give one id to two structures.
    """

    name: str
    source: str
    composition: Composition
    energy_per_atom: float | None
    level: str
    atoms: Atoms | None
    row: str = ""


def read_references(
    names: Sequence[str], elements: Sequence[str], folder: Path
) -> tuple[list[Known], list[str]]:
    """Read known phases within a chemical system.

    Args:
        names: Files, or "materials-project".
        elements: Symbols of the system.
        folder: Where answers of services are kept.

    Returns:
        The phases, in the order of the sources, names unique; and warnings.

    Raises:
        ReferencesError: If one of them cannot be read.
    """
    phases: list[Known] = []
    warnings: list[str] = []
    for name in dict.fromkeys(names):
        path = Path(name)
        if name == MATERIALS_PROJECT:
            found, skipped = _from_materials_project(elements, folder)
        elif is_entries_file(path):
            entries, said = read_entries(path)
            found = [p for p in entries if p.composition.chemical_system_set <= set(elements)]
            skipped, warnings = 0, warnings + said
        else:
            found, skipped = _from_structures(path, elements)
        if skipped:
            warnings.append(f"{skipped} structures of {name} cannot be read and are left out")
        phases += [replace(p, row=f"{p.name}@{p.source[-6:]}") for p in found]
    taken = Counter(p.name for p in phases)
    named = [
        p if taken[p.name] == 1 else replace(p, name=f"{p.name} ({p.source.rpartition(' ')[0]})")
        for p in phases
    ]
    return named, warnings


def is_entries_file(path: Path) -> bool:
    """Tell whether a name is that of a file of entries: JSON, plain or gzipped.

    Args:
        path: Need not exist.
    """
    return path.name.lower().endswith((".json", ".json.gz"))


def label_of(path: Path) -> str:
    """Return name and digest of a file or of a folder's files.

    Args:
        path: A file or a folder.
    """
    if not path.is_dir():
        return f"{path.name} {file_digest(path)[:12]}"
    digest = hashlib.sha256()
    for file in sorted(p for p in path.iterdir() if p.is_file()):
        digest.update(f"{file.name} {file_digest(file)}\n".encode())
    return f"{path.name} {digest.hexdigest()[:12]}"


def check_span(compositions: Iterable[Composition], elements: Sequence[str], where: str) -> None:
    """Make sure that every element has a phase, without which there is no hull.

    Args:
        compositions: Of the phases.
        elements: Symbols of the system.
        where: What they are called in the sentence.

    Raises:
        ReferencesError: Naming the elements that have none.
    """
    found = {next(iter(c)).symbol for c in compositions if len(c) == 1}
    if missing := [symbol for symbol in elements if symbol not in found]:
        raise ReferencesError(
            f"{where} do not span {'-'.join(elements)}: there is no elemental phase of "
            f"{' and '.join(missing)}. Add one with another --references FILE"
        )


def check_levels(levels: Iterable[str], *, mix: bool) -> None:
    """Refuse energies that were computed in different ways.

    Args:
        levels: Of the energies; repeats are allowed.
        mix: Allow several.

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


def formula_of(composition: Composition) -> str:
    """Return the formula of one unit of a pymatgen composition, spelled as crystals' are.

    Args:
        composition: pymatgen's.
    """
    if any(abs(n - round(n)) > 1e-6 for n in composition.values()):
        return str(composition.reduced_formula)  # an average over disorder: no crystal has it
    counts = {element.Z: round(n) for element, n in composition.items()}
    return CellComposition.from_counts(counts).reduced_formula


def _from_structures(path: Path, elements: Sequence[str]) -> tuple[list[Known], int]:
    if not path.exists():
        raise ReferencesError(f"{path} does not exist: name a file of known phases")
    phases, skipped = [], 0
    try:
        label = label_of(path)
        for one in structures_of(path, "reference", label, within=elements):
            if one.status == INVALID:
                skipped += 1
            elif set(one.atoms.symbols) <= set(elements):
                formula = Composition(one.atoms.get_chemical_formula())
                phases.append(Known(one.name, label, formula, None, "", one.atoms))
    except (ReadingError, OSError) as error:
        raise ReferencesError(
            f"known phases: {error}; a file of pymatgen entries ends in .json or .json.gz"
        ) from error
    return phases, skipped


# Entries are built from plain fields: pymatgen's decoder imports the modules that a file names.


def read_entries(path: Path) -> tuple[list[Known], list[str]]:
    """Read a JSON list of pymatgen entries.

    Args:
        path: .json or .json.gz.

    Returns:
        The entries, energies corrected as pymatgen's `from_dict` corrects them, and warnings.

    Raises:
        ReferencesError: If it is none.
    """
    try:
        with open_text(path) as stream:
            listed = json.load(stream)
    except FileNotFoundError as error:
        raise ReferencesError(f"{path} does not exist: name another file") from error
    except ReadingError as error:
        raise ReferencesError(str(error)) from error
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise ReferencesError(
            f"{path} is no JSON, or cut short ({str(error)[:80]}): fetch it again"
        ) from error
    listed = listed.get("entries", listed) if isinstance(listed, dict) else listed
    if not isinstance(listed, list) or not listed:
        raise ReferencesError(f"{path} holds no list of pymatgen entries: give a JSON list of them")
    label, found, run_types = label_of(path), [], []
    uncorrected = 0
    taken: Counter[str] = Counter()
    for number, one in enumerate(listed, start=1):
        kind = one.get("@class") if isinstance(one, dict) else None
        if kind not in _ENTRY_CLASSES:
            raise ReferencesError(
                f"{path}, entry {number} is {kind or type(one).__name__}: only "
                f"{', '.join(_ENTRY_CLASSES)} are read"
            )
        try:
            composition = _plain_composition(one["composition"])
            correction = _correction(one)
            energy = float(one["energy"]) + correction
            atoms = _plain_structure(one["structure"]) if one.get("structure") else None
        except _FAILURES as error:
            reason = " ".join(str(error).split())[:160]
            raise ReferencesError(f"{path}, entry {number} cannot be read ({reason})") from error
        if not (composition and math.isfinite(energy) and math.isfinite(composition.num_atoms)):
            raise ReferencesError(
                f"{path}, entry {number} has no atoms or no finite energy: correct it"
            )
        name = safe_name(str(one.get("entry_id") or one.get("name") or f"entry-{number}"))
        taken[name] += 1
        name += f"-again{taken[name] - 1}" if taken[name] > 1 else ""
        parameters = one.get("parameters")
        run_type = parameters.get("run_type") if isinstance(parameters, dict) else None
        run_types.append(str(run_type or "").upper().replace("_", "+"))  # r2SCAN, GGA_U
        uncorrected += correction == 0 and run_types[-1].endswith("U")
        found.append(Known(name, label, composition, energy / composition.num_atoms, "", atoms))
    levels, warnings = _levels(path, run_types, uncorrected)
    return [replace(one, level=level) for one, level in zip(found, levels, strict=True)], warnings


def _levels(path: Path, run_types: Sequence[str], uncorrected: int) -> tuple[list[str], list[str]]:
    """Return the level of each entry: the file, and the functional where the file has several.

    GGA and GGA+U are one level, which the corrections of the Materials Project join.

    Args:
        path: The file.
        run_types: Of its entries, in capitals, empty if unknown.
        uncorrected: How many GGA+U entries have no correction.
    """
    named = {run_type for run_type in run_types if run_type}
    families = {"GGA and GGA+U" if name in _GGA else name for name in named}
    base, warnings = f"entries of {path.name}", []
    if uncorrected and named & {"GGA", "PBE"}:
        counts = Counter(run_types)
        listed = ", ".join(f"{counts[name]} {name}" for name in sorted(named & set(_GGA)))
        warnings.append(
            f"{path.name} mixes {listed}, and {uncorrected} GGA+U energies have no correction: "
            "they are not of one scale; apply MaterialsProject2020Compatibility to the entries"
        )
    if len(families) < 2:
        return [base] * len(run_types), warnings
    return [
        f"{base}, {'GGA and GGA+U' if one in _GGA else one or 'of unknown functional'}"
        for one in run_types
    ], warnings


def _plain_composition(given: Any) -> Composition:
    """Return a composition of elements: oxidation states say nothing about energy, D is H."""
    counts = defaultdict[str, float](float)
    for species, amount in (given if isinstance(given, dict) else Composition(given)).items():
        counts[_symbol(str(species))] += float(amount)
    if not all(0 < n < math.inf for n in counts.values()):
        raise ValueError(f"composition {given}")
    return Composition(counts)


def _symbol(species: str) -> str:
    match = _SPECIES.fullmatch(species)
    symbol = _HYDROGEN.get(match[1], match[1]) if match else ""
    if not Element.is_valid_symbol(symbol):
        raise ValueError(f"no element is called {species!r}")
    return symbol


def _correction(one: Mapping[str, Any]) -> float:
    """Return the sum of an entry's adjustments in eV; its `correction` where it has none."""
    adjustments = one.get("energy_adjustments") or []
    if not adjustments:
        return float(one.get("correction") or 0.0)
    total = 0.0
    for adjustment in adjustments:
        match adjustment:
            case {"adj_per_atom": per_atom, "n_atoms": n_atoms}:
                total += float(per_atom) * float(n_atoms)
            case {"adj_per_deg": per_degree, "temp": temperature, "n_atoms": n_atoms}:
                total += float(per_degree) * float(temperature) * float(n_atoms)
            case {"value": value}:
                total += float(value)
            case _:
                raise ValueError(f"unknown energy adjustment {str(adjustment)[:60]}")
    return total


def _plain_structure(given: Mapping[str, Any]) -> Atoms:
    """Return the reduced cell of a pymatgen structure's fields; oxidation states are dropped."""
    numbers, frac = [], []
    for site in given["sites"]:
        (species,) = site["species"]  # several species, or a partial one, are no crystal
        if abs(float(species.get("occu", 1.0)) - 1.0) > 1e-6:
            raise ValueError("a site is partially occupied")
        numbers.append(Element(_symbol(str(species["element"]))).Z)
        frac.append([float(x) for x in site["abc"]])
    cell = np.array(given["lattice"]["matrix"], dtype=float)
    return niggli_atoms(checked(cell, frac, numbers))


# The Materials Project


def _from_materials_project(elements: Sequence[str], folder: Path) -> tuple[list[Known], int]:
    cache = folder / f"{MATERIALS_PROJECT}-{'-'.join(sorted(elements))}.json"
    documents = fetch_summaries(elements, cache)
    label = f"{MATERIALS_PROJECT} {file_digest(cache)[:12]}"
    phases, skipped = [], 0
    for one in documents:
        try:
            atoms = _plain_structure(one["structure"])
            name = safe_name(str(one["material_id"]))
            energy = one.get("energy_per_atom")
            given = None if energy is None else float(energy)
        except (*_FAILURES, ReadingError):
            skipped += 1
            continue
        formula = Composition(atoms.get_chemical_formula())
        phases.append(Known(name, label, formula, given, MP_LEVEL, atoms))
    return phases, skipped


def fetch_summaries(elements: Sequence[str], cache: Path) -> list[dict[str, Any]]:
    """Return the summary documents of all phases of a chemical system.

    What the server answers is kept in `cache`, so that a resumed campaign compares with the same
    phases and needs no network.

    Args:
        elements: Symbols.
        cache: A JSON file.

    Raises:
        ReferencesError: If there is no key, it is refused, or the server does not answer in full.
    """
    if cache.is_file():
        try:
            return list(json.loads(cache.read_text(encoding="utf-8"))["data"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ReferencesError(
                f"{cache} is damaged ({error}): delete it to ask the Materials Project again"
            ) from error
    key = next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), "")
    if not key:
        raise ReferencesError(
            f"the Materials Project wants a key and {KEY_VARIABLES[0]} is not set: get one at "
            "https://next-gen.materialsproject.org/api and set it in the environment"
        )
    if len(key) != _KEY_LENGTH:
        raise ReferencesError(
            f"the key in {KEY_VARIABLES[0]} has {len(key)} characters: the Materials Project's "
            f"have {_KEY_LENGTH}, copy it again"
        )
    systems = [
        "-".join(sorted(some))
        for size in range(1, len(elements) + 1)
        for some in itertools.combinations(sorted(elements), size)
    ]
    documents = _ask(key, systems)
    live = [one for one in documents if isinstance(one, dict) and not one.get("deprecated")]
    if not live:
        raise ReferencesError(
            f"the Materials Project lists no phase of {'-'.join(elements)}: take references from "
            "a file with --references FILE"
        )
    cache.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(cache, json.dumps({"elements": sorted(elements), "data": live}))
    return live


def _ask(key: str, systems: Sequence[str]) -> list[dict[str, Any]]:
    """Return all documents of some systems, page by page, and make sure that none is missing."""
    import requests

    endpoint = os.environ.get(ENDPOINT_VARIABLE, ENDPOINT).rstrip("/")
    question = {
        "_fields": ",".join(_FIELDS), "_all_fields": "False",
        "chemsys": ",".join(systems), "deprecated": "false",
    }  # fmt: skip
    documents: list[dict[str, Any]] = []
    paged, page = True, 1
    while True:
        pages = {"_per_page": str(_PER_PAGE), "_page": str(page)} if paged else {}
        try:
            answer = requests.get(
                f"{endpoint}/materials/summary/", params=question | pages,
                headers={"x-api-key": key}, timeout=_TIMEOUT_S,
            )  # fmt: skip
        except requests.RequestException as error:
            raise ReferencesError(
                f"{endpoint} did not answer ({str(error).splitlines()[0][:120]}): check the "
                "network, or take references from a file"
            ) from error
        if answer.status_code == 400 and paged and "_per_page" in answer.text:
            paged = False  # some routes know no pages
            continue
        if answer.status_code != 200:
            raise ReferencesError(_trouble(endpoint, answer.status_code, answer.text))
        try:
            body = answer.json()
            found = list(body["data"])
            total = (body.get("meta") or {}).get("total_doc")
        except _FAILURES as error:
            kind = answer.headers.get("content-type", "an answer of no type")
            raise ReferencesError(
                f"{endpoint} answered with {kind} and not with the JSON of an API: a proxy or a "
                f"login page may be in between; check {ENDPOINT_VARIABLE} and the network"
            ) from error
        documents += found
        if not paged or len(found) < _PER_PAGE:
            break
        page += 1
    if isinstance(total, int) and len(documents) < total:
        raise ReferencesError(
            f"{endpoint} gave {len(documents)} of {total} phases: without the others the hull "
            "would be wrong; take references from a file, or try again later"
        )
    return documents


def _trouble(endpoint: str, status: int, text: str) -> str:
    if status in (401, 403):
        return (
            f"{endpoint} refuses the key in {KEY_VARIABLES[0]} (HTTP {status}): copy it again from "
            "https://next-gen.materialsproject.org/api"
        )
    if status == 429:
        return f"{endpoint} asks for a pause, too many requests: try again in a minute"
    if status >= 500:
        return (
            f"{endpoint} is out of order (HTTP {status}): try again later, or take references from "
            "a file"
        )
    said = " ".join(text.split())[:120]
    return (
        f"{endpoint} does not understand the question (HTTP {status}: {said}): update crystorus, "
        "or take references from a file"
    )
