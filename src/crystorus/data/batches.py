"""Which crystals share a batch: by number of crystals, or by a budget of atom pairs.

The order of an epoch depends on (seed, epoch) alone, so that a run can stop in the middle of an
epoch and go on from there.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Dataset, Sampler

from crystorus.data.store import CrystalStore
from crystorus.geometry import Crystals

_SMALLEST = 8


def plan_batches(
    n_atoms: np.ndarray, random: np.random.Generator, *, batch_size: int, batch_pairs: int
) -> list[np.ndarray]:
    """Divide crystals into batches, in random order.

    With a budget of pairs, all crystals of a batch have the same n, and count n² + 4n each, the
    last term for what costs time per atom; a batch has at least 8 of them, if there are so many.

    Args:
        n_atoms: Number of atoms of each crystal, [crystals].
        random: Source of the order.
        batch_size: Crystals per batch, at most; 0 means no limit.
        batch_pairs: Pairs per batch; 0 means batches of `batch_size` crystals of any size.

    Returns:
        Indices into `n_atoms`; every crystal is in exactly one batch.

    Raises:
        ValueError: If both limits are zero, or one is negative.
    """
    if min(batch_size, batch_pairs) < 0 or batch_size == batch_pairs == 0:
        raise ValueError(
            f"batch_size = {batch_size} and batch_pairs = {batch_pairs}: one must be positive, "
            "none negative; set batch_size = 128"
        )
    if not batch_pairs:
        return _cut(random.permutation(len(n_atoms)), batch_size)
    batches = []
    for n in np.unique(n_atoms):
        size = max(_SMALLEST, batch_pairs // int(n * n + 4 * n))
        size = min(size, batch_size) if batch_size else size
        batches += _cut(random.permutation(np.flatnonzero(n_atoms == n)), size)
    return [batches[i] for i in random.permutation(len(batches))]


def _cut(order: np.ndarray, size: int) -> list[np.ndarray]:
    return [order[i : i + size] for i in range(0, len(order), size)]


class BatchSampler(Sampler[list[int]]):
    """The batches of one process, epoch by epoch.

    The batches of an epoch are dealt out to the processes in turn; the few that do not go round
    are left out of that epoch, so that every process takes the same number of steps.

    Args:
        n_atoms: Number of atoms of each crystal, [crystals].
        batch_size: See `plan_batches`.
        batch_pairs: See `plan_batches`.
        seed: Seed of the order.
        rank: Which of the processes this is.
        world: Number of processes.
        fixed: Keep the order of the first epoch in all of them.

    Raises:
        ValueError: If there are fewer batches than processes, or the limits are impossible.
    """

    def __init__(
        self,
        n_atoms: np.ndarray,
        *,
        batch_size: int,
        batch_pairs: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        fixed: bool = False,
    ) -> None:
        self.n_atoms = np.asarray(n_atoms)
        self.batch_size, self.batch_pairs, self.seed = batch_size, batch_pairs, seed
        self.rank, self.world, self.fixed = rank, world, fixed
        self.epoch = 0
        self.start = 0
        total = len(self._plan())
        if total < world:
            raise ValueError(
                f"{total} batches for {world} processes: use fewer devices or smaller batches"
            )
        self._length = total // world

    def _plan(self) -> list[np.ndarray]:
        random = np.random.default_rng([self.seed, self.epoch])
        return plan_batches(
            self.n_atoms, random, batch_size=self.batch_size, batch_pairs=self.batch_pairs
        )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next pass has.

        Args:
            epoch: From 0.
        """
        self.epoch = 0 if self.fixed else epoch

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch, whatever `start` is."""
        return self._length

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches from `start` on; the pass after that begins at 0 again."""
        start, self.start = self.start, 0
        mine = self._plan()[self.rank :: self.world][: self._length]
        for batch in mine[start:]:
            yield batch.tolist()


class CrystalDataset(Dataset[Crystals]):
    """Batches of a store, some crystals of which may be left out.

    Args:
        store: The crystals.
        indices: Which of them, by number.
    """

    def __init__(self, store: CrystalStore, indices: np.ndarray) -> None:
        self.store, self.indices = store, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, chosen: Sequence[int]) -> Crystals:
        """Return the crystals `chosen` as one batch."""
        return self.store.select(self.indices[np.asarray(chosen)])

    @property
    def n_atoms(self) -> np.ndarray:
        """Number of atoms of each crystal."""
        return self.store.n_atoms[self.indices]
