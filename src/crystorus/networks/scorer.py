"""A scorer: the default network, trained to tell the right one of several crystals."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crystorus.config import Precision
from crystorus.geometry import Crystals
from crystorus.networks.fieldnet import FieldNet

HIDDEN = 64


class Scorer(nn.Module):
    """Log-odds that a generated crystal is the known structure of its composition.

    The network's invariant features of the crystal, without noise, through a small head: invariant
    under the symmetries of Eq. 10.

    Args:
        network: Where it begins; usually that of the checkpoint whose crystals it scores.
        level: The noise level t that the network is told.
        digest: SHA-256 of the weights file, empty before there is one.
    """

    def __init__(self, network: FieldNet, *, level: int, digest: str = "") -> None:
        super().__init__()
        self.network, self.level, self.digest = network, level, digest
        features = network.config.channels + network.config.pair_channels
        last = nn.Linear(HIDDEN, 1)
        nn.init.zeros_(last.weight)
        self.head = nn.Sequential(nn.Linear(features, HIDDEN), nn.SiLU(), last)

    def forward(
        self, crystals: Crystals, precision: Precision = "fp32"
    ) -> Float[Tensor, " crystals"]:
        """Return the log-odds that each crystal is right.

        Args:
            crystals: Finished crystals.
            precision: Of the products inside the network's blocks.
        """
        t = torch.full_like(crystals.n_atoms, self.level)
        return self.head(self.network.representation(crystals, t, precision))[:, 0]
