"""One number with everything that makes it comparable: protocol, n, floor, uncertainty."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import sqrt
from typing import Literal

Better = Literal["higher", "lower", ""]
"""Which way is good; empty where neither is, or where it depends."""


@dataclass(frozen=True)
class Score:
    """A row of the table."""

    name: str
    value: float
    unit: str = ""
    n_generated: int = 0
    n_reference: int | None = None
    protocol: str = ""
    real: float | None = None
    """What real data score: real against real at this n (the noise floor of a distance), or the
    reference set's own rate; None where it has no meaning."""
    uncertainty: float | None = None
    """One standard error."""
    rate: bool = False
    """A fraction of structures, shown in per cent."""
    better: Better = ""
    details: Mapping[str, object] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return asdict(self)


def rate_error(rate: float, n: int) -> float:
    """Return the standard error of a rate: half the width of Wilson's interval at one deviation.

    √(p (1 − p) / n) would call a rate of 0 or 1 exact, whatever n.
    """
    return sqrt(rate * (1 - rate) / n + 1 / (4 * n * n)) / (1 + 1 / n)
