"""Dead letters as lua/fail.lua writes them, for tests of what reads them."""

from __future__ import annotations

import redis as redis_py

from wakeq import keys


def bury(
    client: redis_py.Redis,
    number: int,
    *,
    stream: str = "orders",
    group: str = "orders",
    error: str = "ValueError: no",
    at_ms: int = 0,
    **fields: str | bytes | int,
) -> str:
    """Add a dead letter, of a message with the id NUMBER-1; return its own id."""
    at_ms = at_ms or 1_700_000_000_000 + number
    own: dict[str, str | bytes | int] = {
        "wakeq.failed_at": at_ms,
        "wakeq.first_failed_at": at_ms - 60_000,
        "wakeq.first_id": f"{number}-1",
        "wakeq.attempt": 3,
        "wakeq.error": error,
        "wakeq.traceback": f"Traceback (most recent call last):\n  of {number}\n{error}",
        "wakeq.consumer": "north/orders:2",
        "wakeq.host": "north",
    }
    fields = fields or {"body": f"body {number}"}
    entry_id: bytes = client.xadd(keys.dead(stream, group), own | fields, id=f"{at_ms}-{number}")
    return entry_id.decode()
