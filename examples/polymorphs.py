"""Many crystals of one composition, sorted by density: candidates for polymorphs.

python examples/polymorphs.py TiO2
"""

import sys

import crystorus


def main(formula: str, n: int = 6) -> None:
    """Print density and atoms of crystals with one to four formula units."""
    crystals = crystorus.generate(formula, n=n, z=[1, 2, 4], seed=0)
    dalton = 1.66053906660  # g/cm³ for one Da/Å³
    found = [
        (dalton * atoms.get_masses().sum() / atoms.get_volume(), atoms)
        for atoms in crystals.to_ase()
    ]
    for density, atoms in sorted(found, key=lambda pair: -pair[0]):
        lengths = " ".join(f"{length:6.2f}" for length in atoms.cell.lengths())
        print(f"{atoms.get_chemical_formula():12} {density:6.2f} g/cm³   {lengths} Å")


if __name__ == "__main__":
    main(*sys.argv[1:2] or ["TiO2"])
