"""Reporting: what the log and whoever asks hear from a taker."""

import os
from collections.abc import Callable
from time import monotonic

from wakeq import journal
from wakeq.message import Message
from wakeq.node.takers_errors import is_expected, told
from wakeq.service import Service

_RATE_SECONDS = 1.0


class Reporter:
    """Counts, and tells.

    Args:
        service: the process.
        source: the list.

    Attributes:
        handled, failed: messages, since the start.
        is_ready: messages are being taken.
        next_at: when there is something to bring up to date.
        in_hand, busy, connections, state: return what they say.
    """

    def __init__(self, service: Service, source: str) -> None:
        self.handled = 0
        self.failed = 0
        self.is_ready = False
        self.next_at = monotonic() + _RATE_SECONDS
        self.in_hand: Callable[[], int]
        self.busy: Callable[[], int]
        self.connections: Callable[[], int]
        self.state: Callable[[], str]
        self._service = service
        self._log = service.log
        self._source = source
        self._names = {"node": service.name, "list": source}
        self._started = self._told_at = monotonic()
        self._handled_then = 0
        self._rate = 0.0
        self._is_down = False

    def tick(self, now: float) -> None:
        """Bring the rate up to date; write the log in a quiet moment."""
        if now < self.next_at:
            return
        self._rate = (self.handled - self._handled_then) / max(0.001, now - self._told_at)
        self._handled_then, self._told_at = self.handled, now
        self.next_at = now + _RATE_SECONDS if self._rate else float("inf")
        journal.open_log()

    def stir(self, now: float) -> None:
        """Learn that there is work again."""
        self.next_at = min(self.next_at, now + _RATE_SECONDS)

    def figures(self) -> dict[str, object]:
        """Return what the wake socket answers to `status`."""
        return {
            "name": self._service.name,
            "state": self.state(),
            "in_hand": self.in_hand(),
            "busy": self.busy(),
            "handled": self.handled,
            "failed": self.failed,
            "rate": round(self._rate, 1),
            "connections": self.connections(),
            "seconds": round(monotonic() - self._started, 3),
            "pid": os.getpid(),
        }

    def ready(self) -> None:
        """Say that messages are being taken."""
        if not self.is_ready:
            self.is_ready = True
            self._service.notifier.ready()
            self._log.debug("taker started", **self._names)

    def waiting_for_redis(self, error: Exception, tries: int) -> None:
        """Say that Redis does not answer yet."""
        if tries == 0:
            self._log.warning("waiting for Redis", error=error)
            journal.open_log()

    def lost(self, error: Exception) -> None:
        """Say once that Redis is gone."""
        if not self._is_down:
            self._is_down = True
            self._log.warning("lost Redis", event_id=journal.REDIS_LOST, error=error)

    def back(self) -> None:
        """Say once that Redis is back."""
        if self._is_down:
            self._is_down = False
            self._log.info("found Redis again", event_id=journal.REDIS_BACK)

    def message_failed(self, message: Message, error: BaseException, error_list: str) -> None:
        """Say that a message failed, and why."""
        self.failed += 1
        self._log.error(
            "message went to the error list", event_id=journal.MESSAGE_IN_ERROR_LIST,
            message_id=message.id, error=told(error), error_list=error_list,
            detail=None if is_expected(error) else journal.describe(error),
            node=self._service.name, list=self._source,
        )  # fmt: skip

    def put_back(self, count: int) -> None:
        """Say that messages of a taker that is dead were put back into the list."""
        self._log.info(
            "put messages back that a dead process had taken", count=count,
            event_id=journal.MESSAGES_PUT_BACK, node=self._service.name, list=self._source,
        )  # fmt: skip

    def disowned(self, count: int) -> None:
        """Say that messages in hand are somebody else's now."""
        self._log.warning("lost messages to another process", count=count, **self._names)

    def stuck(self, message: Message) -> None:
        """Say that a handler cannot be ended."""
        self._log.error(
            "left, because a handler does not end and cannot be ended",
            message_id=message.id, **self._names,
        )  # fmt: skip

    def stopping(self) -> None:
        """Say that the process is going to end."""
        self._service.notifier.stopping()

    def ended(self, put_back: int) -> None:
        """Sum the process up."""
        self._log.info(
            "taker stopped", handled=self.handled, failed=self.failed, put_back=put_back,
            seconds=round(monotonic() - self._started, 3), **self._names,
        )  # fmt: skip
