"""Copper and gold: textbook phases for a potential that costs nothing, ASE's EMT.

As a program, it is the commands of campaigns with random crystals in the place of the shipped
checkpoint's.
"""

import contextlib
import csv
import io
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import ase.db
import ase.io
import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from cyclopts import App, Parameter

from crystal_fidelity.commandline import run

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


def write_library(path: Path, *, of: Sequence[Atoms] = ()) -> Path:
    """Write templates: Cu3Au itself, and the prototype of CuAu with other elements in it."""
    from crystorus.templates.library import build_library

    other = l10()
    other.set_chemical_symbols(["Pd", "Ag"])
    own = [l12(), other]
    for atoms, name in zip(own, ["L1_2", "L1_0-AgPd"], strict=True):
        atoms.info["material_id"] = name
    ase.io.write(path.with_suffix(".extxyz"), list(of) or own, format="extxyz")
    build_library(path.with_suffix(".extxyz"), path)
    return path


def guided_fake(step_s: float = 0.0):
    """Return a model that needs no training.

    Random crystals that depend on their seeds alone, and templates as they are where it is given
    some.
    """
    import torch

    from crystorus.config import SamplerConfig
    from crystorus.crystal_model import CrystalModel
    from crystorus.diffusion.cell_prior import CellStatistics
    from crystorus.geometry.crystals import Crystals

    class GuidedFake(CrystalModel):
        device = torch.device("cpu")
        judged_by = "denoising_error"
        judge_digest = ""

        def __init__(self):
            self.__dict__.update(
                config=SimpleNamespace(sampling=SamplerConfig(steps=3), preset="default"),
                diffusion=SimpleNamespace(steps=1000), statistics=CellStatistics.neutral(),
                trained_elements=frozenset({3, 8, 26}), max_atoms=20, digest="0" * 64,
                skeletons=(),
            )  # fmt: skip

        def sample(
            self, atomic_numbers, n_atoms, *, seeds, sampler, start=None, groups=None, on_step=None
        ):
            parts = zip(atomic_numbers.split(n_atoms.tolist()), seeds, strict=True)
            crystals = Crystals.concat([random_crystal(numbers, seed) for numbers, seed in parts])
            if start is not None:
                crystals = start.crystals
            for step in range(1, sampler.steps + 1):
                time.sleep(step_s)
                if on_step is not None:
                    on_step(step, sampler.steps, crystals)
            return crystals

    def random_crystal(numbers, seed):
        noise = torch.Generator().manual_seed(seed)
        n = len(numbers)
        strain = 0.1 * torch.randn(3, 3, generator=noise)
        lattice = (12.0 * n) ** (1 / 3) * torch.linalg.matrix_exp(strain + strain.T)
        frac = torch.rand(n, 3, generator=noise)
        return Crystals(lattice[None], frac, numbers, torch.tensor([n]))

    return GuidedFake()


APP = App(name="crystorus", default_parameter=Parameter(negative=()))
for _name in ("hull", "predict", "relax", "rank"):
    APP.command(f"crystorus.hull.command:{_name}")


@dataclass(frozen=True)
class Done:
    """What a shell sees of a command."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def output(self):
        return self.stdout + self.stderr


def crystorus(*words):
    """Run one of the three commands in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(APP, list(map(str, words)))
    return Done(code, out.getvalue(), err.getvalue())


def one_sentence(done, *words):
    """Expect a failure in one line that holds all of these."""
    assert done.exit_code == 1, done.output
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.output
    assert "Traceback" not in done.output
    assert "unexpected" not in lines[0]
    for word in words:
        assert str(word) in lines[0]


def table(folder):
    """Rows of a campaign's table."""
    with (folder / "table.csv").open() as text:
        return list(csv.DictReader(text))


if __name__ == "__main__":
    from crystorus import checkpoint

    slow = float(os.environ.get("FAKE_STEP_S", "0"))
    checkpoint.load_checkpoint = lambda path, device="cpu": guided_fake(slow)
    sys.exit(run(APP, sys.argv[1:]))
