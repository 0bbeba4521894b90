"""What the default network knows before it looks at geometry: the element and the noise level."""

import csv
import functools
import math
from importlib import resources

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from crystal_fidelity.structures import MAX_ATOMIC_NUMBER


@functools.cache
def element_descriptors() -> Float[Tensor, "119 descriptors"]:
    """Read the table of elemental properties, standardised over Z = 1 … 94; row 0 is zero."""
    text = resources.files("crystorus.networks").joinpath("elements.csv").read_text()
    rows = list(csv.reader(line for line in text.splitlines() if not line.startswith("#")))
    header, rows = rows[0], rows[1:]
    skip = {header.index(name) for name in ("Z", "symbol") if name in header}
    table = torch.zeros(MAX_ATOMIC_NUMBER + 1, len(header) - len(skip), dtype=torch.float64)
    for row in rows:
        values = [float(v) for n, v in enumerate(row) if n not in skip]
        table[int(row[header.index("Z")])] = torch.tensor(values, dtype=torch.float64)
    known = table[1:95]
    scaled = (table - known.mean(0)) / known.std(0).clamp_min(1e-6)
    scaled[0] = 0
    return scaled.clamp(-4, 4)


class ElementEmbedding(nn.Module):
    """A free vector per element plus a linear map of its descriptors.

    The descriptors let an element that is rare in the data borrow from its neighbours in the
    periodic table.

    Args:
        channels: Features of an atom.
    """

    table: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.free = nn.Embedding(MAX_ATOMIC_NUMBER + 1, channels)
        nn.init.normal_(self.free.weight, std=0.3)
        table = element_descriptors().float()
        self.register_buffer("table", table, persistent=False)
        self.known = nn.Linear(table.shape[1], channels)

    def forward(self, atomic_numbers: Int[Tensor, "*n"]) -> Float[Tensor, "*n channels"]:
        """Embed atomic numbers; 0 stands for padding.

        Args:
            atomic_numbers: Of any shape.
        """
        return self.free(atomic_numbers) + self.known(self.table[atomic_numbers])


def sinusoids(value: Float[Tensor, " n"], channels: int, longest: float) -> Tensor:
    """Return sines and cosines at frequencies from 1 down to 1/longest, evenly in the logarithm.

    Args:
        value: Angles at frequency 1.
        channels: Number of features, even.
        longest: The longest period over 2π.

    Returns:
        [n, channels]: first all sines, then all cosines.
    """
    half = channels // 2
    power = torch.arange(half, device=value.device, dtype=value.dtype) / half
    angle = value[:, None] * torch.exp(-math.log(longest) * power)
    return torch.cat([angle.sin(), angle.cos()], -1)
