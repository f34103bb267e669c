"""Reading: which messages to ask Redis for, and how many.

After each connect the consumer's own pending messages come first, if there are any: those of a
process that was killed, and those of a reply that was lost. Only then are new ones read. After a
loss they come once more when the last read of the old connection must have ended: Redis may have
taken that for alive, and have answered it.
"""

from collections.abc import Callable, Collection
from functools import partial
from time import monotonic

from wakeq import failpoint
from wakeq.config import Consumer
from wakeq.consumer.channel import Channel
from wakeq.consumer.hand import RETRY, STREAM, Hand, Member, parse_id
from wakeq.message import HANDED_BACK, Message
from wakeq.scripts import Script
from wakeq.wire import Argument, Reply, ServerError

NEVER = float("inf")
# Bytes in hand that are enough, however small `prefetch` would let the number of messages be.
_ENOUGH_BYTES = 8 * 1024 * 1024
# Work for longer than this in hand is too much: another consumer could have it.
_ENOUGH_SECONDS = 0.1
# While the stream is paused, this often somebody looks whether it still is.
_PAUSED_SECONDS = 1.0
# After the time that a read blocks, it has ended after this.
_GHOST_SECONDS = 1.0
# More than anybody can have in hand (prefetch and concurrency at their highest).
_MOST_PENDING = 10_000_000


