"""A model that needs no training: random crystals that depend on their seeds alone.

As a program, it is `crystorus` with this model in the place of the shipped checkpoint.
"""

import os
import sys
import time
from types import SimpleNamespace

import torch

from crystorus.config import SamplerConfig
from crystorus.diffusion.cell_prior import CellStatistics
from crystorus.geometry.crystals import Crystals


class FakeModel:
    """Random cells and positions; every way of failing can be asked for.

    Args:
        memory_atoms: Padded atoms beyond which memory "runs out".
        step_s: Seconds per step.
        failure: Raised once `failing_batch` batches have been made.
    """

    def __init__(self, *, memory_atoms=10**9, step_s=0.0, failure=None, failing_batch=0):
        self.config = SimpleNamespace(sampling=SamplerConfig(steps=3), preset="default")
        self.diffusion = SimpleNamespace(steps=1000)
        self.statistics = CellStatistics.neutral()
        self.trained_elements = frozenset({3, 8, 26, 22, 38})
        self.max_atoms = 20
        self.digest = "0" * 64
        self.scored_by, self.scorer_digest = "denoising_error", ""
        self.memory_atoms, self.step_s = memory_atoms, step_s
        self.failure, self.failing_batch = failure, failing_batch
        self.batches = []

    def sample(self, atomic_numbers, n_atoms, *, seeds, sampler, start=None, on_step=None):
        self._maybe_fail(n_atoms)
        crystals = Crystals.concat(
            [
                self._crystal(numbers, seed)
                for numbers, seed in zip(atomic_numbers.split(n_atoms.tolist()), seeds, strict=True)
            ]
        )
        if start is not None and not start.noised:  # it finds everything at rest
            crystals = start.crystals
        for step in range(1, sampler.steps + 1):
            time.sleep(self.step_s)
            if on_step is not None:
                on_step(step, sampler.steps, crystals)
        self.batches.append(len(n_atoms))
        return crystals

    def scorer_error(self, crystals, *, seeds, precision="fp32"):
        """Prefer long first lattice vectors, or whatever `judge` says."""
        return self.judge(crystals)

    def judge(self, crystals):
        return -torch.linalg.norm(crystals.lattice[:, :, 0], dim=1)

    def _maybe_fail(self, n_atoms):
        if len(n_atoms) * int(n_atoms.max()) > self.memory_atoms:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        if self.failure is not None and len(self.batches) == self.failing_batch:
            raise self.failure

    def _crystal(self, numbers, seed):
        noise = torch.Generator().manual_seed(seed)
        n = len(numbers)
        strain = 0.1 * torch.randn(3, 3, generator=noise)
        lattice = (12.0 * n) ** (1 / 3) * torch.linalg.matrix_exp(strain + strain.T)
        frac = torch.rand(n, 3, generator=noise)
        return Crystals(lattice[None], frac, numbers, torch.tensor([n]))


if __name__ == "__main__":
    from crystorus import cli
    from crystorus.sample import command

    slow = float(os.environ.get("FAKE_STEP_S", "0"))
    command.load_checkpoint = lambda path, device="cpu": FakeModel(step_s=slow)
    sys.argv[0] = "crystorus"
    cli.main()
