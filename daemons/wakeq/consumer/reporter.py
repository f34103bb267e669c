"""Reporting: what the service manager, the log and whoever asks hear from a consumer."""

import os
from collections.abc import Callable
from time import monotonic

from wakeq import journal
from wakeq.consumer.hand import Member
from wakeq.errors import HandlerFailure, Reject, Retry
from wakeq.message import Message
from wakeq.service import Service

NEVER = float("inf")
_TICK_SECONDS = 1.0
# What tells the status takes a tenth of the start to load; a handler begins within this.
_STATUS_SECONDS = 0.002


class Reporter:
    """Counts, and tells.

    Attributes:
        handled, failed: messages, since the start.
        is_ready: READY=1 was said.
    """

    def __init__(self, service: Service, member: Member) -> None:
        self.handled = 0
        self.failed = 0
        self._tell_at = monotonic() + _TICK_SECONDS
        self.is_ready = False
        self.in_hand: Callable[[], int] = lambda: 0
        self.state: Callable[[], str] = lambda: "starting"
        self._service = service
        self._notifier = service.notifier
        self._member = member
        self._log = service.log
        self._started = self._told_at = monotonic()
        # Twice as often as sd_watchdog_enabled(3) wants it, as the loop may be late.
        self._feed_seconds = self._notifier.watchdog_seconds / 4
        # The manager counts from READY=1 on; feeding it loads sdnotify.
        self._feed_at = self._started + self._feed_seconds if self._feed_seconds else NEVER
        self._status_at = NEVER
        self._handled_then = 0
        self._rate = 0.0
        self._told = ""
        self._owner = ""  # who is waited for, in strict order
        self._is_down = False
        self._names = {"stream": member.stream, "group": member.group}

    @property
    def next_at(self) -> float:
        """When there will be something to tell."""
        return min(self._tell_at, self._feed_at, self._status_at)

    def tick(self, now: float) -> None:
        """Feed the watchdog, and bring the status up to date once a second."""
        if now >= self._status_at:
            self._say_first_status()
        if now >= self._feed_at:
            self._feed_at = now + self._feed_seconds
            self._notifier.alive()
        state = self.state()
        if now < self._tell_at:
            if state != self._told:
                self._tell_at = min(self._tell_at, self._told_at + _TICK_SECONDS)
            return
        self._rate = (self.handled - self._handled_then) / max(0.001, now - self._told_at)
        self._handled_then, self._told_at, self._told = self.handled, now, state
        if self.is_ready and not self._is_down:
            self._notifier.status(self._words(state))
        # Loading the log holds everything up for a moment, so it waits for a quiet one, unless
        # there is something to say. A start that takes long is none.
        if (self.is_ready and not self._rate) or journal.has_waiting():
            journal.open_log()
        is_quiet = state in ("idle", "standing by") and not self._rate
        self._tell_at = NEVER if is_quiet else now + _TICK_SECONDS

    def figures(self) -> dict[str, object]:
        """Return what the wake socket answers to `status`."""
        return {
            "name": self._service.name,
            "state": self.state(),
            "in_hand": self.in_hand(),
            "handled": self.handled,
            "failed": self.failed,
            "rate": round(self._rate, 1),
            "seconds": round(monotonic() - self._started, 3),
            "pid": os.getpid(),
        }

    def ready(self) -> None:
        """Say that messages are handled now; the status, when the first is in its handler."""
        if self.is_ready:
            return
        self.is_ready = True
        self._notifier.ready()
        self._status_at = monotonic() + _STATUS_SECONDS
        self._tell_at = monotonic() + _TICK_SECONDS
        self._log.debug(
            "consumer started", event_id=journal.CONSUMER_STARTED,
            consumer=self._member.consumer, **self._names,
        )  # fmt: skip

    def _say_first_status(self) -> None:
        if self._status_at < NEVER:
            self._status_at = NEVER
            self._notifier.status(self._words(self.state()))

    def waiting_for_redis(self, error: Exception, tries: int) -> None:
        """Say that Redis does not answer yet."""
        self._notifier.status(f"waiting for Redis, try {tries + 1}: {error}")
        if tries == 0:
            self._log.warning("waiting for Redis", error=error)
            journal.open_log()

    def lost(self, error: Exception) -> None:
        """Say once that Redis is gone."""
        self._notifier.status(f"waiting for Redis: {error}")
        if not self._is_down:
            self._is_down = True
            self._log.warning("lost Redis", event_id=journal.REDIS_LOST, error=error)

    def back(self) -> None:
        """Say once that Redis is back."""
        if self._is_down:
            self._is_down = False
            self._tell_at = monotonic()
            self._log.info("found Redis again", event_id=journal.REDIS_BACK)

    def group_made_again(self, position: str) -> None:
        """Say that the group was gone."""
        self._log.warning(
            "made the group again, which had been deleted", position=position,
            event_id=journal.GROUP_MADE_AGAIN, **self._names,
        )  # fmt: skip

    def message_failed(self, message: Message, error: BaseException, wait: float | None) -> None:
        """Say that a message failed, why, and what becomes of it.

        Args:
            message: the message.
            error: what its handler raised.
            wait: after how many seconds it is delivered again; None: it is a dead letter.
        """
        self.failed += 1
        said = isinstance(error, Retry | Reject | HandlerFailure)
        about = {
            "message_id": message.id,
            "attempt": message.attempt,
            "error": f"{type(error).__name__}: {error}".rstrip(": "),
            "detail": None if said else journal.describe(error),
            **self._names,
        }
        if wait is None:
            self._log.error("message is dead", event_id=journal.MESSAGE_DEAD, **about)
        else:
            self._log.warning(
                "message failed", event_id=journal.MESSAGE_FAILED, retry_in=f"{wait:.3f}s", **about
            )

    def claimed(self, count: int) -> None:
        """Say that messages of a consumer that is gone were taken over."""
        self._log.info(
            "claimed messages of a consumer that is gone", count=count,
            event_id=journal.MESSAGES_CLAIMED, **self._names,
        )  # fmt: skip

    def standing_by(self, owner: str) -> None:
        """Say whom this consumer waits for."""
        if self._owner != owner:
            self._owner = owner
            self._notifier.status(self._words("standing by"))
            self.ready()
            self._status_at = NEVER
            self._log.info("standing by", owner=owner, **self._names)
            journal.open_log()

    def took_over(self, count: int) -> None:
        """Say that this consumer is the owner of its group now."""
        if self._owner or count:
            self._log.info(
                "took over", before=self._owner or None, count=count,
                event_id=journal.GROUP_TAKEN_OVER, **self._names,
            )  # fmt: skip
        self._owner = ""
        self._tell_at = monotonic()

    def gone(self, count: int) -> None:
        """Say that messages in hand are somebody else's now."""
        self._log.warning("lost messages to another consumer", count=count, **self._names)

    def stuck(self, messages: list[Message]) -> None:
        """Say that a handler cannot be ended."""
        self._log.error(
            "left, because a handler does not end and cannot be ended",
            message_id=messages[0].id, **self._names,
        )  # fmt: skip

    def reload_refused(self, error: Exception) -> None:
        """Say that the new configuration is wrong and the old one stays."""
        self._log.error("kept the old configuration", error=error)

    def stopping(self, words: str = "") -> None:
        """Say that the process is going to end."""
        self._say_first_status()
        self._notifier.stopping()
        if words:
            self._notifier.status(words)

    def ended(self, how: str, handed_back: int) -> None:
        """Sum the activation up."""
        fields: dict[str, object] = {"handled": self.handled}
        if self.failed:
            fields["failed"] = self.failed
        if handed_back:
            fields["handed_back"] = handed_back
            self._log.info(
                "handed back messages that were not handled", count=handed_back,
                event_id=journal.MESSAGES_HANDED_BACK, **self._names,
            )  # fmt: skip
        seconds = monotonic() - self._started
        self._log.info(
            f"consumer {how}", event_id=journal.CONSUMER_SLEPT, **fields,
            seconds=round(seconds, 3), **self._names,
        )  # fmt: skip

    def _words(self, state: str) -> str:
        if state == "standing by":
            return f"standing by: {self._owner} is active"
        failed = f", {self.failed:,} failed" if self.failed else ""
        rate = f", {self._rate:,.0f}/s" if self._rate else ""
        return f"{state}: {self.in_hand():,} in hand, {self.handled:,} handled{failed}{rate}"
