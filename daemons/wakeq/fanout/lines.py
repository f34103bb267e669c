"""The connections over which a worker's threads ask for rounds: one for each thread.

They are of `wakeq.wire`: over redis-py the round trip of a round takes half as long again. On
Cluster, where a room may be on any server, redis-py's clients are used all the same.
"""

import threading
from typing import Any

from wakeq.errors import WakeqError
from wakeq.fanout.rooms import Request
from wakeq.wire import TRANSIENT, Connection, ServerError


class Lines:
    """Carries out requests.

    Args:
        servers: where to.
    """

    def __init__(self, servers: Any) -> None:
        self._servers = servers
        self._own = threading.local()
        self._lock = threading.Lock()
        self._all: list[Connection] = []

    @property
    def usable(self) -> bool:
        """Tell whether all rooms are on one server."""
        return not self._servers.cluster

    def carry_out(self, request: Request) -> Any:
        """Return the reply, or the error that took its place."""
        line = getattr(self._own, "line", None)
        if line is None:
            line = self._own.line = Connection(self._servers.url, self._servers.name)
            with self._lock:
                self._all.append(line)
        try:
            if not line.connected:
                line.connect()
            return line.call(*request.command)
        except ServerError as error:
            if error.code in TRANSIENT:
                line.close()  # another server may be the master now
            return error
        except WakeqError as error:
            return error

    def close(self) -> None:
        """Close all connections; no thread uses its own any more."""
        with self._lock:
            for line in self._all:
                line.close()
            self._all.clear()
