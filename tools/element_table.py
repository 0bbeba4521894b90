"""Write src/crystorus/networks/elements.csv: chemical descriptors of the elements 1 to 118.

Run `python tools/element_table.py` after a change; a test compares the file with the libraries.

Sources: pymatgen (group, period, block, electron configuration, Pauling electronegativity,
atomic and mean ionic radius, Mendeleev number, mass, first ionisation energy, common oxidation
states) and ASE (covalent radii of Cordero et al., Dalton Trans. 2008, 2832,
which end at curium). Ionisation energies beyond lawrencium are estimates and not used.

Units: Å, u, eV. Valence electrons are those outside the noble-gas core, so gallium has ten d
electrons. `column` is the group, and counts on from 3 along the lanthanides and actinides.

Missing values are taken from the nearest element that has one, in this order: the same block,
the least difference in column (the group; the place in the row for f elements), the least
difference in period. So neon gets krypton's electronegativity, fermium its ionic radius from
a lanthanide's or actinide's neighbour. He, Ne, Ar and Rn, which pymatgen gives no oxidation
state, get 0. Electron configurations beyond rutherfordium follow the Madelung rule. Helium is
listed in block s but its missing values come from the noble gases.
"""

import csv
import math
import warnings
from pathlib import Path

from ase.data import covalent_radii
from pymatgen.core import Element

OUT = Path(__file__).parents[1] / "src/crystorus/networks/elements.csv"
LAST_KNOWN = 104  # beyond, no configuration is tabulated
NOBLE_GASES = (2, 10, 18, 36, 54, 86)
SHELLS = "1s 2s 2p 3s 3p 4s 3d 4p 5s 4d 5p 6s 4f 5d 6p 7s 5f 6d 7p".split()  # noqa: SIM905
CAPACITY = {"s": 2, "p": 6, "d": 10, "f": 14}
COLUMNS = [
    "Z",
    "symbol",
    "period",
    "group",
    "column",
    "block_s",
    "block_p",
    "block_d",
    "block_f",
    "valence_s",
    "valence_p",
    "valence_d",
    "valence_f",
    "electronegativity",
    "atomic_radius",
    "covalent_radius",
    "ionic_radius",
    "mendeleev_number",
    "atomic_mass",
    "ionization_energy",
    "oxidation_min",
    "oxidation_max",
]
FILLED = COLUMNS[COLUMNS.index("electronegativity") :]


def configuration(z: int) -> dict[str, int]:
    """Return the electrons of each shell, such as {"1s": 2, "2s": 1}."""
    if z <= LAST_KNOWN:
        known = Element.from_Z(z).full_electronic_structure
        return {f"{n}{orbital}": count for n, orbital, count in known}
    left, shells = z, {}
    for shell in SHELLS:
        shells[shell] = min(left, CAPACITY[shell[1]])
        left -= shells[shell]
    return {shell: count for shell, count in shells.items() if count}


def valence(z: int) -> dict[str, int]:
    """Return the s, p, d and f electrons outside the core of the noble gas before z."""
    core = max((n for n in NOBLE_GASES if n < z), default=0)
    shells = configuration(z)
    inner = configuration(core) if core else {}
    counts = dict.fromkeys("spdf", 0)
    for shell, count in shells.items():
        counts[shell[1]] += count - inner.get(shell, 0)
    return counts


def column(element: Element) -> int:
    """Return the group, or 3 to 17 along the row of the lanthanides and actinides."""
    if element.block == "f" or element.Z in (57, 89):
        return 3 + element.Z - (57 if element.row == 6 else 89)
    return element.group


def row(z: int) -> dict[str, float | str | None]:
    """Return the descriptors of one element, None where the libraries have nothing."""
    element = Element.from_Z(z)
    outer = valence(z)
    states = element.common_oxidation_states or ((0,) if z in (*NOBLE_GASES, 118) else ())
    values: dict[str, float | str | None] = {
        "Z": z,
        "symbol": element.symbol,
        "period": element.row,
        "group": element.group,
        "column": column(element),
        "electronegativity": element.X,
        "atomic_radius": element.atomic_radius,
        "covalent_radius": float(covalent_radii[z]) if z <= 96 else None,
        "ionic_radius": element.average_ionic_radius or None,
        "mendeleev_number": element.mendeleev_no,
        "atomic_mass": element.atomic_mass,
        "ionization_energy": element.ionization_energy if z <= 103 else None,
        "oxidation_min": min(states, default=None),
        "oxidation_max": max(states, default=None),
    }
    values |= {f"block_{b}": int(element.block == b) for b in "spdf"}
    return values | {f"valence_{orbital}": count for orbital, count in outer.items()}


def missing(value: object) -> bool:
    """Tell whether a library had no value."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def fill(rows: list[dict]) -> None:
    """Replace what is missing by the nearest element's value, in place."""

    def block(r: dict) -> str:
        return "p" if r["symbol"] == "He" else next(b for b in "spdf" if r[f"block_{b}"])

    for name in FILLED:
        known = [dict(r) for r in rows if not missing(r[name])]
        for r in rows:
            if missing(r[name]):
                r[name] = min(
                    known,
                    key=lambda k, r=r: (
                        block(k) != block(r),
                        abs(k["column"] - r["column"]),
                        abs(k["period"] - r["period"]),
                    ),
                )[name]


def main() -> None:
    """Write the table."""
    warnings.simplefilter("ignore")
    rows = [row(z) for z in range(1, 119)]
    fill(rows)
    with OUT.open("w", newline="") as stream:
        stream.write("# Written by tools/element_table.py, which names sources and units.\n")
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for r in rows:
            writer.writerow(r[c] if c == "symbol" else f"{float(r[c]):.6g}" for c in COLUMNS)


if __name__ == "__main__":
    main()
