"""What the daemon and a worker say to each other over a socket: its length, then plain values.

`marshal` is the quickest to make bytes of them, and both ends are of one Python.
"""

import marshal
import socket
from typing import Any

_LENGTH_BYTES = 4
_CHUNK_BYTES = 1 << 18
# Version 2 looks for no values that stand there twice, which would take longer than they save.
_VERSION = 2

# Messages of one channel that follow one another.
Run = tuple[bytes, list[bytes]]

# What the daemon says.
SETTINGS, BATCH = "settings", "batch"
# What a worker says.
READY, BAD, MORE, DONE, AT, TAKEN, LOST, BACK = (
    "ready", "bad", "more", "done", "at", "taken", "lost", "back",
)  # fmt: skip


def _packed(said: Any) -> bytes:
    raw = marshal.dumps(said, _VERSION)
    return len(raw).to_bytes(_LENGTH_BYTES, "big") + raw


class Talk:
    """One end."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._buffer = bytearray()
        self._unsent = bytearray()
        # A new piece of memory of that size for each few bytes takes longer than all the rest.
        self._piece = memoryview(bytearray(_CHUNK_BYTES))

    def fileno(self) -> int:
        """Return the file descriptor, for a selector."""
        return self._socket.fileno()

    def say(self, *said: Any) -> None:
        """Say something.

        Raises:
            OSError: the other end is gone, or does not listen.
        """
        self._socket.sendall(_packed(said))

    def put(self, *said: Any) -> None:
        """Say something as soon as the other end takes it, which `send` sees to."""
        self._unsent += _packed(said)

    def send(self) -> bool:
        """Send what was put, as far as it is taken; tell whether that is all. It never waits.

        Raises:
            OSError: the other end is gone.
        """
        while self._unsent:
            try:
                sent = self._socket.send(self._unsent, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            del self._unsent[:sent]
        return True

    def hear(self) -> list[Any] | None:
        """Wait for what the other end says; return what is said in full, None at the end of all."""
        try:
            size = self._socket.recv_into(self._piece)
        except ConnectionResetError:
            return None
        if not size:
            return None
        self._buffer += self._piece[:size]
        heard, at = [], 0
        while len(self._buffer) - at >= _LENGTH_BYTES:
            end = at + _LENGTH_BYTES + int.from_bytes(self._buffer[at : at + _LENGTH_BYTES], "big")
            if len(self._buffer) < end:
                break
            heard.append(marshal.loads(self._buffer[at + _LENGTH_BYTES : end]))
            at = end
        if at:
            del self._buffer[:at]
        return heard

    def finish(self) -> None:
        """Say no more, and let the other end know; it may still be heard."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has ended

    def close(self) -> None:
        """Say and hear no more."""
        self._socket.close()
