"""What a taker has in hand, how much that may be, and the line of suspects.

A message is unfinished until its handler is done, and in hand until Redis has confirmed that it is
out of the hash `taken`.

A suspect is a message that was in hand when takers died. So as to find out which of them it is that
ends processes, suspects are handled alone, one after the other, and Redis is told before each. What
was alone when its taker died, and was in hand of max_crashes that died in all, is not begun again.
"""

from collections import deque
from collections.abc import Callable
from itertools import takewhile
from time import monotonic

from wakeq import keys
from wakeq.consumer.channel import Channel
from wakeq.consumer.lanes import Lanes
from wakeq.errors import Crashed
from wakeq.message import BODY, Message
from wakeq.wire import Reply, ServerError

# Work for so long may be in hand beyond what the workers are at.
_ENOUGH_SECONDS = 0.05
_MEASURE_SECONDS = 0.005
# More than anybody should have in hand; return_taken.lua puts back twice as much in one step.
_MOST = 1000
_ENOUGH_BYTES = 8 * 1024 * 1024


class Pace:
    """Decides how many messages to have in hand.

    As many as there are workers, and what they handle in 50 ms: so fast handlers get long runs, and
    slow ones keep nothing from other processes that have workers free.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._rate = 0.0  # messages a second
        self._handled = 0
        self._measured_at = monotonic()
        self._message_bytes = 0.0

    def room(self, unfinished: int) -> int:
        """Return how many to take now; 0: not now."""
        target = min(max(_MOST, self._workers), self._workers + int(self._rate * _ENOUGH_SECONDS))
        if self._message_bytes:
            target = max(1, min(target, int(_ENOUGH_BYTES / self._message_bytes)))
        room = target - unfinished
        return room if room >= max(1, (target - self._workers) // 2) else 0

    def learn_rate(self, now: float, handled: int) -> None:
        """Learn how many messages were handled so far."""
        elapsed = now - self._measured_at
        if elapsed >= _MEASURE_SECONDS:
            self._rate = (handled - self._handled) / elapsed
            self._handled, self._measured_at = handled, now

    def learn_size(self, messages: int, size: int) -> None:
        """Learn how many bytes some messages had."""
        mean = size / messages
        self._message_bytes = max(mean, 0.75 * self._message_bytes + 0.25 * mean)


class Hand:
    """The messages in hand, by number.

    Args:
        source: the list.

    Attributes:
        unfinished: how many are still to be handled.
        first: the number of the next one that is taken.
    """

    def __init__(self, source: str) -> None:
        self.messages: dict[int, Message] = {}
        self.unfinished = 0
        self.first = 1
        self._source = source
        self._joined_ms = 0

    def begin(self, joined_ms: int) -> None:
        """Name messages from now on by when their taker joined, and their number."""
        self._joined_ms = joined_ms

    def take(self, number: int, body: bytes, crashes: int = 0) -> Message:
        """Take a message, and return it; `crashes`: how often it was in hand when a taker died."""
        entry_id = b"%d-%d" % (self._joined_ms, number)
        message = Message(self._source, 0, entry_id, [BODY, body])
        message.place = number
        message.deliveries = 1 + crashes
        self.messages[number] = message
        self.unfinished += 1
        return message

    def finish(self, message: Message) -> None:
        """Count a message as no longer to be handled."""
        if not message.finished:
            message.finished = True
            self.unfinished -= 1

    def drop(self, numbers: list[int]) -> None:
        """Forget messages."""
        for number in numbers:
            self.messages.pop(number, None)

    def disown(self) -> list[Message]:
        """Forget all messages, and return those that were not finished."""
        ours = [message for message in self.messages.values() if not message.finished]
        for message in ours:
            self.finish(message)
        self.messages.clear()
        return ours

    @property
    def being_handled(self) -> list[Message]:
        """The messages that are still to be handled."""
        return [message for message in self.messages.values() if not message.finished]


class Line:
    """Gives messages to the lanes, suspects alone.

    Args:
        hand: the messages in hand.
        lanes: where handlers run.
        max_crashes: how many processes a message may end.

    Attributes:
        on_crashed: called with a message that will not be begun again, and why.
    """

    def __init__(self, hand: Hand, lanes: Lanes, max_crashes: int) -> None:
        self.on_crashed: Callable[[list[Message], BaseException], None]
        self._hand = hand
        self._lanes = lanes
        self._max_crashes = max_crashes
        # The deliveries that make a suspect: so often it was in hand of those that died, and one.
        self._suspect = 1 + max(1, min(2, max_crashes - 1))
        self._waiting: deque[Message] = deque()
        self._alone: Message | None = None
        self._asking = False

    def put(self, messages: list[Message], alone: dict[int, int] | None = None) -> None:
        """Give messages to the lanes, or have them wait their turn.

        Args:
            messages: in the order of their taking.
            alone: how often those were alone, by number, that were when their taker died.
        """
        kept = []
        for message in messages:
            crashes = message.deliveries - 1
            if alone and message.place in alone and crashes >= self._max_crashes:
                error = (
                    f"ended the process that handled it, and was in hand of {crashes} that ended"
                )
                self.on_crashed([message], Crashed(error))
            else:
                kept.append(message)
        if self._alone in kept:
            self._alone = None  # its lane has turned it back
        is_free = not self._waiting and self._alone is None
        if is_free and all(message.deliveries < self._suspect for message in kept):
            self._lanes.put(kept)
        else:
            self._waiting.extend(kept)

    def take_back(self) -> list[Message]:
        """Return the messages that no lane has begun; they will not be handled."""
        back = [*self._lanes.take_back(), *self._waiting]
        self._waiting.clear()
        return back

    def restart(self) -> None:
        """Forget what was asked over a connection that is lost."""
        self._asking = False

    def move(self, channel: Channel, taken: str) -> None:
        """Give to the lanes what can be given.

        Args:
            channel: a flushed one.
            taken: the key of what is in hand.
        """
        if self._alone is not None and self._alone.finished:
            self._alone = None
        while self._waiting and self._alone is None and not self._asking:
            first = self._waiting[0]
            if first.finished:
                self._waiting.popleft()
            elif first.deliveries < self._suspect:
                innocent = list(takewhile(lambda m: m.deliveries < self._suspect, self._waiting))
                for _ in innocent:
                    self._waiting.popleft()
                self._lanes.put(innocent)
            elif self._hand.unfinished > sum(not m.finished for m in self._waiting):
                break  # the lanes are at others yet
            else:
                self._begin(channel, taken, first)

    def _begin(self, channel: Channel, taken: str, message: Message) -> None:
        """Have Redis know what is begun alone, then begin it."""

        def begin(reply: Reply) -> None:
            self._asking = False
            if isinstance(reply, ServerError):
                raise reply
            if self._waiting and self._waiting[0] is message:
                self._waiting.popleft()
                self._alone = message
                self._lanes.put([message])

        self._asking = True
        channel.ask(("HSET", taken, keys.ALONE, message.place), begin)
        channel.flush()
