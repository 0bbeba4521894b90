"""What can go wrong between a request and its files, each in one sentence with its remedy."""


class RequestError(ValueError):
    """A request that no crystal can answer."""


class OutputError(RuntimeError):
    """An output folder that cannot take the crystals."""


class GenerationError(RuntimeError):
    """A model that could not give what was asked for."""
