"""Divide known crystals so that all of one reduced composition are on one side.

    python benchmarks/polymorph_split.py train.csv val.csv --out data/polymorph
    crystorus data build data/polymorph/val.csv val.store
    crystorus templates build data/polymorph/train.csv train.templates
    python benchmarks/templates.py --library train.templates --data val.store -n 9047

Writes train.csv and val.csv of the sizes of the two given, in an order and a division that the
seed decides. The published polymorph split of MP-20 divides train, validation and test so; this
one takes two of them alone.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from crystorus.data.compositions import parse_formula


def divide(formulas: list[str], size: int, seed: int) -> np.ndarray:
    """Return which crystals are on the smaller side: whole compositions until it is full.

    Args:
        formulas: Reduced formula of each crystal.
        size: How many are wanted. A composition that would exceed it stays on the other side.
        seed: Of the order of the compositions.

    Returns:
        (crystals,), `size` of them True if some composition with few enough crystals is left.
    """
    names, group, times = np.unique(formulas, return_inverse=True, return_counts=True)
    chosen = np.zeros(len(names), dtype=bool)
    left = size
    for n in np.random.default_rng(seed).permutation(len(names)):
        if times[n] <= left:
            chosen[n] = True
            left -= times[n]
    return chosen[group]


def main() -> None:
    """Write the two files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train", type=Path)
    parser.add_argument("val", type=Path)
    parser.add_argument("--formula", default="pretty_formula", help="column of formulas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    tables = [pd.read_csv(path) for path in (a.train, a.val)]
    every = pd.concat(tables).sample(frac=1, random_state=a.seed)
    # MP-20 names one composition in two ways, as LiO and Li2O2.
    every["reduced"] = [parse_formula(text).reduced.formula for text in every[a.formula]]
    held = divide(every["reduced"].tolist(), len(tables[1]), a.seed)
    a.out.mkdir(parents=True, exist_ok=True)
    for name, side in {"train": every[~held], "val": every[held]}.items():
        side.drop(columns="reduced").to_csv(a.out / f"{name}.csv", index=False)
        print(f"{name}: {len(side)} crystals of {side['reduced'].nunique()} compositions")


if __name__ == "__main__":
    main()
