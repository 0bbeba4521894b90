"""The former place of `crystorus.data.batches`."""

from crystorus.data.batches import BatchLoader, BatchSampler, CrystalDataset, plan_batches

__all__ = ["BatchLoader", "BatchSampler", "CrystalDataset", "plan_batches"]
