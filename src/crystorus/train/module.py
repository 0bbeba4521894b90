"""The training step of Algorithm 1 as Lightning sees it."""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from crystorus.config import TrainingConfig
from crystorus.crystal_model import CrystalModel, products_in
from crystorus.diffusion.algorithms import Losses, training_losses
from crystorus.geometry import Crystals
from crystorus.train.errors import TrainingError
from crystorus.train.optimizers import build_optimizer
from crystorus.train.pieces import loss_by_pieces
from crystorus.train.schedule import draw_steps, rate_factor, step_generator

FIFTHS = 5
FAILED = "failed-batch.safetensors"
_GOLDEN = 0.618034
_VALIDATION_SEED = 7


@dataclass
class Tally:
    """What a run has used up so far; part of the saved state."""

    seconds: float = 0.0
    """Wall time of training steps, without validation."""
    wall_seconds: float = 0.0
    """Wall time of everything."""
    cpu_seconds: float = 0.0
    """CPU time of everything, of this process."""
    step_cpu_seconds: float = 0.0
    """CPU time of training steps, without validation, of all processes together."""
    crystals: int = 0
    """Crystals seen by all processes together."""

    def share_of_time(self, settings: TrainingConfig) -> float:
        """Return how much of the wall time or of the CPU time a run may take is spent."""
        limits = (
            (self.seconds, settings.minutes),
            (self.step_cpu_seconds, settings.cpu_minutes),
        )
        return max((spent / (60 * limit) for spent, limit in limits if limit > 0), default=0.0)


@dataclass
class Window:
    """Sums over the steps since the last line of the log."""

    cell: float = 0.0
    torus: float = 0.0
    gradient: float = 0.0
    crystals: int = 0
    steps: int = 0


