"""The errors that jaxrec raises on purpose.

Each message names the field, says what was expected, what came, and what to do. They derive from the builtin error that
a caller would expect, so ``except ValueError`` also works.
"""


class JaxrecError(Exception):
    """Base of every error raised on purpose; the command line prints its message without a traceback."""


class ConfigError(JaxrecError, ValueError):
    """A setting, or a combination of settings, cannot work."""


class UnknownNameError(ConfigError):
    """A name is not registered; the message lists those that are."""


class DataError(JaxrecError, ValueError):
    """A log of interactions cannot be read or used as asked."""


class RunExistsError(JaxrecError, FileExistsError):
    """The run directory already holds a run that the call would overwrite."""


class CheckpointError(JaxrecError, RuntimeError):
    """A checkpoint is missing, damaged, or belongs to another dataset, configuration or precision."""


class NonFiniteError(JaxrecError, FloatingPointError):
    """The loss, an update or a score stopped being finite."""


class DistributedError(JaxrecError, RuntimeError):
    """The processes of a run did not find each other."""


class Interrupted(JaxrecError):
    """A signal ended the run after its state was saved; ``signal_number`` says which."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number
