"""The daemon's end of the process that repairs messages: starts it, asks it, ends it."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from wakeq.config import Delay
from wakeq.delay.failed import Inbox, packed
from wakeq.wakeup.loop import Loop

_CHUNK_BYTES = 1 << 16
_SEND_SECONDS = 15.0
_STDERR = 2


class Worker:
    """One process that repairs one message at a time.

    Args:
        loop: tells when it has answered.
        settings: what it repairs with.
        on_answer: called with the worker and what it says; with None when it has ended.

    Attributes:
        settings: what it repairs with.
        ready: it has loaded that.
    """

    def __init__(
        self, loop: Loop, settings: Delay, on_answer: Callable[["Worker", Any], None]
    ) -> None:
        self.settings = settings
        self.ready = False
        self._loop = loop
        self._on_answer = on_answer
        self._inbox = Inbox()
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(_SEND_SECONDS)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "wakeq.delay.repair", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=_STDERR,
                pass_fds=(theirs.fileno(),),
                process_group=0,  # so that what it runs can be ended with it
            )
        loop.watch(self._socket.fileno(), self.receive)
        self.ask((settings.repair, settings.repair_exec))

    def ask(self, said: Any) -> None:
        """Say something to it; if it has ended, that is told as an answer, later."""
        try:
            self._socket.sendall(packed(said))
        except OSError:
            self.kill()

    def fileno(self) -> int:
        """Return the file descriptor that is readable when it has answered."""
        return self._socket.fileno()

    def receive(self) -> None:
        """Take what it says."""
        try:
            piece = self._socket.recv(_CHUNK_BYTES)
        except OSError:
            piece = b""
        if not piece:
            self.end()
            self._on_answer(self, None)
        elif (said := self._inbox.take(piece)) is not None:
            self._on_answer(self, said)

    def kill(self) -> None:
        """End it, and what it runs, at once; that is told as an answer, later."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has ended, and waits to be waited for

    def end(self) -> None:
        """End it and what it runs; nothing more is told."""
        if self._socket.fileno() >= 0:
            self._loop.forget(self._socket.fileno())
            self._socket.close()
            self.kill()
            self._process.wait()