class TrainingModule(pl.LightningModule):
    """f_θ with its losses, its optimizer and its schedule.

    Args:
        model: The system to train.
        folder: Where a batch that gives no finite loss is left.
    """

    def __init__(self, model: CrystalModel, folder: Path) -> None:
        super().__init__()
        self.denoiser = model.denoiser
        self.model = dataclasses.replace(model, denoiser=torch.nn.Identity())
        self.folder = folder
        self.settings: TrainingConfig = model.config.training
        self.limit = self.settings.loss_limit or float("inf")
        self.tally, self.window = Tally(), Window()
        self.validated: list[Tensor] = []
        self._present: tuple[Crystals, Tensor, Losses] | None = None
        self._cpu_start = time.process_time()
        self._wall_start = time.monotonic()

    def configure_optimizers(self) -> Optimizer:
        """Return the optimizer of the configuration."""
        return build_optimizer(self.denoiser, self.settings)

    def transfer_batch_to_device(
        self, batch: Crystals, device: torch.device, dataloader_idx: int
    ) -> Crystals:
        """Move a batch."""
        return batch.to(device)

    def on_fit_start(self) -> None:
        """Start the clocks."""
        self._cpu_start = time.process_time() - self.tally.cpu_seconds
        self._wall_start = time.monotonic() - self.tally.wall_seconds

    def progress(self) -> float:
        """Return the share of the run that is over: of its steps, minutes or CPU minutes."""
        total = self.settings.epochs * self.trainer.num_training_batches
        done = self.trainer.global_step / total
        return max(done, self.tally.share_of_time(self.settings))

    def on_train_batch_start(self, batch: Crystals, batch_idx: int) -> None:
        """Set the learning rate of this step."""
        factor = rate_factor(
            self.trainer.global_step,
            self.progress(),
            warmup_steps=self.settings.warmup_steps,
            decay=self.settings.decay,
        )
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.settings.learning_rate * factor

    def training_step(self, batch: Crystals, batch_idx: int) -> Tensor:
        """Evaluate the loss of one batch at random noise levels.

        Source: Algorithm 1.
        """
        generator = step_generator(self.settings.seed, self.trainer.global_step, self.global_rank)
        t = draw_steps(
            len(batch),
            self.model.diffusion.steps,
            high_noise_fraction=self.settings.high_noise_fraction,
            generator=generator,
        ).to(self.device)
        with products_in(self.denoiser, self.settings.precision):
            total, losses = loss_by_pieces(
                self.denoiser,
                self.model.diffusion,
                batch,
                t,
                generator,
                objective=self._objective,
                piece_atoms=self.settings.cpu_atoms if self.device.type == "cpu" else 0,
            )
        self._present = batch, t, losses
        return total

    def _objective(self, losses: Losses) -> Tensor:
        """Return the sum over crystals of what is minimised."""
        cell, torus = losses.cell.clamp(max=self.limit), losses.torus.clamp(max=self.limit)
        return torus.sum() + self.settings.cell_weight * cell.sum()

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Scale gradients down to `clip_norm`, and stop before anything infinite is used.

        Raises:
            TrainingError: If a loss or a gradient is not finite; the batch is saved.
        """
        norm = torch.nn.utils.clip_grad_norm_(
            self.denoiser.parameters(), self.settings.clip_norm or float("inf")
        )
        assert self._present is not None
        batch, t, losses = self._present
        cell, torus = losses.cell.detach(), losses.torus.detach()
        sums = torch.stack([cell.sum(), torus.sum(), norm.detach()]).tolist()
        if not all(abs(value) < float("inf") for value in sums):
            raise TrainingError(self._leave(batch, t, cell, torus, sums[2]))
        shown = torch.stack([cell, torus]).clamp(max=self.limit).sum(1).tolist()
        self.window.cell += shown[0]
        self.window.torus += shown[1]
        self.window.gradient += sums[2]
        self.window.crystals += len(batch)
        self.window.steps += 1
        self._present = None

    def _leave(self, batch: Crystals, t: Tensor, cell: Tensor, torus: Tensor, norm: float) -> str:
        """Save the batch for inspection; returns what happened."""
        path = self.folder / FAILED
        tensors = {
            "lattice": batch.lattice,
            "frac_coords": batch.frac_coords,
            "atomic_numbers": batch.atomic_numbers,
            "n_atoms": batch.n_atoms,
            "t": t,
            "cell_loss": cell,
            "torus_loss": torus,
        }
        step = self.trainer.global_step
        about = {"step": str(step), "seed": str(self.settings.seed), "rank": str(self.global_rank)}
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path, about)
        finite = bool(torch.isfinite(cell).all() and torch.isfinite(torus).all())
        what = f"gradient norm {norm}" if finite else "a loss that is not finite"
        return (
            f"step {step} has {what}: the batch is in {path}, the weights before it in "
            f"{self.folder / 'last'}; lower training.learning_rate and start another run with "
            f"training.start_from={self.folder / 'last'}, or leave the crystal out"
        )

    def validation_step(self, batch: Crystals, batch_idx: int) -> None:
        """Evaluate both losses at noise levels and noise that are the same every time."""
        index = batch_idx * self.trainer.world_size + self.global_rank
        generator = step_generator(_VALIDATION_SEED, index, 0)
        steps = self.model.diffusion.steps
        u = (torch.arange(len(batch)) * _GOLDEN + torch.rand(1, generator=generator)) % 1
        t = (u * steps).long().clamp(0, steps - 1) + 1
        losses = training_losses(
            self.denoiser, self.model.diffusion, batch, t.to(self.device), generator
        )
        fifth = ((t - 1) * FIFTHS // steps).to(self.device)
        rows = torch.stack([losses.cell, losses.torus, torch.ones_like(losses.cell)], -1)
        sums = rows.new_zeros(FIFTHS, 3, dtype=torch.float64)
        self.validated.append(sums.index_add_(0, fifth, rows.clamp(max=self.limit).double()))

    def measure(self, seconds: float, cpu_seconds: float) -> None:
        """Add the wall time and the CPU time of a step to the tally."""
        self.tally.seconds += seconds
        self.tally.step_cpu_seconds += cpu_seconds
        self.tally.wall_seconds = time.monotonic() - self._wall_start
        self.tally.cpu_seconds = time.process_time() - self._cpu_start

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the tally to the saved state."""
        checkpoint["tally"] = dataclasses.asdict(self.tally)
        checkpoint["window"] = dataclasses.asdict(self.window)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from a saved tally."""
        self.tally = Tally(**checkpoint["tally"])
        self.window = Window(**checkpoint["window"])
