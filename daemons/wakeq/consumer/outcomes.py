"""Outcomes: what becomes of a message once its handler is done with it.

Handled: it is acknowledged, in one step with what the handler returned to be published.
Failed: it goes to the delayed messages for another try after a while, for this group alone, or
to the group's dead letters when it was rejected or has failed too often. That is one step in
Redis, too (`fail.lua`); until it is confirmed the message stays in hand.
"""

import os
from collections.abc import Callable

from wakeq import journal
from wakeq.config import Consumer
from wakeq.consumer.acknowledger import Acknowledger, Failure
from wakeq.consumer.hand import RETRY, STREAM, Hand, Member
from wakeq.consumer.lanes import Done
from wakeq.consumer.reporter import Reporter
from wakeq.errors import Crashed, HandlerFailure, Held, Reject, Retry
from wakeq.message import (
    ATTEMPT,
    CONSUMER,
    ERROR,
    FIRST_ID,
    HOST,
    TRACEBACK,
    Message,
    Publish,
    carry,
)

_LONGEST_ERROR = 1000
_LONGEST_TRACEBACK = 8000


class Outcomes:
    """Passes on what came of messages.

    Attributes:
        on_hold: called with messages to be tried again in their place in the line, and after how
            many seconds, in strict order.
        on_turned_back: called with messages that the lane was kept from, in strict order.

    Args:
        member: who the consumer is.
        settings: the consumer's.
        hand: the messages in hand.
        acknowledger: tells Redis.
        report: tells people.
    """

    def __init__(
        self,
        member: Member,
        settings: Consumer,
        hand: Hand,
        acknowledger: Acknowledger,
        report: Reporter,
    ) -> None:
        self.on_hold: Callable[[list[Message], float], None]
        self.on_turned_back: Callable[[list[Message]], None]
        self._member = member
        self._settings = settings
        self._hand = hand
        self._acknowledger = acknowledger
        self._report = report

    def take(self, item: Done) -> None:
        """Take what a lane is done with."""
        messages, result = ([item], []) if isinstance(item, Message) else item
        # What timed out, was handed back or is another consumer's by now is finished already.
        ours = [message for message in messages if not message.finished]
        if isinstance(result, BaseException):
            if isinstance(result, Held):
                self.on_turned_back(ours)
            else:
                self.fail(ours, result)
            return
        self._hand.finish(ours)
        self._report.handled += len(ours)
        publishes: list[Publish] = result
        for source in (STREAM, RETRY):
            some = [message for message in ours if message.source == source]
            if some and publishes:
                self._acknowledger.add_joint(some, publishes)
                publishes = []
            else:
                self._acknowledger.add_ids(source, [message.entry_id for message in some])

    def fail(self, messages: list[Message], error: BaseException) -> None:
        """Have failed messages delivered again later, or bury them."""
        held, longest = [], 0.0
        for message in messages:
            wait = self._wait(message, error)
            self._report.message_failed(message, error, wait)
            failure = self._failure(message, error, wait)
            if self._member.is_fenced and wait is not None:
                message.become(failure.items)
                self._hand.reopen(message)
                held.append(message)
                longest = max(longest, wait)
            else:
                self._hand.finish([message])
                self._acknowledger.add_failure(failure)
        if held:
            self.on_hold(held, longest)

    def _wait(self, message: Message, error: BaseException) -> float | None:
        """Return after how many seconds a message is delivered again; None: never."""
        most = self._settings.max_attempts
        if isinstance(error, Reject | Crashed) or (most and message.attempt >= most):
            return None
        if isinstance(error, Retry) and error.delay is not None:
            return error.delay
        return self._settings.backoff.wait(message.attempt)

    def _failure(self, message: Message, error: BaseException, wait: float | None) -> Failure:
        text = " ".join(f"{type(error).__name__}: {error}".rstrip(": ").split())
        own = [
            (ATTEMPT, b"%d" % (message.attempt if wait is None else message.attempt + 1)),
            (FIRST_ID, message.id.encode()),
            (ERROR, text[:_LONGEST_ERROR].encode(errors="backslashreplace")),
        ]
        if wait is None:
            own += [
                (CONSUMER, self._member.consumer.encode()),
                (HOST, os.uname().nodename.encode()),
            ]
            if not isinstance(error, Retry | Reject | HandlerFailure):
                # Its end says most: where it happened, and what.
                text = journal.describe(error)[-_LONGEST_TRACEBACK:]
                own.append((TRACEBACK, text.encode(errors="backslashreplace")))
        changes = error.fields if isinstance(error, Retry) else None
        delay_ms = -1 if wait is None else round(wait * 1000)
        return Failure(message, delay_ms, carry(message, own, changes))
