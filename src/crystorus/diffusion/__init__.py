"""Diffusion over the positions (a torus) and the cell (gl(3)) of a crystal."""
