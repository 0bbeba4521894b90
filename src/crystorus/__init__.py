"""Crystals from a composition: diffusion on the torus of positions and the algebra of the cell.

Examples:
    >>> import crystorus
    >>> crystals = crystorus.generate("LiFeO2", n=4, seed=0)
    >>> atoms = crystals.to_ase()
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crystorus.config import SamplerConfig
    from crystorus.geometry.crystals import Crystals
    from crystorus.sample.api import generate, load, refine
    from crystorus.sample.sampler import GeneratedCrystals

__all__ = ["Crystals", "GeneratedCrystals", "SamplerConfig", "generate", "load", "refine"]

_HOMES = {
    "Crystals": "crystorus.geometry.crystals",
    "GeneratedCrystals": "crystorus.sample.sampler",
    "SamplerConfig": "crystorus.config",
    "generate": "crystorus.sample.api",
    "load": "crystorus.sample.api",
    "refine": "crystorus.sample.api",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import crystorus` itself stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module 'crystorus' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
