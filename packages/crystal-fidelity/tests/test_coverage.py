import json

import numpy as np
import pytest
from prototypes import diamond, everything, moved, perovskite, rutile, simple_cubic
from scipy.spatial.distance import cdist

from crystal_fidelity.coverage import (
    COMPOSITION_WIDTH,
    STRUCTURE_WIDTH,
    WIDTH,
    coverage_of,
    fingerprint,
    fingerprints,
    load_scale,
    nearest,
    scale_of,
)
from crystal_fidelity.options import Settings
from crystal_fidelity.reading import read_structures
from crystal_fidelity.report import formula_text


def reference(left, right):
    """CDVAE's definition on whole distance tables."""
    s = cdist(left[:, :STRUCTURE_WIDTH], right[:, :STRUCTURE_WIDTH])
    mean, std = right[:, STRUCTURE_WIDTH:].mean(0), right[:, STRUCTURE_WIDTH:].std(0)
    c = cdist((left[:, STRUCTURE_WIDTH:] - mean) / std, (right[:, STRUCTURE_WIDTH:] - mean) / std)
    recall = np.mean((s.min(0) <= 0.4) & (c.min(0) <= 10))
    precision = np.mean((s.min(1) <= 0.4) & (c.min(1) <= 10))
    return recall, precision


def rows(n, seed):
    generator = np.random.default_rng(seed)
    structure = generator.normal(size=(n, STRUCTURE_WIDTH)) * 0.05
    return np.hstack([structure, generator.normal(size=(n, COMPOSITION_WIDTH))])


def test_coverage_is_the_definition_beyond_one_chunk():
    left, right = rows(700, 0), rows(1100, 1)
    left[:200, :STRUCTURE_WIDTH] += 1
    right[:300, STRUCTURE_WIDTH:] *= 3
    result = coverage_of(left, right)
    assert (result.recall, result.precision) == pytest.approx(reference(left, right))
    assert 0 < result.recall < 1
    assert 0 < result.precision < 1


def test_failed_fingerprints_count_against_precision():
    left, right = rows(100, 0), rows(100, 1)
    whole = coverage_of(left, right).precision
    failed = np.vstack([left, np.full((100, WIDTH), np.nan)])
    assert coverage_of(failed, right).precision == pytest.approx(whole / 2)
    with pytest.raises(ValueError, match="0 and 100 structures"):
        coverage_of(np.full((3, WIDTH), np.nan), right)


def test_nearest_is_the_minimum_of_the_table():
    left, right = rows(1030, 2), rows(20, 3)
    a, b = nearest(left, right)
    table = cdist(left, right)
    np.testing.assert_allclose(a, table.min(axis=1))
    np.testing.assert_allclose(b, table.min(axis=0))


def test_fingerprints_follow_structure_and_composition_not_the_cell():
    pytest.importorskip("matminer")
    a, b = fingerprint(diamond()), fingerprint(moved(diamond(), 1))
    np.testing.assert_allclose(a[:STRUCTURE_WIDTH], b[:STRUCTURE_WIDTH], atol=1e-6)
    np.testing.assert_allclose(a[STRUCTURE_WIDTH:], b[STRUCTURE_WIDTH:], atol=1e-9)
    other = fingerprint(rutile())
    assert np.linalg.norm(a[:STRUCTURE_WIDTH] - other[:STRUCTURE_WIDTH]) > 0.4
    assert len(fingerprint(perovskite())) == WIDTH


def test_what_magpie_does_not_know_stands_at_the_mean():
    pytest.importorskip("matminer")
    helium = fingerprint(simple_cubic(3.0, "He"))
    assert np.isfinite(helium[:STRUCTURE_WIDTH]).all()
    assert np.isnan(helium[STRUCTURE_WIDTH:]).sum() == 12
    known = rows(50, 4)
    scale = scale_of(known[:, STRUCTURE_WIDTH:])
    scaled = scale(helium[None, STRUCTURE_WIDTH:])
    assert (scaled == 0).sum() == 12
    result = coverage_of(np.vstack([known[:2], helium]), known)
    assert len(result.precision_structure) == 3
    assert np.isfinite(result.precision_composition).all()


def test_a_scale_of_ones_own_is_used_and_named(tmp_path):
    left, right = rows(60, 5), rows(80, 6)
    path = tmp_path / "constants.json"
    mean, std = [0.0] * COMPOSITION_WIDTH, [2.0] * COMPOSITION_WIDTH
    path.write_text(json.dumps({"mean": mean, "std": std}))
    result = coverage_of(left, right, load_scale(path))
    table = cdist(left[:, STRUCTURE_WIDTH:] / 2, right[:, STRUCTURE_WIDTH:] / 2)
    np.testing.assert_allclose(result.precision_composition, table.min(axis=1))
    assert "constants.json" in result.scores()[0].protocol
    assert "reference set" in coverage_of(left, right).scores()[0].protocol
    for content, message in (
        ("[]", "give JSON"),
        ("{", "give JSON"),
        (json.dumps({"mean": mean, "std": [1.0]}), "132 means and 1 deviations"),
        (json.dumps({"mean": mean, "std": [0.0] * COMPOSITION_WIDTH}), "positive"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            load_scale(path)


def test_shipped_constants_are_cdvaes_and_the_default():
    scale = load_scale("cdvae")
    assert scale.mean[0] == 21.194441759304013  # smallest atomic number, averaged
    assert scale.spread[-1] == 85.980205895116
    low, high, width, middle = (scale.mean[k::6] for k in range(4))
    np.testing.assert_allclose(width, high - low, rtol=1e-9)  # minimum, maximum, range, mean
    assert ((low < middle) & (middle < high)).all()
    assert load_scale("reference") is None
    assert Settings().coverage_scale == "cdvae"


@pytest.mark.slow
def test_shipped_constants_are_in_the_order_of_our_magpie_columns(validation_csv):
    """They were taken on a set like MP-20: each is near the mean of ours, in its own units."""
    pytest.importorskip("matminer")
    from matminer.featurizers.composition.composite import ElementProperty
    from pymatgen.core import Composition

    preset = ElementProperty.from_preset("magpie", impute_nan=False)
    crystals = read_structures(validation_csv)[::12]
    found = np.array([preset.featurize(Composition(formula_text(c))) for c in crystals])
    scale = load_scale("cdvae")
    apart = (np.nanmean(found, axis=0) - scale.mean) / scale.spread
    assert np.abs(apart).max() < 0.35
    shuffled = (np.nanmean(found, axis=0) - np.roll(scale.mean, 1)) / np.roll(scale.spread, 1)
    assert np.abs(shuffled).max() > 10


def test_a_cell_too_dense_to_search_has_no_fingerprint(tmp_path):
    pytest.importorskip("matminer")
    found = fingerprints([simple_cubic(0.4), simple_cubic(3.4)], tmp_path)
    assert np.isnan(found[0]).all()
    assert np.isfinite(found[1]).all()


@pytest.mark.slow
def test_prototypes_cover_themselves(tmp_path):
    pytest.importorskip("matminer")
    from crystal_fidelity.coverage import coverage

    result = coverage(everything(), everything(), cache_folder=tmp_path)
    assert "CDVAE's constants" in result.scores()[0].protocol
    assert result.recall == result.precision == 1.0
