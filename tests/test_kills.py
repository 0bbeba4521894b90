"""Commands that are killed, told to end or interrupted at any moment go on to the same result."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from kills import COMMANDS

PROGRAM = Path(__file__).with_name("kills.py")
KILLS, TERMS, INTERRUPTS = 20, 10, 4


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_signals_at_random_moments_change_nothing(tmp_path, command):
    """The same result after any of them, no process that outlives it by 3 s, no exit status 0."""
    counts = map(str, (KILLS, TERMS, INTERRUPTS))
    words = [sys.executable, str(PROGRAM), command, *counts, "0", str(tmp_path / "killed")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(next(x for x in done.stdout.splitlines() if x.startswith('{"signals"')))
    assert found["faults"] == []
    assert sum(found["signals"].values()) == KILLS + TERMS + INTERRUPTS
    assert found["compared"] >= 1
