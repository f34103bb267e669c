"""The connections by which a bridge asks Redis for channels and keeps its books."""

from collections.abc import Sequence

from wakeq.errors import UnavailableError
from wakeq.redis_url import RedisURL
from wakeq.scripts import Script
from wakeq.wire import Argument, Command, Connection, Lost, Reply, ServerError, explain

_NAME = "wakeq-bridge"
_REPLY_SECONDS = 5.0
_MOVED = ("MOVED", "ASK", "TRYAGAIN")


class Request:
    """A script to be run with keys, the first of which says where, and arguments."""

    __slots__ = ("arguments", "keys", "script")

    def __init__(
        self, script: Script, keys: Sequence[Argument], arguments: Sequence[Argument]
    ) -> None:
        self.script = script
        self.keys = keys
        self.arguments = arguments


class Link:
    """Asks the server that has a key.

    Attributes:
        url: the server, or those that know it.
    """

    def __init__(self, url: RedisURL) -> None:
        self.url = url
        self._of_key: dict[str, Connection] = {}
        self._of_node: dict[bytes, Connection] = {}

    @property
    def cluster(self) -> bool:
        """Whether different keys may be on different servers."""
        return self.url.scheme == "redis+cluster"

    @property
    def connected(self) -> bool:
        """Whether no connection was lost: what failed was what was asked for."""
        found = [*self._of_key.values(), *self._of_node.values()]
        return bool(found) and all(connection.connected for connection in found)

    def connection(self, key: str) -> Connection:
        """Return a connection to the server that has a key.

        Raises:
            WakeqError: it cannot be reached.
        """
        key = key if self.cluster else ""
        found = self._of_key.get(key)
        if found is None or not found.connected:
            found = Connection(self.url, _NAME, key)
            found.connect()
            if self.cluster:
                node = self.node(found)
                known = self._of_node.get(node)
                if known is not None and known.connected:
                    found.close()
                    found = known
                self._of_node[node] = found
            self._of_key[key] = found
        return found

    def node(self, connection: Connection) -> bytes:
        """Return what a server of a Cluster calls itself."""
        try:
            name: bytes = connection.call("CLUSTER", "MYID", timeout=_REPLY_SECONDS)
        except ServerError as error:
            raise explain(error, self.url) from None
        return name

    def call(self, key: str, *command: Argument) -> Reply:
        """Carry out a command on the server that has a key.

        Raises:
            WakeqError: the connection broke, or the server answered with an error.
        """
        (reply,) = self._call_many(self.connection(key), [command])
        return self._checked(reply)

    def run(self, requests: Sequence[Request]) -> list[Reply]:
        """Run scripts, those for one server in one go, and return their replies in order.

        Raises:
            WakeqError: a connection broke, or a script failed; any of them may have been run.
        """
        by_connection: dict[Connection, list[int]] = {}
        for index, request in enumerate(requests):
            connection = self.connection(str(request.keys[0]))
            by_connection.setdefault(connection, []).append(index)
        replies: list[Reply] = [None] * len(requests)
        for connection, indices in by_connection.items():
            asked = [requests[index] for index in indices]
            commands = [r.script.command(r.keys, r.arguments) for r in asked]
            answers = self._call_many(connection, commands)
            for index, request, answer in zip(indices, asked, answers, strict=True):
                reply = answer
                if isinstance(reply, ServerError) and reply.code == "NOSCRIPT":
                    whole = request.script.whole(request.keys, request.arguments)
                    (reply,) = self._call_many(connection, [whole])
                replies[index] = self._checked(reply)
        return replies

    def close(self) -> None:
        """Close all connections."""
        for connection in {*self._of_key.values(), *self._of_node.values()}:
            connection.close()
        self._of_key.clear()
        self._of_node.clear()

    def _call_many(self, connection: Connection, commands: Sequence[Command]) -> list[Reply]:
        try:
            return connection.call_many(commands, _REPLY_SECONDS)
        except Lost:
            # The server may have closed what was idle. Each request may be carried out twice.
            connection.connect()
            return connection.call_many(commands, _REPLY_SECONDS)

    def _checked(self, reply: Reply) -> Reply:
        if not isinstance(reply, ServerError):
            return reply
        if reply.code == "READONLY" or (reply.code in _MOVED and self.cluster):
            self.close()  # another server is to be asked
            raise UnavailableError(f"Redis at {self.url} moves the keys around: {reply}")
        raise explain(reply, self.url)
