"""Reporting: what the service manager and Redis hear of a process of a node.

In Redis it has a hash that expires, beside the node's lease, with live figures: written a few
seconds after something has changed, and now and then so that it stays. Nothing depends on them.
"""

import os
import time
from collections.abc import Callable

from wakeq import keys
from wakeq.loop import Loop
from wakeq.node.link import Link
from wakeq.scripts import Script
from wakeq.sections import Node
from wakeq.service import Service
from wakeq.wire import Reply

_SAY_SECONDS = 1.0
_WRITE_SECONDS = 5.0
# At rest it is written this often, and is believed so long.
_REST_SECONDS = 120.0
_LIFETIME_MS = 300_000

Figures = dict[str, str | int]


class Reporter:
    """Says how things are.

    Args:
        loop: calls it.
        service: the process.
        settings: the node's.
        link: to Redis.

    Attributes:
        words: returns what to say in STATUS=.
        figures: returns what to write.
    """

    def __init__(self, loop: Loop, service: Service, settings: Node, link: Link) -> None:
        self.words: Callable[[], str]
        self.figures: Callable[[], Figures]
        self.process = f"{os.uname().nodename}/{os.getpid()}"
        self._loop = loop
        self._notifier = service.notifier
        self._link = link
        source = settings.list_ or settings.stream
        node = service.name.partition(":")[0]
        self._names = [
            keys.node_process(source, node, self.process), keys.node_processes(source, node)
        ]  # fmt: skip
        self._report = Script("report_node")
        self._started = int(time.time())
        self._written: Figures = {}
        self._written_at = 0.0
        self._may_write = False

    def start(self) -> None:
        """Say how things are from now on."""
        self._say()

    def allow(self) -> None:
        """Write to Redis from now on: it has answered."""
        self._may_write = True

    def say_now(self) -> None:
        """Say at once what has changed."""
        self._notifier.status(self.words())

    def end(self) -> None:
        """Have Redis forget this process, if that is quickly done."""
        if self._link.connected:
            self._link.run(self._report, self._names, [self.process, 0], _ignore)

    def _say(self) -> None:
        self._loop.after(_SAY_SECONDS, self._say)
        self.say_now()
        now = time.monotonic()
        since = now - self._written_at
        if not self._may_write or since < _WRITE_SECONDS:
            return
        figures = self.figures()
        if figures != self._written or since >= _REST_SECONDS:
            self._written, self._written_at = figures, now
            self._write(figures)

    def _write(self, figures: Figures) -> None:
        fields: Figures = {
            **figures, "host": os.uname().nodename, "pid": os.getpid(), "started": self._started
        }  # fmt: skip
        flat = [part for pair in fields.items() for part in pair]
        self._link.run(self._report, self._names, [self.process, _LIFETIME_MS, *flat], _ignore)


def _ignore(_reply: Reply) -> None:
    pass
