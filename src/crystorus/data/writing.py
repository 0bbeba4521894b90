"""The former place of `crystorus.data.writers`."""

from crystorus.data.writers import cif_text, dataset_cif_text, symmetrised_cif_text, write_extxyz

__all__ = ["cif_text", "dataset_cif_text", "symmetrised_cif_text", "write_extxyz"]
