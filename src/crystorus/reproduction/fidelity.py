"""Scores by crystal-fidelity, which runs in a process of its own: the packages meet in files."""

import functools
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crystorus.reproduction.errors import PaperError

PACKAGE = "crystal_fidelity"
NOT_ALL = 3
"""Exit status of a comparison in which some metric could not be computed."""


def check_installed() -> None:
    """Find the package before hours of training, not after.

    Raises:
        PaperError: If it is not there.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise PaperError(
            "crystal-fidelity is not installed: pip install 'crystorus[paper]', or from the source "
            "tree pip install 'packages/crystal-fidelity[chgnet]'"
        )


def run(arguments: Sequence[str | Path]) -> None:
    """Run one of its commands.

    Raises:
        PaperError: If it fails; the message is its own.
    """
    check_installed()
    words = [str(a.absolute()) if isinstance(a, Path) else a for a in arguments]
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        server.stdin.write(json.dumps(words) + "\n")
        server.stdin.flush()
        answer = server.stdout.readline()
    except BrokenPipeError:
        answer = ""
    if not answer:
        status = server.wait()
        stop()
        raise PaperError(f"crystal-fidelity {words[0]} failed (exit status {status})")
    result = json.loads(answer)
    if result["status"] not in (0, NOT_ALL):
        raise PaperError(f"crystal-fidelity {words[0]} failed ({result['error'][:300]})")


def stop() -> None:
    """End the process, if there is one; the next command starts another."""
    if _server.cache_info().currsize:
        with _server() as server:
            server.terminate()
        _server.cache_clear()


@functools.cache
def _server() -> subprocess.Popen[str]:
    """Start the process that runs all commands; it ends with this one.

    Its imports and its network take longer than a score of a hundred crystals.
    """
    return subprocess.Popen(
        [sys.executable, "-m", PACKAGE, "serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def run_for_json(arguments: Sequence[str | Path], path: Path) -> Any:
    """Run a command that writes JSON to `path`, and read it.

    Raises:
        PaperError: If it fails or writes something else.
    """
    run([*arguments, "--json", path])
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise PaperError(f"crystal-fidelity left no result in {path} ({error})") from error
