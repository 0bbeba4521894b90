import os
import signal
import socket
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from jobs_for_workers import (
    begin,
    die_on_three,
    die_the_first_time,
    fail_on_three,
    slow_first,
    square,
    started,
)

from crystal_fidelity import workers as workers_module
from crystal_fidelity.workers import (
    CHUNK,
    Lost,
    Workers,
    WorkersError,
    check,
    map_in_order,
    run,
)

HERE = Path(__file__).parent
ALONE = Workers(1, isolated=True)


@pytest.mark.parametrize("workers", [Workers(), Workers(1), ALONE, Workers(2)], ids=str)
def test_every_job_is_done_once_wherever_it_runs(workers):
    found = list(run(square, range(12), workers))
    assert sorted((n, value) for n, (value, _) in found) == [(n, n * n) for n in range(12)]
    used = {pid for _, (_, pid) in found}
    assert (os.getpid() in used) == (workers.processes <= 1 and not workers.isolated)
    assert len(used) <= max(workers.processes, 1)


def test_a_job_whose_worker_died_is_done_again(tmp_path):
    jobs = [(n, str(tmp_path / "died")) for n in range(6)]
    assert dict(run(die_the_first_time, jobs, Workers(2))) == {n: n for n in range(6)}
    assert (tmp_path / "died").exists()


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("workers", [ALONE, Workers(2)], ids=str)
def test_a_job_that_always_kills_its_worker_is_given_up_and_the_others_are_not(workers, ordered):
    found = list(run(die_on_three, range(8), workers, ordered=ordered))
    if ordered:
        assert [n for n, _ in found] == list(range(8))
    results = dict(found)
    assert isinstance(results.pop(3), Lost)
    assert results == {n: n for n in range(8) if n != 3}


def test_without_retry_a_dead_worker_ends_the_run():
    with pytest.raises(WorkersError, match="a worker process died"):
        list(run(die_on_three, range(8), Workers(2), retry=False))


@pytest.mark.parametrize("workers", [Workers(), Workers(2)], ids=str)
def test_an_error_of_a_job_is_the_callers(workers):
    with pytest.raises(ValueError, match="three"):
        list(run(fail_on_three, range(8), workers))


def test_ordered_results_wait_for_their_turn_and_few_run_ahead():
    taken = []
    jobs = (taken.append(n) or n for n in count())
    results = run(slow_first, jobs, Workers(2), ordered=True)
    assert next(results) == (0, 0)
    assert len(taken) < 20
    assert [next(results) for _ in range(5)] == [(n, n) for n in range(1, 6)]
    results.close()


@pytest.mark.parametrize("workers", [Workers(), Workers(2, threads=3)], ids=str)
def test_every_process_begins_once_before_its_first_job(workers, monkeypatch):
    monkeypatch.setattr("jobs_for_workers.STARTED", [])
    results = dict(run(started, range(6), workers, initializer=begin, initargs=("go",)))
    assert {tuple(words) for words, _ in results.values()} == {("go",)}
    if workers.processes:
        assert {threads for _, threads in results.values()} == {"3"}
    with pytest.raises(ValueError, match="it cannot begin"):
        list(run(started, range(6), workers, initializer=begin, initargs=("fail",)))


@pytest.mark.parametrize("job", ["leave_pid", "hold_the_interpreter"])
def test_workers_die_with_the_process_that_started_them(tmp_path, job):
    program = (
        "from crystal_fidelity.workers import Workers, run\n"
        "if __name__ == '__main__':\n"
        "    import jobs_for_workers as jobs\n"
        f"    list(run(jobs.{job}, [{str(tmp_path)!r}] * 2, Workers(2)))\n"
    )
    (tmp_path / "program.py").write_text(program)
    environment = os.environ | {"PYTHONPATH": f"{HERE}:{HERE.parent / 'src'}"}
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


def test_places_that_are_none_are_named(monkeypatch):
    monkeypatch.setattr(workers_module, "_CONNECT_S", 0.5)
    for wrong in (check, lambda workers: list(run(square, [1], workers))):
        with pytest.raises(WorkersError, match="-1 workers"):
            wrong(Workers(-1))
        with pytest.raises(WorkersError, match=r"no Dask scheduler answers at nonsense|needs Dask"):
            wrong(Workers(scheduler="nonsense"))


def test_mapping_keeps_the_order_and_names_a_dead_worker(tmp_path):
    n = 3 * CHUNK + 5
    assert list(map_in_order(abs, range(-n, 0), 2)) == list(range(n, 0, -1))
    assert list(map_in_order(abs, range(-n, 0))) == list(range(n, 0, -1))
    assert {pid for _, pid in map_in_order(square, range(5), 2)} == {os.getpid()}
    with pytest.raises(WorkersError, match="one of 2 worker processes died"):
        list(map_in_order(die_on_three, range(n), 2))
    with pytest.raises(WorkersError, match="workers = 0"):
        list(map_in_order(abs, [1], 0))


@pytest.fixture(scope="module")
def dask_cluster(tmp_path_factory):
    """A scheduler and two workers, each a process of its own; yields its address and workers.

    The first test that uses it kills one worker, the second the other.
    """
    pytest.importorskip("distributed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": f"{HERE}:{HERE.parent / 'src'}"}

    def start(*words):
        return subprocess.Popen(
            [sys.executable, "-m", "distributed.cli." + words[0], *words[1:], "--no-dashboard"],
            env=environment, cwd=tmp_path_factory.getbasetemp(),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    address = f"tcp://127.0.0.1:{port}"
    processes = [start("dask_scheduler", "--host", "127.0.0.1", "--port", str(port))]
    for _ in range(2):
        processes.append(start("dask_worker", address, "--nthreads", "1", "--no-nanny"))
    yield address, processes[1:]
    for process in processes:
        process.kill()
        process.wait()


def test_dask_gives_the_same_and_a_killed_workers_jobs_are_redone(dask_cluster):
    address, workers = dask_cluster
    check(Workers(scheduler=address))
    begun = dict(
        run(started, range(4), Workers(scheduler=address), initializer=begin, initargs=("go",))
    )
    assert {tuple(words) for words, _ in begun.values()} == {("go",)}
    found = []
    for number, (value, pid) in run(square, range(60), Workers(scheduler=address), ordered=True):
        found.append((number, value, pid))
        if len(found) == 20:
            workers[0].kill()
    assert [(n, v) for n, v, _ in found] == [(n, n * n) for n in range(60)]
    assert {pid for _, _, pid in found[30:]} == {workers[1].pid}


def test_dask_without_workers_is_given_up_after_a_while(dask_cluster):
    address, workers = dask_cluster
    assert dict(run(slow_first, [1], Workers(scheduler=address))) == {0: 1}
    for worker in workers:
        worker.kill()
        worker.wait()
    with pytest.raises(WorkersError, match="has had no workers for 3 s"):
        list(run(slow_first, [1, 2], Workers(scheduler=address, patience=3.0)))
