"""Training and sampling speed of both presets, beside the device's own matrix-product rate.

    python benchmarks/speed.py --preset default,paper --task training,sampling --batch 32
    python benchmarks/speed.py --preset paper --atoms 2,10,50,200 --batch-atoms 400 --history h.json
    python benchmarks/speed.py --device cuda --batch 32,128,512 --plot speed.svg

Every combination is measured in a process of its own: crystals per second, peak memory, the
operations counted, and their share of the 2048³ float32 product rate measured in the same seconds.
On a machine that others use, `processor_share` is the one to compare: it counts the seconds this
process computed, not those it waited. With several sizes or batches the exponents of time per
crystal in each are fitted, with three sizes also time per atom = a + b · atoms, whose second
term is that of the pairs. `--processes 2` does everything twice, side by side, each with its own
`--threads`, and adds up the rates: that is how `--workers 2` samples. `--history` appends one JSON
line per combination.

Crystals are those of `--data` (a store), or random ones with MP-20's range of sizes. Sampling is
timed in the middle of sampling: that of an untrained network ends in cells no trained one visits.
"""

import argparse
import itertools
import json
import math
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls
from torch.utils.flop_counter import FlopCounterMode

from crystal_fidelity.provenance import git_commit, hardware, today
from crystorus.config import config_from_dict
from crystorus.crystal_model import CrystalModel, build_model, in_precision
from crystorus.data.store import open_store
from crystorus.diffusion.cell_prior import CellStatistics
from crystorus.geometry import Crystals
from crystorus.train.loop import accumulate_gradients

PAPER_CPU_ATOMS = 320
"""`training.cpu_atoms` of configs/paper.toml."""

MEAN_ATOMS = 10
"""Of the mixture."""

STEPS = 100
"""Network evaluations for one crystal, to which sampling is scaled."""


@dataclass(frozen=True)
class Case:
    """One combination to measure."""

    preset: str
    task: str
    batch: int
    atoms: int
    """Atoms of every crystal; 0 for a mixture of 1 to 20, crystals of like size together."""
    device: str
    threads: int
    bf16: bool
    count: int
    repeats: int
    data: str


@dataclass(frozen=True)
class Timing:
    """Medians over repeats, in seconds, of the work and of a product of 2048³."""

    wall: float
    processor: float
    product_wall: float
    product_processor: float


def synchronise(device: str) -> None:
    """Wait for the device."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], device: str) -> tuple[float, float]:
    """Return wall and processor seconds, all threads, of one call."""
    synchronise(device)
    wall, processor = time.perf_counter(), time.process_time()
    work()
    synchronise(device)
    return time.perf_counter() - wall, time.process_time() - processor


def measure(work: Callable[[], object], device: str, repeats: int) -> Timing:
    """Time work and matrix products by turns."""
    a, b = torch.randn(2, 2048, 2048, device=device)
    a @ b
    rows = [seconds(work, device) + seconds(lambda: a @ b, device) for _ in range(repeats)]
    return Timing(*(statistics.median(column) for column in zip(*rows, strict=True)))


def random_crystals(count: int, atoms: int) -> Crystals:
    """Random positions in cubes of 18 Å³ per atom; 1 to 20 atoms if `atoms` is 0."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 21, (count,), generator=generator)
    if atoms:
        sizes = torch.full_like(sizes, atoms)
    edge = (18.0 * sizes).pow(1 / 3)
    total = int(sizes.sum())
    return Crystals(
        torch.eye(3) * edge[:, None, None],
        torch.rand(total, 3, generator=generator),
        torch.randint(1, 90, (total,), generator=generator),
        sizes,
    )


def load_batches(case: Case) -> list[Crystals]:
    """Take crystals from a store, or random ones, sorted by size as the batches are."""
    if not case.data:
        crystals = random_crystals(max(case.count, case.batch), case.atoms)
    else:
        store = open_store(Path(case.data))
        order = torch.randperm(len(store), generator=torch.Generator().manual_seed(0)).tolist()
        if case.atoms:
            order = [n for n in order if store.n_atoms[n] == case.atoms]
        crystals = store.select(order[: max(case.count, case.batch)])
    crystals = crystals.select(torch.argsort(crystals.n_atoms, stable=True)).to(case.device)
    starts = range(0, len(crystals) - case.batch + 1, case.batch)
    return [crystals.select(range(start, start + case.batch)) for start in starts]


