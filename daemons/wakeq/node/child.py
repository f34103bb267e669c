"""The consuming process of a node: started, watched and ended by the node.

It runs the handlers, so it may hang or crash; the node, which stands for election, never waits for
it. It is asked for its figures over a socket that it takes for a lease of its wake socket.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from wakeq import journal
from wakeq.backoff import Backoff
from wakeq.consumer.wakesocket import INHERITED
from wakeq.errors import (
    EX_CONFIG,
    EX_NOPERM,
    EX_USAGE,
    ConfigError,
    UnavailableError,
    WakeqError,
)
from wakeq.journal import Log
from wakeq.loop import Loop, Timer
from wakeq.sections import Node
from wakeq.service import NOW, Service
from wakeq.worker import spawn

# Asked this often how it is, and oftener until it is ready.
_ASK_SECONDS = 2.0
_ASK_FIRST_SECONDS = 0.05
# One that has not answered for so long does not make progress: its loop never waits for a handler.
_SILENT_SECONDS = 60.0
# After this it counts as started for good.
_STEADY_SECONDS = 10.0
# Beyond drain_timeout, for what is left to be said to Redis.
_MARGIN_SECONDS = 5.0
_EXTEND_SECONDS = 10.0
_HURRY_SECONDS = 0.2
_CHUNK_BYTES = 1 << 16
# What the service manager gave to the node is not for it.
_NOT_INHERITED = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_PID",
                  "WATCHDOG_USEC")  # fmt: skip
# What does not get better by trying again, if it was so from the beginning.
_HOPELESS = (EX_USAGE, EX_CONFIG, EX_NOPERM)
# A consumer has one that reads and one for the rest.
_CONNECTIONS = 2


class Child:
    """One consuming process, or none.

    Args:
        loop: calls it.
        service: the node's process.
        settings: the node's.

    Attributes:
        figures: what it has said of itself last, empty if it does not run.
        on_figures: called when there are new ones.
        was_ready: it could be started, once at least.
    """

    def __init__(self, loop: Loop, service: Service, settings: Node) -> None:
        self.figures: dict[str, Any] = {}
        self.on_figures: Callable[[], None]
        self.was_ready = False
        self._loop = loop
        self._service = service
        self._settings = settings
        self._log = Log("node")
        self._wanted = False
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._socket: socket.socket | None = None
        self._line = b""
        self._spawned_at = self._answered_at = 0.0
        self._backoff = Backoff(1.0, 30.0)
        self._timer: Timer | None = None  # to ask, or to start anew
        self._kill_timer: Timer | None = None
        self._before = {"handled": 0, "failed": 0}  # by processes that have ended

    @property
    def connections(self) -> int:
        """How many connections to Redis it has at most."""
        return int(self.figures.get("connections", _CONNECTIONS)) if self.figures else 0

    @property
    def busy(self) -> int:
        """How many workers are at a message."""
        most = self._settings.workers
        return min(most, int(self.figures.get("busy", self.figures.get("in_hand", 0))))

    def total(self, what: str) -> int:
        """Return how many messages were `handled` or have `failed`, since the node started."""
        return self._before[what] + int(self.figures.get(what, 0))

    def start(self) -> None:
        """Have it run from now on, and again whenever it ends."""
        self._wanted = True
        if self._process is None:
            self._backoff.reset()
            self._spawn()

    def stop(self) -> None:
        """Have it finish what is in hand, and end."""
        self._wanted = False
        if self._process is None:
            self._cancel()
        elif self._kill_timer is None:
            self._process.send_signal(signal.SIGTERM)
            seconds = self._settings.drain_timeout + _MARGIN_SECONDS
            self._kill_timer = self._loop.after(seconds, self._kill)

    def drain(self) -> None:
        """Stop it, and wait for its end, the node's own: a second signal cuts it short."""
        self.stop()
        if self._process is None:
            return
        deadline = time.monotonic() + self._settings.drain_timeout + _MARGIN_SECONDS
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        poll.register(self._service.signal_fd, select.POLLIN)
        notifier, hurry_by = self._service.notifier, 0.0
        pause = min(_EXTEND_SECONDS, notifier.watchdog_seconds / 3 or _EXTEND_SECONDS)
        while (rest := deadline - time.monotonic()) > 0:
            notifier.extend(2 * _EXTEND_SECONDS)
            notifier.alive()
            if self._service.stop == NOW:
                # Again and again, because two that come at once are one to it.
                self._process.send_signal(signal.SIGTERM)
                pause = _HURRY_SECONDS
                hurry_by = hurry_by or time.monotonic() + _MARGIN_SECONDS
                deadline = min(deadline, hurry_by)
            events = dict(poll.poll(min(rest, pause) * 1000))
            if self._pidfd in events:
                break
            self._service.clear_signal()
        else:
            self._kill()
        self._reap()

    def close(self) -> None:
        """End it at once, if it still runs."""
        if self._process is not None:
            self._kill()
            self._reap()
        self._cancel()

    # -- its life --------------------------------------------------------------------------

    def _spawn(self) -> None:
        self._cancel()
        kind = "takers" if self._settings.list_ else "consuming"
        options = [
            f"{setting.option}={self._service.options[setting.name]}"
            for setting in self._service.program.settings
            if setting.name in self._service.options
        ]
        environment = {k: v for k, v in os.environ.items() if k not in _NOT_INHERITED}
        command = [sys.executable, "-m", f"wakeq.node.{kind}", self._service.name, *options]
        try:
            self._process, self._pidfd, self._socket = spawn(
                command, environment, variable=INHERITED, stdout=None
            )
        except (UnavailableError, ConfigError) as error:
            self._log.error(
                "nothing can be consumed, trying again", name=self._service.name, error=str(error)
            )
            self._timer = self._loop.after(self._backoff.next(), self._spawn)
            return
        self._socket.setblocking(False)
        self._loop.watch(self._pidfd, self._ended)
        self._loop.watch(self._socket.fileno(), self._receive)
        self._spawned_at = self._answered_at = time.monotonic()
        self._ask()

    def _ended(self) -> None:
        asked_to = self._kill_timer is not None
        code = self._reap()
        if self._wanted and asked_to:
            self._spawn()
        elif self._wanted:
            if code in _HOPELESS and not self.was_ready:
                raise _Hopeless(code, "what handles messages cannot be started, see above")
            pause = self._backoff.next()
            self._log.warning(
                "the consuming process ended", event_id=journal.CONSUMING_ENDED,
                name=self._service.name, code=code, again_in=f"{pause:.3f}s",
            )  # fmt: skip
            self._timer = self._loop.after(pause, self._spawn)

    def _reap(self) -> int:
        """Forget the process, which has ended or is about to; return its exit code."""
        assert self._process is not None
        assert self._socket is not None
        self._cancel()
        if self._kill_timer is not None:
            self._kill_timer.cancel()
            self._kill_timer = None
        code = self._process.wait()
        self._process = None
        self._loop.forget(self._pidfd)
        os.close(self._pidfd)
        self._hang_up()
        for what in self._before:
            self._before[what] += int(self.figures.get(what, 0))
        self.figures = {}
        return code

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._loop.forget(self._socket.fileno())
            self._socket.close()
        self._socket, self._line = None, b""

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- its figures -----------------------------------------------------------------------

    def _ask(self) -> None:
        if self._socket is None:
            return
        if time.monotonic() - self._answered_at > _SILENT_SECONDS:
            self._log.error("killed the consuming process, which is stuck", name=self._service.name)
            self._kill()
            return
        try:
            self._socket.send(b"status\n")
        except OSError:
            pass  # it is slow, or about to end
        self._cancel()
        seconds = _ASK_SECONDS if self.was_ready else _ASK_FIRST_SECONDS
        self._timer = self._loop.after(seconds, self._ask)

    def _receive(self) -> None:
        assert self._socket is not None
        try:
            piece = self._socket.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        if not piece:
            self._loop.forget(self._socket.fileno())
            return
        *lines, self._line = (self._line + piece).split(b"\n")
        if not lines:
            return
        self._answered_at = time.monotonic()
        self.figures = json.loads(lines[-1])
        if self.figures.get("state") not in ("starting", "draining"):
            self.was_ready = True
            if self._answered_at - self._spawned_at > _STEADY_SECONDS:
                self._backoff.reset()
        self.on_figures()


class _Hopeless(WakeqError):
    """The consuming process can never start."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.exit_code = code
