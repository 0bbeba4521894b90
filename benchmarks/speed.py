"""Training and sampling speed of both presets, beside the machine's own matrix-product rate.

    python benchmarks/speed.py --preset default --task training --batch 32 --threads 2

Prints crystals per second, peak memory, the operations counted in one step, and the share of the
2048³ float32 product rate measured in the same minute, so that figures from noisy machines compare.
Crystals are those of `--data` (a store), or random ones with MP-20's spread of sizes.
"""

import argparse
import json
import resource
import statistics
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from crystorus.config import config_from_dict
from crystorus.data.store import open_store
from crystorus.diffusion.algorithms import SamplerConfig, add_noise, training_losses
from crystorus.diffusion.strain_process import CellStatistics
from crystorus.geometry import Crystals
from crystorus.system import CrystalModel, build_model


def product_rate(seconds: float = 1.0) -> float:
    """Return the rate of 2048³ float32 products in 10⁹ operations per second."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    a @ b
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        a @ b
        count += 1
    return count * 2 * 2048**3 / (time.perf_counter() - start) / 1e9


def random_crystals(count: int, atoms: int | None) -> Crystals:
    """Random positions in cubes of 18 Å³ per atom; 1 to 20 atoms unless told otherwise."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 21, (count,), generator=generator)
    if atoms is not None:
        sizes = torch.full_like(sizes, atoms)
    edge = (18.0 * sizes).pow(1 / 3)
    total = int(sizes.sum())
    return Crystals(
        torch.eye(3) * edge[:, None, None],
        torch.rand(total, 3, generator=generator),
        torch.randint(1, 90, (total,), generator=generator),
        sizes,
    )


def load_crystals(data: Path | None, count: int, atoms: int | None) -> Crystals:
    """Take crystals from a store, or random ones, sorted by size as the batches are."""
    if data is None:
        crystals = random_crystals(count, atoms)
    else:
        store = open_store(data)
        order = torch.randperm(len(store), generator=torch.Generator().manual_seed(0)).tolist()
        if atoms is not None:
            order = [n for n in order if store.n_atoms[n] == atoms]
        crystals = store.select(order[:count])
    return crystals.select(torch.argsort(crystals.n_atoms, stable=True))


def training_step(model: CrystalModel, optimizer: torch.optim.Optimizer, batch: Crystals) -> None:
    """Take one step of Algorithm 1."""
    generator = torch.Generator().manual_seed(1)
    t = torch.randint(1, model.diffusion.steps + 1, (len(batch),), generator=generator)
    losses = training_losses(model.denoiser, model.diffusion, batch, t, generator)
    (losses.cell.mean() + losses.torus.mean()).backward()
    torch.nn.utils.clip_grad_norm_(model.denoiser.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def time_training(model: CrystalModel, batches: list[Crystals], repeats: int) -> dict:
    """Time training over all batches; operations by torch's counter."""
    model.denoiser.train()
    optimizer = torch.optim.Adam(model.denoiser.parameters(), 1e-5)
    with FlopCounterMode(display=False) as counter:
        for batch in batches:
            training_step(model, optimizer, batch)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        for batch in batches:
            training_step(model, optimizer, batch)
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds), "operations": counter.get_total_flops()}


def time_sampling(
    model: CrystalModel, batches: list[Crystals], repeats: int, steps: int, measured: int
) -> dict:
    """Time `measured` network evaluations per batch from the middle of the walk, scaled to `steps`.

    The middle, because the walk of an untrained network ends in cells no trained one visits.
    """
    model.denoiser.eval()
    noisy = []
    for batch in batches:
        half = torch.full_like(batch.n_atoms, model.diffusion.steps // 2)
        atoms, cells = torch.randn_like(batch.frac_coords), torch.randn(len(batch), 6)
        noisy.append((add_noise(model.diffusion, batch, half, atoms, cells)[0], half))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for crystals, t in noisy:
            model.denoiser(crystals, t)
    seconds = []
    with torch.no_grad():
        for _ in range(repeats):
            start = time.perf_counter()
            for crystals, t in noisy:
                for _ in range(measured):
                    model.denoiser(crystals, t)
            seconds.append((time.perf_counter() - start) / measured * steps)
    return {"seconds": statistics.median(seconds), "operations": counter.get_total_flops() * steps}


def main() -> None:
    """Run one benchmark and print its JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=["default", "paper"], default="default")
    parser.add_argument("--task", choices=["training", "sampling"], default="training")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--atoms", type=int)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--bf16", action="store_true")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    model = build_model(config_from_dict({"preset": a.preset}), CellStatistics.neutral())
    if a.bf16:
        model.denoiser.network.bf16 = True
    crystals = load_crystals(a.data, a.count, a.atoms)
    batches = [
        crystals.select(range(start, min(start + a.batch, len(crystals))))
        for start in range(0, len(crystals), a.batch)
    ]
    before = product_rate()
    if a.task == "training":
        result = time_training(model, batches, a.repeats)
    else:
        result = time_sampling(model, batches, a.repeats, a.steps, measured=2)
    rate = 0.5 * (before + product_rate())
    seconds, operations = result["seconds"], result["operations"]
    report = {
        **{k: str(v) if isinstance(v, Path) else v for k, v in vars(a).items()},
        "sampler": SamplerConfig().name if a.task == "sampling" else None,
        "parameters": sum(p.numel() for p in model.denoiser.parameters()),
        "mean_atoms": float(crystals.n_atoms.float().mean()),
        "crystals_per_second": len(crystals) / seconds,
        "seconds_per_crystal": seconds / len(crystals),
        "gigaoperations_per_crystal": operations / len(crystals) / 1e9,
        "product_rate_gflops": rate,
        "share_of_product_rate": operations / seconds / 1e9 / rate,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
