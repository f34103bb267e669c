"""The daemon's end of a worker: starts the process, speaks to it, ends it.

It never waits for the process, which may wait for Redis itself. What waits for it is bounded: it is
given a batch when it wants one, and asks for the next when it has that.
"""

import os
import select
import signal
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from wakeq.bridge import talk
from wakeq.bridge.talk import Run
from wakeq.loop import Loop
from wakeq.worker import spawn

_COMMAND = [sys.executable, "-m", "wakeq.bridge.work"]


class Batch:
    """Messages that a worker has been given, until they are published.

    Attributes:
        number: the batch's, among those of the worker.
        runs: the messages.
        entry: of a dead letter that is tried again, its id among those; else empty.
        count: how many they are.
        size: how many bytes.
    """

    __slots__ = ("count", "entry", "number", "runs", "size")

    def __init__(self, number: int, runs: list[Run], entry: bytes) -> None:
        self.number = number
        self.runs = runs
        self.entry = entry
        self.count = sum(len(bodies) for _, bodies in runs)
        self.size = sum(sum(map(len, bodies)) for _, bodies in runs)


class Worker:
    """One worker, which outlives its process: after a crash another one goes on.

    Args:
        loop: tells when it has said something.
        number: which of the workers it is, from 1.
        settings: what its process needs to know, see `work`.
        on_said: called with the worker and what it says; with None when the process has ended.

    Attributes:
        ready: its process has loaded what it needs.
        wants: it waits for a batch.
        batches: those that it has, in order.
        again: those that it had when its process ended: to be given again, before all others.
        crashes: how often its process has ended at a message, by (batch, place in the batch).
        at: the message that it is at, likewise, when its process has ended before.
    """

    def __init__(
        self,
        loop: Loop,
        number: int,
        settings: dict[str, Any],
        on_said: Callable[["Worker", Any], None],
    ) -> None:
        self.number = number
        self.id = f"{settings['instance']}/{number}"
        self.ready = False
        self.wants = False
        self.next_number = 1
        self.batches: deque[Batch] = deque()
        self.again: deque[Batch] = deque()
        self.crashes: Counter[tuple[int, int]] = Counter()
        self.at: tuple[int, int] | None = None
        self._loop = loop
        self._settings = settings | {"worker": self.id}
        self._on_said = on_said
        self._talk: talk.Talk | None = None
        self._process: subprocess.Popen[bytes] | None = None
        # The loop knows no writing: this is readable for it when the process takes more.
        self._takes = select.epoll()
        self._ended = -1  # readable when the process has ended
        self._waits = self._finishes = False

    @property
    def lives(self) -> bool:
        """Whether it has a process."""
        return self._talk is not None

    def start(self, careful: int = 0) -> None:
        """Start its process; for so many batches it says which message it is at.

        Raises:
            UnavailableError: the host has no room for it.
        """
        self._launch()
        skips = [list(place) for place, count in self.crashes.items()
                 if count >= self._settings["max_crashes"]]  # fmt: skip
        self.say(talk.SETTINGS, self._settings | {"careful": careful, "skips": skips})

    def give(self, batch: Batch) -> None:
        """Give it a batch, which it waits for."""
        self.wants = False
        self.batches.append(batch)
        self.say(talk.BATCH, batch.number, batch.runs, batch.entry)

    def say(self, *said: Any) -> None:
        """Say something; if it has ended, that is told as if it had said so, later."""
        assert self._talk is not None
        self._talk.put(*said)
        self._send()

    def kill(self) -> None:
        """End its process, and what that runs, at once; that is told later."""
        assert self._process is not None
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has ended, and waits to be waited for

    def finish(self) -> None:
        """Let its process end after what it is at; that is told as the end."""
        self._finishes = True
        if self._talk is not None and not self._waits:
            self._talk.finish()

    def end(self) -> int:
        """End its process and what it runs; return its exit code. Nothing more is told."""
        if self._talk is None:
            return 0
        assert self._process is not None
        self._loop.forget(self._ended)
        os.close(self._ended)
        self._loop.forget(self._talk.fileno())
        self._loop.forget(self._takes.fileno())
        self._takes.unregister(self._talk.fileno())
        self._waits = False
        self._talk.close()
        self._talk = None
        self.ready = self.wants = False
        self.kill()
        return self._process.wait()

    def _launch(self) -> None:
        # What it forks may keep the other end of the socket open, and so its end unheard.
        self._process, self._ended, ours = spawn(_COMMAND, is_tied=False)
        self._takes.register(ours.fileno(), select.EPOLLOUT)
        self._talk = talk.Talk(ours)
        self._loop.watch(ours.fileno(), self._hear)
        self._loop.watch(self._ended, self._hear_rest)

    def _send(self) -> None:
        """Send what was said, as far as it is taken; the rest when there is room."""
        assert self._talk is not None
        try:
            waits = not self._talk.send()
        except OSError:
            self.kill()
            waits = False
        if waits and not self._waits:
            self._loop.watch(self._takes.fileno(), self._send)
        elif self._waits and not waits:
            self._loop.forget(self._takes.fileno())
        self._waits = waits
        if self._finishes and not waits:
            self._talk.finish()

    def _hear(self) -> None:
        assert self._talk is not None
        heard = self._talk.hear()
        if heard is None:
            self._on_said(self, None)
            return
        for said in heard:
            self._on_said(self, said)

    def _hear_rest(self) -> None:
        """Hear what the process has said before it ended, and that it has."""
        assert self._talk is not None
        self._loop.forget(self._ended)
        poll = select.poll()
        poll.register(self._talk.fileno(), select.POLLIN)
        while self._talk is not None and poll.poll(0):
            self._hear()
        if self._talk is not None:
            self._on_said(self, None)
