"""A proxy between a client and a server that does to their bytes what a bad network does.

    with FaultProxy(server.url) as proxy:
        connection = Connection(RedisURL(proxy.url), "test")
        proxy.replies.cut_after(100)

Faults are set at any time, and hold for all connections until they are taken back.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from types import TracebackType

_CHUNK_BYTES = 65536
# What is under way in one direction of one connection before its source has to wait.
_ENOUGH_BYTES = 1024 * 1024


class Flow:
    """What happens to the bytes of one direction: the requests, or the replies.

    Attributes:
        delay_s: how long each piece is kept before it goes on.
        held: nothing goes on, and no end of a connection either: it is half open.
        passed: how many bytes have come since the proxy was started.
    """

    def __init__(self) -> None:
        self.delay_s = 0.0
        self.held = False
        self.passed = 0
        self._cut_in: int | None = None
        self._hold_in: int | None = None
        self._drop = 0

    def cut_after(self, count: int) -> None:
        """Cut the connection that the next `count` bytes have passed over, once."""
        self._cut_in = count

    def hold_after(self, count: int) -> None:
        """Let the next `count` bytes pass, and then nothing until `FaultProxy.heal`."""
        self._hold_in = count

    def drop(self, count: int) -> None:
        """Swallow the next `count` bytes."""
        self._drop = count

    def room(self) -> int:
        """Return how many bytes may be read now."""
        return _CHUNK_BYTES if self._hold_in is None else min(_CHUNK_BYTES, self._hold_in)

    def let_through(self, chunk: bytes) -> tuple[bytes, bool]:
        """Return what goes on of a chunk, and whether its connection is cut behind it."""
        if self._hold_in is not None:
            self._hold_in -= len(chunk)
        dropped = min(self._drop, len(chunk))
        self._drop -= dropped
        chunk = chunk[dropped:]
        cut = self._cut_in is not None and len(chunk) >= self._cut_in
        if cut:
            chunk, self._cut_in = chunk[: self._cut_in], None
        elif self._cut_in is not None:
            self._cut_in -= len(chunk)
        self.passed += len(chunk)
        return chunk, cut


class _Pipe:
    """One direction of one connection."""

    def __init__(self, source: socket.socket, sink: socket.socket, flow: Flow) -> None:
        self.source, self.sink, self.flow = source, sink, flow
        self.chunks: deque[tuple[float, bytes]] = deque()
        self.size = 0
        self.at_end = False  # the source has said all
        self.cut = False  # nothing follows what is in `chunks`, and that for both directions
        self.over = False

    def wants(self, now: float) -> tuple[bool, float]:
        """Return whether to read, and when to write next (infinite: nothing to write)."""
        if self.flow.held:
            return False, float("inf")
        reads = not self.at_end and not self.cut and self.size < _ENOUGH_BYTES
        reads = reads and self.flow.room() > 0
        return reads, self.chunks[0][0] if self.chunks else float("inf")

    def read(self) -> None:
        chunk = self.source.recv(self.flow.room())
        if not chunk:
            self.at_end = True
            return
        chunk, self.cut = self.flow.let_through(chunk)
        if chunk:
            self.chunks.append((time.monotonic() + self.flow.delay_s, chunk))
            self.size += len(chunk)

    def write(self) -> None:
        due, chunk = self.chunks[0]
        sent = self.sink.send(chunk)
        self.size -= sent
        if sent < len(chunk):
            self.chunks[0] = (due, chunk[sent:])
        else:
            self.chunks.popleft()

    def finish(self) -> bool:
        """Hand the end of the source on; return whether the connection must be closed."""
        if self.chunks or self.flow.held:
            return False
        if self.at_end and not self.over:
            self.over = True
            self.sink.shutdown(socket.SHUT_WR)
        return self.cut


class FaultProxy:
    """Listens at `url` and hands everything on to a server, except for what is asked for.

    Args:
        target: the server's `unix://PATH`, or `redis://HOST:PORT` (also rediss://).
        path: a unix socket to listen at; without one it is a free port of 127.0.0.1.

    Attributes:
        requests, replies: the two directions.
        refuses: new connections are closed at once.
    """

    def __init__(self, target: str, path: Path | None = None) -> None:
        self.requests, self.replies = Flow(), Flow()
        self.refuses = False
        scheme, _, place = target.partition("://")
        host, _, port = place.partition(":")
        self._target = place if scheme == "unix" else (host, int(port))
        self._listener = socket.socket(socket.AF_INET if path is None else socket.AF_UNIX)
        self._listener.bind(("127.0.0.1", 0) if path is None else str(path))
        self._listener.listen(128)
        self.port = 0 if path else int(self._listener.getsockname()[1])
        scheme = "redis" if scheme == "unix" else scheme
        self.url = f"unix://{path}" if path else f"{scheme}://127.0.0.1:{self.port}"
        self._connections: list[tuple[_Pipe, _Pipe]] = []
        self._unheard: list[socket.socket] = []
        self._orders: deque[str] = deque()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK)
        self._done = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="fault proxy")

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._order("end")
        self._thread.join()
        for end in (self._listener, *self._unheard):
            end.close()
        os.close(self._bell)

    def cut(self) -> None:
        """Close all connections, in the middle of whatever they carry; return when it is done."""
        self._order("cut")

    def cut_unheard(self) -> None:
        """Close all connections as their clients see it; the server hears nothing of it."""
        self._order("cut unheard")

    def half_open(self) -> None:
        """Be silent: nothing passes any more, and nobody is told. New connections stay waiting."""
        self.requests.held = self.replies.held = True
        self._order("look")

    def heal(self) -> None:
        """Take all faults back; what was held goes on."""
        for flow in (self.requests, self.replies):
            flow.held, flow.delay_s = False, 0.0
            flow._cut_in, flow._hold_in, flow._drop = None, None, 0
        self.refuses = False
        self._order("look")

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def _order(self, order: str) -> None:
        with self._done:
            self._orders.append(order)
            os.eventfd_write(self._bell, 1)
            assert self._done.wait_for(lambda: not self._orders, 60), "the proxy has stopped"

    def _run(self) -> None:
        running = True
        while running:
            events = self._wait()
            with self._done:
                if self._bell in events:
                    os.eventfd_read(self._bell)
                while self._orders:
                    order = self._orders.popleft()
                    running = running and order != "end"
                    if order == "cut unheard":
                        self._unheard += [replies.source for _, replies in self._connections]
                        for requests, _ in self._connections:
                            requests.source.close()
                        self._connections.clear()
                    elif order != "look":
                        self._close(self._connections)
                self._done.notify_all()
            if running and self._listener.fileno() in events:
                self._accept()
            for connection in list(self._connections):
                self._carry(connection, events)

    def _wait(self) -> set[int]:
        """Wait until something can be done; return the descriptors that are ready to be read."""
        now = time.monotonic()
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        if not (self.requests.held or self.replies.held):
            poll.register(self._listener, select.POLLIN)
        wanted: dict[int, int] = {}
        next_due = float("inf")
        for connection in self._connections:
            for pipe in connection:
                reads, due = pipe.wants(now)
                if reads:
                    fd = pipe.source.fileno()
                    wanted[fd] = wanted.get(fd, 0) | select.POLLIN
                if due <= now:
                    fd = pipe.sink.fileno()
                    wanted[fd] = wanted.get(fd, 0) | select.POLLOUT
                else:
                    next_due = min(next_due, due)
        for fd, events in wanted.items():
            poll.register(fd, events)
        wait_ms = None if next_due == float("inf") else (next_due - now) * 1000 + 1
        return {fd for fd, event in poll.poll(wait_ms) if event != select.POLLOUT}

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        if self.refuses:
            client.close()
            return
        server = socket.socket(socket.AF_UNIX if isinstance(self._target, str) else socket.AF_INET)
        try:
            server.connect(self._target)
        except OSError:
            client.close()
            server.close()
            return
        for end in (client, server):
            end.setblocking(False)
            if end.family == socket.AF_INET:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pipes = _Pipe(client, server, self.requests), _Pipe(server, client, self.replies)
        self._connections.append(pipes)

    def _carry(self, connection: tuple[_Pipe, _Pipe], events: set[int]) -> None:
        now = time.monotonic()
        ended = False
        for pipe in connection:
            try:
                reads, _ = pipe.wants(now)
                if reads and pipe.source.fileno() in events:
                    pipe.read()
                _, due = pipe.wants(now)
                if due <= time.monotonic():
                    with suppress(BlockingIOError):
                        pipe.write()
                ended |= pipe.finish()
            except BlockingIOError:
                continue
            except OSError:  # one end was reset, so the other is too
                ended = True
        if ended or all(pipe.over for pipe in connection):
            self._close([connection])

    def _close(self, connections: list[tuple[_Pipe, _Pipe]]) -> None:
        for connection in list(connections):
            self._connections.remove(connection)
            connection[0].source.close()
            connection[0].sink.close()
