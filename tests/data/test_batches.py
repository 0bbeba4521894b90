"""Batches: who is in them, how large they are, and that an epoch can be taken up anywhere."""

import numpy as np
import pytest
from prototypes import batch as all_crystals
from torch.utils.data import DataLoader

from crystorus.data.batches import BatchSampler, CrystalDataset, plan_batches
from crystorus.data.store import build_store
from crystorus.data.writers import extxyz_text

SIZES = np.random.default_rng(0).integers(1, 21, 700)


def sampler(**changes):
    settings = {"batch_size": 32, "batch_pairs": 3000, "seed": 5} | changes
    return BatchSampler(SIZES, **settings)


@pytest.mark.parametrize(("size", "pairs"), [(32, 0), (0, 3000), (32, 3000)])
def test_every_crystal_is_in_one_batch(size, pairs):
    plan = plan_batches(SIZES, np.random.default_rng(1), batch_size=size, batch_pairs=pairs)
    assert sorted(np.concatenate(plan)) == list(range(len(SIZES)))


def test_a_budget_of_pairs_means_equal_sizes_within_it():
    plan = plan_batches(SIZES, np.random.default_rng(1), batch_size=96, batch_pairs=3000)
    for batch in plan:
        n = SIZES[batch]
        assert len(set(n)) == 1
        assert len(batch) <= 96
        assert len(batch) <= 8 or len(batch) * (n[0] ** 2 + 4 * n[0]) <= 3000
    # Not a way to make all batches small: the budget is used.
    assert max(len(b) for b in plan if SIZES[b][0] == 15) == 3000 // (225 + 60)


def test_without_a_budget_sizes_are_mixed():
    plan = plan_batches(SIZES, np.random.default_rng(1), batch_size=32, batch_pairs=0)
    assert {len(b) for b in plan[:-1]} == {32}
    assert all(len(set(SIZES[b])) > 1 for b in plan[:-1])


def test_order_depends_on_seed_and_epoch_alone():
    first = list(sampler())
    assert list(sampler()) == first
    other_seed = list(sampler(seed=6))
    later = sampler()
    later.set_epoch(1)
    assert other_seed != first
    assert list(later) != first
    assert len(later) == len(first)


def test_a_fixed_order_is_that_of_the_first_epoch():
    fixed = sampler(fixed=True)
    fixed.set_epoch(1)
    assert list(fixed) == list(sampler())


@pytest.mark.parametrize("start", [0, 1, 17])
def test_an_epoch_goes_on_where_it_was_left_and_the_next_is_whole(start):
    whole = list(sampler())
    rest = sampler()
    rest.start = start
    assert list(rest) == whole[start:]
    assert list(rest) == whole


def test_processes_share_an_epoch_without_overlap():
    parts = [list(sampler(rank=r, world=3)) for r in range(3)]
    assert len({len(p) for p in parts}) == 1
    seen = [i for part in parts for batch in part for i in batch]
    assert len(seen) == len(set(seen))
    whole = {tuple(b) for b in sampler()}
    assert {tuple(b) for part in parts for b in part} <= whole
    assert len(whole) - sum(map(len, parts)) < 3


@pytest.mark.parametrize(("size", "pairs"), [(0, 0), (-1, 0), (0, -5)])
def test_impossible_limits_are_named(size, pairs):
    with pytest.raises(ValueError, match=f"batch_size = {size} and batch_pairs = {pairs}"):
        sampler(batch_size=size, batch_pairs=pairs)


def test_more_processes_than_batches_are_refused():
    with pytest.raises(ValueError, match="use fewer devices"):
        BatchSampler(SIZES[:10], batch_size=10, batch_pairs=0, seed=0, world=2)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    (folder / "all.extxyz").write_text(extxyz_text(all_crystals()))
    store = build_store(folder / "all.extxyz", folder / "all.store")
    return CrystalDataset(store, np.flatnonzero(store.n_atoms <= 7))


def test_a_loader_hands_out_the_crystals_of_the_plan(dataset):
    batches = BatchSampler(dataset.n_atoms, batch_size=4, batch_pairs=0, seed=0)
    loaded = list(DataLoader(dataset, sampler=batches, batch_size=None))
    for batch, indices in zip(loaded, batches, strict=True):
        expected = dataset.store.select(dataset.indices[indices])
        assert batch.lattice.equal(expected.lattice)
        assert batch.atomic_numbers.equal(expected.atomic_numbers)
        assert int(batch.n_atoms.max()) <= 7


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_loader_goes_on_in_the_middle_of_an_epoch(dataset, workers):
    def loader(start):
        batches = BatchSampler(dataset.n_atoms, batch_size=3, batch_pairs=0, seed=0)
        batches.start = start
        return DataLoader(dataset, sampler=batches, batch_size=None, num_workers=workers)

    whole, rest = ([b.lattice for b in loader(start)] for start in (0, 2))
    assert len(rest) == len(whole) - 2
    assert all(a.equal(b) for a, b in zip(rest, whole[2:], strict=True))
