"""The suite killed four times with SIGKILL and repeated: the results of one that was left alone."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from crystorus.reproduction.command import EXPERIMENTS

ORDER = ["paper", "all", "--budget", "smoke", "--seeds", "0", "--rows", "default-ode"]
PROGRAM = """
import dataclasses
from crystorus import cli
from crystorus.reproduction import command, times
from crystorus.reproduction.settings import load_budget, merged

def tiny(name):
    # Trainings of a number of steps, not of a time: they repeat exactly.
    smoke = load_budget(name)
    few = {"training": {"cpu_minutes": 0.0, "epochs": 1, "batch_size": 64, "batch_pairs": 0}}
    settings = {preset: merged(tree, few) for preset, tree in smoke.settings.items()}
    return dataclasses.replace(smoke, settings=settings, compositions=6, study_crystals=16,
                               noise_levels=(0.0, 0.5), gallery=2)

command.load_budget = tiny
times.MINUTES = {"smoke": 0.0001}
cli.main()
"""
KILLED_AT = (
    "training default-s0",
    "scoring default-ode-s0",
    "study noise",
    "linear probes",
)
OF_THE_RUN = {"date", "commit", "training_minutes", "training_cpu_minutes", "cpu_seconds"}
"""What two runs of one experiment do not share."""


def start(out):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *ORDER, "--out", str(out)],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def kill_at(process, step):
    """Kill a run in the middle of a step; True if it came so far."""
    for line in process.stderr:
        if step in line:
            time.sleep(0.3)
            process.send_signal(signal.SIGKILL)
            return process.wait() == -signal.SIGKILL
    return False


def to_the_end(process):
    _, said = process.communicate()
    assert process.returncode == 0, said[-2000:]
    return said


def differences(one, other, path):
    """Name what differs in two results, but for what is of the run."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = (one.keys() | other.keys()) - OF_THE_RUN
        pairs = [(one.get(k), other.get(k), f"{path}.{k}") for k in sorted(keys)]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = [(a, b, f"{path}[{i}]") for i, (a, b) in enumerate(zip(one, other, strict=True))]
    else:
        return [] if one == other else [f"{path}: {str(one)[:80]} and {str(other)[:80]}"]
    return [found for pair in pairs for found in differences(*pair)]


@pytest.mark.slow
def test_a_suite_killed_again_and_again_ends_with_the_same_results(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for step in KILLED_AT:
        assert kill_at(start(killed), step), f"it never came to {step}"
    said = to_the_end(start(killed))
    assert "scoring" not in said  # all of it was done before the last kill
    to_the_end(start(whole))
    for name in EXPERIMENTS:
        if name == "times":  # rates of a machine are never the same twice
            assert (killed / "times.json").exists()
            continue
        assert differences(read(killed, name), read(whole, name), name) == []
    assert differences(read(whole, "table2"), read(whole, "table4"), "other") != []


def read(out, name):
    return json.loads((out / f"{name}.json").read_text())
