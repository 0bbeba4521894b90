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
"""For the first process to prepare the data, and to sample."""


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

        Args:
            accelerator: cpu, cuda, mps or auto.

        Raises:
            TrainingError: If it is not there.
        """
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        there = {"cuda": count > self.local_rank, "mps": torch.backends.mps.is_available()}
        if accelerator == "auto":
            accelerator = next((kind for kind, found in there.items() if found), "cpu")
        if not there.get(accelerator, True):
            raise TrainingError(
                f'training.accelerator = "{accelerator}" is not there, or has fewer than '
                f'{self.local_rank + 1} devices: set training.accelerator = "cpu" or "auto", or '
                "lower training.devices"
            )
        return torch.device(f"cuda:{self.local_rank}" if accelerator == "cuda" else accelerator)

    def sum(self, figures: Tensor) -> Tensor:
        """Add figures up over all processes.

        Args:
            figures: Of this process, of any shape.
        """
        if self.world > 1:
            dist.all_reduce(figures)
        return figures

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Give every process the mean of the gradients of all.

        Args:
            parameters: With gradients.
        """
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.world > 1:
            # One message for all of them: there are many, and most are small.
            flat = self.sum(torch.cat([g.flatten() for g in gradients])) / self.world
            for gradient, part in zip(
                gradients, flat.split([g.numel() for g in gradients]), strict=True
            ):
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
    world, here = settings.devices * settings.nodes, os.environ
    if world == 1:
        yield Processes()
        return
    if "SLURM_STEP_ID" in here and int(here.get("SLURM_NTASKS", 1)) == world:
        here.setdefault("MASTER_ADDR", here.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"))
        here.setdefault("MASTER_PORT", str(15000 + int(here["SLURM_JOB_ID"]) % 10000))
        names = {"RANK": "PROCID", "WORLD_SIZE": "NTASKS", "LOCAL_RANK": "LOCALID"}
        for name, slurm in names.items():
            here.setdefault(name, here[f"SLURM_{slurm}"])
    started = int(here["WORLD_SIZE"]) if "RANK" in here else None
    if started not in (None, world) or (started is None and settings.nodes > 1):
        raise TrainingError(
            f"training.devices × training.nodes = {world}, but {started or 1} processes were "
            "started: start as many with torchrun or srun, the same command on every machine"
        )
    children = store = None
    place = Processes(0, world, 0)
    threads = torch.get_num_threads()
    if started is None:
        store = dist.TCPStore("127.0.0.1", 0, world, is_master=True, wait_for_workers=False)
        torch.set_num_threads(max(threads // world, 1))
        children = mp.start_processes(
            _child,
            args=(store.port, world, settings.accelerator, max(threads // world, 1), work, args),
            nprocs=world - 1,
            join=False,
            start_method="spawn",
        )
    else:
        place = Processes(int(here["RANK"]), world, int(here.get("LOCAL_RANK", here["RANK"])))
    try:
        _connect(place, settings.accelerator, store)
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
        if dist.is_initialized():
            dist.destroy_process_group()
        torch.set_num_threads(threads)


def _connect(place: Processes, accelerator: str, store: dist.Store | None) -> None:
    device = place.device(accelerator)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend, store=store, rank=place.rank, world_size=place.world, timeout=_PATIENCE
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
    """Be one of the other processes; what goes wrong everywhere is told by the first one."""
    torch.set_num_threads(threads)
    place = Processes(index + 1, world, index + 1)
    try:
        _connect(place, accelerator, dist.TCPStore("127.0.0.1", port, world, is_master=False))
        work(place, *args)
    except (TrainingError, KeyboardInterrupt, SystemExit):
        return
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
