"""Linear probes: what a ridge regression reads of a property from given features."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

PENALTIES = tuple(10.0**n for n in range(-6, 3))
"""Ridge penalties per training crystal, of weights of features of unit variance."""

FOLDS = 5

SAME_ENERGY = 0.02
"""eV/atom; crystals of one composition nearer than this have no order worth predicting."""


@dataclass(frozen=True)
class ProbeScore:
    """How well a linear map of some features predicts a property of crystals it has not seen.

    Attributes:
        features: Name of the features.
        n_train: Crystals it was fitted to.
        n_validation: Crystals it was judged on.
        n_features: Number of features.
        seed: Choice of the training crystals and of the folds.
        penalty: Ridge penalty, chosen by cross-validation within the training crystals.
        mae: Mean absolute error, in the unit of the property.
        r2: Share of the validation variance explained.
        right_order: Share of the pairs of validation crystals of one composition whose order by
            the property is right: 0.5 for a coin, and ties, as of a map of the composition, count
            half; None without pairs.
    """

    features: str
    n_train: int
    n_validation: int
    n_features: int
    seed: int
    penalty: float
    mae: float
    r2: float
    right_order: float | None


@dataclass(frozen=True)
class ProbeStudy:
    """Probes of several features.

    Attributes:
        target: The property and its unit.
        spread: Its mean absolute deviation from the median in validation: the error of a constant.
        n_pairs: Pairs of validation crystals of one composition that are ordered.
        scores: One per features, number of training crystals and seed.
    """

    target: str
    spread: float
    n_pairs: int
    scores: tuple[ProbeScore, ...]

    def mean(self, features: str, n_train: int, figure: str) -> tuple[float, float]:
        """Return mean and standard deviation over the seeds of "mae", "r2" or "right_order"."""
        rows = [s for s in self.scores if s.features == features and s.n_train == n_train]
        values = [{"mae": s.mae, "r2": s.r2, "right_order": s.right_order}[figure] for s in rows]
        known = [v for v in values if v is not None]
        spread = float(np.std(known, ddof=1)) if len(known) > 1 else 0.0
        return float(np.mean(known)) if known else float("nan"), spread


def probe(
    features: Mapping[str, tuple[Array, Array]],
    target: tuple[Array, Array],
    *,
    name: str,
    compositions: Sequence[str],
    sizes: Sequence[int],
    seeds: Sequence[int],
    shuffled: Sequence[str] = (),
) -> ProbeStudy:
    """Fit ridge regressions to subsets of the training crystals and judge them on validation.

    Args:
        features: Training and validation features by name, [crystals, features].
        target: The property of the training and of the validation crystals.
        name: The property and its unit.
        compositions: Reduced formula of every validation crystal.
        sizes: Numbers of training crystals.
        seeds: One choice of training crystals and folds each.
        shuffled: Names of features that are probed once more with shuffled training targets.

    Raises:
        ValueError: If a size is above the number of training crystals, or below twice the folds.
    """
    train_y, validation_y = target
    pairs = _ordered_pairs(compositions, validation_y)
    jobs = [(f, f, False) for f in features] + [(f"{f}, shuffled", f, True) for f in shuffled]
    scores = []
    for size in sizes:
        if not 2 * FOLDS <= size <= len(train_y):
            raise ValueError(
                f"{size} training crystals: use {2 * FOLDS} to {len(train_y)}, all there are"
            )
        for seed in seeds:
            random = np.random.default_rng(seed)
            chosen = random.permutation(len(train_y))[:size]
            wrong = random.permutation(chosen)
            for label, key, mixed in jobs:
                x, x_validation = features[key]
                y = train_y[wrong if mixed else chosen]
                guess, penalty = ridge(x[chosen], y, x_validation, np.random.default_rng(seed))
                score = ProbeScore(
                    label, size, len(validation_y), x.shape[1], seed, penalty,
                    *_errors(guess, validation_y), _order(guess, validation_y, pairs),
                )  # fmt: skip
                scores.append(score)
    spread = float(np.abs(validation_y - np.median(validation_y)).mean())
    return ProbeStudy(name, spread, len(pairs), tuple(scores))


def ridge(x: Array, y: Array, x_new: Array, random: np.random.Generator) -> tuple[Array, float]:
    """Fit a ridge regression on standardised features and predict.

    The penalty λ of |y − X w|² + λ n |w|² is the one of `PENALTIES` with the least absolute
    error over `FOLDS` folds of the given crystals; each fold is standardised by itself.

    Returns:
        Predictions for `x_new`, and λ.
    """
    folds = np.array_split(random.permutation(len(y)), FOLDS)
    error = np.zeros(len(PENALTIES))
    for fold in folds:
        rest = np.setdiff1d(np.arange(len(y)), fold)
        error += np.abs(_ridge_path(x[rest], y[rest], x[fold]) - y[fold]).sum(1)
    best = int(error.argmin())
    return _ridge_path(x, y, x_new)[best], PENALTIES[best]


def _ridge_path(x: Array, y: Array, x_new: Array) -> Array:
    """Return predictions at every penalty, [penalties, crystals]."""
    scaled, scaled_new = standardised(x, x_new)
    mean = y.mean()
    values, vectors = np.linalg.eigh(scaled.T @ scaled)
    along = vectors.T @ (scaled.T @ (y - mean))
    penalty = np.array(PENALTIES)[:, None] * len(y)
    weights = (along / (values.clip(0) + penalty)) @ vectors.T
    return mean + weights @ scaled_new.T


def standardised(x: Array, x_new: Array) -> tuple[Array, Array]:
    """Scale by mean and spread of `x`; features that are constant there become zero."""
    mean, spread = x.mean(0), x.std(0)
    scale = np.where(spread > 1e-9, 1 / np.maximum(spread, 1e-9), 0.0)
    return (x - mean) * scale, (x_new - mean) * scale


def _errors(guess: Array, truth: Array) -> tuple[float, float]:
    missed = ((guess - truth) ** 2).sum()
    explained = 1 - missed / ((truth - truth.mean()) ** 2).sum()
    return float(np.abs(guess - truth).mean()), float(explained)


def _ordered_pairs(compositions: Sequence[str], values: Array) -> list[tuple[int, int]]:
    """Return pairs (lower, higher) of one composition whose values differ by `SAME_ENERGY`."""
    return [
        (i, j) if values[i] < values[j] else (j, i)
        for group in _groups(compositions)
        for i, j in combinations(group, 2)
        if abs(values[i] - values[j]) > SAME_ENERGY
    ]


def _groups(names: Sequence[str]) -> Iterator[list[int]]:
    """Yield the places of every name that occurs more than once."""
    places: dict[str, list[int]] = {name: [] for name, n in Counter(names).items() if n > 1}
    for place, name in enumerate(names):
        if name in places:
            places[name].append(place)
    yield from places.values()


def _order(guess: Array, truth: Array, pairs: Sequence[tuple[int, int]]) -> float | None:
    if not pairs:
        return None
    low, high = np.array(pairs).T
    rise = guess[high] - guess[low]
    return float(np.where(np.abs(rise) < 1e-9, 0.5, rise > 0).mean())
