"""Where the messages of a leader come from: of themselves, or from a user's code beside it.

That code runs in a process of its own (`generate`), so that it may compute for long, hang or crash
without the lease being lost over it. One set of messages is made at a time.
"""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from wakeq import journal
from wakeq.backoff import Backoff
from wakeq.errors import ConfigError, UnavailableError
from wakeq.journal import Log
from wakeq.loop import Loop, Timer
from wakeq.message import BODY
from wakeq.node.timetable import MICRO
from wakeq.sections import Node
from wakeq.worker import Worker

# What the process says first.
READY, BAD = "ready", "bad"
# What it says of a set of messages, before these, an error, and a traceback.
MADE = "made"

Take = Callable[[list[list[bytes]]], None]


class Source:
    """Makes messages, one set at a time.

    Args:
        loop: calls it.
        settings: the node's.
        name: the node's.

    Attributes:
        ready: it has loaded the code, or needs none.
    """

    def __init__(self, loop: Loop, settings: Node, name: str) -> None:
        self._needs_worker = bool(settings.generate or settings.generate_exec)
        self.ready = not self._needs_worker
        self._loop = loop
        self._settings = settings
        self._name = name
        self._log = Log("node")
        self._take: Take | None = None
        self._job: tuple[int, str] | None = None  # to be asked for
        self._asked: Take | None = None  # for whom the worker is at it
        self._worker: Worker | None = None
        self._is_up = False  # the worker has loaded the code
        self._is_busy = False
        self._overdue: Timer | None = None
        self._backoff = Backoff(1.0, 60.0)
        self._failure = ""

    @property
    def is_making(self) -> bool:
        """Tell whether somebody waits for messages."""
        return self._take is not None

    def start(self) -> None:
        """Start the process that makes messages, if there is one.

        Raises:
            UnavailableError, ConfigError: it cannot be started, at the first start; later, that is
                tried again.
        """
        settings = self._settings
        if self._worker is not None or not self._needs_worker:
            return
        python = settings.python if settings.generate else ""
        try:
            self._worker = Worker(self._loop, "wakeq.node.generate", self._answered, python)
        except (UnavailableError, ConfigError) as error:
            if not self.ready:
                raise
            self._tell(str(error), "")
            self._loop.after(self._backoff.next(), self.start)
            return
        source = settings.list_ or settings.stream
        kind = "list" if settings.list_ else "stream"
        self._worker.ask((self._name, settings.generate, settings.generate_exec, source, kind))

    def make(self, seq: int, at: int, now: int, take: Take) -> None:
        """Make the messages of one emission.

        Args:
            seq: the number of the emission.
            at: the time that it is for, us.
            now: the time, us.
            take: called with them, each a list of items: field, value … or the text for a list.
        """
        if not self._needs_worker:
            text = f"{uuid.uuid4()} {timestamp(now)}".encode()
            take([[text] if self._settings.list_ else [BODY, text]])
            return
        self._take, self._job = take, (seq, timestamp(at))
        if self._overdue is not None:
            self._overdue.cancel()
        self._overdue = self._loop.after(self._settings.generate_timeout, self._time_out)
        self._ask()

    def cancel(self) -> None:
        """Make nothing for anybody any more; what is under way may end."""
        self._take = self._job = None

    def close(self) -> None:
        """End the process that makes messages."""
        if self._worker is not None:
            self._worker.end()
            self._worker = None

    def _ask(self) -> None:
        if self._worker is None or not self._is_up or self._is_busy or self._job is None:
            return  # it is asked when the worker is there, and done with the last one
        self._is_busy, self._asked = True, self._take
        self._worker.ask(self._job)
        self._job = None

    def _answered(self, _worker: Worker, said: Any) -> None:
        if said is None:
            self._ended()
        elif said[0] == READY:
            self._is_up = self.ready = True
        elif said[0] == BAD:
            self._refused(said[1])
        else:
            self._is_busy = False
            self._backoff.reset()
            if self._asked is self._take:  # else nobody waits for it any more
                self._finish(*said[1:])
        self._ask()

    def _ended(self) -> None:
        """Begin again with another process, after a while."""
        self._worker, self._is_up = None, False
        was_busy, self._is_busy = self._is_busy, False
        if not self.ready:
            raise ConfigError("generate: what it loads ends the process")
        if was_busy and self._asked is self._take:
            self._finish([], "Crashed: it ended its own process")
        self._loop.after(self._backoff.next(), self.start)

    def _refused(self, why: str) -> None:
        if not self.ready:
            raise ConfigError(why)
        # It was right once: its file may be in the middle of being replaced.
        self._kill()
        self._tell(why, "")

    def _time_out(self) -> None:
        if self._take is not None or self._is_busy:
            self._finish([], "TimedOut: took longer than generate_timeout allows")
            if self._is_busy:
                self._kill()

    def _kill(self) -> None:
        """End the process; another one is started when it has ended."""
        self._is_busy = self._is_up = False
        if self._worker is not None:
            self._worker.kill()

    def _finish(self, messages: list[list[bytes]], error: str, trace: str = "") -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None
        take, self._take, self._job = self._take, None, None
        self._tell(error, trace)
        if take is not None:
            take(messages)

    def _tell(self, error: str, trace: str) -> None:
        """Say what is wrong, or that it is not any more, once."""
        if error == self._failure:
            return
        self._failure = error
        if error:
            self._log.warning(
                "messages could not be made", event_id=journal.GENERATE_FAILED,
                name=self._name, error=error, detail=trace or None,
            )  # fmt: skip
        else:
            self._log.info("messages are made again", name=self._name)


def timestamp(moment: int) -> str:
    """Return a time in microseconds as in RFC 3339, in UTC, exact to the millisecond."""
    text = datetime.fromtimestamp(moment // MICRO, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{moment % MICRO // 1000:03}Z"
