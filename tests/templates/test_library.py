"""A library in a file: what goes in comes out, and what is no library is refused."""

import ase.io
import numpy as np
import pytest
import torch
from prototypes import rocksalt
from templates.conftest import KNOWN

from crystorus.data.convert import crystals_to_atoms
from crystorus.data.store import build_store
from crystorus.errors import ReadingError
from crystorus.templates.library import build_library, library_of, open_library
from crystorus.templates.substitution import count_substitutions, mp20_counts


def test_a_file_gives_back_what_was_built(library):
    again = open_library(library.crystals.path)
    fresh = library_of(library.crystals)
    assert again.ids == list(KNOWN)
    for one, other in zip(again.slots, fresh.slots, strict=True):
        assert one.elements.tolist() == other.elements.tolist()
        np.testing.assert_allclose(one.distances, other.distances, atol=2e-3)
    volume = float(again.template(0).volume[0])
    assert volume == pytest.approx(float(rocksalt().volume[0]), rel=1e-6)


def test_a_store_makes_the_same_library(source, library, tmp_path):
    build_store(source, tmp_path / "known.store")
    again = build_library(tmp_path / "known.store", tmp_path / "known.templates")
    assert again.digest == library.digest


def test_repeated_ids_are_told_apart(tmp_path):
    frames = crystals_to_atoms(rocksalt()) * 2
    for frame in frames:
        frame.info["material_id"] = "x"
    ase.io.write(tmp_path / "two.extxyz", frames)
    library = build_library(tmp_path / "two.extxyz", tmp_path / "two.templates")
    assert library.ids == ["x", "x#2"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b"CRYTMPL9" + b[8:], "cut short or altered"),
        (lambda b: b[:-100], "cut short"),
        (lambda b: b[:-100] + bytes([b[-100] ^ 1]) + b[-99:], "does not match its digest"),
        (lambda b: b[:9], "not a template library|cut short"),
        (lambda b: b"", "not a template library"),
    ],
)
def test_damaged_files_are_refused_with_the_remedy(library, tmp_path, damage, message):
    path = tmp_path / "bad.templates"
    path.write_bytes(damage(library.crystals.path.read_bytes()))
    with pytest.raises(ReadingError, match=message) as caught:
        open_library(path)
    assert "crystorus templates build" in str(caught.value)


def test_a_store_is_no_library(source, tmp_path):
    build_store(source, tmp_path / "known.store")
    with pytest.raises(ReadingError, match="not a template library"):
        open_library(tmp_path / "known.store")


def test_a_source_is_never_overwritten(source, tmp_path):
    copy = tmp_path / "known.extxyz"
    copy.write_bytes(source.read_bytes())
    for build in (build_library, build_store):
        with pytest.raises(ReadingError, match="overwrite its own source"):
            build(copy, copy)
    assert copy.read_bytes() == source.read_bytes()


def test_an_empty_library_is_not_written(tmp_path):
    (tmp_path / "none.csv").write_text("material_id,cif\n")
    with pytest.raises(ReadingError, match=r"no usable structure|empty"):
        build_library(tmp_path / "none.csv", tmp_path / "none.templates")
    assert not (tmp_path / "none.templates").exists()


def test_substitutions_are_counted_over_pairs_that_differ_in_one_element(library):
    counts = count_substitutions(library.slots)
    sodium, potassium, chlorine, caesium = 11, 19, 17, 55
    assert counts.other[sodium, caesium] == counts.other[caesium, sodium] == 1  # NaCl and CsCl
    assert counts.same[sodium, potassium] == 0  # NaCl and KBr differ in two elements
    assert counts.same.sum() == 0
    assert counts.pairs == 1
    assert counts.other[chlorine].sum() == 0


def test_shipped_counts_know_chemistry():
    cost = mp20_counts().cost
    potassium, rubidium, iron, cobalt, oxygen, lead = 19, 37, 26, 27, 8, 82
    assert cost[potassium, rubidium] < cost[potassium, lead]
    assert cost[iron, cobalt] < cost[iron, oxygen]
    np.testing.assert_allclose(cost, cost.T)
    assert torch.isfinite(torch.tensor(cost)).all()
