"""What the numbers of this package are made from: crystals and losses from fixed seeds.

`measure()` runs every sampler of both presets and both losses. `numbers.json` holds what it gave
when it was recorded; `python tests/characterisation/recorded.py` prints it anew, which is right
only where a change of numbers is what was wanted, and the CHANGELOG says so.
"""

import json
import zlib
from dataclasses import replace
from pathlib import Path

import torch

from crystorus.checkpoint import load_checkpoint
from crystorus.config import SamplerConfig, config_from_dict
from crystorus.crystal_model import CrystalModel, build_model
from crystorus.diffusion.cell_prior import CellStatistics
from crystorus.diffusion.losses import losses_at_noise
from crystorus.diffusion.sampling import Start
from crystorus.geometry import Crystals

NUMBERS = Path(__file__).with_name("numbers.json")

COMPOSITIONS = ([3, 26, 8, 8], [11, 17], [38, 22, 8, 8, 8], [14, 14], [29])
SEEDS = [3, 1, 4, 1, 5]
SAMPLERS = {
    "bridge": SamplerConfig("bridge", 10),
    "ode": SamplerConfig("ode", 10),
    "paper": SamplerConfig("paper", 10),
    "cold": SamplerConfig(
        "bridge", 6, 100.0, first_fraction=0.9, last_fraction=0.27, temperature=0.3,
        over_relaxation=1.7, final_refinement_steps=3,
    ),
}  # fmt: skip
PAPER = {
    "preset": "paper",
    "diffusion": {"steps": 20},
    "network": {
        "blocks": 2, "atom": 16, "edge": 16, "triplet": 8, "rbf": 4, "cbf": 4, "bilinear": 8,
        "num_radial": 16, "neighbours": 8, "field_rank": 3,
    },
}  # fmt: skip


def even_weights(model: CrystalModel) -> CrystalModel:
    """Give a network weights that depend on their names alone, not on torch's random numbers."""
    with torch.no_grad():
        for name, weight in model.denoiser.named_parameters():
            phase = zlib.crc32(name.encode()) % 1000
            wave = torch.sin(torch.arange(weight.numel(), dtype=torch.float64) * 1.7 + phase)
            fan = weight.shape[-1] if weight.dim() > 1 else 100
            gain = 4.0 if "head" in name else 1.2  # cells far from the cube that they start at
            weight.copy_((gain * wave * fan**-0.5).view_as(weight))
    return model


def models() -> dict[str, CrystalModel]:
    """Return the checkpoint that ships and a small network of the paper's."""
    paper = build_model(config_from_dict(PAPER), CellStatistics.neutral())
    return {"default": load_checkpoint(), "paper": even_weights(paper)}


def compositions() -> tuple[torch.Tensor, torch.Tensor]:
    """Return atomic numbers and atom counts."""
    numbers = torch.tensor([z for cell in COMPOSITIONS for z in cell])
    return numbers, torch.tensor([len(cell) for cell in COMPOSITIONS])


def textbook() -> Crystals:
    """Return crystals of the compositions with no symmetry, in float64."""
    numbers, n_atoms = compositions()
    wave = torch.arange(3 * len(numbers), dtype=torch.float64).view(-1, 3)
    frac = (0.31 * wave + 0.07 * torch.sin(5 * wave)) % 1
    cells = torch.eye(3, dtype=torch.float64) + 0.2 * torch.sin(
        torch.arange(9 * len(n_atoms), dtype=torch.float64).view(-1, 3, 3)
    )
    size = (16.0 * n_atoms / torch.linalg.det(cells)) ** (1 / 3)
    return Crystals(cells * size[:, None, None], frac, numbers, n_atoms)


def describe(crystals: Crystals) -> dict[str, list[float]]:
    """Return what a rotation leaves alone: ρᵀρ and the fractional coordinates."""
    gram = crystals.lattice.mT @ crystals.lattice
    return {
        "gram": gram.double().flatten().tolist(),
        "frac": crystals.frac_coords.double().flatten().tolist(),
    }


def measure() -> dict[str, dict[str, list[float]]]:
    """Run everything; returns lists of numbers by case and kind."""
    found: dict[str, dict[str, list[float]]] = {}
    numbers, n_atoms = compositions()
    known = textbook()
    generator = torch.Generator().manual_seed(0)
    atoms = torch.randn(len(numbers), 3, generator=generator, dtype=torch.float64)
    cells = torch.randn(len(n_atoms), 6, generator=generator, dtype=torch.float64)
    held = torch.zeros(len(numbers), dtype=torch.bool)
    held[[0, 2]] = True
    for preset, model in models().items():
        # From noise in float32, as users do; the prior's and the bridge's random numbers are in it.
        for name, sampler in SAMPLERS.items():
            # Random weights are chaotic: after few steps float32 still tells the same.
            short = sampler if preset == "default" else replace(sampler, steps=3)
            made = model.sample(numbers, n_atoms, seeds=SEEDS, sampler=short)
            found[f"{preset} {name} from noise"] = describe(made)
        error = model.scorer_error(known.to(dtype=torch.float32), seeds=SEEDS)
        found[f"{preset} scorer error"] = {"error": error.double().tolist()}
        # From known crystals in float64.
        model.denoiser.double()
        steps = model.diffusion.steps
        level = (torch.tensor([0.2, 0.4, 0.6, 0.8, 0.0]) * steps).round().long()
        start = Start(known, level, held_atoms=held, held_cells=torch.arange(5) == 1)
        for name, sampler in SAMPLERS.items():
            made = model.sample(numbers, n_atoms, seeds=SEEDS, sampler=sampler, start=start)
            found[f"{preset} {name} from crystals"] = describe(made)
        t = torch.tensor([1, steps // 10, steps // 4, steps // 2, steps])
        model.denoiser.train()
        losses = losses_at_noise(model.denoiser, model.diffusion, known, t, atoms, cells)
        (losses.cell.sum() + losses.torus.sum()).backward()
        norms = {
            name: float(weight.grad.norm())
            for name, weight in model.denoiser.named_parameters()
            if weight.grad is not None
        }
        found[f"{preset} losses"] = {
            "cell": losses.cell.tolist(),
            "torus": losses.torus.tolist(),
            "gradients": [norms[name] for name in sorted(norms)],
        }
    return found


if __name__ == "__main__":
    rounded = {
        case: {kind: [float(f"{v:.9g}") for v in values] for kind, values in kinds.items()}
        for case, kinds in measure().items()
    }
    NUMBERS.write_text(json.dumps(rounded) + "\n")
