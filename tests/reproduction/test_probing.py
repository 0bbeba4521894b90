"""Ridge regression against scipy, and probes that must find and must not find."""

import json

import numpy as np
import pytest
from scipy.linalg import lstsq

from crystorus.reproduction import probing
from crystorus.reproduction.probing import PENALTIES, ProbeStudy, probe, ridge
from crystorus.reproduction.records import from_json, to_json


def data(n: int = 400, noise: float = 0.1):
    random = np.random.default_rng(0)
    x = random.normal(size=(n, 12)) * np.arange(1, 13) + 3
    y = x @ random.normal(size=12) + noise * random.normal(size=n) + 5
    return x[: n // 2], y[: n // 2], x[n // 2 :], y[n // 2 :]


def test_a_ridge_is_the_least_squares_solution_of_the_augmented_system():
    x, y, x_new, _ = data(noise=3.0)
    path = probing._ridge_path(x, y, x_new)
    scaled, new = (x - x.mean(0)) / x.std(0), (x_new - x.mean(0)) / x.std(0)
    for penalty, found in zip(PENALTIES, path, strict=True):
        rows = np.vstack([scaled, np.sqrt(penalty * len(y)) * np.eye(12)])
        weights = lstsq(rows, np.concatenate([y - y.mean(), np.zeros(12)]))[0]
        assert np.allclose(found, y.mean() + new @ weights)


def test_the_penalty_grows_with_what_cannot_be_learnt():
    x, y, x_new, _ = data()
    wide = np.random.default_rng(1).normal(size=(len(y), 150))
    _, easy = ridge(x, y, x_new, np.random.default_rng(0))
    _, hard = ridge(wide, y, wide, np.random.default_rng(0))
    assert easy < 1e-2 < hard


def test_constant_features_are_ignored():
    x, y, x_new, _ = data()
    padded = [np.hstack([part, np.full((len(part), 2), 7.0)]) for part in (x, x_new)]
    alone, _ = ridge(x, y, x_new, np.random.default_rng(0))
    with_constants, _ = ridge(padded[0], y, padded[1], np.random.default_rng(0))
    assert np.allclose(alone, with_constants)


@pytest.fixture(scope="module")
def study() -> ProbeStudy:
    x, y, x_new, y_new = data()
    names = [f"A{i // 2}B" for i in range(len(y_new))]  # two crystals of each composition
    blank = np.random.default_rng(5).normal(size=(2, len(y), 12))
    same = np.repeat(np.random.default_rng(6).normal(size=(100, 4)), 2, axis=0)
    return probe(
        {"good": (x, x_new), "noise": (blank[0], blank[1]), "composition": (same, same)},
        (y, y_new),
        name="y / 1",
        compositions=names,
        sizes=(50, 200),
        seeds=(0, 1),
        shuffled=("good",),
    )


def test_a_probe_finds_what_is_there_and_nothing_else(study):
    assert study.mean("good", 200, "r2")[0] > 0.99
    assert study.mean("good", 200, "mae")[0] < 0.2 < study.spread
    assert study.mean("good", 200, "right_order")[0] > 0.95
    for nothing in ("noise", "good, shuffled", "composition"):
        assert study.mean(nothing, 200, "r2")[0] < 0.1
        assert abs(study.mean(nothing, 200, "right_order")[0] - 0.5) < 0.2
    # A map of the composition alone gives both crystals of a pair the same value.
    assert study.mean("composition", 200, "right_order") == (0.5, 0.0)
    assert study.n_pairs > 90


def test_a_study_is_reproducible_and_survives_json(study):
    assert from_json(ProbeStudy, json.loads(json.dumps(to_json(study)))) == study
    by_seed = {s.mae for s in study.scores if s.features == "good" and s.n_train == 50}
    assert len(by_seed) == 2


def test_too_many_training_crystals_are_refused():
    x, y, x_new, y_new = data()
    with pytest.raises(ValueError, match="500 training crystals: use 10 to 200"):
        probe(
            {"x": (x, x_new)}, (y, y_new), name="y", compositions=[""] * 200, sizes=(500,),
            seeds=(0,),
        )  # fmt: skip
