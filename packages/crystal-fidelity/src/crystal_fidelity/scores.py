"""One number with everything that makes it comparable: protocol, n, floor, uncertainty."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field


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
    details: Mapping[str, object] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return asdict(self)
