"""What can go wrong between an experiment and its table, in one sentence with its remedy."""


class PaperError(ValueError):
    """An experiment that cannot be run or shown."""


class DivergedError(PaperError):
    """A training whose loss or gradient is no longer finite: a result, not a mistake."""
