"""Campaigns on Dask: scheduler and workers are processes of their own, one is killed half-way."""

import contextlib
import importlib
import os
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import ase.db
import ase.io
import pytest
from alloys import EMT_PATH, rows_of
from ase.build import bulk

HERE = Path(__file__).parent
PATHS = os.pathsep.join([str(HERE), *filter(None, sys.path)])
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
N_ALLOYS = 24


def environment(**more):
    return os.environ | {"PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"} | more


def write_strained(path):
    """Cells of one to three atoms that take EMT about fifteen energies each."""
    frames = []
    for number in range(N_ALLOYS):
        atoms = bulk("Cu", a=3.4 + 0.02 * number).repeat((1 + number % 3, 1, 1))
        if number % 2:
            atoms.numbers[0] = 79
        frames.append(atoms)
    ase.io.write(path, frames, format="extxyz")
    return path


@contextlib.contextmanager
def cluster(n, folder):
    """Start a scheduler and `n` workers that are ready to work; yields address and workers."""
    distributed = pytest.importorskip("distributed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    slow = environment(EMT_SLEEP_S=os.environ.get("DASK_SLEEP_S", "0.3"))

    def start(kind, *words):
        program = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *words, "--no-dashboard"]
        return subprocess.Popen(program, env=slow, cwd=folder, **QUIET)

    processes = [start("scheduler", "--host", "127.0.0.1", "--port", str(port))]
    processes += [start("worker", address, "--nthreads", "1", "--no-nanny") for _ in range(n)]
    try:
        with distributed.Client(address, timeout=60, set_as_default=False) as client:
            client.wait_for_workers(n, timeout=180)
            for module in ("crystorus.hull.relax", "alloys"):
                client.run(importlib.import_module, module)
        yield address, processes[1:]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def relax(structures, folder, *where):
    words = ("relax", structures, "--out", folder, "--keep-duplicates", "--potential", EMT_PATH,
             "--relax-steps", "30", *where)  # fmt: skip
    return subprocess.Popen(
        [sys.executable, HERE / "alloys.py", *map(str, words)], env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finished(folder):
    """Count relaxed structures without making a database where there is none yet."""
    question = "SELECT count(*) FROM text_key_values WHERE key = 'status' AND value = 'relaxed'"
    try:
        base = sqlite3.connect(f"file:{folder}/campaign.db?mode=ro", uri=True)
        with contextlib.closing(base):
            return base.execute(question).fetchone()[0]
    except sqlite3.Error:  # it is not there yet, or being written
        return 0


def wait_for(n, folder, process):
    while finished(folder) < n:
        assert process.poll() in (None, 0), process.stdout.read()
        time.sleep(0.2)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The campaign without Dask, in one process."""
    folder = tmp_path_factory.mktemp("alone")
    structures = write_strained(folder / "many.extxyz")
    process = relax(structures, folder / "run", "--workers", 0)
    assert process.wait() == 0, process.stdout.read()
    assert finished(folder / "run") == N_ALLOYS
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "killed"), [(1, False), (2, False), (2, True), (4, False), (4, True)]
)
def test_workers_and_a_kill_among_them_end_in_the_same_database(alone, tmp_path, n, killed):
    with cluster(n, tmp_path) as (address, workers):
        process = relax(alone / "many.extxyz", tmp_path / "run", "--scheduler", address)
        wait_for(1, tmp_path / "run", process)
        began = time.monotonic()
        if killed:
            wait_for(N_ALLOYS // 2, tmp_path / "run", process)
            workers[0].kill()
        wait_for(N_ALLOYS, tmp_path / "run", process)
        took = time.monotonic() - began
        print(f"{n} workers{', one killed' if killed else ''}: {took:.1f} s from first to last")
        assert process.wait() == 0, process.stdout.read()
    assert rows_of(tmp_path / "run/campaign.db") == rows_of(alone / "run/campaign.db")
