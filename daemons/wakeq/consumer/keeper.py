"""Keeping: a consumer's name, and the messages that it holds under it.

The name is the host's and the instance's, so that a consumer that starts again finds the
messages that it had. One process at a time has it: the `alive` key names that process, for
`LIFETIME_SECONDS` after it was last kept. Nobody takes messages from a consumer that is alive.
What a process may believe: that the name is its own for as long as it has kept it within that
time. After a longer pause (a stopped process, a suspended machine) it first asks again, and
gives up what is no longer its own.
"""

from collections.abc import Callable, Sequence
from time import CLOCK_BOOTTIME, clock_gettime, monotonic

from wakeq.consumer import process
from wakeq.consumer.channel import Channel
from wakeq.consumer.hand import Hand, Member
from wakeq.errors import BusyError
from wakeq.message import Message
from wakeq.scripts import Script
from wakeq.wire import Argument, Command, Connection, Reply, ServerError

LIFETIME_SECONDS = 30.0
_BATCH = 500
# Longer than any claim_after, so that what is handed back can be claimed at once.
_HANDED_BACK_MS = 2**31 - 1


class Keeper:
    """Holds on to the name and the messages of a consumer, and lets go of them.

    Attributes:
        lifetime: for how long the name is kept each time, in seconds.
        process: what describes this process.
        on_gone: called with messages that are no longer this consumer's.
    """

    def __init__(
        self, member: Member, hand: Hand, claim_after: float, lifetime: float = LIFETIME_SECONDS
    ) -> None:
        self.on_gone: Callable[[list[Message]], None]
        self._touch_seconds = claim_after / 3
        self.lifetime = lifetime
        self._keep_at = monotonic() + lifetime / 3
        self._kept_until = float("inf")  # by a clock that goes on while the machine is suspended
        self._has_joined = False
        self._touch_at = monotonic() + self._touch_seconds
        self._member = member
        self._hand = hand
        self.process = process.describe_self()
        self._join = Script("join")
        self._leave = Script("leave")
        self._set_idle = Script("set_idle")

    def join(
        self, connection: Connection, then: Sequence[Command] = ()
    ) -> tuple[list[Reply], bool]:
        """Take the name, over a connection with nothing outstanding.

        Args:
            connection: to Redis.
            then: goes in the same send, and is carried out even if the name is not free.

        Returns the replies to `then`, and whether the name was free at once.

        Raises:
            BusyError: another process has it.
        """
        names = [self._member.alive]
        asked_at = _now()
        join = self._join.whole(names, self._join_arguments(""))
        reply, *replies = connection.call_many([join, *then])
        if isinstance(reply, ServerError):
            raise reply
        was_free = not reply
        while holder := reply.decode():
            if not process.is_gone(holder):
                raise self._busy(holder)
            reply = self._join.call(connection, names, self._join_arguments(holder))
        if self._has_joined:
            self._kept_until = 0.0  # who knows what became of the name meanwhile
        self._has_joined = True
        self._note_kept(asked_at)
        return replies, was_free

    @property
    def is_sure(self) -> bool:
        """Tell whether the name was kept all the time, so that nobody has claimed from it.

        Time is left for what is sent now to reach Redis. Once it was late, the link was lost, or
        another consumer was seen to claim, what this process has in hand may be another's: it is
        never sure again.
        """
        return _now() < self._kept_until - self.lifetime / 2

    @property
    def next_at(self) -> float:
        """When the name or the messages must be kept again."""
        return min(self._keep_at, self._touch_at)

    def tick(self, now: float, channel: Channel) -> None:
        """Keep the name and the messages in hand, if it is time, over a flushed channel."""
        if now >= self._keep_at:
            self._keep_at = now + self.lifetime / 3
            self.keep(channel)
        if now >= self._touch_at:
            self._touch_at = now + self._touch_seconds
            self.keep_messages(channel, self._hand.being_handled())

    def keep(self, channel: Channel) -> None:
        """Keep the name for another lifetime."""
        asked_at = _now()

        def check(reply: Reply) -> None:
            if isinstance(reply, ServerError):
                raise reply
            if reply:
                raise self._busy(reply.decode())

        def look(reply: Reply) -> None:
            if isinstance(reply, ServerError) or reply is None or reply.decode() != self.process:
                self._kept_until = 0.0
                channel.run(self._join, [self._member.alive], self._join_arguments(""), check)
                channel.flush()
            else:
                self._note_kept(asked_at)

        # One command as long as all is well, which it is for as long as a consumer sleeps.
        command = ("GETEX", self._member.alive, "PX", int(self.lifetime * 1000))
        channel.ask(command, look)

    def keep_messages(self, channel: Channel, messages: list[Message]) -> None:
        """Have messages in hand count as pending since now, for no other consumer to claim."""
        self._set_idle_of(channel, messages, 0)

    def hand_back(
        self, channel: Channel, messages: list[Message], begun: Sequence[Message] = ()
    ) -> None:
        """Let other consumers claim messages at once that this one will not handle.

        Args:
            channel: where to say so; flushed by the caller.
            messages: what no lane has begun: it counts as never delivered to this consumer.
            begun: what a lane was at: it may be what holds consumers up.
        """
        counts: dict[int, list[Message]] = {}
        for message in messages:
            # Not what Redis counts now: each lost connection has added to that.
            counts.setdefault(max(0, message.deliveries - 1), []).append(message)
        for count, some in counts.items():
            self._set_idle_of(channel, some, _HANDED_BACK_MS, count)
        self._set_idle_of(channel, begun, _HANDED_BACK_MS)
        for given_up in (messages, begun):
            self._hand.drop(given_up)

    def leave(self, connection: Connection, handed_back: bool, token: bytes = b"") -> None:
        """Give the name up, over a connection with nothing outstanding.

        Args:
            connection: to Redis.
            handed_back: let others know that there is something to claim.
            token: the fencing token, if this consumer owns the group.
        """
        ring = self._member.consumer if handed_back else ""
        member = self._member
        keys: list[Argument] = [member.alive, member.sources[1], member.owner, member.turn]
        self._leave.call(connection, keys, [self.process, ring, token])

    def _note_kept(self, asked_at: float) -> None:
        if asked_at < self._kept_until:
            self._kept_until = asked_at + self.lifetime

    def _join_arguments(self, dead: str) -> list[Argument]:
        return [self.process, dead, int(self.lifetime * 1000)]

    def _busy(self, holder: str) -> BusyError:
        return BusyError(
            f"consumer {self._member.consumer} of group {self._member.group} runs already,"
            f" as process {process.pid_of(holder)}: stop it first, or start another instance"
            f" (NAME:2)"
        )

    def _set_idle_of(
        self, channel: Channel, messages: Sequence[Message], idle_ms: int, count: int | str = ""
    ) -> None:
        for source in (0, 1):
            some = [message for message in messages if message.source == source]
            for start in range(0, len(some), _BATCH):
                batch = some[start : start + _BATCH]
                self._set_idle_batch(channel, source, batch, idle_ms, count)

    def _set_idle_batch(
        self, channel: Channel, source: int, batch: list[Message], idle_ms: int, count: int | str
    ) -> None:
        def check(reply: Reply) -> None:
            if isinstance(reply, ServerError):
                raise reply
            gone = set(reply)
            # What was acknowledged in the meantime is gone too, but no longer in hand.
            lost = [m for m in batch if m.entry_id in gone and self._hand.holds(m)]
            if lost:
                self._kept_until = 0.0
            self.on_gone(lost)

        arguments: list[Argument] = [self._member.group, self._member.consumer, idle_ms, count]
        arguments += [message.entry_id for message in batch]
        channel.run(self._set_idle, [self._member.sources[source]], arguments, check)


def _now() -> float:
    return clock_gettime(CLOCK_BOOTTIME)
