"""wakeq: message handlers on plain Linux hosts, started by systemd when a message arrives.

What a handler needs is here: `Message`, `Publish`, `Retry`, `Reject`, `batch`. What publishes
is `Publisher` and `AsyncPublisher`. Who takes part in rooms has `FanoutClient`, `FanoutWorker` and
their `Async` counterparts. Everything is loaded when it is first used, because a
consumer imports this package each time it is woken.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing itself takes longer to import than it is worth here
__version__ = "0.1.0"

if TYPE_CHECKING:
    from typing import Any

    from wakeq.consumer.handler import batch as batch
    from wakeq.errors import Reject as Reject
    from wakeq.errors import Retry as Retry
    from wakeq.errors import RoomError as RoomError
    from wakeq.errors import WakeqError as WakeqError
    from wakeq.fanout.async_worker import AsyncFanoutWorker as AsyncFanoutWorker
    from wakeq.fanout.client import AsyncFanoutClient as AsyncFanoutClient
    from wakeq.fanout.client import FanoutClient as FanoutClient
    from wakeq.fanout.delivery import RoomMessage as RoomMessage
    from wakeq.fanout.office import FanoutTerms as FanoutTerms
    from wakeq.fanout.worker import FanoutWorker as FanoutWorker
    from wakeq.message import Message as Message
    from wakeq.message import Publish as Publish
    from wakeq.publisher import AsyncPublisher as AsyncPublisher
    from wakeq.publisher import Publisher as Publisher

_HOMES = {
    "AsyncFanoutClient": "wakeq.fanout.client",
    "AsyncFanoutWorker": "wakeq.fanout.async_worker",
    "AsyncPublisher": "wakeq.publisher",
    "FanoutClient": "wakeq.fanout.client",
    "FanoutTerms": "wakeq.fanout.office",
    "FanoutWorker": "wakeq.fanout.worker",
    "Message": "wakeq.message",
    "Publish": "wakeq.message",
    "Publisher": "wakeq.publisher",
    "Reject": "wakeq.errors",
    "Retry": "wakeq.errors",
    "RoomError": "wakeq.errors",
    "RoomMessage": "wakeq.fanout.delivery",
    "WakeqError": "wakeq.errors",
    "batch": "wakeq.consumer.handler",
}

__all__ = [  # noqa: PLE0604  (the names are those of _HOMES; the checks cannot see that)
    *_HOMES,
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'wakeq' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
