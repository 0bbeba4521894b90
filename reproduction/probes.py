"""What the latent representation knows ("meaningful representations", abstract).

Linear probes read a property from the network's features, beside controls that know the composition
alone or come from a network that learnt nothing; and the two main directions make a map.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pymatgen.core import Element
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_absolute_error, r2_score
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from crystal_fidelity.energies import composition_matrix
from crystorus.crystal_model import CrystalModel, build_model
from crystorus.data.convert import split
from crystorus.diffusion.noise_levels import CrystalNoise
from crystorus.geometry import Crystals
from crystorus.networks.embedding import element_descriptors
from reproduction.settings import Tree

Array = NDArray[np.float64]
PENALTIES = tuple(10.0**n for n in range(-6, 3))
"""Ridge penalties per training crystal, of weights of features of unit variance."""
FOLDS = 5
SAME_ENERGY = 0.02
"""eV/atom; crystals of one composition nearer than this have no order worth predicting."""
CONTROLS = ("composition", "untrained latent")
INTERMETALLIC = "intermetallic"
ANION_GROUPS = {
    "oxide": ("O",),
    "halide": ("F", "Cl", "Br", "I"),
    "chalcogenide": ("S", "Se", "Te"),
    "pnictide": ("N", "P", "As", "Sb"),
    "boride to germanide": ("B", "C", "Si", "Ge"),
    "hydride": ("H",),
}
"""Groups by the most electronegative element; all others are intermetallic."""


def probe(
    features: Mapping[str, tuple[Array, Array]],
    target: tuple[Array, Array],
    *,
    name: str,
    compositions: Sequence[str],
    sizes: Sequence[int],
    seeds: Sequence[int],
    shuffled: Sequence[str] = (),
) -> Tree:
    """Fit ridge regressions to subsets of the training crystals and judge them on validation.

    The penalty is the one of `PENALTIES` with the least absolute error over `FOLDS` folds.

    Args:
        features: Training and validation features by name, [crystals, features].
        target: The property of the training and of the validation crystals.
        name: The property and its unit.
        compositions: Reduced formula of every validation crystal.
        sizes: Numbers of training crystals, twice the folds or more.
        seeds: One choice of training crystals and folds each.
        shuffled: Names of features that are probed once more with shuffled training targets.

    Returns:
        `target`, `spread` (the error of a constant), `n_pairs`, and `scores`: of every features,
        size and seed the penalty, `mae`, `r2` and `right_order`, the fraction of the ordered pairs
        of one composition whose order is right (ties count half; None without pairs).
    """
    train_y, truth = target
    pairs = _ordered_pairs(compositions, truth)
    jobs = [(key, key, False) for key in features]
    jobs += [(f"{key}, shuffled", key, True) for key in shuffled]
    scores = []
    for size in sizes:
        for seed in seeds:
            random = np.random.default_rng(seed)
            chosen = random.permutation(len(train_y))[:size]
            wrong = random.permutation(chosen)
            for label, key, mixed in jobs:
                x, x_new = features[key]
                guess, penalty = ridge(x[chosen], train_y[wrong if mixed else chosen], x_new, seed)
                scores.append(
                    {
                        "features": label, "n_train": size, "n_validation": len(truth),
                        "n_features": x.shape[1], "seed": seed, "penalty": penalty,
                        "mae": float(mean_absolute_error(truth, guess)),
                        "r2": float(r2_score(truth, guess)),
                        "right_order": _right_order(guess, pairs),
                    }
                )  # fmt: skip
    spread = float(np.abs(truth - np.median(truth)).mean())
    return {"target": name, "spread": spread, "n_pairs": len(pairs), "scores": scores}


def ridge(x: Array, y: Array, x_new: Array, seed: int) -> tuple[Array, float]:
    """Fit a ridge regression on standardised features and predict.

    Returns:
        Predictions for `x_new`, and the penalty per crystal that was chosen.
    """
    # Features that are constant are left at zero by the scaler, not divided by nothing.
    model = make_pipeline(StandardScaler(), Ridge())
    grid = {"ridge__alpha": [penalty * len(y) for penalty in PENALTIES]}
    folds = KFold(FOLDS, shuffle=True, random_state=seed)
    search = GridSearchCV(model, grid, scoring="neg_mean_absolute_error", cv=folds).fit(x, y)
    return search.predict(x_new), PENALTIES[search.best_index_]


def mean_scores(study: Tree) -> pd.DataFrame:
    """Return mean and standard deviation over the seeds, by (features, n_train)."""
    frame = pd.DataFrame(study["scores"]).astype({"right_order": float})
    scores = frame.groupby(["features", "n_train"])[["mae", "r2", "right_order"]]
    return scores.agg(["mean", "std"])


def _ordered_pairs(compositions: Sequence[str], values: Array) -> list[tuple[int, int]]:
    """Return pairs (lower, higher) of one composition whose values differ by `SAME_ENERGY`."""
    places = defaultdict(list)
    for place, composition in enumerate(compositions):
        places[composition].append(place)
    several = (pair for group in places.values() for pair in combinations(group, 2))
    ordered = (pair if values[pair[0]] < values[pair[1]] else pair[::-1] for pair in several)
    return [(low, high) for low, high in ordered if values[high] - values[low] > SAME_ENERGY]


def _right_order(guess: Array, pairs: Sequence[tuple[int, int]]) -> float | None:
    if not pairs:
        return None
    low, high = np.array(pairs).T
    rise = guess[high] - guess[low]
    return float(np.where(np.abs(rise) < 1e-9, 0.5, rise > 0).mean())


def latents(model: CrystalModel, crystals: Crystals, *, level: int = 1, batch: int = 128) -> Array:
    """Return the network's invariant features of clean crystals, [crystals, features], float64.

    Args:
        model: A crystal model, trained or not.
        crystals: As they are, without noise.
        level: The noise level t that the network is told, from 1, the quietest, to T.
        batch: Crystals per pass.
    """
    encoder: Any = model.denoiser.eval()
    found = []
    with torch.no_grad():
        for which in torch.arange(len(crystals)).split(batch):
            some = crystals.select(which).to(model.device)
            t = torch.full((len(some),), level, device=model.device)
            found.append(encoder.representation(some, t).double().cpu().numpy())
    return np.concatenate(found)


def untrained(model: CrystalModel, seed: int) -> CrystalModel:
    """Return a model of the same shape with random weights.

    Layers that start at zero are drawn too: with them at zero an atom would not see the others.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = build_model(model.config, model.statistics)
        with torch.no_grad():
            for weight in fresh.denoiser.parameters():
                if weight.dim() == 2 and not weight.any():
                    torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    return fresh


