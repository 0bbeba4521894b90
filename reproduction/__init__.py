"""The paper measured again: every table and figure by one command, from the repository's root.

    python -m reproduction all --budget smoke --out runs/smoke

`experiment` trains, samples and scores; `results` measures each table and figure; `probes` asks
what the latent space knows; `page` and `figures` show results, as pure functions of their JSON.
"""


class ReproductionError(Exception):
    """An experiment that cannot be run or shown; the message says why and what to do."""


class DivergedError(ReproductionError):
    """A training whose loss or gradient is no longer finite: a result, not a mistake."""
