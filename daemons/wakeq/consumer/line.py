"""The line: messages on their way to the lanes, in their order.

Usually nobody stands in it: what was read is given to the lanes at once. A suspect holds it
up: a message that was already in the hands of two processes that ended without handling it.
One message in those hands may have ended them, and the others are its neighbours. So suspects
are handled alone, one after the other, and Redis is told before each (`keys.crashes`). Whose
handler has ended so many processes while it was alone is not begun again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import takewhile
from time import monotonic

from wakeq.consumer.channel import Channel
from wakeq.consumer.hand import Hand, Member
from wakeq.consumer.lanes import Lanes
from wakeq.errors import Crashed
from wakeq.message import Message
from wakeq.wire import Reply, ServerError

TYPE_CHECKING = False  # typing itself takes longer to import than it is worth here
if TYPE_CHECKING:
    from wakeq.consumer.gate import Gate

NEVER = float("inf")
# The delivery that makes a suspect: the two before were to processes that did not handle it.
_SUSPECT = 3


class Line:
    """Gives messages to the lanes, suspects alone.

    Args:
        member: who the consumer is.
        hand: the messages in hand.
        lanes: where handlers run.
        max_crashes: how many processes a message may end.

    Attributes:
        next_at: when there is something to do.
        on_late: called with messages that come when the line is closed.
        on_crashed: called with messages that will not be begun again, and why.
        is_paused: tells whether nothing is to be handled now; asked in strict order alone.
    """

    def __init__(self, member: Member, hand: Hand, lanes: Lanes, max_crashes: int) -> None:
        self.on_crashed: Callable[[list[Message], BaseException], None]
        self.on_late: Callable[[list[Message]], None]
        self.is_paused: Callable[[], bool]
        self.next_at = NEVER
        self._is_closed = False
        self._member = member
        self._hand = hand
        self._lanes = lanes
        self._max_crashes = max_crashes
        self._waiting: deque[Message] = deque()
        self._alone: Message | None = None
        # How often the first one was begun, as far as that is known.
        self._begun: int | None = None
        self._asking = False

    @property
    def is_empty(self) -> bool:
        """Tell whether nothing stands in line, nor is handled alone."""
        return not self._waiting and self._alone is None

    def put(self, messages: list[Message]) -> None:
        """Give messages to the lanes, or have them wait their turn."""
        if self._is_closed:
            self.on_late(messages)
        elif self.is_empty and all(message.deliveries < _SUSPECT for message in messages):
            self._lanes.put(messages)
        else:
            self._waiting.extend(messages)

    def hold(self, messages: list[Message], seconds: float) -> None:
        """Hold messages up, in strict order alone."""
        raise NotImplementedError

    def take_back(self) -> list[Message]:
        """Return the messages that no lane has begun; they will not be handled."""
        back = [*self._lanes.take_back(), *self._waiting]
        self._waiting.clear()
        self._begun = None
        return back

    def close(self) -> list[Message]:
        """Take nothing more, and return the messages that no lane has begun."""
        self._is_closed = True
        return self.take_back()

    def restart(self) -> None:
        """Forget what was asked over a connection that is lost."""
        self._asking = False

    def move(self, channel: Channel) -> None:
        """Give to the lanes what can be given, over a flushed channel."""
        if self._alone is not None and self._alone.finished:
            self._clear(channel, self._alone)
            channel.flush()  # now: the next one may end the process at once
            self._alone = None
        while self._waiting and self._alone is None and not self._asking:
            if self._waiting[0].deliveries < _SUSPECT:
                innocent = list(takewhile(lambda m: m.deliveries < _SUSPECT, self._waiting))
                for _ in innocent:
                    self._waiting.popleft()
                self._lanes.put(innocent)
            elif self._waiting[0].finished:
                self._waiting.popleft()
                self._begun = None
            elif self._hand.unfinished > sum(not m.finished for m in self._waiting):
                break  # the lanes are at others yet
            else:
                self._begin(channel, self._waiting[0])
        channel.flush()

    def _begin(self, channel: Channel, message: Message) -> None:
        """Have Redis know what is begun, then begin it."""
        self._asking = True

        def count(reply: Reply) -> None:
            if isinstance(reply, ServerError):
                raise reply
            if not self._waiting or self._waiting[0] is not message:
                self._asking = False
                return  # taken back
            self._begun = int(reply or 0)
            tell()

        def tell() -> None:
            if self._begun is not None and self._begun >= self._max_crashes:
                begin(0)
                return
            # Set and not added to, so that a lost reply does not count twice.
            field = _field(message)
            command = ("HSET", self._member.crashes, field, (self._begun or 0) + 1)
            channel.ask(command, begin)
            channel.flush()

        def begin(reply: Reply) -> None:
            if isinstance(reply, ServerError):
                raise reply
            begun, self._begun = self._begun or 0, None
            self._asking = False
            if not self._waiting or self._waiting[0] is not message:
                return  # taken back
            self._waiting.popleft()
            if message.finished:
                return
            self._alone = message
            if begun < self._max_crashes:
                self._lanes.put([message])
                return
            times = "once" if begun == 1 else f"{begun} times"
            self.on_crashed([message], Crashed(f"ended the process that handled it {times}"))

        if self._begun is None:
            channel.ask(("HGET", self._member.crashes, _field(message)), count)
        else:
            tell()

    def _clear(self, channel: Channel, message: Message) -> None:
        channel.ask(("HDEL", self._member.crashes, _field(message)), _ignore)


class StrictLine(Line):
    """A line that a message which failed holds up until it is handled, or buried.

    The lane turns back all that it meets after a failure, or after the end of the lease. It is
    given all of that again, in the old order.
    """

    def __init__(
        self, member: Member, hand: Hand, lanes: Lanes, max_crashes: int, gate: Gate
    ) -> None:
        super().__init__(member, hand, lanes, max_crashes)
        self._gate = gate
        self._held: list[Message] = []
        self._due_at = NEVER
        self._places = 0

    @property
    def is_empty(self) -> bool:
        """Tell whether nothing stands in line, nor is handled alone."""
        return not self._held and super().is_empty

    def put(self, messages: list[Message]) -> None:
        """Give messages to the lanes, or have them wait their turn."""
        for message in messages:
            if not hasattr(message, "place"):  # else it was taken back, and comes again
                self._places += 1
                message.place = self._places
        messages = _in_order(messages)
        if self._held and not self._is_closed:
            last = max(message.place for message in self._held)
            for message in messages:
                (self._held if message.place < last else self._waiting).append(message)
        else:
            super().put(messages)

    def hold(self, messages: list[Message], seconds: float) -> None:
        """Hold messages up: those that failed for a while, those behind them for as long."""
        if self._is_closed:
            self.on_late(messages)
            return
        self._gate.is_held = True
        earlier = self._due_at if self._held else 0.0
        self._held += messages
        self.next_at = self._due_at = max(earlier, monotonic() + seconds)

    def take_back(self) -> list[Message]:
        """Return the messages that no lane has begun; they will not be handled."""
        held, self._held = self._held, []
        held += self._lanes.take_back()
        return [*_in_order(held), *super().take_back()]

    def move(self, channel: Channel) -> None:
        """Give to the lanes what can be given, over a flushed channel."""
        if self._held:
            self._held += self._lanes.take_back()
            self._held = [message for message in self._held if not message.finished]
            if monotonic() < self._due_at:
                return
            # What is missing yet turns the loop when it comes: the lease, the end of a pause, or
            # what the lane is turning back.
            self.next_at = NEVER
            waiting = sum(not message.finished for message in self._waiting)
            is_ready = self._gate.has_lease and not self.is_paused()
            if not is_ready or self._hand.unfinished > len(self._held) + waiting:
                return
            held, self._held = self._held, []
            self._gate.is_held = False
            self._lanes.put(_in_order(held))
        super().move(channel)


def _in_order(messages: list[Message]) -> list[Message]:
    return sorted(messages, key=lambda message: message.place)


def _field(message: Message) -> bytes:
    """Return what tells a message from others, in either of the streams that are read."""
    return b"%d:%s" % (message.source, message.entry_id)


def _ignore(reply: Reply) -> None:
    """Be content with whatever the reply is: what stays behind does no harm."""
