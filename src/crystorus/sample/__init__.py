"""From compositions to crystals in files or in Python: batches, memory, folders that resume."""
