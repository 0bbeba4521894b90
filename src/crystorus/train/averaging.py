"""The averaged weights: the ones that validate, sample and are exported."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class Averaging(WeightAveraging):
    """Exponential moving average of the weights, of shorter memory in the first steps.

    The decay of step k is min(decay, (1 + k) / (10 + k)), so that the initial weights are
    forgotten at once. The first update takes the weights as they are.

    Args:
        decay: Decay per step once there are many.

    Source: Table 1, EMA.
    """

    def __init__(self, decay: float) -> None:
        def average(mean: Sequence[Tensor], present: Sequence[Tensor], count: Tensor | int) -> None:
            keep = min(decay, (1 + int(count)) / (10 + int(count)))
            torch._foreach_lerp_(list(mean), list(present), 1 - keep)

        super().__init__(use_buffers=False, multi_avg_fn=torch.no_grad()(average))

    @contextmanager
    def applied(self, module: LightningModule) -> Iterator[None]:
        """Give the module the averaged weights inside the block."""
        self._swap_models(module)
        try:
            yield
        finally:
            self._swap_models(module)
