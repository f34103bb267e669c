"""The daemon's end of the process that repairs messages."""

from collections.abc import Callable
from typing import Any

from wakeq import worker
from wakeq.loop import Loop
from wakeq.sections import Delay


class Worker(worker.Worker):
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
        super().__init__(loop, "wakeq.delay.repair", on_answer)
        self.settings = settings
        self.ready = False
        self.ask((settings.repair, settings.repair_exec))
