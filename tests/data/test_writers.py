"""CIF and extended XYZ against pymatgen's and ASE's own readers."""

import ase.io
import pytest
import torch
from prototypes import SPACE_GROUPS, all_prototypes, batch, left_handed, quartz
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.io.cif import CifParser
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from crystal_fidelity.cif import parse_cif
from crystal_fidelity.symmetry import space_group
from crystorus.data.convert import crystals_from, crystals_to_structures, join, split
from crystorus.data.writers import (
    cif_text,
    extxyz_text,
    safe_name,
    symmetrised_cif_text,
)
from crystorus.geometry import Crystals
from crystorus.geometry.symmetry import rotate


@pytest.fixture(params=sorted(all_prototypes()))
def named(request):
    return request.param, all_prototypes()[request.param]


def read(text: str) -> Crystals:
    return join([parse_cif(text, "x")])


def group(crystal: Crystals, symprec: float = 0.1) -> int:
    return space_group(split(crystal)[0], symprec).number


def test_cif_reads_back_as_the_same_crystal_in_pymatgen_and_here(named):
    name, crystal = named
    text = cif_text(crystal, name)
    (original,) = crystals_to_structures(crystal)
    (theirs,) = CifParser.from_str(text).parse_structures(primitive=False)
    matcher = StructureMatcher(stol=1e-3, primitive_cell=False)
    assert matcher.fit(original, theirs)
    ours = read(text)
    assert matcher.fit(original, crystals_to_structures(ours)[0])
    assert group(ours, 1e-3) == SPACE_GROUPS[name]
    assert ours.atomic_numbers.tolist() == crystal.atomic_numbers.tolist()


def test_cif_of_a_left_handed_cell_is_not_the_mirror_image():
    # P3_121 and P3_221 are mirror images: 152 stays 152.
    assert group(read(cif_text(left_handed(), "q"))) == 152
    mirror = rotate(quartz(), torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)))
    assert group(mirror, 1e-3) == 154


def test_symmetrised_cif_lists_one_atom_of_every_orbit(named):
    name, crystal = named
    text = symmetrised_cif_text(crystal, name, 1e-3)
    (original,) = crystals_to_structures(crystal)
    (theirs,) = CifParser.from_str(text).parse_structures(primitive=False)
    ours = read(text)
    matcher = StructureMatcher(stol=1e-3)
    assert matcher.fit(original, theirs)
    assert matcher.fit(original, crystals_to_structures(ours)[0])
    assert group(ours, 1e-3) == SPACE_GROUPS[name]
    assert "symprec = 0.001" in text
    orbits = len(
        set(SpacegroupAnalyzer(original, 1e-3).get_symmetry_dataset().crystallographic_orbits)
    )
    assert text.count("\n", text.index("_atom_site_occupancy")) - 1 == orbits


def test_extxyz_keeps_order_info_and_geometry(tmp_path):
    path, crystals = tmp_path / "all.extxyz", batch()
    parts = crystals.split()
    infos = [{"index": i, "formula": f"F{i}", "valid": i % 2 == 0} for i in range(len(parts))]
    path.write_text(extxyz_text(Crystals.concat(parts), infos))
    frames = ase.io.read(path, index=":")
    assert [f.info["index"] for f in frames] == list(range(len(parts)))
    assert frames[3].info["formula"] == "F3"
    back = crystals_from(frames, dtype=torch.float64)
    assert torch.allclose(back.lattice, crystals.lattice, atol=1e-6)
    assert torch.equal(back.atomic_numbers, crystals.atomic_numbers)
    with pytest.raises(ValueError, match="1 infos for 4"):
        extxyz_text(Crystals.concat(parts[:4]), infos[:1])


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("mp-149", "mp-149"),
        ("a b/c", "a_b_c"),
        ("../../etc/passwd", "_.._etc_passwd"),
        ("..", "crystal"),
        ("-o", "o"),
        ("1e5", "id-1e5"),
        ("=cmd()", "_cmd_"),
        (".hidden", "hidden"),
        ("", "crystal"),
        ("é", "_"),
    ],
)
def test_names_of_structures_lead_nowhere_else(tmp_path, name, clean):
    assert safe_name(name) == clean
    assert (tmp_path / f"{clean}.cif").resolve().parent == tmp_path.resolve()
    assert cif_text(quartz(), name).startswith(f"data_{clean}\n")


def test_names_too_long_for_a_file_stay_different():
    names = [safe_name("x" * 300 + end) for end in "ab"]
    assert len(set(names)) == 2
    assert max(map(len, names)) <= 150
