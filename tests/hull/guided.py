"""Templates for copper and gold, and a model that gives them back as they are."""

from collections.abc import Sequence
from pathlib import Path

import ase.io
from alloys import l10, l12
from ase import Atoms
from fake_model import FakeModel

from crystorus.templates.library import build_library


def write_library(path: Path, *, of: Sequence[Atoms] = ()) -> Path:
    """Write templates: Cu3Au itself, and the prototype of CuAu with other elements in it."""
    other = l10()
    other.set_chemical_symbols(["Pd", "Ag"])
    own = [l12(), other]
    for atoms, name in zip(own, ["L1_2", "L1_0-AgPd"], strict=True):
        atoms.info["material_id"] = name
    ase.io.write(path.with_suffix(".extxyz"), list(of) or own, format="extxyz")
    build_library(path.with_suffix(".extxyz"), path)
    return path


class GuidedFake(FakeModel):
    """Random crystals, and templates as they are where it is given some."""

    def sample(self, atomic_numbers, n_atoms, *, seeds, sampler, start=None, on_step=None):
        made = super().sample(
            atomic_numbers, n_atoms, seeds=seeds, sampler=sampler, on_step=on_step
        )
        return made if start is None else start.crystals
