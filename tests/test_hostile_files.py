"""Damaged and hostile files end in an answer or in one sentence, whatever command reads them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_files import TARGETS

PROGRAM = Path(__file__).with_name("hostile_files.py")
COUNT = 75


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_damaged_and_hostile_files_cost_one_sentence_at_most(tmp_path, target):
    """No traceback, nothing unexpected, at most 20 s and 2 GiB, nothing run, nothing outside."""
    words = [sys.executable, PROGRAM, target, str(COUNT), "0", tmp_path / "tried"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]
    assert done.returncode == 0, done.stderr[-2000:]
    assert lines[-1]["tried"] == COUNT, "and the good files were read"
    assert [line for line in lines if "fault" in line] == []
    assert lines[-1].get("refused", 0) > 0, "the damage is not noticed at all"
