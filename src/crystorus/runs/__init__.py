"""The output folder of a run: claimed by one process, resumable after a kill."""
