"""Fit CHGNet's elemental references on MP-20 train and measure them on MP-20 val.

Run: python tools/fit_references.py TRAIN.csv.gz VAL.csv.gz OUT.json [N_FIT] [N_HELD_OUT]
"""

import sys
from pathlib import Path

import numpy as np

from crystal_fidelity.energies import References, fit_potentials, formation_energies
from crystal_fidelity.features.chgnet import ChgnetModel
from crystal_fidelity.reading import read_structures
from crystal_fidelity.structures import Crystal

KEY = "formation_energy_per_atom"
AT_LEAST = 10
"""Crystals per element in the fit, where the data have as many."""


def choose(crystals: list[Crystal], n: int, seed: int) -> list[Crystal]:
    """Return `n` random crystals, topped up so that every element is met often enough."""
    order = np.random.default_rng(seed).permutation(len(crystals)).tolist()
    chosen = order[:n]
    counts = np.zeros(119, int)
    for i in chosen:
        counts[np.unique(crystals[i].atomic_numbers)] += 1
    for i in order[n:]:
        elements = np.unique(crystals[i].atomic_numbers)
        if counts[elements].min() < AT_LEAST:
            chosen.append(i)
            counts[elements] += 1
    return [crystals[i] for i in chosen]


def known(path: str) -> list[Crystal]:
    """Return the crystals of a CSV whose formation energy is known."""
    return [e for e in read_structures(path) if isinstance(e, Crystal) and KEY in e.properties]


def main(train: str, val: str, out: str, n_fit: str = "3000", n_held_out: str = "600") -> None:
    """Fit, measure, write."""
    model = ChgnetModel(on_progress=lambda text: sys.stderr.write(text + "\n"))
    fit = choose(known(train), int(n_fit), seed=0)
    test = known(val)
    test = [test[i] for i in np.random.default_rng(1).permutation(len(test))[: int(n_held_out)]]
    energies = model.energies(fit)
    truth = np.array([c.properties[KEY] for c in fit])
    ok = np.isfinite(energies)
    potentials = fit_potentials(
        [c for c, k in zip(fit, ok, strict=True) if k], energies[ok], truth[ok]
    )
    errors = formation_energies(test, model.energies(test), potentials)
    errors = errors - np.array([c.properties[KEY] for c in test])
    errors = errors[np.isfinite(errors)]
    References(
        potentials=potentials,
        model=str(model.identity),
        fitted_on="MP-20 train, formation_energy_per_atom; held out: MP-20 val",
        n_fit=int(ok.sum()),
        held_out_mae=float(np.abs(errors).mean()),
        n_held_out=len(errors),
    ).save(Path(out))
    sys.stderr.write(
        f"MAE {np.abs(errors).mean():.4f} median {np.median(np.abs(errors)):.4f} n {len(errors)}\n"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
