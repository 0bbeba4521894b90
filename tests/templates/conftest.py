"""Libraries of prototypes that the tests of this room share."""

import ase.io
import pytest
import torch
from prototypes import cscl, perovskite, rocksalt, rutile, zincblende

from crystorus.data.convert import crystals_to_atoms
from crystorus.geometry import Crystals
from crystorus.templates.library import build_library


def with_elements(crystal: Crystals, change: dict[int, int], scale: float = 1.0) -> Crystals:
    numbers = torch.tensor([change.get(z, z) for z in crystal.atomic_numbers.tolist()])
    return Crystals(crystal.lattice * scale, crystal.frac_coords, numbers, crystal.n_atoms)


KNOWN = {
    "NaCl": rocksalt(),
    "LiF": with_elements(rocksalt(), {11: 3, 17: 9}, 0.71),
    "KBr": with_elements(rocksalt(), {11: 19, 17: 35}, 1.17),
    "CsCl": cscl(),
    "ZnS": zincblende(),
    "TiO2": rutile(),
    "SrTiO3": perovskite(),
}


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("templates") / "known.extxyz"
    frames = crystals_to_atoms(Crystals.concat(list(KNOWN.values())))
    for frame, name in zip(frames, KNOWN, strict=True):
        frame.info["material_id"] = name
    ase.io.write(path, frames)
    return path


@pytest.fixture(scope="session")
def library(source, tmp_path_factory):
    return build_library(source, tmp_path_factory.mktemp("library") / "known.templates")
