"""What can go wrong between a checkpoint and its judge, in one sentence with its remedy."""


class JudgingError(ValueError):
    """A judge that cannot be trained from what was given."""
