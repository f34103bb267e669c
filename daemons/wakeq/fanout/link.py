"""The connections of wakeq-fanout to Redis, in its loop: what is asked, and what replies bring.

There is one to each server that is needed. Requests of a turn go out together, and are answered in
order. A connection that breaks fails what was asked over it; the next request connects anew.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any

import redis.crc

from wakeq.backoff import Backoff
from wakeq.errors import UnavailableError, WakeqError
from wakeq.fanout.calling import Steps, call
from wakeq.fanout.rooms import Request
from wakeq.fanout.trouble import BELL, Trouble
from wakeq.loop import Loop
from wakeq.redis_url import RedisURL
from wakeq.wire import Command, Connection, Lost, ServerError

NAME = "wakeq-fanout"
# Nothing else goes on while it is connected to; see Loop for the watchdog.
_CONNECT_SECONDS = 4.0
# A server that does not answer for so long is as good as gone.
_PATIENCE_SECONDS = 15.0

Then = Callable[[Any], None]
Done = Callable[[Any, Exception | None], None]


class _Line:
    """One connection, and what was asked over it."""

    def __init__(self, connection: Connection, key: str) -> None:
        self.connection = connection
        self.key = key  # one of those that are there
        self.fd = connection.fileno()
        self.waiting: deque[Then] = deque()
        self.outgoing: list[Command] = []
        self.asked_at = time.monotonic()


class Link:
    """Speaks to Redis.

    Attributes:
        url: the server, or those that know it.
        trouble: is told when a connection was lost, or cannot be made, and when it was.
    """

    def __init__(self, loop: Loop, url: RedisURL, trouble: Trouble) -> None:
        self.url = url
        self.cluster = url.scheme == "redis+cluster"
        self.trouble = trouble
        self._loop = loop
        self._lines: dict[str, _Line] = {}  # by the address that Redis names; of the first, none
        self._owners: dict[int, str] = {}  # of slots
        self._down: dict[str, tuple[float, WakeqError]] = {}
        self._lost: dict[str, str] = {}  # what has failed, by label, with a key there
        self._backoff = Backoff(0.1, 2.0)

    def start(self) -> None:
        """Look from now on whether Redis answers; `send` is called at the end of each turn."""
        self._check()

    # -- asking ------------------------------------------------------------------------------

    def ask(self, request: Request, then: Then) -> None:
        """Send a request; `then` is called with the reply, or with the error in its place."""
        try:
            line = self._line(request.key)
        except WakeqError as error:
            then(error)
            return
        if not line.waiting:
            line.asked_at = time.monotonic()
        line.waiting.append(then)
        line.outgoing.append(request.command)

    def send(self) -> None:
        """Send what was asked."""
        for label, line in [each for each in self._lines.items() if each[1].outgoing]:
            outgoing, line.outgoing = line.outgoing, []
            try:
                line.connection.send(outgoing)
            except WakeqError as error:
                self._fail(label, line, error)

    def believe(self) -> None:
        """Try all servers again at once: Redis answers."""
        self._down.clear()
        self._try_lost()

    def redirected(self, error: Exception) -> bool:
        """Learn from a MOVED, and tell whether this was one; the request was not carried out."""
        if not (self.cluster and isinstance(error, ServerError) and error.code == "MOVED"):
            return False
        _, slot, address = str(error).split(" ")[:3]
        self._owners[int(slot)] = address
        return True

    def carry_out(self, request: Request, done: Done) -> None:
        """Carry out a request that may be repeated, as `run` does with `call`, and quicker."""

        def take(reply: Any) -> None:
            if isinstance(reply, Exception):
                steps = call(self, request)
                next(steps)
                self._go_on(steps, reply, done)
            else:
                done(reply, None)

        self.ask(request, take)

    def run(self, steps: Steps, done: Done) -> None:
        """Do what a generator yields; `done` is called with its result, or the error it raised.

        What is wrong with its arguments shows at its first step: a TypeError or ValueError.
        """
        try:
            step = next(steps)
        except StopIteration as stop:
            done(stop.value, None)
        except (WakeqError, TypeError, ValueError) as error:
            done(None, error)
        else:
            self._do(steps, step, done)

    def _go_on(self, steps: Generator[Any, Any, Any], outcome: Any, done: Done) -> None:
        try:
            step = steps.send(outcome)
        except StopIteration as stop:
            done(stop.value, None)
        except WakeqError as error:
            done(None, error)
        else:
            self._do(steps, step, done)

    def _do(self, steps: Steps, step: Any, done: Done) -> None:
        if isinstance(step, Request):
            self.ask(step, lambda reply: self._go_on(steps, reply, done))
        elif isinstance(step, float):
            self._loop.after(step, lambda: self._go_on(steps, None, done))
        else:
            self._ask_all(step, lambda replies: self._go_on(steps, replies, done))

    def _ask_all(self, requests: Sequence[Request], then: Then) -> None:
        replies: list[Any] = [None] * len(requests)
        left = len(requests)

        def take(index: int, reply: Any) -> None:
            nonlocal left
            replies[index], left = reply, left - 1
            if not left:
                then(replies)

        for index, request in enumerate(requests):
            self.ask(request, partial(take, index))

    # -- connections -------------------------------------------------------------------------

    def _line(self, key: str) -> _Line:
        label = self._owners.get(redis.crc.key_slot(key.encode()), "") if self.cluster else ""
        line = self._lines.get(label)
        return line if line is not None else self._open(label, key)

    def _open(self, label: str, key: str) -> _Line:
        until, error = self._down.get(label, (0.0, None))
        if error is not None and time.monotonic() < until:
            raise error.with_traceback(None)
        # On Cluster the key finds its server, whatever its address is now.
        connection = Connection(self.url, NAME, key if self.cluster else "")
        try:
            connection.connect(_CONNECT_SECONDS)
        except WakeqError as error:
            self._down[label] = time.monotonic() + self._backoff.next(), error
            self._lose(label, key, error)
            raise
        self._down.pop(label, None)
        self._backoff.reset()
        if self._lost.pop(label, None) is not None:
            self.trouble.end(_source(label))
        line = self._lines[label] = _Line(connection, key)
        self._loop.watch(line.fd, lambda: self._read(label, line))
        return line

    def _read(self, label: str, line: _Line) -> None:
        more = True
        while more:
            try:
                replies = line.connection.receive()
            except WakeqError as error:
                self._fail(label, line, error)
                return
            line.asked_at = time.monotonic()
            for reply in replies:
                line.waiting.popleft()(reply)
            more = line.connection.has_buffered()

    def _fail(self, label: str, line: _Line, error: WakeqError) -> None:
        """Give a connection up; what was asked over it may have been carried out, or not."""
        # The server may close what is idle (its setting `timeout`); that is no trouble.
        if line.waiting:
            self._lose(label, line.key, error)
        self._give_up(label, line, error)

    def _give_up(self, label: str, line: _Line, error: WakeqError) -> None:
        self._loop.forget(line.fd)
        line.connection.close()
        del self._lines[label]
        for then in line.waiting:
            then(error)

    def _lose(self, label: str, key: str, error: WakeqError) -> None:
        self._lost[label] = key
        self.trouble.begin(_source(label), error)

    def _try_lost(self) -> None:
        """Connect again where that was lost; else nobody would, until somebody asks there."""
        # Only to one, as nothing else goes on meanwhile.
        for label, key in list(self._lost.items())[:1]:
            del self._lost[label]
            self._lost[label] = key  # the next time, another one
            with contextlib.suppress(WakeqError):
                self._open(label, key)

    def _check(self) -> None:
        self._loop.after(_PATIENCE_SECONDS / 3, self._check)
        if BELL not in self.trouble:  # else it tries, and says when to believe
            self._try_lost()
        now = time.monotonic()
        for label, line in list(self._lines.items()):
            if line.waiting and now - line.asked_at > _PATIENCE_SECONDS:
                text = f"Redis at {self.url} did not answer in time"
                self._fail(label, line, Lost(text))

    def close(self) -> None:
        """Close all connections; what was asked fails."""
        for label, line in list(self._lines.items()):
            self._give_up(label, line, UnavailableError("wakeq-fanout is stopping"))


def _source(label: str) -> str:
    return f"connection {label}"
