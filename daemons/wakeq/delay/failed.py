"""A failed message, as a repair gets it, and what the repair says of it."""

from wakeq.message import ATTEMPT, ERROR, Message

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
