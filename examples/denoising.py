"""One crystal from noise to order, every step a frame: `ase gui denoising.extxyz`.

python examples/denoising.py SrTiO3 denoising.extxyz
"""

import sys

import ase.io

import crystorus


def main(formula: str = "SrTiO3", path: str = "denoising.extxyz") -> None:
    """Write the trajectory of one crystal."""
    crystal = crystorus.generate(formula, seed=1, keep_trajectory=True)
    steps = crystal.trajectory_to_ase()[0]
    ase.io.write(path, steps)
    print(f"{len(steps)} steps in {path}")


if __name__ == "__main__":
    main(*sys.argv[1:])
