"""What can go wrong between a chemical system and its hull, in one sentence with its remedy."""


class CampaignError(RuntimeError):
    """A campaign that cannot go on."""


class SpaceError(ValueError):
    """A search space that holds nothing, too much, or makes no sense."""


class CalculatorError(RuntimeError):
    """A calculator that cannot be had, or computes nothing."""


class ReferencesError(ValueError):
    """Known phases that cannot be read, compared, or span the system."""


class WorkersError(RuntimeError):
    """Worker processes that cannot be had."""
