"""A server that says what a test wants, for what a real one cannot be made to say."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable
from types import TracebackType

# What a client asks for when it connects, answered as a server would.
GREETING = (
    b"+OK\r\n",  # CLIENT SETNAME
    b":7\r\n",  # CLIENT ID
    b"$21\r\nredis_version:7.0.15\n\r\n",  # INFO
)


class FakeServer:
    """Listens at a free port of 127.0.0.1; `answer` returns what to say to some bytes.

    With `hangs_up` it closes the connection after the first answer. With no `answer`, each
    connection is greeted and then handed over by `accept`: the test speaks over it.
    """

    def __init__(
        self, answer: Callable[[bytes], bytes] | None = None, hangs_up: bool = False
    ) -> None:
        self._answer = answer
        self._hangs_up = hangs_up
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self.port}"
        self._accepted: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
        self._open: list[socket.socket] = []
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name="fake server")

    def __enter__(self) -> FakeServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_over = True
        self._listener.shutdown(socket.SHUT_RDWR)
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it was closed by the test
        self._thread.join()
        self._listener.close()
        for connection in self._open:
            connection.close()

    def accept(self) -> socket.socket:
        """Return the next connection, greeted."""
        return self._accepted.get(timeout=60)

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # shut down
                return
            self._open.append(connection)
            if self._is_over:  # what was open by then is shut down
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                self._serve(connection)
            except OSError:  # the client has gone
                connection.close()

    def _serve(self, connection: socket.socket) -> None:
        if self._answer is None:
            request = b""
            while not request.endswith(b"$6\r\nserver\r\n"):
                chunk = connection.recv(65536)
                if not chunk:
                    connection.close()
                    return
                request += chunk
            connection.sendall(b"".join(GREETING))
            self._accepted.put(connection)
            return
        while chunk := connection.recv(65536):
            connection.sendall(self._answer(chunk))
            if self._hangs_up:
                break
        connection.close()
