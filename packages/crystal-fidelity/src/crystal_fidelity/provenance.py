"""Where a number comes from: programs, commit, hardware and date."""

import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the version of Python and of each package that is installed, without importing any.

    Args:
        packages: Names as in a package index, such as "crystal-fidelity".
    """
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_commit(module_file: str | Path = __file__) -> str:
    """Return the commit of the source tree that a module runs from.

    Args:
        module_file: `__file__` of the package whose commit is asked for.

    Returns:
        The commit, with "+changes" if files of that source tree differ from it; empty if it is
        not under git.
    """
    here = Path(module_file).resolve()
    try:
        _git(here.parent, "ls-files", "--error-unmatch", here.name)
        commit = _git(here.parent, "rev-parse", "HEAD")
        changed = _git(here.parents[1], "status", "--porcelain", "--untracked-files=no", ".")
    except (OSError, subprocess.SubprocessError):
        return ""
    return commit + ("+changes" if changed else "")


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()


def hardware(device: str = "cpu") -> str:
    """Return the kind of the processor, with its threads, or of the graphics card, of a device.

    Args:
        device: As torch names it: "cpu", "mps", "cuda" or "cuda:1".
    """
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(torch.device(device))
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration, IndexError):
        name = platform.processor() or platform.machine()
    if device == "mps":
        return f"{name}, MPS"
    threads = _threads()
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"


def _threads() -> int:
    import sys

    if "torch" in sys.modules:
        return int(sys.modules["torch"].get_num_threads())
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)


def today() -> str:
    """Return the date and time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
