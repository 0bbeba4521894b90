"""Sampling in batches that fit: when memory runs out, the batch is halved and work goes on."""

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import torch

from crystorus.sample.errors import GenerationError
from crystorus.sample.plan import Request, padded_atoms

Result = TypeVar("Result")

_SIGNS = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception means that memory ran out, on whatever device."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(s in str(error).lower() for s in _SIGNS)


class FittingBatches(Generic[Result]):
    """Runs batches, halving those that do not fit and remembering what did not.

    Attributes:
        limit: Padded atoms that the next batches may have; None until memory runs out once.
    """

    def __init__(self, make: Callable[[Sequence[Request]], Result]) -> None:
        self._make = make
        self.limit: int | None = None

    def run(self, batch: Sequence[Request]) -> Iterator[tuple[tuple[Request, ...], Result]]:
        """Yield (requests, what was made) until the whole batch is made, in its order.

        Raises:
            GenerationError: If not even one crystal fits in memory.
        """
        waiting = [tuple(batch)]
        while waiting:
            part = waiting.pop(0)
            if self.limit is not None and len(part) > 1 and padded_atoms(part) > self.limit:
                waiting = [*_halves(part), *waiting]
                continue
            made = self._attempt(part)
            if made is not None:
                yield part, made
            elif len(part) == 1:
                raise GenerationError(
                    f"memory ran out on a single crystal of {part[0].n_atoms} atoms: free "
                    "memory, or choose another --device"
                )
            else:
                self.limit = padded_atoms(part) // 2
                waiting = [*_halves(part), *waiting]

    def _attempt(self, part: Sequence[Request]) -> Result | None:
        """Return what was made, or None if memory ran out; the failed tensors are gone by then."""
        try:
            return self._make(part)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None


def _halves(part: tuple[Request, ...]) -> tuple[tuple[Request, ...], tuple[Request, ...]]:
    middle = (len(part) + 1) // 2
    return part[:middle], part[middle:]
