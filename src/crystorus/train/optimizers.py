"""What turns gradients into weights: Adam and Muon, the learning rate, the averaged weights."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.swa_utils import AveragedModel

from crystorus.config import TrainingConfig
from crystorus.errors import TrainingError

_NARROWEST = 16
_BETA1 = 0.9


def build_optimizers(denoiser: nn.Module, config: TrainingConfig) -> list[Optimizer]:
    """Return Adam for all parameters; or Muon for the hidden matrices and Adam for the rest.

    Muon's updates are scaled to the root mean square of Adam's, so that both share one rate.

    Args:
        denoiser: The network to train.
        config: Which optimizer, its peak learning rate and decays.

    Raises:
        TrainingError: If Muon is asked for and this torch has none, or the network no matrices.
    """
    rate, betas = config.learning_rate, (_BETA1, config.adam_beta2)
    if config.optimizer == "adam":
        return [Adam(denoiser.parameters(), lr=rate, betas=betas)]
    matrices, others = hidden_matrices(denoiser)
    if not matrices or not others:
        raise TrainingError(
            "the network has no hidden matrices of 16 × 16 or more for Muon: widen it, or set "
            'training.optimizer = "adam"'
        )
    if not hasattr(torch.optim, "Muon"):
        raise TrainingError(
            f"torch {torch.__version__} has no Muon: install torch 2.9 or newer, or set "
            'training.optimizer = "adam"'
        )
    muon = torch.optim.Muon(matrices, lr=rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    return [muon, Adam(others, lr=rate, betas=betas)]


def hidden_matrices(denoiser: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the matrices inside the blocks, and all other parameters.

    Matrices with a side below 16 count as others: orthogonalising them means little.

    Args:
        denoiser: The network.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in denoiser.named_parameters():
        inside = "blocks" in name and parameter.ndim == 2 and min(parameter.shape) >= _NARROWEST
        (matrices if inside else others).append(parameter)
    return matrices, others


def rate_factor(step: int, progress: float, *, warmup_steps: int, decay: float) -> float:
    """Return the learning rate as a fraction of its peak.

    Args:
        step: Optimizer steps taken so far.
        progress: Fraction of the run that is over.
        warmup_steps: Steps over which the rate rises linearly.
        decay: Fraction of the run, at its end, over which it falls linearly to zero.
    """
    rise = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    fall = min(1.0, max(0.0, 1 - progress) / decay) if decay else 1.0
    return rise * fall


def averaged(denoiser: nn.Module, decay: float) -> AveragedModel:
    """Return a copy of a network whose weights are the exponential moving average of its own.

    The decay of update k is min(decay, (1 + k) / (10 + k)), so that the initial weights are
    forgotten at once; the first update takes the weights as they are.

    Args:
        denoiser: The network that is trained.
        decay: Decay per update once there are many, 0 to 1.

    Source: [Klipfel24] Table 1, EMA.
    """

    @torch.no_grad()
    def average(mean: Sequence[Tensor], present: Sequence[Tensor], count: Tensor | int) -> None:
        keep = min(decay, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(list(mean), list(present), 1 - keep)

    return AveragedModel(denoiser, multi_avg_fn=average, use_buffers=False)
