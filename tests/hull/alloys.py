"""Copper and gold: textbook phases for a potential that costs nothing, ASE's EMT.

As a program, it is `crystorus` with random crystals in the place of the shipped checkpoint's.
"""

import os
import sys
import time
from pathlib import Path

import ase.db
import ase.io
import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones

EMT_PATH = "alloys:SlowEMT"


def l12() -> Atoms:
    """Cu3Au."""
    return Atoms("AuCu3", scaled_positions=[[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]],
                 cell=3.75 * np.eye(3), pbc=True)  # fmt: skip


def l10() -> Atoms:
    """CuAu."""
    return Atoms(
        "CuAu", scaled_positions=[[0, 0, 0], [0.5, 0.5, 0.5]], cell=[2.8, 2.8, 3.7], pbc=True
    )


def write_alloys(path: Path, *, without: str = "") -> Path:
    """Write known phases as extended XYZ."""
    phases = {"fcc-Cu": bulk("Cu"), "fcc-Au": bulk("Au"), "L1_2": l12()}
    frames = []
    for name, atoms in phases.items():
        if name != without:
            atoms.info["material_id"] = name
            frames.append(atoms)
    ase.io.write(path, frames, format="extxyz")
    return path


class SlowEMT(EMT):
    """EMT that takes its time, so that a kill meets it at work."""

    def calculate(self, *arguments, **options):
        time.sleep(float(os.environ.get("EMT_SLEEP_S", "0")))
        super().calculate(*arguments, **options)


class DeadlyEMT(EMT):
    """EMT that takes its process with it on cells of 3 atoms."""

    def calculate(self, atoms=None, *arguments, **options):
        if atoms is not None and len(atoms) == 3:
            os._exit(9)
        super().calculate(atoms, *arguments, **options)


class ThrowingEMT(EMT):
    """EMT that throws on everything."""

    def calculate(self, *arguments, **options):
        raise RuntimeError("the licence server is down")


class NanEMT(EMT):
    """EMT whose energies are no numbers."""

    def calculate(self, *arguments, **options):
        super().calculate(*arguments, **options)
        self.results["energy"] = float("nan")


class PullingLJ(LennardJones):
    """A potential that wants ten times the volume."""

    def __init__(self):
        super().__init__(sigma=4.0, epsilon=0.02, rc=10.0)


def rows_of(database: Path) -> list[dict]:
    """All of a database but ASE's clock and random ids, and how long relaxations took."""
    rows = []
    for row in ase.db.connect(database, use_lock_file=False).select(sort="id"):
        data = {k: v for k, v in row.data.items() if k not in ("seconds", "cpu_seconds")}
        arrays = {
            k: np.asarray(row[k]).round(12).tolist() for k in ("numbers", "positions", "cell")
        }
        energy = row.get("energy")
        rows.append({"id": row.id, **arrays, "energy": energy, **row.key_value_pairs, "data": data})
    return rows


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "generation"))
    from guided import GuidedFake

    from crystorus import cli
    from crystorus.hull import sampling

    slow = float(os.environ.get("FAKE_STEP_S", "0"))
    sampling.load_checkpoint = lambda path, device="cpu": GuidedFake(step_s=slow)
    sys.argv[0] = "crystorus"
    cli.main()
