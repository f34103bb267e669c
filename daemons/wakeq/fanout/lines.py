"""The connections over which workers ask for rounds: one a thread, one for a loop of asyncio.

They are of `wakeq.wire`: over redis-py the round trip of a round takes half as long again, and over
that for asyncio several times as long. On Cluster, where a room may be on any server, redis-py's
clients are used all the same.
"""

import asyncio
import threading
from collections import deque
from typing import Any

from wakeq.errors import UnavailableError, WakeqError
from wakeq.fanout.rooms import Request
from wakeq.wire import TRANSIENT, Connection, ServerError

_REPLY_SECONDS = 15.0


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


class AsyncLine:
    """Carries out requests, for asyncio; any number may be under way.

    Args:
        servers: where to.
    """

    def __init__(self, servers: Any) -> None:
        self._servers = servers
        self._connection = Connection(servers.url, servers.name)
        self._connecting = asyncio.Lock()
        self._fd = -1
        self._waiting: deque[asyncio.Future[Any]] = deque()

    @property
    def usable(self) -> bool:
        """Tell whether all rooms are on one server."""
        return not self._servers.cluster

    async def carry_out(self, request: Request) -> Any:
        """Return the reply, or the error that took its place."""
        try:
            async with self._connecting:
                if not self._connection.connected:
                    await self._connect()
            self._connection.send([request.command])
            reply = asyncio.get_running_loop().create_future()
            self._waiting.append(reply)
            async with asyncio.timeout(_REPLY_SECONDS):
                return await reply
        except TimeoutError:
            error: WakeqError = UnavailableError(
                f"Redis at {self._servers.url} did not answer in time"
            )
        except WakeqError as lost:
            error = lost
        self._break(error)
        return error

    async def _connect(self) -> None:
        self._break(UnavailableError(f"Redis at {self._servers.url}: not connected"))
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._connection.connect)
        self._fd = self._connection.fileno()
        loop.add_reader(self._fd, self._receive)

    def _receive(self) -> None:
        try:
            for reply in self._connection.receive():
                waiting = self._waiting.popleft()
                if not waiting.done():
                    waiting.set_result(reply)
                if isinstance(reply, ServerError) and reply.code in TRANSIENT:
                    # Another server may be the master now.
                    self._break(UnavailableError(f"Redis at {self._servers.url}: {reply}"))
                    return
            if self._connection.has_buffered():
                self._receive()
        except WakeqError as error:
            self._break(error)

    def _break(self, error: WakeqError) -> None:
        """Give all that wait an error, and connect anew with the next request."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
        self._fd = -1
        self._connection.close()
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(error)

    def close(self) -> None:
        """Close the connection."""
        self._break(UnavailableError(f"Redis at {self._servers.url}: closed"))