class Pace:
    """Decides how many messages to have in hand.

    Few at first, four times as many whenever all were handled before more were asked for, half
    as many when they last too long; never more than `prefetch` for each lane. So a fast
    handler gets long runs, and a slow one does not keep messages from other consumers. Half of
    them are asked for at a time, but no lane stays without while there is room.
    """

    def __init__(self, settings: Consumer) -> None:
        self._lanes = settings.concurrency
        self.most = settings.prefetch * settings.concurrency
        self.least = min(self.most, 2 * settings.concurrency)
        self.target = self.least
        self._message_bytes = 0.0
        self._asked_at = 0.0

    def room(self, unfinished: int) -> int:
        """Return how many to ask for now; 0: not now."""
        target = self.target
        if self._message_bytes:
            target = max(1, min(target, int(_ENOUGH_BYTES / self._message_bytes)))
        room = target - unfinished
        return room if room > 0 and (room * 2 >= target or unfinished < self._lanes) else 0

    def asked(self, now: float, unfinished: int, full: bool) -> None:
        """Learn that more are asked for; `full`: the last time brought all that it could."""
        if full and unfinished * 4 <= self.target:
            self.target = min(self.most, self.target * 4)
        elif unfinished and now - self._asked_at > _ENOUGH_SECONDS:
            self.target = max(self.least, self.target // 2)
        self._asked_at = now

    def learn_size(self, messages: int, size: int) -> None:
        """Learn how many bytes some messages had."""
        mean = size / messages
        self._message_bytes = max(mean, 0.75 * self._message_bytes + 0.25 * mean)


class Reader:
    """Asks for messages and makes them of what comes.

    Attributes:
        waiting: a read is under way.
        paused: an operator wants nothing of the stream to be handled now.
        recovering: own pending messages are still being read.
        last_read: the highest id that was read from the stream.
        on_messages: called with the messages of each reply, maybe none.
        on_deleted: called with (source, ids) of pending entries that are no more.
        on_paused: called when a read is found to be under way that must end.
        on_bell: called with the ids of entries by which a consumer says that it handed back.
    """

    def __init__(self, member: Member, settings: Consumer, hand: Hand) -> None:
        self.pace = Pace(settings)
        self.waiting = False
        self.paused = False
        self._look_at = 0.0
        self.recovering = True
        self.last_read = b""
        self.on_messages: Callable[[list[Message]], None]
        self.on_deleted: Callable[[int, list[bytes]], None]
        self.on_bell: Callable[[list[bytes]], None]
        self.on_paused: Callable[[], None]
        self._member = member
        self._hand = hand
        self._is_first = True
        self._was_up = False
        self._ghost_at = NEVER
        self._longest_block = 0.0
        self._held: tuple[Collection[bytes], ...] = ((), ())
        self._cursors = [b"0", b"0"]
        self._full = False
        self._asked = 0
        self._blocks_until = 0.0
        self._bytes_before = 0
        if member.is_fenced:
            self._read = Script("read", fenced=True)
        self._head = ("XREADGROUP", "GROUP", member.group, member.consumer, "COUNT")

    def restart(self, has_pending: bool = True) -> None:
        """Begin with the own pending messages, over a new connection."""
        self.waiting = False
        # An owner may have taken over what others had by the time that it reads.
        self.recovering = has_pending or self._member.is_fenced
        self._is_first = True
        if self._was_up and not self._member.is_fenced:  # whose reads do not block
            self._ghost_at = monotonic() + self._longest_block + _GHOST_SECONDS
        self._was_up = True
        self._cursors = [b"0", b"0"]
        self._bytes_before = 0

    def ask(self, channel: Channel, now: float, count: int, block_ms: int) -> None:
        """Ask for up to `count` messages; wait up to `block_ms` for one, or not at all if 0."""
        failpoint.hit("before_read")
        self.pace.asked(now, self._hand.unfinished, self._full)
        self._asked = count
        self.waiting = True
        if now >= self._ghost_at and not self.recovering:
            self._ghost_at = NEVER
            self.recovering = True
            self._cursors = [b"0", b"0"]
        if self.recovering:
            where: tuple[str | bytes, ...] = tuple(self._cursors)
            block_ms = 0
            # What is acknowledged over the other connection may be answered before this.
            self._held = tuple(frozenset(held) for held in self._hand.messages)
        else:
            where = (">", ">")
            if self._is_first:
                block_ms = 0  # its reply says that messages can be read
            elif self._ghost_at < NEVER:
                block_ms = min(block_ms, max(1, int((self._ghost_at - now) * 1000)))
            self._longest_block = max(self._longest_block, block_ms / 1000)
        self._is_first = False
        block = ("BLOCK", block_ms) if block_ms else ()
        self._look(channel)
        if self._member.is_fenced:
            self._ask_fenced(channel, count, where, block_ms)
            return
        command = (*self._head, count, *block, "STREAMS", *self._member.sources, *where)
        take = partial(self._take, channel, blocked=block_ms > 0)
        self._blocks_until = now + block_ms / 1000
        channel.ask(command, take, block_ms / 1000)

    def _ask_fenced(
        self, channel: Channel, count: int, where: tuple[str | bytes, ...], block_ms: int
    ) -> None:
        """Ask as the owner of the group: only a script is fenced, and a script cannot wait."""
        member = self._member
        fence_keys, token = member.fence

        def take(reply: Reply) -> None:
            # Two ids, up to where both streams were delivered: there is nothing after them yet.
            is_empty = isinstance(reply, list) and isinstance(reply[0], bytes)
            if not is_empty:
                self._take(channel, reply)
            elif not block_ms or self.paused:
                self._take(channel, None)
            else:
                self.on_messages([])
                command = ("XREAD", "COUNT", 1, "BLOCK", block_ms, "STREAMS")
                channel.ask((*command, *member.sources, *reply), come, block_ms / 1000)
                channel.flush()

        def come(reply: Reply) -> None:
            self.waiting = False
            if isinstance(reply, ServerError):
                raise reply
            if reply is None:
                self._look_first(channel)

        arguments: list[Argument] = [member.group, member.consumer, count, *where, *token]
        channel.run(self._read, [*member.sources, *fence_keys], arguments, take)

    @property
    def room_for_claims(self) -> int:
        """How many messages may be taken over from others now."""
        return 0 if self.paused else self.pace.most - self._hand.unfinished

    @property
    def next_at(self) -> float:
        """When to look again whether the stream is still paused."""
        return self._look_at if self.paused else NEVER

    def position(self, undone: Collection[Message] = ()) -> bytes:
        """Return up to where the stream was handled, empty if not known.

        Args:
            undone: what does not count as handled, although its handler is done.
        """
        return self._hand.position(self.last_read, undone) if self.last_read else b""

    def look_again(self, now: float, channel: Channel) -> None:
        """Look whether the stream is still paused."""
        self._look_at = now + _PAUSED_SECONDS
        self._look(channel)
        channel.flush()

    def _look(self, channel: Channel) -> None:
        """Ask whether the stream is paused."""

        def note(reply: Reply) -> None:
            if isinstance(reply, ServerError):
                raise reply
            self.paused = bool(reply)
            if self.paused and self.waiting:
                self.on_paused()

        channel.ask(("EXISTS", self._member.paused), note)

    def _look_first(self, channel: Channel) -> None:
        """Look whether the stream is paused before anything else is asked.

        A read that blocked came back with nothing too early: it may have been ended for a pause.
        """

        def note(reply: Reply) -> None:
            self.waiting = False
            if isinstance(reply, ServerError):
                raise reply
            self.paused = bool(reply)

        self.waiting = True
        channel.ask(("EXISTS", self._member.paused), note)
        channel.flush()

    def _take(self, channel: Channel, reply: Reply, blocked: bool = False) -> None:
        self.waiting = False
        if isinstance(reply, ServerError):
            raise reply
        failpoint.hit("after_read")
        messages: list[Message] = []
        entries_read = 0
        for key, entries in reply or ():
            source = STREAM if key == self._member.sources[STREAM].encode() else RETRY
            if entries:
                entries_read = max(entries_read, len(entries))
                self._read_entries(source, entries, messages)
        if self.recovering and not entries_read:
            self.recovering = False
        self._full = entries_read >= self._asked
        if messages:
            size = channel.connection.bytes_read - self._bytes_before
            self.pace.learn_size(len(messages), size)
        self._bytes_before = channel.connection.bytes_read
        if self.recovering:
            # Now: what is in hand may be acknowledged, and no longer be there, by the time that
            # the look is answered.
            held, before = self._hand.messages, self._held
            messages = [
                m for m in messages
                if m.entry_id not in held[m.source] and m.entry_id not in before[m.source]
            ]  # fmt: skip
        if messages and self.recovering:
            self._look_up_deliveries(channel, messages)
        else:
            if blocked and not entries_read and monotonic() < self._blocks_until:
                self._look_first(channel)
            self.on_messages(messages)

    def _look_up_deliveries(self, channel: Channel, messages: list[Message]) -> None:
        """Ask how often the consumer's own pending messages were delivered; then pass them on."""

        def note(some: list[Message], is_last: bool, reply: Reply) -> None:
            if isinstance(reply, ServerError):
                raise reply
            deliveries = {entry_id: count for entry_id, _, _, count in reply}
            for message in some:
                message.deliveries = deliveries.get(message.entry_id, 1)
            if is_last:
                self.waiting = False
                self.on_messages(messages)

        self.waiting = True
        parts = [[m for m in messages if m.source == source] for source in (STREAM, RETRY)]
        parts = [part for part in parts if part]
        for part in parts:
            key = self._member.sources[part[0].source]
            ends = (part[0].entry_id, part[-1].entry_id)
            channel.ask(
                ("XPENDING", key, self._member.group, *ends, _MOST_PENDING, self._member.consumer),
                partial(note, part, part is parts[-1]),
            )
        channel.flush()

    def _read_entries(self, source: int, entries: Reply, messages: list[Message]) -> None:
        stream = self._member.stream
        deleted = []
        bells = []
        for entry_id, items in entries:
            if items is None:
                deleted.append(entry_id)
            elif source != STREAM and items and items[0] == HANDED_BACK:
                bells.append(entry_id)
            else:
                messages.append(Message(stream, source, entry_id, items))
        if self.recovering:
            self._cursors[source] = entries[-1][0]
        if source == STREAM and (
            not self.last_read or parse_id(entries[-1][0]) > parse_id(self.last_read)
        ):
            self.last_read = entries[-1][0]
        if deleted:
            self.on_deleted(source, deleted)
        if bells:
            self.on_bell(bells)
