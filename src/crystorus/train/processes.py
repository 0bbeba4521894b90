"""The processes of one training: alone, started by torchrun or SLURM, or started here."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from crystorus.config import TrainingConfig
from crystorus.errors import TrainingError

_PATIENCE = timedelta(hours=2)
"""For the first process to prepare the data, for a validation, for a sample."""


@dataclass(frozen=True)
class Processes:
    """The place of this process among those of a training.

    Attributes:
        rank: Its number among all, from 0; the first one writes the files.
        world: How many there are.
        local_rank: Its number on its machine, which is that of its device.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    def device(self, accelerator: str) -> torch.device:
        """Return the device of this process.

        Raises:
            TrainingError: If there is no such device here.
        """
        kind = accelerator
        if kind == "auto":
            kind = "cuda" if torch.cuda.is_available() else "cpu"
            kind = "mps" if kind == "cpu" and torch.backends.mps.is_available() else kind
        there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
        if kind in there and not there[kind]():
            raise TrainingError(
                f'training.accelerator = "{kind}" is not there: set training.accelerator = "cpu" '
                'or "auto"'
            )
        if kind == "cuda" and self.local_rank >= torch.cuda.device_count():
            raise TrainingError(
                f"device {self.local_rank} of {torch.cuda.device_count()} is wanted: lower "
                "training.devices"
            )
        return torch.device(kind, self.local_rank) if kind == "cuda" else torch.device(kind)

    def sum(self, figures: Tensor) -> Tensor:
        """Add figures up over all processes."""
        if self.world > 1:
            dist.all_reduce(figures)
        return figures

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Give every process the mean of the gradients of all."""
        if self.world == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        parts = (self.sum(flat) / self.world).split([g.numel() for g in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def joined(
    settings: TrainingConfig, work: Callable[..., None], args: tuple[Any, ...]
) -> Iterator[Processes]:
    """Connect the processes of a training inside the block.

    Args:
        settings: How many devices and machines, and of which kind.
        work: What the other processes do if they are started here: `work(processes, *args)`, at
            the top of a module.
        args: Picklable.

    Raises:
        TrainingError: If the processes that were started are not as many as the settings say, or
            one of them fails.
    """
    world = settings.devices * settings.nodes
    if world == 1:
        yield Processes()
        return
    place = _launched(world)
    if place is None and settings.nodes > 1:
        raise TrainingError(
            f"training.nodes = {settings.nodes}: start the same command on every machine with "
            "torchrun, or with srun"
        )
    if place is not None and place.world != world:
        raise TrainingError(
            f"training.devices × training.nodes = {world}, but {place.world} processes were "
            "started: make the two equal"
        )
    threads = torch.get_num_threads()
    children = store = None
    if place is None:
        place = Processes(0, world, 0)
        store = dist.TCPStore("127.0.0.1", 0, world, is_master=True, wait_for_workers=False)
        children = mp.start_processes(  # type: ignore[attr-defined]
            _child,
            args=(store.port, world, settings.accelerator, max(threads // world, 1), work, args),
            nprocs=world - 1,
            join=False,
            start_method="spawn",
        )
        torch.set_num_threads(max(threads // world, 1))
    _connect(place, settings.accelerator, store)
    try:
        yield place
        while children is not None and not children.join():
            pass
    except RuntimeError as error:
        if isinstance(error, TrainingError) or children is None:
            raise
        raise TrainingError(f"one of {world} training processes failed: {error}") from error
    finally:
        for process in children.processes if children is not None else ():
            process.terminate()
        dist.destroy_process_group()
        torch.set_num_threads(threads)


def _launched(world: int) -> Processes | None:
    """Return the place that torchrun or SLURM gave to this process, if one of them started it."""
    here = os.environ
    if "RANK" in here and "WORLD_SIZE" in here:
        rank = int(here["RANK"])
        return Processes(rank, int(here["WORLD_SIZE"]), int(here.get("LOCAL_RANK", rank)))
    if "SLURM_STEP_ID" in here and int(here.get("SLURM_NTASKS", 1)) == world:
        here.setdefault("MASTER_ADDR", here.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"))
        here.setdefault("MASTER_PORT", str(15000 + int(here["SLURM_JOB_ID"]) % 10000))
        return Processes(int(here["SLURM_PROCID"]), world, int(here["SLURM_LOCALID"]))
    return None


def _connect(place: Processes, accelerator: str, store: dist.Store | None) -> None:
    device = place.device(accelerator)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=place.rank,
        world_size=place.world,
        timeout=_PATIENCE,
    )


def _child(
    index: int,
    port: int,
    world: int,
    accelerator: str,
    threads: int,
    work: Callable[..., None],
    args: tuple[Any, ...],
) -> None:
    """Be one of the other processes; the first one tells the user what goes wrong everywhere."""
    torch.set_num_threads(threads)
    place = Processes(index + 1, world, index + 1)
    try:
        store = dist.TCPStore("127.0.0.1", port, world, is_master=False)
        _connect(place, accelerator, store)
        work(place, *args)
    except (TrainingError, KeyboardInterrupt, SystemExit):
        return
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
