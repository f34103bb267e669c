"""What coroutines of the application raise: a CancelledError of theirs is a failure as any other,
one that is meant for the task that awaits them ends that.
"""

import asyncio
import contextlib
from collections.abc import Iterator

from wakeq.fanout.office import log


def cancellations() -> int:
    """Return how often this task was cancelled; time-outs in redis-py leave some behind."""
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


@contextlib.contextmanager
def logged(what: str) -> Iterator[None]:
    """Log what is raised, and go on."""
    before = cancellations()
    try:
        yield
    except (Exception, asyncio.CancelledError) as error:
        log.error("%s: %s: %s", what, type(error).__name__, error)
        if isinstance(error, asyncio.CancelledError) and cancellations() > before:
            raise
