"""The connections of wakeq-delay: one that listens to the doorbell, and one for each server asked.

They are of `wakeq.wire`, as those of wakeq-wakeup. redis-py, depending on its version, takes up a
lost subscription again by itself, and what was rung in between would go unheard.
"""

import time
from collections.abc import Callable, Sequence

from wakeq import keys
from wakeq.errors import UnavailableError
from wakeq.loop import Loop
from wakeq.redis_url import RedisURL
from wakeq.replies import is_of_key
from wakeq.scripts import Script
from wakeq.wire import Argument, Command, Connection, Lost, Reply, ServerError, explain

_NAME = "wakeq-delay"
# Nothing asks for what a subscription brings: as good as no limit.
_PUSHED_MOST = 1 << 60
# The server may close what is idle (its setting `timeout`): a connection that breaks after such a
# pause is tried once more before it counts as lost.
_IDLE_SECONDS = 1.0
_ANSWER_SECONDS = 15.0
# A server that says nothing for so long is not asked again at once: systemd waits for its watchdog.
# Where there are others, they do not wait longer for its answer either, nor so long for it to
# accept a connection.
_SILENT_SECONDS = 5.0
_CONNECT_SECONDS = 3.0
# Of the time, so much is at most spent on the connections that a silent server does not accept.
_CONNECT_SHARE = 0.25

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
        self._spared: dict[str, float] = {}  # address -> until when (monotonic) it is not tried

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

    def has(self, key: str) -> bool:
        """Tell whether there is a connection to the server that has a key, as far as known."""
        found = self._of_key.get(key if self.cluster else "")
        return found is not None and found.connected

    def connection(self, key: str) -> Connection:
        """Return a connection to the server that has a key.

        Raises:
            WakeqError: it cannot be reached; or it could not a moment ago, and is not tried now.
        """
        key = key if self.cluster else ""
        found = self._of_key.get(key)
        if found is None:
            found = self._of_key[key] = self._found(key) if self.cluster else self._connected(key)
        return found

    def _found(self, key: str) -> Connection:
        """Return a connection to the server of a Cluster that has a key."""
        there, address = self._ask_around(key)
        if there is not None:
            return there
        began = time.monotonic()
        if began < self._spared.get(address, 0.0):
            raise UnavailableError(f"Redis at {self.url} did not answer in time: {address}")
        try:
            return self._enter(self._connected(key, address))
        except UnavailableError:
            now = time.monotonic()
            self._spared[address] = now + (now - began) * (1 / _CONNECT_SHARE - 1)
            raise

    def _ask_around(self, key: str) -> tuple[Connection | None, str]:
        """Return a connection to who has a key, or the address that another server gives."""
        live = [connection for connection in self._of_node.values() if connection.connected]
        if not live:
            return None, ""
        # Who has answered last is the likeliest to answer.
        asked = max(live, key=lambda connection: self._used.get(connection, 0.0))
        try:
            asked.call("EXISTS", key, timeout=_CONNECT_SECONDS)
        except ServerError as error:
            if is_of_key(error):
                raise explain(error, self.url) from None
            # "MOVED 3999 127.0.0.1:6381"
            return None, str(error).rpartition(" ")[2] if error.code == "MOVED" else ""
        except Lost:
            return None, ""
        return asked, ""

    def _connected(self, key: str, address: str = "") -> Connection:
        connection = Connection(self.url, _NAME, key)
        host, _, port = address.rpartition(":")
        if host and port.isdecimal():
            connection.owner = (host, int(port))
        connection.connect(self._connect_seconds())
        return connection

    def _connect_seconds(self) -> float:
        return _CONNECT_SECONDS if self._of_node else 0.0

    def _enter(self, connection: Connection) -> Connection:
        """Return the one connection to the server of a Cluster that a new one leads to."""
        node = self._node(connection)
        other = self._of_node.get(node)
        if other is None or not other.connected:
            self._of_node[node] = connection
            return connection
        connection.close()
        self._used.pop(connection, None)
        self._of_key = {k: other if c is connection else c for k, c in self._of_key.items()}
        return other

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
        began = time.monotonic()
        idle = began - self._used.get(connection, 0.0) > _IDLE_SECONDS
        seconds = _SILENT_SECONDS if self.cluster else _ANSWER_SECONDS
        try:
            replies = connection.call_many(commands, seconds)
        except Lost:
            if not idle or time.monotonic() - began >= _SILENT_SECONDS:
                raise
            connection = self._again(connection)
            replies = connection.call_many(commands, seconds)
        self._used[connection] = time.monotonic()
        return replies

    def _again(self, connection: Connection) -> Connection:
        """Connect once more; on Cluster, the key may have moved to another server meanwhile."""
        connection.connect(self._connect_seconds())
        if not self.cluster:
            return connection
        self._of_node = {n: c for n, c in self._of_node.items() if c is not connection}
        return self._enter(connection)

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
        self._bell_fd = -1  # it may be somebody else's by the next time
        self._bell.close()
        for connection in {*self._of_key.values(), *self._of_node.values()}:
            connection.close()
        self._of_key.clear()
        self._of_node.clear()
        self._used.clear()
        self._spared.clear()

    def _hear(self) -> None:
        for reply in self._bell.receive():
            if isinstance(reply, ServerError):
                raise explain(reply, self.url)
            if reply[0] == b"message":
                self.on_ring(reply[2])
        while self._bell.has_buffered():
            self._hear()
