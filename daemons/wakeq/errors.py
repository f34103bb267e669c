"""The exceptions of wakeq, each with the exit code that a daemon ends with.

The codes are those of sysexits(3), which systemd knows by name. What an operator can cause
is a `WakeqError`: the runner prints its text, without a traceback, and exits with its code.
"""

EX_USAGE = 64
EX_DATAERR = 65
EX_UNAVAILABLE = 69
EX_SOFTWARE = 70
EX_TEMPFAIL = 75
EX_NOPERM = 77
EX_CONFIG = 78


class WakeqError(Exception):
    """Something went wrong that the text explains in full."""

    exit_code = EX_SOFTWARE


class UsageError(WakeqError):
    """The command line is wrong."""

    exit_code = EX_USAGE


class ConfigError(WakeqError):
    """A setting is wrong; trying again does not help, correcting it does."""

    exit_code = EX_CONFIG


class RefusedError(WakeqError):
    """Redis refuses the user, the password or a command."""

    exit_code = EX_NOPERM


class UnavailableError(WakeqError):
    """Redis cannot be reached, or cannot answer now; trying again may help."""

    exit_code = EX_UNAVAILABLE


class BusyError(WakeqError):
    """What was asked for is in use by another process; it may be free later."""

    exit_code = EX_TEMPFAIL


class Retry(Exception):
    """Raised by a handler: this message could not be handled now, deliver it again."""


class Reject(Exception):
    """Raised by a handler: this message can never be handled, do not deliver it again."""


class HandlerFailure(Exception):
    """A handler failed in a way that the text says all about."""


class TimedOut(HandlerFailure):
    """The handler took longer than `timeout` allows."""

    def __init__(self) -> None:
        super().__init__("took longer than timeout allows")


class ProgramFailed(HandlerFailure):
    """The program ended with an exit code other than 0, or by a signal."""
