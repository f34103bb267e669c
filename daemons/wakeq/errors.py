"""The exceptions of wakeq, each with the exit code that a daemon ends with.

The codes are those of sysexits(3), which systemd knows by name. What an operator can cause
is a `WakeqError`: the runner prints its text, without a traceback, and exits with its code.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing itself takes longer to import than it is worth here
if TYPE_CHECKING:
    from wakeq.message import Fields

EX_USAGE = 64
EX_DATAERR = 65
EX_NOINPUT = 66
EX_UNAVAILABLE = 69
EX_SOFTWARE = 70
EX_TEMPFAIL = 75
EX_NOPERM = 77
EX_CONFIG = 78

_LONGEST_DELAY_SECONDS = 10 * 366 * 86400.0


class WakeqError(Exception):
    """Something went wrong that the text explains in full."""

    exit_code = EX_SOFTWARE


class UsageError(WakeqError):
    """The command line is wrong."""

    exit_code = EX_USAGE


class MissingError(WakeqError):
    """What was named is not there: a stream, a message."""

    exit_code = EX_NOINPUT


class ConfigError(WakeqError):
    """A setting is wrong; trying again does not help, correcting it does."""

    exit_code = EX_CONFIG


class RefusedError(WakeqError):
    """Redis refuses the user, the password or a command."""

    exit_code = EX_NOPERM


class KeyRefusedError(RefusedError):
    """Redis permits the user all but a key; others may be permitted."""


class UnavailableError(WakeqError):
    """Redis cannot be reached, or cannot answer now; trying again may help."""

    exit_code = EX_UNAVAILABLE


class BusyError(WakeqError):
    """What was asked for is in use by another process; it may be free later."""

    exit_code = EX_TEMPFAIL


class RoomError(WakeqError):
    """A room does not do what was asked for; the text says why.

    Attributes:
        code: the same in a word: `not-subscribed`, `timed-out`, `taken-over`, `not-outstanding`,
            `doubled`, `not-waited-for` or `full`.
        failed: the code of each client that was refused, if several were named.
    """

    exit_code = EX_DATAERR

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.failed: dict[str, str] = {}


class Retry(Exception):
    """Raised by a handler: this message could not be handled now, deliver it again.

    Args:
        reason: why, for the log.
        delay: after how many seconds; None: as `backoff` says.
        fields: fields to have other values by then (`body` among them).

    Raises:
        ValueError: the delay is negative or no number, or a field is one of ours.
    """

    def __init__(
        self,
        reason: str = "",
        *,
        delay: float | None = None,
        fields: Fields | None = None,
    ) -> None:
        super().__init__(*([reason] if reason else []))
        try:
            fits = delay is None or 0 <= delay < _LONGEST_DELAY_SECONDS
        except TypeError:
            fits = False
        if not fits:
            raise ValueError(f"delay must be seconds, 0 or more, not {delay!r}")
        from wakeq.message import encode  # not at the top, because message imports nothing of ours

        self.delay = delay
        items = encode(None, fields) if fields else []
        self.fields = dict(zip(items[::2], items[1::2], strict=True))


class Reject(Exception):
    """Raised by a handler: this message can never be handled, do not deliver it again."""


class Held(Exception):
    """A message was not begun: one before it has failed, or the lease is over (strict order)."""


class HandlerFailure(Exception):
    """A handler failed in a way that the text says all about."""


class Crashed(HandlerFailure):
    """The handler did not survive the message."""


class TimedOut(HandlerFailure):
    """The handler took longer than `timeout` allows."""

    def __init__(self) -> None:
        super().__init__("took longer than timeout allows")


class ProgramFailed(HandlerFailure):
    """The program ended with an exit code other than 0, or by a signal."""
