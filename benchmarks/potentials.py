"""Which potential makes the better default: energies above hull, volumes and seconds against DFT.

    python benchmarks/potentials.py --entries Li-Fe-P-O_entries.json.gz --structures train.csv \\
        --structures val.csv --potential chgnet --potential sevennet --out potentials.csv

Structures whose id has a DFT energy among the entries (`mp-19017` or `mp-19017-GGA`) are relaxed
with each potential, structure by structure in turn, so that the ratio of processor times holds on a
machine that others use. Each potential's hull of these structures is compared with that of the same
entries by DFT, as they are and with the corrections of MaterialsProject2020Compatibility; the error
is the mean over the structures, its own error from a bootstrap. A stopped run goes on.
"""

import argparse
import csv
import gzip
import json
import warnings
from pathlib import Path

import numpy as np
from pymatgen.core import Composition, Element
from pymatgen.entries.compatibility import MaterialsProject2020Compatibility
from pymatgen.entries.computed_entries import ComputedEntry

from crystorus.hull.candidates import structures_of
from crystorus.hull.options import RelaxSettings
from crystorus.hull.potentials import energy_level
from crystorus.hull.rank import Hull, Phase
from crystorus.hull.relax import RelaxJob, relax

COLUMNS = ("id", "cell", "potential", "status", "steps", "cpu_seconds", "energy", "volume_change")


def above_hull(energies: dict[str, float], formulas: dict[str, Composition]) -> np.ndarray:
    """Return eV/atom above the hull of all these structures, in their order."""
    phases = [Phase(name, formulas[name], energy) for name, energy in energies.items()]
    elements = sorted({e.symbol for p in phases for e in p.composition}, key=lambda s: Element(s).Z)
    hull = Hull(phases, elements)
    return np.array([hull.energy_above(phase) for phase in phases])


def mean_error(differences: np.ndarray) -> str:
    random = np.random.default_rng(0)
    size = np.abs(differences)
    means = random.choice(size, (1000, len(size))).mean(axis=1)
    return f"{size.mean():.4f} ± {means.std():.4f} (median {np.median(size):.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--entries", type=Path, required=True)
    parser.add_argument("--structures", type=Path, action="append", required=True)
    parser.add_argument("--potential", action="append", required=True)
    parser.add_argument("--relax-steps", type=int, default=150)
    parser.add_argument("--out", type=Path, default=Path("potentials.csv"))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    with gzip.open(args.entries, "rt") as text:
        entries = [ComputedEntry.from_dict(one) for one in json.load(text)]
    raw = {e.entry_id.split("-GGA")[0]: e.energy / e.composition.num_atoms for e in entries}
    scheme = MaterialsProject2020Compatibility(check_potcar=False)
    corrected = {
        e.entry_id.split("-GGA")[0]: e.energy_per_atom for e in scheme.process_entries(entries)
    }
    elements = {element.symbol for e in entries for element in e.composition}
    found = {
        one.details["id"]: one.atoms
        for path in args.structures
        for one in structures_of(path, "reference", path.name, within=elements)
        if one.details["id"] in raw.keys() & corrected.keys()
    }
    formulas = {name: Composition(str(atoms.symbols)) for name, atoms in found.items()}
    if missing := elements - {
        str(a.symbols[0]) for a in found.values() if len(set(a.symbols)) == 1
    }:
        raise SystemExit(
            f"no structure of {', '.join(sorted(missing))} has an entry: name a file with one by "
            "another --structures"
        )
    done = {}
    if args.out.exists():
        with args.out.open() as text:
            done = {(row["id"], row["potential"]): row for row in csv.DictReader(text)}
    for name, atoms in found.items():
        for path in args.potential:
            if (name, path) not in done:
                settings = RelaxSettings(potential=path, steps=args.relax_steps)
                one = relax(RelaxJob(0, atoms, settings))
                change = one.atoms.get_volume() / atoms.get_volume() - 1
                values = (name, str(atoms.symbols), path, one.status, one.steps,
                          f"{one.cpu_seconds:.3f}", one.energy, f"{change:.5f}")  # fmt: skip
                done[name, path] = dict(zip(COLUMNS, values, strict=True))
                fresh = not args.out.exists()
                with args.out.open("a", newline="") as text:
                    csv.writer(text).writerows([COLUMNS, values] if fresh else [values])
    usable = [n for n in found if all(done[n, path]["energy"] for path in args.potential)]
    print(f"{len(usable)} of {len(found)} structures relaxed by all")
    truths = {
        "as they are": above_hull({n: raw[n] for n in usable}, formulas),
        "corrected": above_hull({n: corrected[n] for n in usable}, formulas),
    }

    def column(path: str, name: str) -> np.ndarray:
        return np.array([float(done[n, path][name]) for n in usable])

    first = column(args.potential[0], "cpu_seconds")
    for path in args.potential:
        per_atom = column(path, "energy") / [len(found[n]) for n in usable]
        above = above_hull(dict(zip(usable, per_atom, strict=True)), formulas)
        volume, seconds = column(path, "volume_change"), column(path, "cpu_seconds")
        print(f"{path}: {energy_level(path)}")
        for what, truth in truths.items():
            print(f"  energy above hull, eV/atom, against DFT {what}: {mean_error(above - truth)}")
        print(f"  volume against DFT: {mean_error(volume)}, mean {volume.mean():+.4f}")
        ratio = seconds.sum() / first.sum()
        print(f"  {seconds.mean():.2f} processor seconds each, {ratio:.2f} of the first's")
        print(f"  {column(path, 'steps').mean():.1f} steps")


if __name__ == "__main__":
    main()
