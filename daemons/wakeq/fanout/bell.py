"""Hearing of news in rooms: one connection that is subscribed to a worker's channel."""

import re

from wakeq.redis_url import RedisURL
from wakeq.wire import Connection, ServerError, explain

# Nothing asks for what a subscription brings: as good as no limit.
_PUSHED_MOST = 1 << 60
# See room.lua; anybody may publish anything.
_RING = re.compile(rb"(\d{1,18} ){4}\S+ .+", re.DOTALL)


class Bell:
    """Hears what is rung for a worker. It is of `wakeq.wire`, because redis-py, depending on its
    version, takes up a lost subscription by itself, and what was rung in between goes unheard.

    Args:
        url: the Redis.
        channel: what to listen to; on Cluster, any server does.
        name: shown in CLIENT LIST.
    """

    def __init__(self, url: RedisURL, channel: str, name: str) -> None:
        self._url = url
        self._channel = channel
        self._connection = Connection(url, name)

    @property
    def connected(self) -> bool:
        """Tell whether it hears, as far as known."""
        return self._connection.connected

    def fileno(self) -> int:
        """Return the file descriptor, for a selector."""
        return self._connection.fileno()

    def connect(self) -> None:
        """Hear from now on.

        Raises:
            WakeqError: no server can be reached, or it refuses.
        """
        self._connection.connect()
        try:
            self._connection.call("SUBSCRIBE", self._channel)
        except ServerError as error:
            self._connection.close()
            raise explain(error, self._url) from None
        self._connection.outstanding = _PUSHED_MOST

    def receive(self) -> list[bytes]:
        """Wait until something came, and return what was rung.

        Raises:
            UnavailableError: the connection broke.
        """
        found: list[bytes] = []
        more = True
        while more:
            for reply in self._connection.receive():
                if isinstance(reply, ServerError):
                    raise explain(reply, self._url)
                if reply[0] == b"message" and _is_ring(reply[2]):
                    found.append(reply[2])
            more = self._connection.has_buffered()
        return found

    def close(self) -> None:
        """Hear no more."""
        self._connection.close()


def _is_ring(payload: bytes) -> bool:
    try:
        return _RING.fullmatch(payload) is not None and bool(payload.decode())
    except UnicodeDecodeError:
        return False
