"""What can end a training run before its time."""


class TrainingError(RuntimeError):
    """A run that cannot start or go on; the message says why and what to do."""


class Interrupted(BaseException):
    """Ctrl-C or a termination signal, raised between two steps once the state is saved."""
