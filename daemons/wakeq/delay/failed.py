"""A failed message, as a repair gets it, and what travels between the daemon and its repair.

Both are of one daemon and one Python, on the two ends of a socket: each thing said is its length
(8 bytes) and what `marshal` makes of plain values.
"""

import marshal
from typing import Any

from wakeq.message import ATTEMPT, ERROR, Message

_LENGTH_BYTES = 8

# What the repair says first.
READY, BAD = "ready", "bad"
# What it says of a message: leave it as it is, set these fields, it cannot be repaired.
SAME, CHANGED, FAILED = "same", "changed", "failed"


class FailedMessage(Message):
    """A message whose handler failed, and that is about to be delivered again.

    Attributes:
        group: the group that it failed in, and that it is delivered to.
        attempt: which attempt the next one will be: 2 or more.
    """

    __slots__ = ("group",)

    def __init__(self, stream: str, group: str, first_id: bytes, items: list[bytes]) -> None:
        super().__init__(stream, 1, first_id, items)
        self.group = group

    @property
    def error(self) -> str:
        """Why it failed last: the type and the text of the error, in one line."""
        return (self.own(ERROR) or b"").decode(errors="replace")

    @property
    def failures(self) -> int:
        """How often it has failed."""
        return max(0, self.attempt - 1) if self.own(ATTEMPT) else 0


def packed(said: Any) -> bytes:
    """Return the bytes of something said."""
    raw = marshal.dumps(said)
    return len(raw).to_bytes(_LENGTH_BYTES, "big") + raw


class Inbox:
    """Puts together again what comes in pieces."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def take(self, piece: bytes) -> Any:
        """Take a piece, and return what is said once that is whole; None until then."""
        self._buffer += piece
        if len(self._buffer) < _LENGTH_BYTES:
            return None
        end = _LENGTH_BYTES + int.from_bytes(self._buffer[:_LENGTH_BYTES], "big")
        if len(self._buffer) < end:
            return None
        said = marshal.loads(self._buffer[_LENGTH_BYTES:end])
        del self._buffer[:end]
        return said
