"""What a consumer has in hand: messages that were read and are not yet acknowledged."""

from collections.abc import Collection, Iterable

from wakeq import keys
from wakeq.message import Message
from wakeq.wire import Argument

# Where messages come from: the stream itself, and the stream of the group's own.
STREAM, RETRY = 0, 1


class Member:
    """Who reads what for whom: the names and keys that every request of a consumer needs.

    Attributes:
        is_fenced: whether only the owner of the group may move its messages (strict order).
        fence: what a fenced script takes beside its own keys, and beside its own arguments.
    """

    def __init__(self, stream: str, group: str, consumer: str, is_fenced: bool = False) -> None:
        self.stream = stream
        self.group = group
        self.consumer = consumer
        self.sources = (stream, keys.retry(stream, group))
        self.stats = keys.stats(stream, group)
        # Where a message goes that failed.
        self.failed = (
            keys.delayed(stream),
            keys.delayed_data(stream),
            keys.dead(stream, group),
        )
        self.owner = keys.owner(stream, group)
        self.turn = keys.turn(stream, group)
        self.is_fenced = is_fenced
        self.fence: tuple[list[Argument], list[Argument]] = ([], [])
        self.crashes = keys.crashes(stream, group)
        self.paused = keys.paused(stream)
        self.alive = keys.alive(stream, group, consumer)
        self._alive_before_name = keys.alive(stream, group, "").encode()

    def alive_of(self, consumer: bytes) -> bytes:
        """Return the key that another consumer of the group lives by; its name may be any bytes."""
        return self._alive_before_name + consumer


class Hand:
    """The messages in hand, and how many of them are still to be handled.

    A message is unfinished from the time it is read until its handler is done, and in hand
    until Redis has confirmed the acknowledgement, because a read of the consumer's own pending
    messages returns it until then.
    """

    def __init__(self) -> None:
        self.messages: tuple[dict[bytes, Message], dict[bytes, Message]] = ({}, {})
        self.unfinished = 0

    def take(self, messages: list[Message]) -> list[Message]:
        """Take messages that were read, and return those that were not in hand before."""
        new = []
        for message in messages:
            held = self.messages[message.source]
            if message.entry_id not in held:
                held[message.entry_id] = message
                new.append(message)
        self.unfinished += len(new)
        return new

    def finish(self, messages: list[Message]) -> None:
        """Count messages as no longer to be handled, each once."""
        for message in messages:
            if not message.finished:
                message.finished = True
                self.unfinished -= 1

    def reopen(self, message: Message) -> None:
        """Count a message as one to be handled again."""
        if message.finished:
            message.finished = False
            self.unfinished += 1

    def drop(self, messages: Iterable[Message]) -> None:
        """Forget messages, acknowledged or given up."""
        for message in messages:
            self.messages[message.source].pop(message.entry_id, None)

    def holds(self, message: Message) -> bool:
        """Tell whether a message is still in hand."""
        return self.messages[message.source].get(message.entry_id) is message

    def being_handled(self) -> list[Message]:
        """Return the messages that are still to be handled."""
        return [m for held in self.messages for m in held.values() if not m.finished]

    def position(self, last_read: bytes, undone: Collection[Message] = ()) -> bytes:
        """Return the id up to which the stream has been handled.

        Args:
            last_read: the id up to which it has been read.
            undone: what does not count as handled, although its handler is done.
        """
        for entry_id, message in self.messages[STREAM].items():
            if not message.finished or message in undone:
                return min(before(entry_id), last_read, key=parse_id)
        return last_read


def parse_id(entry_id: bytes) -> tuple[int, int]:
    """Return an id as the two numbers that it is ordered by."""
    ms, _, seq = entry_id.partition(b"-")
    return int(ms), int(seq or 0)


def before(entry_id: bytes) -> bytes:
    """Return the id just before another one."""
    ms, seq = parse_id(entry_id)
    if seq:
        return b"%d-%d" % (ms, seq - 1)
    return b"%d-%d" % (max(ms - 1, 0), 2**64 - 1 if ms else 0)
