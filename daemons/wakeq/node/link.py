"""A node's own connection to Redis, for emissions and figures, which the loop never waits for.

It is opened when there is something to ask. Requests are answered in order; when the connection
is lost, what was asked is forgotten, and who asked is told.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence

from wakeq.errors import UnavailableError, WakeqError
from wakeq.loop import Loop
from wakeq.redis_url import RedisURL
from wakeq.scripts import Script
from wakeq.wire import Argument, Command, Connection, Reply, ServerError

# Nothing else is done meanwhile. If it takes so long the lease is about to be lost anyway.
_CONNECT_SECONDS = 1.0
# A server that takes longer for an answer is as good as gone.
_PATIENCE_SECONDS = 5.0

Then = Callable[[Reply], None]


class Link:
    """One connection, and what was asked over it.

    Args:
        loop: tells when there is an answer.
        url: the Redis.
        key: a key in the slot of everything that is asked for.

    Attributes:
        on_lost: called when what was asked will not be answered, with the reason.
    """

    def __init__(self, loop: Loop, url: RedisURL, key: str) -> None:
        self.url = url
        self.on_lost: Callable[[WakeqError], None]
        self._loop = loop
        self._connection = Connection(url, f"wakeq-node-{key}", key)
        self._fd = -1
        self._waiting: deque[tuple[Then, float, Command]] = deque()
        self._checking = False

    @property
    def connected(self) -> bool:
        """Tell whether the connection is open."""
        return self._connection.connected

    def ask(self, command: Command, then: Then) -> None:
        """Send a command; `then` is called with the reply, which may be a `ServerError`."""
        self._ask(command, then, ())

    def run(
        self, script: Script, names: Sequence[Argument], arguments: Sequence[Argument], then: Then
    ) -> None:
        """Run a script; `then` is called with the reply, which may be a `ServerError`."""
        self._ask(script.command(names, arguments), then, script.whole(names, arguments))

    def close(self) -> None:
        """Close the connection; what was asked stays unanswered, and nobody is told."""
        self._loop.forget(self._fd)
        self._fd = -1
        self._connection.close()
        self._waiting.clear()

    def _ask(self, command: Command, then: Then, whole: Command) -> None:
        try:
            if not self._connection.connected:
                self._connection.connect(_CONNECT_SECONDS)
                self._fd = self._connection.fileno()
                self._loop.watch(self._fd, self._read)
            self._connection.send([command])
        except WakeqError as error:
            self._lose(error)
            return
        self._waiting.append((then, time.monotonic(), whole))
        if not self._checking:
            self._check_in(_PATIENCE_SECONDS)

    def _read(self) -> None:
        try:
            replies = self._connection.receive()
            while self._connection.has_buffered():
                replies += self._connection.receive()
        except WakeqError as error:
            # A server may close what is idle (its setting `timeout`).
            if self._waiting:
                self._lose(error)
            else:
                self.close()
            return
        for reply in replies:
            if not self._waiting:
                return  # closed by who took the last one
            then, _, whole = self._waiting.popleft()
            if isinstance(reply, ServerError) and reply.code == "NOSCRIPT" and whole:
                self._ask(whole, then, ())
            else:
                then(reply)

    def _lose(self, error: WakeqError) -> None:
        self.close()
        self.on_lost(error)

    def _check_in(self, seconds: float) -> None:
        self._checking = True
        self._loop.after(seconds, self._check)

    def _check(self) -> None:
        self._checking = False
        if not self._waiting:
            return
        rest = self._waiting[0][1] + _PATIENCE_SECONDS - time.monotonic()
        if rest > 0:
            self._check_in(rest)
        else:
            self._lose(UnavailableError(f"Redis at {self.url} did not answer in time"))
