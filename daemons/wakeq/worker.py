"""A process of our own beside a daemon, in which a user's code may hang or crash.

What the two say to each other are plain values, on the two ends of a socket: each is its length
(8 bytes) and what `marshal` makes of it. Both are of one wakeq and, unless the user wants another
one, of one Python.
"""

import ctypes
import marshal
import os
import random  # noqa: F401  (backoff.py needs it when no file may be opened any more)
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from wakeq.consumer import interpreter
from wakeq.errors import ConfigError, UnavailableError
from wakeq.loop import Loop

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None)
_LENGTH_BYTES = 8
_CHUNK_BYTES = 1 << 16
_SEND_SECONDS = 15.0
_STDERR = 2
# The format of marshal that all Pythons from 3.4 to 3.13 read.
_MARSHAL = 4


def tied() -> Callable[[], None]:
    """Return what a child process calls first, so that it dies with its parent.

    The parent must have one thread alone.
    """
    parent = os.getpid()

    def tie() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(0)  # it has died before

    return tie


def spawn(
    command: list[str],
    environment: Mapping[str, str] | None = None,
    *,
    variable: str = "",
    stdout: int | None = _STDERR,
    is_tied: bool = True,
) -> tuple[subprocess.Popen[bytes], int, socket.socket]:
    """Start a process in a group of its own, so that what it runs can be ended with it.

    Args:
        command: what it runs; the number of its end of a socket is added to the arguments.
        environment: its own; without, that of this process.
        variable: the environment variable to have that number in, instead of the arguments.
        stdout: where it prints to: a file descriptor, None for that of this process.
        is_tied: it dies with this process, which must have one thread alone.

    Returns:
        The process, a file descriptor that is readable when it has ended, and the other end of the
        socket.

    Raises:
        UnavailableError: the host has no room for it.
        ConfigError: there is no such interpreter, or it cannot be run.
    """
    environment = dict(os.environ if environment is None else environment)
    try:
        with ExitStack() as opened:
            ours, theirs = socket.socketpair()
            opened.enter_context(ours)
            with theirs:
                number = str(theirs.fileno())
                if variable:
                    environment[variable] = number
                process = subprocess.Popen(
                    command if variable else [*command, number],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    pass_fds=(theirs.fileno(),),
                    process_group=0,
                    preexec_fn=tied() if is_tied else None,  # noqa: PLW1509  (one thread)
                )
            opened.callback(process.wait)
            opened.callback(process.kill)
            ended = os.pidfd_open(process.pid)
            opened.pop_all()
    except OSError as error:
        if error.filename == command[0]:
            raise ConfigError(f"python {command[0]} cannot be run: {error.strerror}") from None
        raise UnavailableError(f"no process can be started: {error.strerror}") from None
    return process, ended, ours


def packed(said: Any) -> bytes:
    """Return the bytes of something said."""
    raw = marshal.dumps(said, _MARSHAL)
    return len(raw).to_bytes(_LENGTH_BYTES, "big") + raw


def receive(end: socket.socket) -> bytes:
    """Return what a daemon says to its worker, a piece of it; nothing if it has hung up."""
    try:
        return end.recv(_CHUNK_BYTES)
    except ConnectionResetError:
        return b""  # with a reply that it had not read


class Inbox:
    """Puts together again what comes in pieces."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def take(self, piece: bytes) -> Any:
        """Take a piece, and return what is said once that is whole; None until then."""
        self._buffer += piece
        if len(self._buffer) < _LENGTH_BYTES:
            return None
        end = _LENGTH_BYTES + int.from_bytes(self._buffer[:_LENGTH_BYTES], "big")
        if len(self._buffer) < end:
            return None
        said = marshal.loads(self._buffer[_LENGTH_BYTES:end])
        del self._buffer[:end]
        return said


class Worker:
    """The daemon's end: starts the process, asks it, one thing at a time, and ends it.

    Args:
        loop: tells when it has answered.
        module: what it runs, with the number of its end of the socket as the argument.
        on_answer: called with the worker and what it says; with None when it has ended.
        python: the interpreter to run it with, of the application's own environment.

    Raises:
        UnavailableError: the host has no room for it.
        ConfigError: there is no such interpreter, or it cannot be run.
    """

    def __init__(
        self,
        loop: Loop,
        module: str,
        on_answer: Callable[[Any, Any], None],
        python: str = "",
    ) -> None:
        self._loop = loop
        self._on_answer = on_answer
        self._inbox = Inbox()
        command = [sys.executable, "-m", module]
        environment: dict[str, str] = {}
        if python:
            command, environment = interpreter.lend(python, module)
        # What it has forked may keep the other end of the socket open, and so its end unheard.
        self._process, self._ended, self._socket = spawn(command, os.environ | environment)
        self._socket.settimeout(_SEND_SECONDS)
        loop.watch(self._socket.fileno(), self.receive)
        loop.watch(self._ended, self._receive_rest)

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
            self._loop.forget(self._ended)
            os.close(self._ended)
            self._loop.forget(self._socket.fileno())
            self._socket.close()
            self.kill()
            self._process.wait()

    def _receive_rest(self) -> None:
        """Take what it has said before it ended, and tell that it has."""
        self._loop.forget(self._ended)
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        while self._socket.fileno() >= 0 and poll.poll(0):
            self.receive()
        if self._socket.fileno() >= 0:
            self.end()
            self._on_answer(self, None)
