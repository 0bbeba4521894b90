import numpy as np
import pytest
import scipy.linalg

from crystal_fidelity.features import FeatureSet, Identity, load_features, save_features
from crystal_fidelity.frechet import (
    frechet,
    frechet_distance,
    kernel,
    kernel_distance,
)

ID = Identity("test net", "0" * 64, "none")


def features(rows, identity=ID, failures=()):
    return FeatureSet(
        np.asarray(rows, float), tuple(map(str, range(len(rows)))), identity, failures
    )


def by_scipy(x, y):
    """The definition, with scipy's matrix square root of the product."""
    c1, c2 = np.cov(x.T), np.cov(y.T)
    cross = scipy.linalg.sqrtm(c1 @ c2)
    return np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(c1 + c2 - 2 * np.real(cross))


def correlated(generator, n, d, shift=0.0):
    mixing = np.random.default_rng(99).normal(size=(d, d)) / np.sqrt(d)
    return generator.normal(size=(n, d)) @ mixing + shift


def test_frechet_is_scipys_on_full_rank_sets():
    generator = np.random.default_rng(0)
    x, y = correlated(generator, 400, 16), 1.3 * correlated(generator, 300, 16, 0.2)
    assert frechet_distance(x, y) == pytest.approx(by_scipy(x, y), rel=1e-9)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-9)


def test_frechet_of_commuting_gaussians_has_a_closed_form():
    rows = np.random.default_rng(1).normal(size=(5000, 3))
    rows = (rows - rows.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(rows.T)).T)
    x, y = rows * [1.0, 2.0, 3.0], rows * [2.0, 2.0, 5.0] + [1.0, 0.0, 0.0]
    assert frechet_distance(x, y) == pytest.approx(1 + 1 + 0 + 4, rel=1e-9)


def test_a_set_against_itself_is_zero_even_where_the_covariance_is_singular():
    x = np.random.default_rng(2).normal(size=(20, 64))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-10)


def test_frechet_does_not_depend_on_a_rotation_of_feature_space():
    generator = np.random.default_rng(3)
    x, y = correlated(generator, 100, 8), correlated(generator, 90, 8, 0.5)
    q, _ = np.linalg.qr(generator.normal(size=(8, 8)))
    assert frechet_distance(x @ q, y @ q) == pytest.approx(frechet_distance(x, y), rel=1e-9)


def test_kernel_distance_is_the_double_sum():
    generator = np.random.default_rng(4)
    x, y = generator.normal(size=(13, 5)), generator.normal(size=(9, 5)) + 0.4

    def k(a, b):
        return (a @ b / 5 + 1) ** 3

    xx = np.mean([k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    yy = np.mean([k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    xy = np.mean([k(a, b) for a in x for b in y])
    assert kernel_distance(x, y) == pytest.approx(xx + yy - 2 * xy, rel=1e-12)


def test_kernel_score_is_the_kernel_distance():
    generator = np.random.default_rng(13)
    x, y = features(generator.normal(size=(60, 5))), features(generator.normal(size=(50, 5)) + 0.4)
    assert kernel(x, y).value == pytest.approx(kernel_distance(x.features, y.features), rel=1e-12)


def test_error_of_the_kernel_distance_is_the_spread_of_repeats():
    generator = np.random.default_rng(14)
    reference = features(generator.normal(size=(1000, 5)))
    runs = [kernel(features(generator.normal(size=(200, 5)) + 0.3), reference) for _ in range(40)]
    spread = np.std([r.value for r in runs], ddof=1)
    errors = np.sqrt(np.mean([r.uncertainty**2 for r in runs]))
    assert 0.7 < errors / spread < 1.6


def test_kernel_distance_is_unbiased_and_the_plug_in_frechet_is_not():
    generator = np.random.default_rng(5)
    pairs = [(generator.normal(size=(40, 8)), generator.normal(size=(40, 8))) for _ in range(200)]
    kernels = np.array([kernel_distance(x, y) for x, y in pairs])
    assert abs(kernels.mean()) < 4 * kernels.std() / np.sqrt(len(pairs))
    frechets = np.array([frechet_distance(x, y) for x, y in pairs])
    assert frechets.mean() > 10 * frechets.std() / np.sqrt(len(pairs))


def test_correction_takes_most_of_the_bias_away():
    generator = np.random.default_rng(6)
    truth = 8 * 0.25**2
    plain, corrected = [], []
    for _ in range(20):
        x = features(generator.normal(size=(200, 8)))
        y = features(generator.normal(size=(200, 8)) + 0.25)
        result = frechet(x, y)
        plain.append(result.value - truth)
        corrected.append(result.corrected - truth)
    assert np.mean(plain) > 0.05
    assert abs(np.mean(corrected)) < np.mean(plain) / 4


def test_floor_is_the_size_of_the_bias_and_error_covers_repeats():
    generator = np.random.default_rng(7)
    reference = features(generator.normal(size=(3000, 8)))
    runs = [frechet(features(generator.normal(size=(400, 8))), reference) for _ in range(20)]
    values = np.array([r.value for r in runs])
    assert np.mean([r.floor for r in runs]) == pytest.approx(values.mean(), rel=0.3)
    spread = values.std(ddof=1)
    assert spread / 2 < np.mean([r.uncertainty for r in runs]) < 4 * spread
    errors = [frechet(features(reference.features[:400]), reference, seed=s) for s in range(8)]
    noise = np.std([r.uncertainty for r in errors]) / np.mean([r.uncertainty for r in errors])
    assert noise < 0.3  # one partition: 0.4


def test_sets_smaller_than_the_dimension_are_warned_about():
    generator = np.random.default_rng(8)
    result = frechet(
        features(generator.normal(size=(10, 32))), features(generator.normal(size=(99, 32)))
    )
    assert "generated n = 10 <= d = 32" in result.warnings[0]
    assert "rank-deficient" in result.scores()[0].protocol
    with pytest.raises(ValueError, match="covariance needs two or more"):
        frechet(features(np.ones((1, 32))), features(np.ones((99, 32))))
    with pytest.raises(ValueError, match="NaN"):
        frechet_distance(np.full((4, 2), np.nan), np.ones((4, 2)))
    with pytest.raises(ValueError, match="2 and 3 dimensions"):
        frechet_distance(np.ones((4, 2)), np.ones((4, 3)))


@pytest.mark.parametrize("field", ["name", "weights_sha256", "graph"])
def test_features_of_another_network_are_refused(field):
    other = Identity(**{**ID.__dict__, field: "other"})
    x = np.random.default_rng(9).normal(size=(10, 3))
    for distance in (frechet, kernel):
        with pytest.raises(ValueError, match="cannot be compared"):
            distance(features(x), features(x, other))


def test_feature_files_round_trip_with_identity_and_failures(tmp_path):
    original = features(np.random.default_rng(10).normal(size=(5, 3)), failures=(("bad", "torn"),))
    save_features(tmp_path / "f.npz", original)
    back = load_features(tmp_path / "f.npz")
    np.testing.assert_array_equal(back.features, original.features)
    assert (back.identity, back.failures, back.names) == (ID, (("bad", "torn"),), original.names)


def test_foreign_and_hostile_feature_files_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", features=np.ones((2, 2)))
    (tmp_path / "b.npz").write_bytes(b"PK\x03\x04 torn")
    np.save(tmp_path / "c.npy", np.array([{"x": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "c.npz").write_bytes((tmp_path / "c.npy").read_bytes())
    for name in ("a.npz", "b.npz", "c.npz"):
        with pytest.raises(ValueError, match="not a feature file"):
            load_features(tmp_path / name)
