"""Runs small enough for a test, and ways to end them early."""

import csv
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.utils.tensorboard  # once, not in every child
from prototypes import all_prototypes
from safetensors.torch import load_file

from crystorus.config import Config, config_from_dict
from crystorus.data.store import build_store
from crystorus.data.writers import extxyz_text
from crystorus.geometry import Crystals
from crystorus.train.loop import train

NETWORKS = {
    "default": {"channels": 16, "vector_channels": 8, "tensor_channels": 8, "pair_channels": 16,
                "gate_channels": 8, "blocks": 1},
    "paper": {"blocks": 1, "atom": 16, "edge": 16, "triplet": 8, "rbf": 4, "cbf": 4,
              "bilinear": 8, "num_spherical": 3, "num_radial": 8, "neighbours": 6, "steps": 20},
}  # fmt: skip


def write_stores(folder: Path) -> None:
    """Write strained prototypes of at most seven atoms: 48 to train on, 12 to validate on."""
    generator = torch.Generator().manual_seed(0)
    small = [c for c in all_prototypes().values() if int(c.n_atoms) <= 7]
    strained = []
    for number in range(60):
        c = small[number % len(small)]
        strain = torch.eye(3, dtype=torch.float64)
        strain = strain + 0.05 * torch.randn(3, 3, generator=generator, dtype=torch.float64)
        strained.append(c.with_geometry(strain @ c.lattice, c.frac_coords))
    for name, part in (("train", strained[:48]), ("validation", strained[48:])):
        (folder / f"{name}.extxyz").write_text(extxyz_text(Crystals.concat(part)))
        build_store(folder / f"{name}.extxyz", folder / f"{name}.store")


def config(stores: Path, *, preset: str = "default", **training: object) -> Config:
    """A run of a second or two: two epochs of twelve or more steps."""
    settings = {"epochs": 2, "batch_size": 4, "accelerator": "cpu", "sample_every": 0,
                "log_every": 3, "ema_decay": 0.9, "save_minutes": 5.0} | training  # fmt: skip
    return config_from_dict({
        "preset": preset,
        "data": {"train": str(stores / "train.store"),
                 "validation": str(stores / "validation.store")},
        "diffusion": {"steps": 20},
        "network": NETWORKS[preset],
        "training": settings,
        "sampling": {"steps": 5},
    })  # fmt: skip


def die() -> None:
    """End this process as no program can prevent."""
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_child(work: Callable[[], None]) -> int:
    """Do something in a forked process; returns the signal that ended it, or its exit code."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            torch.set_num_threads(1)
            work()
            code = 0
        except Exception as error:
            print(error, file=sys.stderr, flush=True)
            raise
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def run_in_a_child(config: Config, folder: Path, *, resume: bool = False) -> int:
    """Train in a forked process."""
    return in_a_child(lambda: train(config, folder, resume=resume))


def outcome(folder: Path) -> dict[str, object]:
    """All that a run leaves behind but times and dates."""
    with (folder / "metrics.csv").open(newline="") as stream:
        rows = [{k: v for k, v in r.items() if k != "minutes"} for r in csv.DictReader(stream)]
    state = torch.load(folder / "state" / "last.ckpt", weights_only=True)
    times = ("seconds", "step_cpu_seconds", "wall_seconds", "cpu_seconds")
    progress = {k: v for k, v in state.pop("progress").items() if k not in times}
    return {
        "metrics": rows,
        "best": load_file(folder / "best" / "weights.safetensors"),
        "last": load_file(folder / "last" / "weights.safetensors"),
        "state": state,
        "progress": progress,
    }


def same(a: object, b: object) -> bool:
    """Compare nested values, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b