def draw_prior(model: CrystalModel, crystals: Crystals, seeds: Sequence[int]) -> Crystals:
    """Return the same compositions as the model's prior draws them: M_T, Algorithm 2, line 1."""
    noise = CrystalNoise(seeds, crystals.n_atoms)
    return model.diffusion.prior(crystals.atomic_numbers, crystals.n_atoms, noise)


def feature_sets(model: CrystalModel, crystals: Crystals, *, draws: int = 4) -> dict[str, Array]:
    """Return the latent representation and its controls, [crystals, features] each.

    Args:
        model: A trained crystal model.
        crystals: As they are.
        draws: Draws of the prior over which "latent of noise" is averaged; it knows a composition
            as the network does and nothing else.
    """
    n, steps = len(crystals), model.diffusion.steps
    composition = composition_matrix(split(crystals))
    latent, blank = latents(model, crystals), latents(untrained(model, 0), crystals)
    drawn = (draw_prior(model, crystals, range(i * n, (i + 1) * n)) for i in range(draws))
    noise = [latents(model, one, level=steps) for one in drawn]
    known = np.concatenate([composition, element_statistics(crystals)], 1)
    return {
        "composition": composition,
        "composition, element statistics": known,
        "latent of noise": np.mean(noise, 0),
        "untrained latent": blank,
        "untrained latent + composition": np.concatenate([blank, composition], 1),
        "latent": latent,
        "latent + composition": np.concatenate([latent, composition], 1),
        "latent + element statistics": np.concatenate([latent, known], 1),
    }


def element_statistics(crystals: Crystals) -> Array:
    """Return mean, spread, least and largest of elemental properties over each composition."""
    table = element_descriptors()
    rows = []
    for numbers in crystals.atomic_numbers.cpu().split(crystals.n_atoms.tolist()):
        values = table[numbers]
        spread = values.std(0, correction=0)
        rows.append(torch.cat([values.mean(0), spread, values.amin(0), values.amax(0)]))
    return torch.stack(rows).double().numpy()


def anion_group(atomic_numbers: Sequence[int]) -> str:
    """Return the group of a crystal by its most electronegative element."""
    elements = [Element.from_Z(int(z)) for z in set(atomic_numbers)]
    leader = max(elements, key=lambda e: (e.X if np.isfinite(e.X) else 0.0, e.Z)).symbol
    return next((g for g, symbols in ANION_GROUPS.items() if leader in symbols), INTERMETALLIC)


def principal_map(
    features: Array, crystals: Crystals, energies: Sequence[float], densities: Sequence[float]
) -> Tree:
    """Project standardised features on their two directions of largest variance.

    Args:
        features: [crystals, features].
        crystals: The same crystals.
        energies: Formation energies in eV/atom, NaN where unknown.
        densities: In g/cm³.
    """
    scaled = StandardScaler().fit_transform(features)
    directions = PCA(2, svd_solver="full").fit(scaled)
    # The sign of a direction is arbitrary: let its largest component be positive.
    main = directions.components_
    sign = np.sign(main[[0, 1], np.abs(main).argmax(1)])
    x, y = (directions.transform(scaled) * sign).T
    numbers = crystals.atomic_numbers.cpu().split(crystals.n_atoms.tolist())
    return {
        "x": x.tolist(),
        "y": y.tolist(),
        "explained": directions.explained_variance_ratio_.tolist(),
        "anions": [anion_group(z.tolist()) for z in numbers],
        "energy_ev_per_atom": [float(e) if np.isfinite(e) else None for e in energies],
        "density_g_cm3": [float(d) for d in densities],
    }
