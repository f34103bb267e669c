"""A worker's connection to Redis, by which it publishes: tries again until it is done.

What is sent again does no harm: the scripts know which batch it is.
"""

import os
import select
import sys
import time
from collections.abc import Callable
from typing import Any

from wakeq.backoff import Backoff
from wakeq.bridge import talk
from wakeq.errors import WakeqError
from wakeq.redis_url import RedisURL
from wakeq.scripts import Script
from wakeq.wire import Argument, Command, Connection, Lost, Reply, ServerError, explain

_NAME = "wakeq-bridge"
_REPLY_SECONDS = 15.0
_SEND_SECONDS = 15.0
# Redis may be set to close what was idle for a second, or for longer.
_IDLE_SECONDS = 1.0
# What stands before an argument of so many bytes.
_HEADS = [b"\r\n$%d\r\n" % size for size in range(4096)]


class _Line(Connection):
    """A connection over which a request with many arguments is sent more quickly."""

    def send_one(self, command: Command) -> None:
        """Send one request.

        Raises:
            Lost: the connection broke; it may have been carried out.
        """
        if self._socket is None:
            raise Lost(f"Redis at {self.url}: not connected")
        raws = [raw if type(raw) is bytes else str(raw).encode() for raw in command]
        parts = [b"*%d" % len(raws)]
        parts += [
            part
            for raw in raws
            for part in (_HEADS[len(raw)] if len(raw) < 4096 else b"\r\n$%d\r\n" % len(raw), raw)
        ]
        parts.append(b"\r\n")
        self.outstanding += 1
        try:
            self._socket.settimeout(_SEND_SECONDS)  # `receive` may have left none
            self._socket.sendall(b"".join(parts))
        except self._hung_up:
            pass  # `receive` gives what the server said before it hung up, and then Lost
        except OSError as error:
            raise self._lost(error) from None


class Writer:
    """Runs one script, again and again, with one request under way at most.

    Args:
        url: the Redis.
        key: in the slot whose server is meant.
        script: what is run.
        say: tells the daemon.
    """

    def __init__(self, url: str, key: str, script: Script, say: Callable[..., None]) -> None:
        self._url = RedisURL(url)
        self._connection = _Line(self._url, _NAME, key)
        self._script = script
        self._say = say
        self._request: tuple[list[Argument], list[Argument]] | None = None
        self._is_sent = False
        self._replied_at = 0.0  # monotonic
        self._was_idle = False
        self._parent = os.getppid()

    def fileno(self) -> int:
        """Return the file descriptor, for a selector; -1 if there is no connection."""
        return self._connection.fileno()

    @property
    def busy(self) -> bool:
        """Whether a request is under way."""
        return self._request is not None

    def connect(self) -> None:
        """Connect, trying until it is possible."""
        self._persist(self._connect)

    def start(self, keys: list[Argument], arguments: list[Argument]) -> None:
        """Send a request; `finish` is called next."""
        assert self._request is None
        self._request = (keys, arguments)
        self._is_sent = False
        self._was_idle = time.monotonic() - self._replied_at >= _IDLE_SECONDS
        try:
            self._connection.send_one(self._script.command(keys, arguments))
            self._is_sent = True
        except WakeqError:
            pass  # `finish` tries again

    def finish(self) -> Any:
        """Wait until the request is carried out, and return its reply."""
        reply = self._persist(self._carry_out)
        self._request = None
        self._replied_at = time.monotonic()
        return reply

    def block(self, *command: Argument) -> None:
        """Send a command that blocks; `finish_blocking` is called when something is to be read."""
        self._connection.send([command])

    def finish_blocking(self) -> bool:
        """Tell whether the command that blocks has ended; `connect` is to be called if it raises.

        Raises:
            WakeqError: the connection broke, or the server answered with an error.
        """
        for reply in self._connection.receive():
            if isinstance(reply, ServerError):
                self._connection.close()
                raise explain(reply, self._url)
            return True
        return False

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _carry_out(self) -> Reply:
        assert self._request is not None
        if not self._is_sent:
            self._connect()
            self._connection.send_one(self._script.command(*self._request))
        self._is_sent = False
        reply = self._receive()
        if isinstance(reply, ServerError) and reply.code == "NOSCRIPT":
            self._connection.send_one(self._script.whole(*self._request))
            reply = self._receive()
        if isinstance(reply, ServerError):
            if reply.code in ("MOVED", "ASK", "READONLY"):
                self._connection.close()  # another server is to be asked
            raise explain(reply, self._url)
        return reply

    def _receive(self) -> Reply:
        poll = select.poll()
        poll.register(self._connection.fileno(), select.POLLIN)
        while True:
            if not (self._connection.has_buffered() or poll.poll(_REPLY_SECONDS * 1000)):
                self._connection.close()
                self._was_idle = False
                raise Lost(f"Redis at {self._url} did not answer in time")
            for reply in self._connection.receive():
                return reply

    def _connect(self) -> None:
        if not self._connection.connected:
            self._connection.connect()

    def _persist(self, attempt: Callable[[], Reply]) -> Reply:
        """Try until it succeeds."""
        backoff = Backoff(0.05, 2.0)
        while True:
            try:
                reply = attempt()
            except WakeqError as error:
                if self._was_idle and isinstance(error, Lost):
                    # Closing what is idle is nothing to be told, if a new connection will do.
                    self._was_idle = False
                    continue
                if backoff.tries == 0:
                    self._say(talk.LOST, str(error), error.exit_code)
                self._pause(backoff.next())
            else:
                if backoff.tries:
                    self._say(talk.BACK)
                return reply

    def _pause(self, seconds: float) -> None:
        if os.getppid() != self._parent:
            sys.exit(1)  # nobody is left who could want it
        select.poll().poll(seconds * 1000)
