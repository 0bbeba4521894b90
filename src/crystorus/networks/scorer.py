"""A scorer: the default network, trained to tell the right one of several crystals."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crystorus.config import Precision
from crystorus.geometry import Crystals
from crystorus.networks.fieldnet import FieldNet

HIDDEN = 64
DROPOUT = 0.2
"""Fraction of the features that are left out, each time others, while it learns."""
LEAST_WEIGHT = 1e-3
"""Weight that counts for a skeleton of less, such as one that no known crystal speaks for."""


class Scorer(nn.Module):
    """Log-odds that a generated crystal is the known structure of its composition.

    The network's invariant features of the crystal, without noise, through a small head: invariant
    under the symmetries of Eq. 10. To this is added what the weight of the crystal's skeleton says
    beforehand: a w + b log w, or c without symmetry.

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
        self.prior = nn.Parameter(torch.tensor([0.0, 1.0, 0.0]))

    def forward(
        self,
        crystals: Crystals,
        weights: Float[Tensor, " crystals"],
        precision: Precision = "fp32",
    ) -> Float[Tensor, " crystals"]:
        """Return the log-odds that each crystal is right.

        Args:
            crystals: Finished crystals.
            weights: Of their skeletons (`templates.skeletons`), 0 to 1; NaN without symmetry.
            precision: Of the products inside the network's blocks.
        """
        t = torch.full_like(crystals.n_atoms, self.level)
        features = self.network.representation(crystals, t, precision)
        odds = self.head(nn.functional.dropout(features, DROPOUT, self.training))[:, 0]
        free, known = weights.isnan(), weights.nan_to_num(1.0).clamp_min(LEAST_WEIGHT).to(odds)
        said = torch.stack([known, known.log(), torch.ones_like(known)], -1)
        said = said * torch.stack([~free, ~free, free], -1)
        return odds + said @ self.prior
