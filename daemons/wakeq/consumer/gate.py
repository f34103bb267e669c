"""The gate between line and lane, in strict order: each message waits for the one before.

The lane takes messages in runs. After one has failed, or when the lease of the owner is over, the
next ones must not be begun, and no other thread can stop the lane in time: it asks here first.
"""

from __future__ import annotations

import time

from wakeq.consumer.handler import Handler
from wakeq.consumer.lanes import outcome
from wakeq.errors import Held

TYPE_CHECKING = False  # typing itself takes longer to import than it is worth here
if TYPE_CHECKING:
    from typing import Any


class Gate:
    """Lets the lane begin a message only in its turn.

    Attributes:
        until: when the lease is over, by `clock`.
        is_held: a message has failed or was turned back, and those behind it wait.
    """

    def __init__(self) -> None:
        self.until = 0.0
        self.is_held = False

    @staticmethod
    def clock() -> float:
        """Return the time in seconds, which goes on while the machine is suspended."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    @property
    def has_lease(self) -> bool:
        """Tell whether the lease lasts."""
        return self.clock() < self.until

    def guard(self, handler: Handler) -> Handler:
        """Return a handler that calls another one, in its turn, and closes the gate if it fails."""

        def begin() -> None:
            if self.is_held or not self.has_lease:
                # For those behind it, too, however soon there is a lease again.
                self.is_held = True
                raise Held

        def judge(result: Any) -> Any:
            if result is None:
                return None
            done = outcome([], result)
            assert isinstance(done, tuple)
            if isinstance(done[1], BaseException):
                raise done[1]
            return done[1]

        def call(argument: Any) -> Any:
            begin()
            try:
                return judge(handler.call(argument))
            except BaseException:
                self.is_held = True
                raise

        async def call_async(argument: Any) -> Any:
            begin()
            try:
                return judge(await handler.call(argument))
            except BaseException:
                self.is_held = True
                raise

        chosen = call_async if handler.is_async else call
        return Handler(chosen, handler.is_async, handler.batch, handler.stop)
