"""Makes of messages what is published: by a transform or the default, with the worker's id."""

import os
import time
from collections.abc import Callable, Iterable

from wakeq import journal
from wakeq.bridge.transform import Items, Received, Transform, fields
from wakeq.errors import HandlerFailure, Reject
from wakeq.message import BODY, CONSUMER, ERROR, HOST, TRACEBACK

CONSUMER_ID = b"consumer_id"
CHANNEL = b"wakeq.channel"
_LONGEST_ERROR = 1000
_LONGEST_TRACEBACK = 8000
_CRASHED = "Crashed: the worker did not survive it"
# How many items follow, as bytes, for most messages.
_COUNTS = [b"%d" % count for count in range(256)]


class Outcome:
    """What became of a batch.

    Attributes:
        arguments: what is to be added, as bridge_publish.lua takes it.
        received: how many messages the batch had.
        published, dead: how many are to be added to the stream, and to the dead letters.
        error: the first error, empty if there was none.
        seconds: how long it took.
    """

    __slots__ = ("arguments", "dead", "error", "number", "published", "received", "seconds")

    def __init__(self, number: int) -> None:
        self.number = number
        self.arguments: list[bytes] = []
        self.received = self.published = self.dead = 0
        self.error = ""
        self.seconds = 0.0


class Maker:
    """Makes of messages what is published.

    Args:
        transform: what to call for each; None: the default.
        worker: the id of the worker.
        skips: messages that are dead letters without being looked at, (batch, place in it).
        tell: called with batch and place before each message, while it is careful.
        careful: for how many batches it is.
    """

    def __init__(
        self,
        transform: Transform | None,
        worker: str,
        skips: Iterable[tuple[int, int]],
        tell: Callable[[int, int], None],
        careful: int,
    ) -> None:
        self._transform = transform
        self._worker = worker.encode()
        self._host = os.uname().nodename.encode()
        self._skips = set(skips)
        self._tell = tell
        self._careful = careful

    def make(self, number: int, runs: Iterable[tuple[bytes, list[bytes]]]) -> Outcome:
        """Return what becomes of a batch."""
        outcome = Outcome(number)
        began = time.monotonic()
        for channel, bodies in runs:
            if self._transform is None and not self._careful:
                self._add_all(outcome, bodies)
                continue
            for body in bodies:
                self._add_one(outcome, channel, body)
                outcome.received += 1
        self._careful = max(0, self._careful - 1)
        outcome.seconds = time.monotonic() - began
        return outcome

    def _add_all(self, outcome: Outcome, bodies: list[bytes]) -> None:
        arguments, stamp = outcome.arguments, (CONSUMER_ID, self._worker)
        for body in bodies:
            items = fields(body)
            count = len(items) + 2
            arguments.append(_COUNTS[count] if count < 256 else b"%d" % count)
            arguments += items
            arguments += stamp
        outcome.received += len(bodies)
        outcome.published += len(bodies)

    def _add_one(self, outcome: Outcome, channel: bytes, body: bytes) -> None:
        place = (outcome.number, outcome.received)
        if self._careful:
            if place in self._skips:
                self._bury(outcome, channel, body, _CRASHED)
                return
            self._tell(*place)
        made: Iterable[Items]
        try:
            made = [fields(body)] if self._transform is None else self._transform(
                Received(channel, body)
            )  # fmt: skip
        # Whatever it raises, also by an exit, is the message's failure.
        except (Exception, SystemExit) as error:
            text = " ".join(f"{type(error).__name__}: {error}".rstrip(": ").split())
            plain = isinstance(error, Reject | HandlerFailure)
            trace = "" if plain else journal.describe(error)[-_LONGEST_TRACEBACK:]
            self._bury(outcome, channel, body, text[:_LONGEST_ERROR], trace)
            return
        for items in made:
            outcome.arguments.append(b"%d" % (len(items) + 2))
            outcome.arguments += (*items, CONSUMER_ID, self._worker)
            outcome.published += 1

    def _bury(
        self, outcome: Outcome, channel: bytes, body: bytes, error: str, trace: str = ""
    ) -> None:
        """Have a message become a dead letter."""
        items = [ERROR, error.encode(errors="backslashreplace")]
        if trace:
            items += (TRACEBACK, trace.encode(errors="backslashreplace"))
        items += (CONSUMER, self._worker, HOST, self._host, CHANNEL, channel, BODY, body)
        outcome.arguments.append(b"-%d" % len(items))
        outcome.arguments += items
        outcome.dead += 1
        outcome.error = outcome.error or error
