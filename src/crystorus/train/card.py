"""The provenance card of a checkpoint: what it was made of, with what, and how good it is."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from crystorus.config import Config
from crystorus.data.batching import CrystalDataset


def describe_data(dataset: CrystalDataset) -> dict[str, Any]:
    """Return where crystals came from, with digests."""
    header = dataset.store.header
    return {
        "crystals": len(dataset),
        "sha256": header["sha256"],
        "sources": header.get("sources", []),
    }


def describe_origin(
    config: Config, train: CrystalDataset, validation: CrystalDataset, parameters: int
) -> dict[str, Any]:
    """Return the part of the card that stays the same during a run."""
    return {
        "preset": config.preset,
        "parameters": parameters,
        "data": {"train": describe_data(train), "validation": describe_data(validation)},
        "start_from": config.training.start_from,
        "crystorus": _own_version(),
        "commit": git_commit(),
        "torch": torch.__version__,
    }


def _own_version() -> str:
    try:
        return version("crystorus")
    except PackageNotFoundError:
        return "unknown"


def git_commit() -> str:
    """Return the commit of the source tree this runs from; empty if it is not under git."""
    here = Path(__file__)
    try:
        tracked = _git(here.parent, "ls-files", "--error-unmatch", here.name)
        commit = _git(here.parent, "rev-parse", "HEAD") if tracked else ""
        changed = _git(here.parents[1], "status", "--porcelain", "--untracked-files=no", ".")
    except (OSError, subprocess.SubprocessError):
        return ""
    return commit + ("+changes" if commit and changed else "")


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()


def hardware(device: torch.device) -> str:
    """Return the kind of the processor that trains."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration, IndexError):
        name = platform.processor() or platform.machine()
    if device.type == "mps":
        return f"{name}, MPS"
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"


def today() -> str:
    """Return the date and time, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