def training_work(
    model: CrystalModel, batches: Sequence[Crystals], bf16: bool
) -> Callable[[], object]:
    """Return one pass of Algorithm 1 over all batches, in the pieces of configs/paper.toml."""
    on_cpu = batches[0].lattice.device.type == "cpu"
    pieces = PAPER_CPU_ATOMS if on_cpu and model.config.preset == "paper" else 0
    model.denoiser.train()
    denoiser = in_precision(model.denoiser, "bf16" if bf16 else "fp32")
    optimizer = torch.optim.Adam(model.denoiser.parameters(), 1e-5)

    def work() -> None:
        for batch in batches:
            generator = torch.Generator().manual_seed(1)
            t = torch.randint(1, model.diffusion.steps + 1, (len(batch),), generator=generator)
            t = t.to(batch.n_atoms.device)
            accumulate_gradients(denoiser, model.diffusion, batch, t, generator, piece_atoms=pieces)
            torch.nn.utils.clip_grad_norm_(model.denoiser.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return work


def sampling_work(
    model: CrystalModel, batches: Sequence[Crystals], bf16: bool
) -> Callable[[], object]:
    """Return one evaluation of the network on all batches, in the middle of sampling."""
    model.denoiser.eval()
    denoiser = in_precision(model.denoiser, "bf16" if bf16 else "fp32")
    noisy = []
    for batch in batches:
        half = torch.full_like(batch.n_atoms, model.diffusion.steps // 2)
        atoms = torch.randn_like(batch.frac_coords)
        cells = torch.randn(len(batch), 6, device=batch.lattice.device)
        noisy.append((model.diffusion.noise(batch, half, atoms, cells)[0], half))

    def work() -> None:
        with torch.no_grad():
            for crystals, t in noisy:
                denoiser(crystals, t)

    return work


def peak_memory_mib(device: str) -> float:
    """Return the largest memory of the process, or of the device it computed on."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(case: Case) -> dict:
    """Measure one combination."""
    torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    model = build_model(config_from_dict({"preset": case.preset}), CellStatistics.neutral())
    model.denoiser.to(case.device)
    batches = load_batches(case)
    training = case.task == "training"
    work = (training_work if training else sampling_work)(model, batches, case.bf16)
    work()
    with FlopCounterMode(display=False) as counter:
        work()
    timing = measure(work, case.device, case.repeats)
    crystals = sum(len(batch) for batch in batches)
    atoms = sum(int(batch.n_atoms.sum()) for batch in batches)
    per_crystal = timing.wall / crystals * (1 if training else STEPS)
    operations, product = counter.get_total_flops(), 2 * 2048**3
    return {
        **asdict(case),
        "mean_atoms": atoms / crystals,
        "crystals_per_second": 1 / per_crystal,
        "seconds_per_crystal": per_crystal,
        "processor_seconds_per_crystal": per_crystal * timing.processor / timing.wall,
        "gigaoperations_per_crystal": operations / crystals / 1e9 * (1 if training else STEPS),
        "product_gigaoperations_per_second": product / timing.product_wall / 1e9,
        "share": operations / timing.wall / (product / timing.product_wall),
        "processor_share": operations
        / timing.processor
        / (product / max(timing.product_processor, 1e-9)),
        "peak_memory_mib": peak_memory_mib(case.device),
        **provenance(case.device),
    }


def together(rows: Sequence[dict]) -> dict:
    """Join what processes measured side by side: rates and memory add up, shares are averaged."""
    rate = sum(row["crystals_per_second"] for row in rows)
    averaged = ("share", "processor_share", "product_gigaoperations_per_second")
    return (
        rows[0]
        | {key: statistics.mean(row[key] for row in rows) for key in averaged}
        | {
            "processes": len(rows),
            "crystals_per_second": rate,
            "seconds_per_crystal": 1 / rate,
            "peak_memory_mib": sum(row["peak_memory_mib"] for row in rows),
        }
    )


def provenance(device: str) -> dict:
    """Say when, on what and with which commit a figure was taken."""
    return {
        "time": today(),
        "hardware": hardware(device),
        "commit": git_commit(__file__),
        "torch": torch.__version__,
    }


def exponent(rows: Sequence[dict], key: str) -> float | None:
    """Fit the power of `key` in processor seconds per crystal by least squares of logarithms."""
    points = [(math.log(r[key]), math.log(r["processor_seconds_per_crystal"])) for r in rows]
    if len({x for x, _ in points}) < 2:
        return None
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def report_exponents(rows: Sequence[dict]) -> None:
    """Print how time per crystal grows with the atoms and with the batch."""
    for key, fixed in (("mean_atoms", "batch"), ("batch", "atoms")):
        groups: dict[tuple, list[dict]] = {}
        for row in rows:
            groups.setdefault((row["preset"], row["task"], row[fixed]), []).append(row)
        for (preset, task, value), members in groups.items():
            slope = exponent(members, key)
            if slope is not None:
                print(f"{preset} {task}, {fixed} {value}: time per crystal ~ {key}^{slope:.2f}")


def pair_term(rows: Sequence[dict]) -> tuple[float, float, float]:
    """Fit time per atom = a + b · atoms, every size weighing the same relative to its time.

    Returns:
        a and b in processor seconds, and the largest over the smallest ratio of the time to
        the fit.
    """
    atoms = np.array([row["mean_atoms"] for row in rows])
    time = np.array([row["processor_seconds_per_crystal"] for row in rows]) / atoms
    design = np.stack([np.ones_like(atoms), atoms], 1) / time[:, None]
    (a, b), _ = nnls(design, np.ones_like(atoms))
    ratio = time / (a + b * atoms)
    return float(a), float(b), float(ratio.max() / ratio.min())


def report_pair_terms(rows: Sequence[dict]) -> None:
    """Print the pairs' share of the time of every preset and task measured at several sizes."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["preset"], row["task"], row["device"]), []).append(row)
    for (preset, task, device), members in groups.items():
        if len({row["mean_atoms"] for row in members}) < 3:
            continue
        a, b, spread = pair_term(members)
        print(
            f"{preset} {task}, {device}: {1e3 * a:.3g} + {1e3 * b:.3g} n ms per atom of a crystal "
            f"of n; ratio to this, largest over smallest {spread:.2f}"
        )


def plot(rows: Sequence[dict], path: Path) -> None:
    """Draw crystals per second over atoms per crystal, a line per preset, task and batch."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    groups: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        batch = f"batch {row['batch']}" if len({r["mean_atoms"] for r in rows}) == 1 else ""
        label = " ".join([row["preset"], row["task"], batch, row["device"]])
        groups.setdefault(label, []).append((row["mean_atoms"], row["crystals_per_second"]))
    for label, points in groups.items():
        axes.loglog(*zip(*sorted(points), strict=True), "o-", label=label)
    axes.grid(which="both", linewidth=0.3)
    axes.set(xlabel="atoms per crystal", ylabel="crystals per second")
    axes.legend(fontsize=7)
    figure.savefig(path, bbox_inches="tight")


def parse() -> argparse.Namespace:
    """Read the command line; comma-separated values are all combined."""
    words = lambda text: text.split(",")  # noqa: E731
    numbers = lambda text: [int(word) for word in text.split(",")]  # noqa: E731
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", type=words, default=["default"])
    parser.add_argument("--task", type=words, default=["training"])
    parser.add_argument("--batch", type=numbers, default=[32])
    parser.add_argument("--batch-atoms", type=int, default=0, help="crystals by size, for --batch")
    parser.add_argument("--atoms", type=numbers, default=[0], help="0 is a mixture of 1 to 20")
    parser.add_argument("--device", type=words, default=["cpu"])
    parser.add_argument("--threads", type=numbers, default=[2])
    parser.add_argument("--processes", type=int, default=1, help="that do the same side by side")
    parser.add_argument("--bf16", action="store_true", help="products of the default preset")
    parser.add_argument("--count", type=int, default=64, help="crystals, at least one batch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data", default="", help="a store of crystals")
    parser.add_argument("--history", type=Path, help="file to append JSON lines to")
    parser.add_argument("--plot", type=Path, help="picture to draw; needs matplotlib")
    return parser.parse_args()


def main() -> None:
    """Measure every combination and print its JSON."""
    a = parse()
    rows = []
    choices = itertools.product(a.preset, a.task, a.batch, a.atoms, a.device, a.threads)
    for choice in choices:
        case = Case(*choice, bf16=a.bf16, count=a.count, repeats=a.repeats, data=a.data)
        if a.batch_atoms:
            batch = max(a.batch_atoms // (case.atoms or MEAN_ATOMS), 1)
            case = replace(case, batch=batch, count=batch)
        with ProcessPoolExecutor(a.processes, mp_context=get_context("spawn")) as pool:
            row = together(list(pool.map(run, [case] * a.processes)))
        print(json.dumps(row, indent=2), flush=True)
        rows.append(row)
        if a.history:
            with a.history.open("a") as file:
                file.write(json.dumps(row) + "\n")
    report_exponents(rows)
    report_pair_terms(rows)
    if a.plot:
        plot(rows, a.plot)


if __name__ == "__main__":
    main()
