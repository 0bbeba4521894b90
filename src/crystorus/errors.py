"""What a user can cause, each told in one sentence: the value, the limit and the remedy."""

from crystal_fidelity.download import DownloadError
from crystal_fidelity.errors import FidelityError, ReadingError
from crystal_fidelity.files import FileError
from crystal_fidelity.workers import WorkersError

__all__ = [
    "CalculatorError",
    "CampaignError",
    "CheckpointError",
    "ConfigError",
    "CrystorusError",
    "DownloadError",
    "FidelityError",
    "FileError",
    "GenerationError",
    "OutputError",
    "ReadingError",
    "ReferencesError",
    "RequestError",
    "TrainingError",
    "WorkersError",
]


class CrystorusError(Exception):
    """Base of every error that this package raises for its users."""


class RequestError(CrystorusError, ValueError):
    """A value or a combination of options that makes no sense."""


class ConfigError(CrystorusError, ValueError):
    """A configuration that cannot be read or holds a wrong value."""


class CheckpointError(CrystorusError, ValueError):
    """A checkpoint that is missing, damaged or of another version."""


class OutputError(CrystorusError, RuntimeError):
    """An output folder that cannot take the results."""


class GenerationError(CrystorusError, RuntimeError):
    """A model that could not give what was asked for."""


class TrainingError(CrystorusError, RuntimeError):
    """A training run that cannot start or go on."""


class ReferencesError(CrystorusError, ValueError):
    """Known phases that cannot be read, compared, or that do not span the chemical system."""


class CalculatorError(CrystorusError, RuntimeError):
    """A calculator that cannot be had, or computes nothing."""


class CampaignError(CrystorusError, RuntimeError):
    """A campaign that cannot go on."""
