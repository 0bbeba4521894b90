"""Crystals as tensors, and the groups that act on them.

Torch only. One convention: the columns of a lattice are its vectors in Å,
cartesian = ρ x, angles in radians.
"""

from crystorus.geometry.crystals import Crystals, Prediction

__all__ = ["Crystals", "Prediction"]
