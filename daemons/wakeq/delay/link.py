"""The connections of wakeq-delay: one that listens to the doorbell, and one for each server asked.

They are of `wakeq.wire`, as those of wakeq-wakeup. redis-py, depending on its version, takes up a
lost subscription again by itself, and what was rung in between would go unheard.
"""

import time
from collections.abc import Callable, Sequence

from wakeq import keys
from wakeq.loop import Loop
from wakeq.redis_url import RedisURL
from wakeq.scripts import Script
from wakeq.wire import Argument, Command, Connection, Lost, Reply, ServerError, explain

_NAME = "wakeq-delay"
# Nothing asks for what a subscription brings: as good as no limit.
_PUSHED_MOST = 1 << 60
# The server may close what is idle (its setting `timeout`): a connection that breaks after such a
# pause is tried once more before it counts as lost.
_IDLE_SECONDS = 1.0

Request = tuple[Sequence[Argument], Sequence[Argument]]  # keys, arguments


class Link:
    """Speaks to Redis.

    Attributes:
        url: the server, or those that know it.
        on_ring: called with the stream that somebody rang for.
    """

    def __init__(self, loop: Loop, url: RedisURL) -> None:
        self.url = url
        self.on_ring: Callable[[bytes], None]
        self._loop = loop
        self._bell = Connection(url, _NAME)
        self._bell_fd = -1
        self._of_key: dict[str, Connection] = {}
        self._of_node: dict[bytes, Connection] = {}
        self._used: dict[Connection, float] = {}

    @property
    def cluster(self) -> bool:
        """Whether different streams may be on different servers."""
        return self.url.scheme == "redis+cluster"

    def listen(self) -> None:
        """Hear the doorbell from now on; on Cluster it rings on every server.

        Raises:
            WakeqError: no server can be reached, or it refuses.
        """
        self._bell = Connection(self.url, _NAME)
        self._bell.connect()
        try:
            self._bell.call("SUBSCRIBE", keys.DOORBELL)
        except ServerError as error:
            raise explain(error, self.url) from None
        self._bell.outstanding = _PUSHED_MOST
        self._bell_fd = self._bell.fileno()
        self._loop.watch(self._bell_fd, self._hear)

    def connection(self, key: str) -> Connection:
        """Return a connection to the server that has a key.

        Raises:
            WakeqError: it cannot be reached.
        """
        key = key if self.cluster else ""
        found = self._of_key.get(key)
        if found is None:
            found = Connection(self.url, _NAME, key)
            found.connect()
            if self.cluster:
                node = self._node(found)
                if node in self._of_node:
                    found.close()
                found = self._of_node.setdefault(node, found)
            self._of_key[key] = found
        return found

    def _node(self, connection: Connection) -> bytes:
        try:
            node: bytes = connection.call("CLUSTER", "MYID")
        except ServerError as error:
            raise explain(error, self.url) from None
        return node

    def run(
        self, connection: Connection, script: Script, requests: Sequence[Request]
    ) -> list[Reply]:
        """Run a script with each of several keys and arguments, all in one go.

        Raises:
            UnavailableError: the connection broke; any of it may have been carried out.
        """
        replies = self.call_many(connection, [script.command(*request) for request in requests])
        for index, reply in enumerate(replies):
            if isinstance(reply, ServerError) and reply.code == "NOSCRIPT":
                whole = script.whole(*requests[index])
                replies[index] = self.call_many(connection, [whole])[0]
        return replies

    def call(self, key: str, *command: Argument) -> Reply:
        """Carry out a command on the server that has a key.

        Raises:
            UnavailableError: the connection broke; it may have been carried out.
        """
        return self.call_many(self.connection(key), [command])[0]

    def call_many(self, connection: Connection, commands: Sequence[Command]) -> list[Reply]:
        """Carry out commands on one server; an error reply is returned.

        Raises:
            UnavailableError: the connection broke; any of it may have been carried out.
        """
        idle = time.monotonic() - self._used.get(connection, 0.0) > _IDLE_SECONDS
        try:
            replies = connection.call_many(commands)
        except Lost:
            if not idle:
                raise
            connection.connect()
            replies = connection.call_many(commands)
        self._used[connection] = time.monotonic()
        return replies

    def forget(self, key: str) -> None:
        """Ask anew which server has a key: it has moved, or its server is gone."""
        gone = self._of_key.pop(key if self.cluster else "", None)
        if gone is not None and not gone.connected:
            self._of_key = {k: c for k, c in self._of_key.items() if c is not gone}
            self._of_node = {n: c for n, c in self._of_node.items() if c is not gone}
            self._used.pop(gone, None)

    def close(self) -> None:
        """Close all connections."""
        self._loop.forget(self._bell_fd)
        self._bell.close()
        for connection in {*self._of_key.values(), *self._of_node.values()}:
            connection.close()
        self._of_key.clear()
        self._of_node.clear()
        self._used.clear()

    def _hear(self) -> None:
        for reply in self._bell.receive():
            if isinstance(reply, ServerError):
                raise explain(reply, self.url)
            if reply[0] == b"message":
                self.on_ring(reply[2])
        while self._bell.has_buffered():
            self._hear()
