"""Claiming: taking over messages of consumers that are gone."""

from collections.abc import Callable
from functools import partial
from time import monotonic

from wakeq.config import Consumer
from wakeq.consumer.channel import Channel
from wakeq.consumer.hand import Member
from wakeq.message import Message
from wakeq.scripts import Script
from wakeq.wire import Argument, Reply, ServerError

# A consumer that is gone and has nothing pending is forgotten after a day.
_FORGET_MS = 24 * 3600 * 1000
_MOST = 1000
NEVER = float("inf")
# The first look waits until the consumer's own messages are being handled.
_FIRST_LOOK_SECONDS = 0.1


class Claimer:
    """Looks for consumers that are gone, and takes what is pending for them.

    Attributes:
        busy: a look is under way.
        more: the last look left something for want of room.
        left: somebody rang and no look was made since, or the last one left something: a consumer
            that ends has to pass that on.
        next_at: when to look again.
        on_messages: called with the messages claimed, if any.
    """

    def __init__(self, member: Member, settings: Consumer) -> None:
        self.busy = False
        self.more = self.left = False
        # In strict order the owner has all that was pending, and claims nothing.
        self.next_at = NEVER if member.is_fenced else monotonic() + _FIRST_LOOK_SECONDS
        self.on_messages: Callable[[list[Message]], None]
        self._member = member
        self._interval = settings.claim_after / 2
        self._idle_ms = int(settings.claim_after * 1000)
        self._claim = Script("claim")
        self._open = 0
        self._full_room = settings.prefetch * settings.concurrency

    def restart(self) -> None:
        """Forget a look whose replies will not come."""
        self.left = self.left or self.busy
        self.busy = False
        self._open = 0
        if not self._member.is_fenced:
            self.next_at = monotonic()

    def look_now(self) -> None:
        """Look as soon as possible: somebody rang, so there may be something."""
        if not self._member.is_fenced:
            self.next_at = monotonic()
            self.left = True

    def tick(self, now: float, channel: Channel, room: int) -> None:
        """Look at both streams if it is time, and claim at most `room` messages of each."""
        due = now >= self.next_at
        if due:
            self.next_at = now + self._interval
            self.more = True  # until there is room for a look
        if self.busy or room <= 0 or not (due or (self.more and room * 2 >= self._full_room)):
            return
        self.more = self.left = False
        self.busy = True
        for source, key in enumerate(self._member.sources):
            self._open += 1
            channel.ask(
                ("XINFO", "CONSUMERS", key, self._member.group),
                partial(self._choose, channel, source, room),
            )

    def _choose(self, channel: Channel, source: int, room: int, reply: Reply) -> None:
        if isinstance(reply, ServerError):
            raise reply
        own = self._member.consumer.encode()
        others = []
        for consumer in reply:
            fields = dict(zip(consumer[::2], consumer[1::2], strict=True))
            name = fields[b"name"]
            may_have_gone = fields[b"pending"] > 0 or fields[b"idle"] > _FORGET_MS
            if name != own and may_have_gone:
                others.append(name)
        if not others:
            self._done()
            return
        most = max(1, min(room, _MOST))
        member = self._member
        keys: list[Argument] = [member.sources[source], *map(member.alive_of, others)]
        arguments: list[Argument] = [member.group, member.consumer, self._idle_ms, most]
        arguments += [_FORGET_MS, *others]
        channel.run(self._claim, keys, arguments, lambda reply: self._take(source, most, reply))
        channel.flush()

    def _take(self, source: int, most: int, reply: Reply) -> None:
        if isinstance(reply, ServerError):
            raise reply
        stream = self._member.stream
        messages = []
        for entry_id, items, deliveries in reply:
            message = Message(stream, source, entry_id, items)
            message.deliveries = deliveries
            messages.append(message)
        if len(messages) >= most:
            self.more = self.left = True
        self._done()
        if messages:
            self.on_messages(messages)

    def _done(self) -> None:
        self._open -= 1
        self.busy = self._open > 0
