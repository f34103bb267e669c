"""One client's connection to wakeq-fanout: lines that came, lines that go, both of them bounded.

It does the I/O of one socket and decides nothing about rooms. Who owns it says when to read and
when to send.
"""

import contextlib
import select
import socket
import time
from collections import deque
from typing import NamedTuple

_CHUNK = 65536
# Of many small lines, so many go out in one piece.
_PIECES = 512
# What a line that waits to be read costs besides its bytes, about.
_LINE_COST = 64


class Limits(NamedTuple):
    """What one connection may cost, in bytes.

    Attributes:
        line: the longest request.
        unread: what may wait for a client that reads slowly; one line may always.
    """

    line: int
    unread: int


class Peer:
    """A connection.

    Attributes:
        client: the client id that it takes part under, unless it says another one.
        rooms: in which rooms it is a client, under which id.
        gone: why it is no client of a room any more, for as long as it is not one again.
        busy: a request is carried out, and the next one waits for it.
        ended: nothing more comes.
        closed: it is given up.
        is_deaf: nobody reads what is sent.
        is_held: a message waits elsewhere until all that waits here was taken.
        acks: how many acknowledgements are not answered yet.
        heard_at: when something came, monotonic.
        moved_at: when the other side has last taken something that waited, monotonic.
        behind_since: since when more than half of what may wait does; 0: it does not.
    """

    __slots__ = (
        *("_cost", "_lines", "_out", "_rest", "_skips", "acks", "behind_since", "busy"),
        *("client", "closed", "ended", "fd", "gone", "heard_at", "interest", "is_deaf", "is_held"),
        *("limits", "moved_at", "rooms", "sock", "unsent"),
    )

    def __init__(self, sock: socket.socket, client: str, limits: Limits) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.client = client
        self.limits = limits
        self.rooms: dict[str, str] = {}
        self.gone: dict[str, str] = {}
        self.busy = self.ended = self.closed = self.is_deaf = self.is_held = False
        self.acks = 0
        self.unsent = 0
        self.heard_at = self.moved_at = time.monotonic()
        self.behind_since = 0.0
        self.interest = 0
        self._lines: deque[bytes | None] = deque()
        self._cost = 0
        self._rest = bytearray()
        self._skips = False  # the rest of a line that is too long
        self._out: deque[bytes] = deque()

    @property
    def is_odd(self) -> bool:
        """Tell whether it is anything but connected, without a line to be read, and not behind."""
        odd = self._lines or self.behind_since or self.is_held or self.ended or self.closed
        return bool(odd) or self.interest != select.EPOLLIN

    # -- what comes --------------------------------------------------------------------------

    @property
    def wants_more(self) -> bool:
        """Tell whether more may be received: not while what came is not read, or answers wait."""
        if self.ended or self.closed or (self.unsent and self.is_behind):
            return False
        return not self._cost or self._cost <= max(self.limits.line, _CHUNK)

    def receive(self) -> None:
        """Take what came, as far as it is there."""
        if (line := self.receive_line()) is not None:
            self._add_line(line)

    def receive_line(self) -> bytes | None:
        """Take what came, as far as it is there, but return it if it is one line, and none waits;
        that is by far the most frequent."""
        try:
            chunk = self.sock.recv(_CHUNK)
        except BlockingIOError:
            return None
        except OSError:
            chunk = b""
        if chunk and not (self._lines or self._rest or self._skips):
            end = len(chunk) - 1
            if chunk.find(b"\n") == end <= self.limits.line and not chunk.isspace():
                self.heard_at = time.monotonic()
                return chunk[:end]
        self._receive(chunk)
        return None

    def _receive(self, chunk: bytes) -> None:
        if not chunk:
            self.ended = True
            if self._rest:  # the last line of who does not end it
                self._take_lines([bytes(self._rest), b""])
            return
        self.heard_at = time.monotonic()
        if b"\n" not in chunk:
            self._add_rest(chunk)
            return
        if self._rest:
            self._rest += chunk
            chunk = bytes(self._rest)
        self._take_lines(chunk.split(b"\n"))

    def _take_lines(self, lines: list[bytes]) -> None:
        *whole, rest = lines
        if self._skips:
            self._skips = False
            del whole[0]
        for line in whole:
            if line.strip():
                self._add_line(line if len(line) <= self.limits.line else None)
        self._rest = bytearray()
        self._add_rest(rest)

    def _add_rest(self, chunk: bytes) -> None:
        if self._skips:
            return
        self._rest += chunk
        if len(self._rest) > self.limits.line:
            self._skips = True
            self._rest = bytearray()
            self._add_line(None)

    def _add_line(self, line: bytes | None) -> None:
        self._lines.append(line)
        self._cost += len(line or b"") + _LINE_COST

    @property
    def has_line(self) -> bool:
        """Tell whether `next_line` has one."""
        return bool(self._lines)

    def next_line(self) -> bytes | None:
        """Return the next line; None: one that was too long."""
        line = self._lines.popleft()
        self._cost -= len(line or b"") + _LINE_COST
        return line

    # -- what goes ---------------------------------------------------------------------------

    @property
    def is_behind(self) -> bool:
        """Tell whether more than half of what may wait does, or all that may."""
        return self.unsent * 2 > self.limits.unread or (self.is_held and self.unsent > 0)

    def has_room(self, size: int) -> bool:
        """Tell whether a line of a size may wait, too."""
        return not self.unsent or self.unsent + size <= self.limits.unread

    def put(self, line: bytes) -> None:
        """Have a line sent."""
        if self.is_deaf:
            return
        if not self.unsent:
            self.moved_at = time.monotonic()
        self._out.append(line)
        self.unsent += len(line)

    def drop_unsent(self, head: bytes) -> None:
        """Forget the lines that wait and begin so, but for the first: it may have been begun."""
        first, *others = b"".join(self._out).splitlines(keepends=True) or [b""]
        kept = [first, *(line for line in others if not line.startswith(head))]
        self._out = deque(line for line in kept if line)
        self.unsent = sum(map(len, kept))

    def send(self) -> None:
        """Send what waits, as far as the other side takes it."""
        out = self._out
        while out:
            if len(out) == 1:
                piece = out[0]
            else:
                some = min(len(out), _PIECES)
                piece = b"".join(out if some == len(out) else [out[i] for i in range(some)])
                for _ in range(some - 1):
                    out.popleft()
                out[0] = piece
            try:
                sent = self.sock.send(piece)
            except BlockingIOError:
                return
            except OSError:  # nobody reads any more; what was asked for before is still done
                self.is_deaf = True
                self._out.clear()
                self.unsent = 0
                return
            self.unsent -= sent
            if sent == len(piece):
                out.popleft()
                if not out:
                    return  # by far the most frequent
            else:
                out[0] = piece[sent:]
            if sent:
                self.moved_at = time.monotonic()
            if sent < len(piece):
                return

    def close(self) -> None:
        """Give it up."""
        self.closed = True
        with contextlib.suppress(OSError):
            self.sock.close()
