"""Connections to Redis for short questions, answered while the loop goes on.

A question is a command and what to call with its reply. There is one line to a server: one in
all, or on Redis Cluster one for each node that owns something. Questions on a line are
answered in order.
"""

import time
from collections import deque
from collections.abc import Callable

from wakeq.errors import UnavailableError
from wakeq.loop import Loop
from wakeq.redis_url import RedisURL
from wakeq.wire import Command, Connection, Lost, Reply, ServerError, explain

# A server that does not answer a short question for so long is as good as gone.
_PATIENCE_SECONDS = 15.0
# Nothing else goes on while it is connected to; see Loop for the watchdog.
_PING_SECONDS = 4.0
NAME = "wakeq-wakeup"

Then = Callable[[Reply], None]


class Line:
    """One connection for questions."""

    def __init__(self, loop: Loop, connection: Connection) -> None:
        self._loop = loop
        self._connection = connection
        self._waiting: deque[tuple[Then, float]] = deque()
        self._fd = -1
        self._checking = False

    def open(self) -> None:
        """Connect, and make sure that the server answers.

        Raises:
            WakeqError: it cannot be reached, or it cannot answer now.
        """
        self._connection.connect()
        try:
            # LOADING and BUSY show here.
            self._connection.call("PING", timeout=_PING_SECONDS)
        except ServerError as error:
            self._connection.close()
            raise explain(error, self._connection.url) from None
        self._fd = self._connection.fileno()
        self._loop.watch(self._fd, self._read)

    def close(self) -> None:
        """Close; what was asked stays unanswered."""
        self._loop.forget(self._fd)
        self._fd = -1  # the number may be another file's by the next time
        self._connection.close()
        self._waiting.clear()

    def ask(self, command: Command, then: Then) -> None:
        """Send a command; `then` is called with its reply, which may be a `ServerError`.

        Raises:
            WakeqError: the server cannot be reached.
        """
        if not self._connection.connected:
            self.open()
        self._waiting.append((then, time.monotonic()))
        self._connection.send([command])
        if not self._checking:
            self._checking = True
            self._loop.after(_PATIENCE_SECONDS, self._check)

    def call(self, *command: str) -> Reply:
        """Send a command while nothing else is asked, and wait for the reply."""
        return self._connection.call(*command, timeout=_PING_SECONDS)

    def _read(self) -> None:
        try:
            replies = self._connection.receive()
        except Lost:
            if self._waiting:
                raise
            # The server may close what is idle (its setting `timeout`); the next question
            # connects again, and finds out whether there is more to it.
            self.close()
            return
        for reply in replies:
            then, _ = self._waiting.popleft()
            then(reply)
        while self._connection.has_buffered():
            self._read()

    def _check(self) -> None:
        self._checking = False
        if not self._waiting:
            return
        rest = self._waiting[0][1] + _PATIENCE_SECONDS - time.monotonic()
        if rest <= 0:
            raise UnavailableError(f"Redis at {self._connection.url} did not answer in time")
        self._checking = True
        self._loop.after(rest, self._check)


class Lines:
    """All lines, and how to get a connection at all.

    Attributes:
        url: the server, or those that know it.
    """

    def __init__(self, loop: Loop, url: RedisURL) -> None:
        self.url = url
        self._loop = loop
        self._of_key: dict[bytes, Line] = {}
        self._of_node: dict[bytes, Line] = {}

    @property
    def cluster(self) -> bool:
        """Whether keys of different slots need different connections."""
        return self.url.scheme == "redis+cluster"

    def connection(self, key: bytes) -> Connection:
        """Return a new connection, not yet open, to the server that owns a key."""
        return Connection(self.url, NAME, key if self.cluster else b"")

    def to(self, key: bytes) -> Line:
        """Return the line to the server that owns a key.

        Raises:
            WakeqError: it cannot be reached.
        """
        key = key if self.cluster else b""
        line = self._of_key.get(key)
        if line is None:
            line = Line(self._loop, self.connection(key))
            line.open()
            if self.cluster:
                node = self._node(line)
                if node in self._of_node:
                    line.close()
                line = self._of_node.setdefault(node, line)
            self._of_key[key] = line
        return line

    def _node(self, line: Line) -> bytes:
        try:
            node: bytes = line.call("CLUSTER", "MYID")
        except ServerError as error:
            line.close()
            raise explain(error, self.url) from None
        except Lost:
            line.close()
            raise
        return node

    def close(self) -> None:
        """Close all lines."""
        for line in {*self._of_key.values(), *self._of_node.values()}:
            line.close()
        self._of_key.clear()
        self._of_node.clear()
