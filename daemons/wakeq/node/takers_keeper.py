"""Keeping: that a taker is known to live, and that what dead ones had in hand is put back.

Each taker stands in a set with the time until which it is believed to live, and says again and
again that it does. Whoever finds one whose time is over, or one of this machine that has ended,
puts back what that had in hand. What a taker may believe: that its messages are its own for as long
as it was heard within that time. After that no handler is begun, until Redis has said that nobody
has taken them away. If somebody has, it forgets them, and goes on under another name.
"""

import time
from collections.abc import Callable
from typing import Any

from wakeq import failpoint, keys
from wakeq.consumer import process
from wakeq.consumer.channel import Channel
from wakeq.consumer.handler import Handler
from wakeq.errors import Held
from wakeq.scripts import Script
from wakeq.wire import Argument, Connection, Reply, ServerError

LIFETIME_SECONDS = 30.0
GONE = "GONE"  # what take.lua says to who was taken for dead
# What a dead taker has asked for has come to it by then: a client waits no longer than 10 s, and a
# connection that delivers nothing is given up after 15.
_WAIT_MS = 60_000
_SUSPECT_MS = 24 * 3600 * 1000


def clock() -> float:
    """Return the time in seconds, which goes on while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Keeper:
    """Keeps a taker among those that are known to live.

    Args:
        source: the list.
        lifetime: for how long a taker counts as living each time, in seconds.

    Attributes:
        until: when this taker may have been taken for dead, by `clock`.
        next_at: when it must be heard again, by `clock`.
        on_put_back: called with how many messages of a dead taker were put back.
    """

    def __init__(self, source: str, lifetime: float = LIFETIME_SECONDS) -> None:
        self.until = 0.0
        self.next_at = 0.0
        self.on_put_back: Callable[[int], None]
        self._source = source
        self._lifetime = lifetime
        self._process = process.describe_self()
        self._name = 0
        self._keep = Script("keep_taker")
        self._return = Script("return_taken")
        self._ahead_seconds = 0.0  # of the clock of Redis, before `clock`
        self._is_set_back = False
        self.rename()

    def rename(self) -> None:
        """Take another name, because the one before was taken for dead."""
        self._name += 1
        self.taker = f"{self._process}/{self._name}"
        self.taken = keys.taken(self._source, self.taker)
        self.taking = keys.taking(self._source, self.taker)

    @property
    def others(self) -> list[Argument]:
        """The keys that takers share, as take.lua wants them."""
        return [keys.takers(self._source), keys.suspects(self._source)]

    @property
    def now_seconds(self) -> float:
        """The time since 1970 by the clock of Redis, as far as known."""
        return clock() + self._ahead_seconds

    def join(self, connection: Connection) -> bool:
        """Join the takers, or stay one; tell whether what was in hand is still this one's.

        Puts back what takers had that are known to be dead, over a connection with nothing
        outstanding.
        """
        was_kept = clock() < self.until
        asked_at = clock()
        known, now_ms, *others = self._keep.call(connection, *self._keep_arguments(True))
        # Where there is nobody else, Redis has lost what it knew.
        is_ours = known == 1 or (known == 0 and (was_kept or not others))
        if known < 0:
            self.rename()
            asked_at = clock()
            _, now_ms, *others = self._keep.call(connection, *self._keep_arguments(True))
        self._kept(asked_at, now_ms)
        self.next_at = asked_at  # to see to those whose time is over
        failpoint.hit("after_join")
        for raw in others:
            other = raw.decode()
            if not other.startswith(keys.GIVEN_UP) and process.is_dead(other):
                count = self._return.call(connection, *self._return_arguments(other, "dead"))
                failpoint.hit("after_return")
                if count > 0:
                    self.on_put_back(count)
        return is_ours

    def tick(self, channel: Channel) -> None:
        """Be heard, and see to those that are heard no more; sends what the channel has."""
        asked_at = clock()
        # Not before the reply, but not at every turn either.
        self.next_at = asked_at + self._lifetime / 3

        def take(reply: Reply) -> None:
            if isinstance(reply, ServerError):
                raise reply
            known, now_ms, *others = reply
            if known < 0:
                raise ServerError(GONE)
            self._kept(asked_at, now_ms)
            # All of them, if the clock was set back: return_taken.lua looks at their times.
            for other in others:
                if other.decode() != self.taker:
                    self._put_back(channel, other.decode())
            channel.flush()

        channel.run(self._keep, *self._keep_arguments(self._is_set_back), take)
        channel.flush()

    def leave(self, connection: Connection) -> int:
        """Leave the takers, over a connection with nothing outstanding; return what was put back.

        Nothing may be under way to this taker.
        """
        count: int = self._return.call(connection, *self._return_arguments(self.taker, "left"))
        return count

    def guard(self, handler: Handler) -> Handler:
        """Return a handler that does not begin when the messages may be somebody else's."""

        def call(argument: Any) -> Any:
            if clock() >= self.until:
                raise Held
            return handler.call(argument)

        async def call_async(argument: Any) -> Any:
            if clock() >= self.until:
                raise Held
            return await handler.call(argument)

        chosen = call_async if handler.is_async else call
        return Handler(chosen, handler.is_async, handler.batch, handler.stop)

    def _kept(self, asked_at: float, now_ms: int) -> None:
        self.until = asked_at + self._lifetime
        self.next_at = asked_at + self._lifetime / 3
        before, self._ahead_seconds = self._ahead_seconds, now_ms / 1000 - clock()
        # Then the others live for longer than they should, see keep_taker.lua.
        self._is_set_back = self._ahead_seconds < before - self._lifetime

    def _put_back(self, channel: Channel, other: str) -> None:
        def take(reply: Reply) -> None:
            if isinstance(reply, ServerError):
                raise reply
            failpoint.hit("after_return")
            if reply > 0:
                self.on_put_back(reply)

        channel.run(self._return, *self._return_arguments(other, "late"), take)

    def _keep_arguments(self, everybody: bool) -> tuple[list[Argument], list[Argument]]:
        arguments: list[Argument] = [self.taker, keys.GIVEN_UP + self.taker]
        arguments += [int(self._lifetime * 1000), int(everybody)]
        return [keys.takers(self._source)], arguments

    def _return_arguments(self, other: str, why: str) -> tuple[list[Argument], list[Argument]]:
        taker = other.removeprefix(keys.GIVEN_UP)
        names: list[Argument] = [self._source, keys.taken(self._source, taker)]
        names += [keys.taking(self._source, taker), keys.takers(self._source)]
        names.append(keys.suspects(self._source))
        again = "" if why == "left" else keys.GIVEN_UP + taker
        return names, [other, why, again, _WAIT_MS, _SUSPECT_MS]
