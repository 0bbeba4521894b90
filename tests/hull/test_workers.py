import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jobs import die_on_three, die_the_first_time, square

from crystorus.hull.errors import WorkersError
from crystorus.hull.workers import Lost, Workers, run_jobs

HERE = Path(__file__).parent


def results(function, jobs, workers):
    return dict(run_jobs(function, jobs, workers))


@pytest.mark.parametrize("processes", [0, 1, 2])
def test_every_job_is_done_once_wherever_it_runs(processes):
    found = list(run_jobs(square, list(range(12)), Workers(processes)))
    assert sorted((n, value) for n, (value, _) in found) == [(n, n * n) for n in range(12)]
    used = {pid for _, (_, pid) in found}
    assert (os.getpid() in used) == (processes == 0)
    assert len(used) <= max(processes, 1)


def test_a_job_whose_worker_died_is_done_again(tmp_path):
    jobs = [(n, str(tmp_path / "died")) for n in range(6)]
    assert results(die_the_first_time, jobs, Workers(2)) == {n: n for n in range(6)}
    assert (tmp_path / "died").exists()


def test_a_job_that_always_kills_its_worker_is_given_up_and_the_others_are_not():
    found = results(die_on_three, list(range(8)), Workers(2))
    assert isinstance(found.pop(3), Lost)
    assert found == {n: n for n in range(8) if n != 3}


def test_workers_die_with_the_process_that_started_them(tmp_path):
    program = (
        "import sys, time; from crystorus.hull.workers import Workers, run_jobs\n"
        "if __name__ == '__main__':\n"
        "    import jobs\n"
        f"    list(run_jobs(jobs.leave_pid, [{str(tmp_path)!r}] * 2, Workers(2)))\n"
    )
    (tmp_path / "program.py").write_text(program)
    environment = os.environ | {"PYTHONPATH": f"{HERE}:{HERE.parents[1] / 'src'}"}
    parent = subprocess.Popen([sys.executable, tmp_path / "program.py"], env=environment)
    pids = wait_for(lambda: [int(p.name) for p in tmp_path.glob("[0-9]*")], 60)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert wait_for(lambda: not any(alive(pid) for pid in pids), 20)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition, seconds):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.1)
    return found


def test_places_that_are_none_are_named():
    with pytest.raises(WorkersError, match="--workers -1"):
        list(run_jobs(square, [1], Workers(-1)))
    with pytest.raises(WorkersError, match="no Dask scheduler answers at nonsense"):
        list(run_jobs(square, [1], Workers(scheduler="nonsense")))


@pytest.fixture(scope="module")
def dask_cluster(tmp_path_factory):
    """A scheduler and two workers, each a process of its own; yields its address and workers.

    The first test that uses it kills one worker, the second the other.
    """
    pytest.importorskip("distributed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": f"{HERE}:{HERE.parents[1] / 'src'}"}

    def start(*words):
        return subprocess.Popen(
            [sys.executable, "-m", "distributed.cli." + words[0], *words[1:]],
            env=environment, cwd=tmp_path_factory.getbasetemp(),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    address = f"tcp://127.0.0.1:{port}"
    quiet = ("--no-dashboard",)
    processes = [start("dask_scheduler", "--host", "127.0.0.1", "--port", str(port), *quiet)]
    for _ in range(2):
        processes.append(start("dask_worker", address, "--nthreads", "1", "--no-nanny", *quiet))
    yield address, processes[1:]
    for process in processes:
        process.kill()
        process.wait()


def test_dask_gives_the_same_and_a_killed_workers_jobs_are_redone(dask_cluster):
    address, workers = dask_cluster
    jobs = list(range(60))
    found = []
    for number, (value, pid) in run_jobs(square, jobs, Workers(scheduler=address)):
        found.append((number, value, pid))
        if len(found) == 20:
            workers[0].kill()
    assert sorted((n, v) for n, v, _ in found) == [(n, n * n) for n in jobs]
    assert {pid for _, _, pid in found[30:]} == {workers[1].pid}


def test_dask_without_workers_is_given_up_after_a_while(dask_cluster):
    address, workers = dask_cluster
    assert results(square, [1], Workers(scheduler=address))[0][0] == 1
    for worker in workers:
        worker.kill()
        worker.wait()
    with pytest.raises(WorkersError, match="has had no workers for 3 s"):
        list(run_jobs(square, [1, 2], Workers(scheduler=address, patience=3.0)))
