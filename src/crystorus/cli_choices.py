"""The words that options of the command line take."""

from enum import StrEnum


class SamplerName(StrEnum):
    """The samplers by name."""

    bridge = "bridge"
    ode = "ode"
    paper = "paper"


class QualityName(StrEnum):
    """Measured ways to sample."""

    fast = "fast"
    default = "default"
    best = "best"


class PrecisionName(StrEnum):
    """Precisions of the network's products."""

    fp32 = "fp32"
    bf16 = "bf16"
    auto = "auto"


class StartName(StrEnum):
    """Where a walk begins."""

    noise = "noise"
    templates = "templates"
    both = "both"


class DatasetName(StrEnum):
    """The data sets by name."""

    mp_20 = "mp-20"


class OptimizerName(StrEnum):
    """The optimisers by name."""

    BFGS = "BFGS"
    LBFGS = "LBFGS"
    FIRE = "FIRE"
