"""A model that needs no training: random crystals that depend on their seeds alone.

As a program, it is `crystorus` with this model in the place of the shipped checkpoint.
"""

import os
import sys
import time

import torch

from crystorus.config import Config, SamplerConfig
from crystorus.crystal_model import CrystalModel, build_diffusion
from crystorus.diffusion.cell_prior import CellStatistics
from crystorus.geometry.crystals import Crystals


class FakeModel(CrystalModel):
    """Random cells and positions; every way of failing can be asked for.

    Args:
        memory_atoms: Padded atoms beyond which memory "runs out".
        step_s: Seconds per step.
        failure: Raised once `failing_batch` batches have been made.
    """

    def __init__(self, *, memory_atoms=10**9, step_s=0.0, failure=None, failing_batch=0):
        config = Config(sampling=SamplerConfig(steps=3))
        statistics = CellStatistics.neutral()
        super().__init__(
            config,
            torch.nn.Linear(1, 1),
            build_diffusion(config, statistics),
            statistics,
            trained_elements=frozenset({3, 8, 26, 22, 38}),
            digest="0" * 64,
        )
        self.memory_atoms, self.step_s = memory_atoms, step_s
        self.failure, self.failing_batch = failure, failing_batch
        self.batches = []

    def sample(
        self, atomic_numbers, n_atoms, *, seeds, sampler, start=None, groups=None, on_step=None
    ):
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

    def scorer_error(self, crystals, *, seeds, weights=None, precision="fp32"):
        """Prefer long first lattice vectors, or whatever `score` says."""
        return self.score(crystals)

    def score(self, crystals):
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
    from crystorus import checkpoint, cli

    slow = float(os.environ.get("FAKE_STEP_S", "0"))
    checkpoint.load_checkpoint = lambda path, device="cpu": FakeModel(step_s=slow)
    sys.argv[0] = "crystorus"
    cli.main()
