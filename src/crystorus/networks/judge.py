"""A judge: the default network, trained to tell the right of several crystals from the others."""

import torch
from jaxtyping import Float
from torch import nn

from crystorus.geometry import Crystals
from crystorus.networks.fieldnet import FieldNet

HIDDEN = 64


class Judge(nn.Module):
    """How sure one can be that a finished crystal is the known one of its composition.

    The network's invariant features of the crystal, without noise, through a small head. Nothing
    that Eq. 10 leaves alone changes what it says.

    Args:
        network: Where it begins; usually that of the checkpoint whose crystals it judges.
        level: The step t that the network is told.
    """

    def __init__(self, network: FieldNet, *, level: int) -> None:
        super().__init__()
        self.network, self.level = network, level
        self.digest = ""
        """SHA-256 of the weights file, empty before there is one."""
        features = network.config.channels + network.config.pair_channels
        last = nn.Linear(HIDDEN, 1)
        nn.init.zeros_(last.weight)
        self.head = nn.Sequential(nn.Linear(features, HIDDEN), nn.SiLU(), last)

    def forward(self, crystals: Crystals) -> Float[torch.Tensor, " crystals"]:
        """Return the log-odds that each crystal is right."""
        t = torch.full_like(crystals.n_atoms, self.level)
        return self.head(self.network.representation(crystals, t))[:, 0]
