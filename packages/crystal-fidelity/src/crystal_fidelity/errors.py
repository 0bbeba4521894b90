"""What a user can cause, each told in one sentence: the value, the limit and the remedy."""


class FidelityError(Exception):
    """Base of every error that this package raises for its users."""


class ReadingError(FidelityError, ValueError):
    """A file or folder of structures that cannot be used as a whole."""


class ReadingWarning(UserWarning):
    """Structures were read, but something in them is doubtful, or files were left out."""


class OptionError(FidelityError, ValueError):
    """An option whose value is out of its limits."""
