"""The same jobs in this process, in local processes, or on a Dask cluster.

A job whose worker dies is done once more; Dask decides by its `allowed-failures` how often. A
worker only computes: what it gives back is written by the one process that asked, so nothing is
written twice.
"""

import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from crystorus.hull.errors import WorkersError

if TYPE_CHECKING:
    from distributed import Client

Job = TypeVar("Job")
Result = TypeVar("Result")

_CONNECT_S = 10
_LOST = "its worker process died again and again (killed, or out of memory)"


@dataclass(frozen=True)
class Workers:
    """Where jobs run."""

    processes: int = 1
    """Local processes; 0 works in this one."""
    scheduler: str = ""
    """Address of a Dask scheduler, which is then used instead."""
    patience: float = 300.0
    """Seconds to wait for a Dask cluster that has no workers."""


@dataclass(frozen=True)
class Lost:
    """Instead of a result: the job took its worker with it every time it was tried."""

    reason: str = _LOST


def check_workers(workers: Workers) -> None:
    """Make sure that a Dask scheduler answers, before there is work for it.

    Raises:
        WorkersError: If it does not.
    """
    if workers.scheduler:
        _connect(workers.scheduler).close(timeout=5)


def run_jobs(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: Workers
) -> Iterator[tuple[int, Result | Lost]]:
    """Yield (number of the job, result) as they come.

    Args:
        function: At the top of a module, so that other processes find it.
        jobs: Picklable.
        workers: Where.

    Raises:
        WorkersError: If the workers cannot be had.
    """
    if workers.processes < 0:
        raise WorkersError(f"--workers {workers.processes}: give a number of processes from 0 up")
    if not jobs:
        return
    if workers.scheduler:
        yield from _on_dask(function, jobs, workers)
    elif workers.processes == 0:
        for number, job in enumerate(jobs):
            yield number, function(job)
    else:
        yield from _in_processes(function, jobs, workers.processes)


def _in_processes(
    function: Callable[[Job], Result], jobs: Sequence[Job], n: int
) -> Iterator[tuple[int, Result | Lost]]:
    left = deque(range(len(jobs)))
    while left:
        suspects = yield from _with_pool(function, jobs, left, min(n, len(left)))
        for number in suspects:  # alone, so that one bad job cannot condemn its neighbours
            again = yield from _with_pool(function, jobs, deque([number]), 1)
            if again:
                yield number, Lost()


def _with_pool(
    function: Callable[[Job], Result], jobs: Sequence[Job], left: deque[int], n: int
) -> Generator[tuple[int, Result], None, list[int]]:
    """Work through `left`; return the jobs in flight if a worker died."""
    flying: dict[Future[Result], int] = {}
    before = set(multiprocessing.active_children())
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(n, spawn, initializer=_begin_worker)
    try:
        while left or flying:
            while left and len(flying) < 2 * n:
                flying[pool.submit(function, jobs[left[0]])] = left[0]
                left.popleft()
            done, _ = wait(flying, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=lambda f: flying[f]):
                result = future.result()
                yield flying.pop(future), result
    except BrokenProcessPool:
        for future in [f for f in flying if f.done() and f.exception() is None]:
            yield flying.pop(future), future.result()
        return sorted(flying.values())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
    return []


def _begin_worker() -> None:
    """One thread per worker; a worker does not outlive the process that started it."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _on_dask(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: Workers
) -> Iterator[tuple[int, Result | Lost]]:
    client = _connect(workers.scheduler)
    left, flying = deque(range(len(jobs))), dict[Any, int]()
    idle_since = time.monotonic()
    try:
        while left or flying:
            threads = sum(client.nthreads().values())
            while left and len(flying) < max(2 * threads, 1):
                number = left.popleft()
                flying[client.submit(function, jobs[number], pure=False)] = number
            yield from _collect(client, flying)
            if threads:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > workers.patience:
                raise WorkersError(
                    f"{workers.scheduler} has had no workers for {workers.patience:g} s: start "
                    f"some with `dask worker {workers.scheduler}`; finished work is kept"
                )
    except (OSError, TimeoutError) as error:
        raise WorkersError(
            f"the connection to {workers.scheduler} broke ({error}): run the same command again, "
            "finished work is kept"
        ) from error
    finally:
        client.close(timeout=5)


def _collect(client: "Client", flying: dict[Any, int]) -> Iterator[tuple[int, Any]]:
    from concurrent.futures import CancelledError

    from distributed import wait as wait_for
    from distributed.scheduler import KilledWorker

    try:
        with client.as_current():
            done = wait_for(list(flying), timeout=2, return_when="FIRST_COMPLETED").done
    except TimeoutError:
        if client.status != "running":
            raise OSError("the scheduler is gone") from None
        return
    for future in sorted(done, key=lambda f: flying[f]):
        try:
            result = future.result()
        except KilledWorker:
            result = Lost()
        except CancelledError as error:
            raise OSError("the scheduler dropped its tasks") from error
        yield flying.pop(future), result


def _connect(address: str) -> "Client":
    try:
        from distributed import Client
    except ImportError as error:
        raise WorkersError(
            f"--scheduler needs Dask ({error}): pip install 'crystorus[hull]'"
        ) from error
    try:
        client = Client(address, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, TimeoutError, ValueError, KeyError) as error:
        raise WorkersError(
            f"no Dask scheduler answers at {address}: start one with `dask scheduler`, or leave "
            "--scheduler out to use local processes"
        ) from error
    return client
