"""Crystals from a composition: diffusion on the torus of positions and the algebra of the cell."""
