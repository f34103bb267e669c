"""Reads what a subscription brings, and does nothing else, so that nothing holds reading up.

Redis keeps what a subscriber has not read, up to a limit (client-output-buffer-limit pubsub: 32
MiB, or 8 MiB for a minute), and then cuts the connection; all that it had for it is lost. So a
thread of its own takes the bytes into memory as they come, and whoever has time parses them. It
needs the interpreter for some microseconds for each 200 KB; the daemon runs no code of its users,
and nothing in it keeps the interpreter for longer than `SWITCH_SECONDS`.

When so much is in memory as may be, of all connections together, it stands still and says so
(`full`): that is before Redis cuts the connection, because Redis still has all of its limit.
"""

import os
import select
import threading
from collections import deque

from wakeq.errors import UnavailableError, WakeqError
from wakeq.wire import Command, Connection, Lost, pack

# How long another thread may keep the interpreter when this one wants it.
SWITCH_SECONDS = 0.0005
# More than the kernel has for a socket, or as much as it has.
_READ_BYTES = 1 << 20
# It goes on reading when there is room again for a tenth.
_AGAIN = 0.9
_SEND_SECONDS = 15.0


class Closed(Lost):
    """The server closed the connection."""


class Line(Connection):
    """A connection whose bytes are taken as they come."""

    def begin(self) -> None:
        """Take from now on; what is called next does not block."""
        assert self._socket is not None
        self._socket.settimeout(0)

    def take(self, buffer: bytearray) -> int:
        """Read what there is into a buffer and return how many bytes that is, 0 if none.

        Raises:
            Closed: the server closed the connection.
            Lost: it broke.
        """
        assert self._socket is not None
        try:
            size = self._socket.recv_into(buffer)
        except self._not_yet:
            return 0
        except self._hung_up:
            size = 0
        except OSError as error:
            raise self._lost(error) from None
        if not size:
            self.close()
            raise Closed(f"Redis at {self.url} closed the connection")
        return size

    def put(self, commands: list[Command]) -> None:
        """Send requests whose replies are among what is taken.

        Raises:
            Lost: the connection broke.
        """
        assert self._socket is not None
        try:
            self._socket.settimeout(_SEND_SECONDS)
            self._socket.sendall(pack(commands))
            self._socket.settimeout(0)
        except OSError as error:
            raise self._lost(error) from None


class Memory:
    """What was received and is not published: how much that is, and how much it may be.

    Args:
        most: bytes.

    Attributes:
        readers: all that have something; set by one thread, and never changed.
        handed: bytes that were taken from them to be published, and are not yet.
    """

    def __init__(self, most: int) -> None:
        self.readers: tuple[Reader, ...] = ()
        self.handed = 0
        self._most = most

    @property
    def size(self) -> int:
        """How many bytes that is."""
        return self.handed + sum(reader.size for reader in self.readers)

    @property
    def is_full(self) -> bool:
        """Whether nothing more may be read."""
        return self.size >= self._most

    @property
    def has_room(self) -> bool:
        """Whether who stands still may go on."""
        return self.size <= self._most * _AGAIN

    def look(self) -> None:
        """Have readers that stand still go on if there is room."""
        if any(reader.full for reader in self.readers) and self.has_room:
            for reader in self.readers:
                reader.wake()


class Reader:
    """The thread that reads one connection; it alone uses it.

    Args:
        line: the connection, which is open.
        memory: shared by all readers; it stands still when that is full.
        bell: a file descriptor (eventfd) that is written to when there is something to see.

    Attributes:
        chunks: what was read and nobody has taken yet, in order.
        lost: why it has ended by itself; None while it reads.
        full: it stands still, because so much is in memory as may be.

    Raises:
        UnavailableError: the host has no room for the thread; the connection is closed.
    """

    def __init__(self, line: Line, memory: Memory, bell: int) -> None:
        self.chunks: deque[bytes] = deque()
        self.lost: WakeqError | None = None
        self.full = False
        self._line = line
        self._memory = memory
        self._bell = bell
        self._read = 0  # bytes; counted by the thread alone
        self._used = 0  # bytes; counted by its user alone
        self._requests: deque[list[Command]] = deque()
        self._wake = -1
        self._ends = False
        self._thread = threading.Thread(target=self._run, name="wakeq reader", daemon=True)
        try:
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._thread.start()
        except (OSError, RuntimeError) as error:
            line.close()
            if self._wake >= 0:
                os.close(self._wake)
            raise UnavailableError(f"no thread can be started: {error}") from None
        memory.readers += (self,)

    @property
    def size(self) -> int:
        """How many bytes are in memory."""
        return self._read - self._used

    def use(self, size: int) -> None:
        """Say that so many bytes more are not needed any longer."""
        self._used += size

    def wake(self) -> None:
        """Have it look whether it may go on."""
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    def ask(self, commands: list[Command]) -> None:
        """Send requests; the replies are among what is read."""
        self._requests.append(commands)
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """End the thread and the connection; what was read stays."""
        if self._wake < 0:
            return
        self._ends = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        os.close(self._wake)
        self._wake = -1
        self.full = False
        self._line.close()

    def forget(self) -> None:
        """Count what it has no more."""
        self._memory.readers = tuple(r for r in self._memory.readers if r is not self)

    def _run(self) -> None:
        try:
            self._read_on()
        except WakeqError as error:
            self.lost = error
        finally:
            os.eventfd_write(self._bell, 1)

    def _read_on(self) -> None:
        line, buffer = self._line, bytearray(_READ_BYTES)
        view, chunks = memoryview(buffer), self.chunks
        line.begin()
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(line.fileno(), select.POLLIN)
        descriptor = line.fileno()
        while not self._ends:
            events = dict(poll.poll())
            if self._wake in events:
                os.eventfd_read(self._wake)
                while self._requests:
                    line.put(self._requests.popleft())
                if self.full and self._memory.has_room:
                    self.full = False
                    poll.register(descriptor, select.POLLIN)
            if descriptor not in events or self.full:
                continue
            while size := line.take(buffer):
                chunks.append(bytes(view[:size]))
                self._read += size
                if len(chunks) == 1:
                    os.eventfd_write(self._bell, 1)
                if self._memory.is_full:
                    self.full = True
                    poll.unregister(descriptor)
                    os.eventfd_write(self._bell, 1)
                    break
                if size < _READ_BYTES and not line.has_buffered():
                    break  # more is seen by poll
