"""Adam, and Muon with Adam for what is no hidden matrix, as one optimizer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Adam, Optimizer

from crystorus.config import TrainingConfig
from crystorus.train.errors import TrainingError

_NARROWEST = 16
_BETA1 = 0.9


def build_optimizer(denoiser: nn.Module, config: TrainingConfig) -> Optimizer:
    """Return the optimizer a configuration names.

    Raises:
        TrainingError: If Muon is asked for and this torch has none.
    """
    betas = (_BETA1, config.adam_beta2)
    if config.optimizer == "adam":
        return Adam(denoiser.parameters(), lr=config.learning_rate, betas=betas)
    matrices, others = hidden_matrices(denoiser)
    return MuonWithAdam(matrices, others, lr=config.learning_rate, betas=betas)


def hidden_matrices(denoiser: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Divide parameters into the matrices inside the blocks and all others.

    Matrices with a side below 16 count as others: orthogonalising them means little.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in denoiser.named_parameters():
        inside = "blocks" in name and parameter.ndim == 2 and min(parameter.shape) >= _NARROWEST
        (matrices if inside else others).append(parameter)
    return matrices, others


class MuonWithAdam(Optimizer):
    """Muon for matrices and Adam for the rest, sharing one learning rate and one state.

    Muon's updates are scaled to the root mean square of Adam's.

    Args:
        matrices: Two-dimensional parameters.
        others: All other parameters.
        lr: Learning rate.
        betas: Adam's decays.

    Raises:
        TrainingError: If this torch has no Muon, or there are no matrices.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        others: list[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float],
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise TrainingError(
                f"torch {torch.__version__} has no Muon: install torch 2.9 or newer, or set "
                'training.optimizer = "adam"'
            )
        if not matrices or not others:
            raise TrainingError(
                "the network has no hidden matrices of 16 × 16 or more for Muon: widen it, or "
                'set training.optimizer = "adam"'
            )
        self._muon = torch.optim.Muon(
            matrices, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
        )
        self._adam = Adam(others, lr=lr, betas=betas)
        super().__init__([{"params": matrices}, {"params": others}], {"lr": lr})
        self.param_groups = [*self._muon.param_groups, *self._adam.param_groups]
        self._share()

    def _share(self) -> None:
        """Let both parts work on this optimizer's groups and state."""
        self._muon.param_groups, self._adam.param_groups = (
            self.param_groups[:1],
            self.param_groups[1:],
        )
        self._muon.state = self._adam.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step with both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._muon.step()
        self._adam.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state."""
        super().load_state_dict(state_dict)
        self._share()
