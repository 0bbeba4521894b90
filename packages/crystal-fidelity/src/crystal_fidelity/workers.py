"""The same jobs in this process, in local processes, or on a Dask cluster.

Workers only compute: what they return is written by the one process that asked, so that nothing
is written twice. A local worker ends with the process that started it, however that one ends.
"""

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypeVar

from crystal_fidelity.errors import FidelityError

if TYPE_CHECKING:
    from distributed import Client

Job = TypeVar("Job")
Result = TypeVar("Result")
Numbered = tuple[int, Any]
"""A job with its place among the jobs."""

CHUNK = 128
"""Items that `map_in_order` sends to a worker at once."""
_AHEAD = 2
"""Jobs in flight per worker: one that runs and one that waits for it."""
_WINDOW = 4
"""Jobs per worker between the oldest unfinished and the newest, where results are ordered."""
_CONNECT_S = 10


class WorkersError(FidelityError, RuntimeError):
    """Worker processes that cannot be had, or died."""


@dataclass(frozen=True)
class Workers:
    """Where jobs run."""

    processes: int = 0
    """Local processes; 0 and 1 compute in the calling process."""
    scheduler: str = ""
    """Address of a Dask scheduler, which is then used instead."""
    threads: int = 1
    """Threads of each local process."""
    isolated: bool = False
    """Whether one worker is a process of its own too, so that its death does not end the caller."""
    patience: float = 300.0
    """Seconds to wait for a Dask cluster that has no workers."""


@dataclass(frozen=True)
class Lost:
    """Instead of a result: the job took its worker with it every time it was tried."""

    reason: str = "its worker process died again and again (killed, or out of memory)"


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def check(workers: Workers) -> None:
    """Make sure that the workers can be had, before there is work for them.

    Args:
        workers: Here or on a Dask cluster.

    Raises:
        WorkersError: If their number makes no sense, or the Dask scheduler does not answer.
    """
    _check_count(workers)
    if workers.scheduler:
        _connect(workers.scheduler).close(timeout=5)


def _check_count(workers: Workers) -> None:
    if workers.processes < 0:
        raise WorkersError(f"{workers.processes} workers: give a number of processes from 0 up")


def run(
    function: Callable[[Job], Result],
    jobs: Iterable[Job],
    workers: Workers,
    *,
    ordered: bool = False,
    initializer: Callable[..., object] | None = None,
    initargs: tuple[Any, ...] = (),
    retry: bool = True,
) -> Iterator[tuple[int, Result | Lost]]:
    """Yield (number of the job, its result) as they come; jobs are taken as they are needed.

    Args:
        function: At the top of a module, so that other processes find it.
        jobs: Picklable.
        workers: Where.
        ordered: Yield in the order of the jobs, with few of them finished ahead of their turn.
        initializer: Called once in every process before its first job; on Dask, its arguments
            travel with every job.
        initargs: Arguments of the initializer, picklable.
        retry: Whether the jobs in flight when a worker dies are tried again, each alone; the one
            that kills its worker again is then `Lost`. On Dask, `allowed-failures` decides.

    Raises:
        WorkersError: If the workers cannot be had, or one died and `retry` is false.
    """
    _check_count(workers)
    numbered = enumerate(jobs)
    if not workers.scheduler and workers.processes < (1 if workers.isolated else 2):
        if initializer is not None:
            initializer(*initargs)
        for number, job in numbered:
            yield number, function(job)
        return
    begin = pickle.dumps((initializer, initargs)) if initializer else b""
    if workers.scheduler:
        results = _on_dask(function, numbered, workers, ordered, begin)
    else:
        results = _in_processes(function, numbered, workers, ordered, begin, retry)
    yield from _in_order(results) if ordered else results


def map_in_order(
    function: Callable[[Job], Result], items: Iterable[Job], workers: int = 1
) -> Iterator[Result]:
    """Map in `workers` processes, in order, in chunks; nothing is spawned for one chunk.

    Args:
        function: Of a module, so that it can be sent.
        items: What it is called with.
        workers: Processes.

    Raises:
        WorkersError: If a worker dies on the same chunk again.
    """
    if workers < 1:
        raise WorkersError(f"workers = {workers}; give 1 or more")
    source = iter(items)
    first = list(islice(source, CHUNK))
    if workers == 1 or len(first) < CHUNK:
        yield from map(function, chain(first, source))
        return
    chunks = chain([first], iter(lambda: list(islice(source, CHUNK)), []))
    for _, results in run(partial(_map, function), chunks, Workers(workers), ordered=True):
        if isinstance(results, Lost):
            raise WorkersError(
                f"one of {workers} worker processes died, perhaps for want of memory: use 1; in a "
                'script, call from under `if __name__ == "__main__":`'
            )
        yield from results


def _map(function: Callable[[Job], Result], chunk: list[Job]) -> list[Result]:
    return [function(item) for item in chunk]


def _in_order(results: Iterable[tuple[int, Result]]) -> Iterator[tuple[int, Result]]:
    early: dict[int, Result] = {}
    turn = 0
    for number, result in results:
        early[number] = result
        while turn in early:
            yield turn, early.pop(turn)
            turn += 1


