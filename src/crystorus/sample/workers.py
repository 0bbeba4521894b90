"""The batches of a run in several processes, each with its share of the cores.

A worker makes and describes whole batches; what it gives back is written by the one process that
asked, so that files grow as they do without workers.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from crystorus.checkpoint import load_checkpoint
from crystorus.crystal_model import CrystalModel
from crystorus.sample.errors import GenerationError

Task = TypeVar("Task")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Crew:
    """Who makes the batches."""

    processes: int
    """Processes; 1 is the one that asks."""
    checkpoint: Path
    """What each of them loads."""


def share_out(
    function: Callable[[CrystalModel, Task], Made], tasks: Sequence[Task], crew: Crew
) -> Iterator[Made]:
    """Yield what a function makes of every task with a model of the worker's own, as it comes.

    Args:
        function: At the top of a module, so that other processes find it.
        tasks: Picklable.
        crew: Who works.

    Raises:
        GenerationError: If a worker dies.
    """
    count = min(crew.processes, len(tasks))
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        count,
        multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(crew.checkpoint, max(_cores() // crew.processes, 1)),
    )
    waiting, flying = iter(tasks), set[Future[Made]]()
    try:
        for task in waiting:
            flying.add(pool.submit(_carry_out, function, task))
            if len(flying) > count:
                yield from _finished(flying)
        while flying:
            yield from _finished(flying)
    except BrokenProcessPool as error:
        raise GenerationError(
            "a worker process died (killed, or out of memory): take fewer --workers, the same "
            "command goes on from the finished crystals"
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()


def _finished(flying: set[Future[Made]]) -> Iterator[Made]:
    for future in wait(flying, return_when=FIRST_COMPLETED).done:
        flying.remove(future)
        yield future.result()


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


_MODELS: list[CrystalModel] = []
"""The model of this worker, loaded once."""


def _begin(checkpoint: Path, threads: int) -> None:
    """Load the model; a worker does not outlive the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()
    torch.set_num_threads(threads)
    _MODELS[:] = [load_checkpoint(checkpoint)]


def _carry_out(function: Callable[[CrystalModel, Task], Made], task: Task) -> Made:
    return function(_MODELS[0], task)


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
