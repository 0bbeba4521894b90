"""Measure what bf16 products do to the two vector fields of the default network.

    python benchmarks/precision.py --data val.store -n 256

For crystals noised to each level: root mean square of the difference between the fields in bf16 and
in fp32, beside that between fp32 and float64, all divided by the field's own root mean square, and
beside the error that the network makes anyway. `--data` is a store made by `crystorus data build`.
"""

import argparse
import copy
import json
from pathlib import Path

import numpy as np
import torch

from crystorus.checkpoint import SHIPPED, load_checkpoint
from crystorus.crystal_model import CrystalModel, in_precision
from crystorus.data.store import open_store
from crystorus.diffusion.losses import draw_normals
from crystorus.geometry import Crystals, Prediction
from crystorus.geometry.lattice import to_coefficients


def fields(prediction: Prediction) -> dict[str, torch.Tensor]:
    """Return both fields as numbers of one kind."""
    assert prediction.strain is not None
    return {
        "displacement": prediction.displacement.double(),
        "strain": to_coefficients(prediction.strain.double()),
    }


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the root mean square of the difference in units of that of `other`."""
    return float((one - other).square().mean().sqrt() / other.square().mean().sqrt())


@torch.no_grad()
def row(model: CrystalModel, wide: torch.nn.Module, crystals: Crystals, level: float) -> dict:
    """Return the errors at one level."""
    generator = torch.Generator().manual_seed(0)
    t = torch.full_like(crystals.n_atoms, round(level * model.diffusion.steps))
    noisy, target = model.diffusion.noise(crystals, t, *draw_normals(crystals, generator))
    exact = fields(wide(noisy.to(dtype=torch.float64), t))
    single = fields(model.denoiser(noisy, t))
    rounded = fields(in_precision(model.denoiser, "bf16")(noisy, t))
    truth = {
        "displacement": model.diffusion.torus.target(crystals, noisy, t).double(),
        "strain": to_coefficients(target.strain.double()),
    }
    return {"level": level} | {
        name: {
            "bf16": apart(rounded[name], single[name]),
            "fp32": apart(single[name], exact[name]),
            "network": apart(single[name], truth[name]),
        }
        for name in exact
    }


def main() -> None:
    """Print one row per level."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-n", type=int, default=256)
    a = parser.parse_args()
    model = load_checkpoint(a.checkpoint)
    model.denoiser.eval()
    wide = copy.deepcopy(model.denoiser).double()
    store = open_store(a.data)
    crystals = store.select(np.random.default_rng(0).permutation(len(store))[: a.n])
    rows = [row(model, wide, crystals, level) for level in (0.05, 0.2, 0.4, 0.6, 0.8, 1.0)]
    print(json.dumps({"checkpoint": model.digest, "crystals": a.n, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
