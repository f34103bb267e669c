"""Limiting: what becomes of a message whose handler takes longer than `timeout`."""

from collections.abc import Callable
from time import monotonic

from wakeq.consumer.lanes import Lanes
from wakeq.errors import TimedOut
from wakeq.message import Message

# A coroutine that goes on for this long after it was cancelled will not end.
_GRACE_SECONDS = 5.0


class Limiter:
    """Ends handlers that are overdue.

    A coroutine is cancelled. A thread cannot be ended: its message has failed, and so has this
    process, which must be replaced to get rid of the thread. (A program is ended by who runs
    it.)

    Attributes:
        next_at: when to look again; infinite if there is no limit.
        on_timeout: called with messages that have failed while their lane is at them yet.
        on_stuck: called with the messages of a lane that cannot be ended.
    """

    def __init__(self, lanes: Lanes, timeout: float) -> None:
        self.on_timeout: Callable[[list[Message], BaseException], None]
        self.on_stuck: Callable[[list[Message]], None]
        self._lanes = lanes
        self._timeout = timeout
        self._step = min(1.0, max(0.05, timeout / 4))
        # For each lane when what it is at was begun, and when that was first interrupted: long
        # after its time if this process was paused.
        self._interrupted: dict[int, tuple[float, float]] = {}
        self.next_at = monotonic() + self._step if timeout else float("inf")

    def tick(self, now: float) -> None:
        """Look at what the lanes are at."""
        if now < self.next_at:
            return
        self.next_at = now + self._step
        for number, messages in self._lanes.overdue(now - self._timeout):
            started, since = self._interrupted.get(number, (0.0, now))
            if started != messages[0].started:
                since = now
                self._interrupted[number] = (messages[0].started, now)
            if self._lanes.interruptible and now - since < _GRACE_SECONDS:
                self._lanes.interrupt(number, messages)
            else:
                self.on_timeout([m for m in messages if not m.finished], TimedOut())
                self.on_stuck(messages)
