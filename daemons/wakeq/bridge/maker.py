"""Makes of messages what is published: by a transform or the default, with the worker's id."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from wakeq import journal
from wakeq.bridge.talk import Run
from wakeq.bridge.transform import Items, Received, Transform, fields
from wakeq.errors import HandlerFailure, Reject
from wakeq.message import BODY, CONSUMER, ERROR, HOST, TRACEBACK

CONSUMER_ID = b"consumer_id"
CHANNEL = b"wakeq.channel"
_LONGEST_ERROR = 1000
_LONGEST_TRACEBACK = 8000
_CRASHED = "Crashed: the worker did not survive it"
# Redis takes no request of more than a million arguments, or of a gigabyte: what is made of one
# message must fit, and a batch ends early when it has that much.
_MOST_ARGUMENTS = 500_000
_MOST_BYTES = 64 << 20
_TOO_MUCH = f"TooMuch: of one message {_MOST_ARGUMENTS // 4:,} can be made, {_MOST_BYTES >> 20} MiB"
# How many items follow, as bytes, for most messages.
_COUNTS = [b"%d" % count for count in range(256)]


class Outcome:
    """What became of a batch, or of the first part of it.

    Attributes:
        number: the batch's.
        arguments: what is to be added, as bridge.lua takes it.
        received: how many messages it is.
        size: how many bytes were made, by a transform.
        published, dead: how many are to be added to the stream, and to the dead letters.
        error: the first error, empty if there was none.
        seconds: how long it took.
    """

    __slots__ = (
        *("arguments", "dead", "error", "number", "published", "received", "seconds", "size"),
    )

    def __init__(self, number: int) -> None:
        self.number = number
        self.arguments: list[bytes] = []
        self.received = self.published = self.dead = self.size = 0
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

    def make(self, number: int, runs: Sequence[Run], first: int = 0) -> Outcome:
        """Return what becomes of a batch from its message `first` on, or of a part of that."""
        outcome = Outcome(number)
        began = time.monotonic()
        if self._transform is None and not self._careful:
            for _, bodies in runs:
                self._add_all(outcome, bodies)
        else:
            self._add_each(outcome, runs, first)
        outcome.seconds = time.monotonic() - began
        return outcome

    def _add_each(self, outcome: Outcome, runs: Sequence[Run], first: int) -> None:
        messages = ((channel, body) for channel, bodies in runs for body in bodies)
        for place, (channel, body) in enumerate(islice(messages, first, None), first):
            if len(outcome.arguments) > _MOST_ARGUMENTS or outcome.size > _MOST_BYTES:
                return
            self._add_one(outcome, channel, body, place)
            outcome.received += 1
        self._careful = max(0, self._careful - 1)

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

    def _add_one(self, outcome: Outcome, channel: bytes, body: bytes, place: int) -> None:
        if self._careful:
            if (outcome.number, place) in self._skips:
                self._bury(outcome, channel, body, _CRASHED)
                return
            self._tell(outcome.number, place)
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
        arguments: list[bytes] = []
        size = count = 0
        for items in made:
            arguments.append(b"%d" % (len(items) + 2))
            arguments += (*items, CONSUMER_ID, self._worker)
            size += sum(map(len, items))
            count += 1
        if len(arguments) > _MOST_ARGUMENTS or size > _MOST_BYTES > len(body):
            self._bury(outcome, channel, body, _TOO_MUCH)
            return
        outcome.arguments += arguments
        outcome.size += size
        outcome.published += count

    def _bury(
        self, outcome: Outcome, channel: bytes, body: bytes, error: str, trace: str = ""
    ) -> None:
        """Have a message become a dead letter."""
        items = [ERROR, error.encode(errors="backslashreplace")]
        if trace:
            items += (TRACEBACK, trace.encode(errors="backslashreplace"))
        outcome.size += len(body)
        items += (CONSUMER, self._worker, HOST, self._host, CHANNEL, channel, BODY, body)
        outcome.arguments.append(b"-%d" % len(items))
        outcome.arguments += items
        outcome.dead += 1
        outcome.error = outcome.error or error