# Local processes


def _in_processes(
    function: Callable[[Job], Result],
    jobs: Iterator[Numbered],
    workers: Workers,
    ordered: bool,
    begin: bytes,
    retry: bool,
) -> Iterator[tuple[int, Result | Lost]]:
    window = _WINDOW * workers.processes if ordered else sys.maxsize
    while suspects := (yield from _pool(function, jobs, workers, window, begin)):
        if not retry:
            raise WorkersError(
                "a worker process died (killed, or out of memory): take fewer workers and run the "
                "same command again; finished work is kept"
            )
        # One at a time, so that a bad job cannot condemn its neighbours.
        alone, queue = Workers(1, threads=workers.threads), iter(suspects)
        while bad := (yield from _pool(function, queue, alone, 1, begin)):
            yield bad[0][0], Lost()


def _pool(
    function: Callable[[Job], Result],
    jobs: Iterator[Numbered],
    workers: Workers,
    window: int,
    begin: bytes,
) -> Generator[tuple[int, Result], None, list[Numbered]]:
    """Work through the jobs; return those in flight if a worker died, none at the end.

    Args:
        function: What is done.
        jobs: Taken from when a worker is free.
        workers: How many.
        window: Most jobs between the oldest in flight and the newest.
        begin: The pickled initializer.
    """
    n, newest = workers.processes, 0
    held: dict[int, Any] = {}
    flying: dict[Future[Result], int] = {}
    before = set(multiprocessing.active_children())
    # The kernel's signal comes when the *thread* that started a worker ends.
    by_signal = threading.current_thread() is threading.main_thread()
    pool = ProcessPoolExecutor(
        n,
        multiprocessing.get_context("spawn"),
        initializer=_begin_worker,
        initargs=(os.getpid(), by_signal, workers.threads, begin),
    )
    try:
        while True:
            while len(held) < min(_AHEAD * n, window) and (
                not held or newest - next(iter(held)) < window
            ):
                job = next(jobs, None)
                if job is None:
                    break
                newest = job[0]
                held[newest] = job[1]
                flying[pool.submit(_call, function, job[1])] = newest
            if not held:
                return []
            done, _ = wait(flying, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=flying.__getitem__):
                result = future.result()
                number = flying.pop(future)
                del held[number]
                yield number, result
    except BrokenProcessPool:
        for future, number in list(flying.items()):
            if future.done() and future.exception() is None:
                del held[number]
                yield number, future.result()
        return list(held.items())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()


_INITIALISED: set[bytes] = set()
_INITIALISING = threading.Lock()
_BEGIN = b""
"""The pickled initializer of this worker process."""


def _begin_worker(parent: int, by_signal: bool, threads: int, begin: bytes) -> None:
    """Tie a worker to its parent, and limit its threads before anything heavy is imported."""
    global _BEGIN  # noqa: PLW0603 - one per process, read by its jobs
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    if by_signal and sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    _BEGIN = begin


def _die_with(parent: int) -> None:
    """End this process when its parent is gone; needed where the kernel sends no signal."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _call(function: Callable[[Job], Result], job: Job, begin: bytes | None = None) -> Result:
    """Do one job, after the initializer if this process has not called it yet."""
    begin = _BEGIN if begin is None else begin
    if begin and begin not in _INITIALISED:
        with _INITIALISING:
            if begin not in _INITIALISED:
                initializer, initargs = pickle.loads(begin)  # noqa: S301 - made by `run`
                initializer(*initargs)
                _INITIALISED.add(begin)
    return function(job)


# Dask


def _on_dask(
    function: Callable[[Job], Result],
    jobs: Iterator[Numbered],
    workers: Workers,
    ordered: bool,
    begin: bytes,
) -> Iterator[tuple[int, Result | Lost]]:
    client = _connect(workers.scheduler)
    flying: dict[Any, int] = {}
    left, newest = True, -1
    idle_since = time.monotonic()
    try:
        while left or flying:
            threads = sum(client.nthreads().values())
            most = max(_AHEAD * threads, 1)
            window = 2 * most if ordered else sys.maxsize
            while len(flying) < most and newest - min(flying.values(), default=newest) < window:
                job = next(jobs, None)
                if job is None:
                    left = False
                    break
                newest = job[0]
                flying[client.submit(_call, function, job[1], begin, pure=False)] = newest
            if flying:
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
    """Yield what is finished after at most two seconds."""
    from distributed import wait as wait_for
    from distributed.scheduler import KilledWorker

    try:
        with client.as_current():
            done = wait_for(list(flying), timeout=2, return_when="FIRST_COMPLETED").done
    except TimeoutError:
        if client.status != "running":
            raise OSError("the scheduler is gone") from None
        return
    for future in sorted(done, key=flying.__getitem__):
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
            f"a scheduler needs Dask ({error}): pip install 'dask[distributed]'"
        ) from error
    try:
        return Client(address, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, TimeoutError, ValueError, KeyError) as error:
        raise WorkersError(
            f"no Dask scheduler answers at {address}: start one with `dask scheduler`, or leave "
            "--scheduler out to use local processes"
        ) from error
