"""Structures in, structures out: files, data sets, batches, compositions."""
