"""Which streams and groups there are, in Redis and in the configuration of this host; which of
them are paused."""

import json
from typing import Any

from wakeq import keys
from wakeq.cli import times
from wakeq.cli.screen import span
from wakeq.cli.session import Session
from wakeq.errors import MissingError, WakeqError
from wakeq.settings import nearest

# wakeq-delay is late by milliseconds, with a backlog by seconds.
_LATE_MS = 5000


def configured(session: Session) -> dict[str, set[str]]:
    """Return the groups that consumers of this host are configured for, by stream."""
    found: dict[str, set[str]] = {}
    for name in {*session.sockets(), *session.configured()}:
        try:
            settings = session.config.consumer(name)
        except WakeqError:
            continue  # `wakeq check` says what is wrong with it
        found.setdefault(settings.stream, set()).add(settings.group)
    return found


def groups(session: Session, stream: str) -> list[str]:
    """Return the groups of a stream, whether they have been made yet or not.

    Raises:
        redis.exceptions.RedisError: see `Session.explaining`.
    """
    found = set(configured(session).get(stream, ()))
    if text(session.call(stream, "TYPE", stream)) == "stream":
        found |= {text(group["name"]) for group in session.call(stream, "XINFO GROUPS", stream)}
    return sorted(found)


def require(session: Session, stream: str) -> None:
    """Find a stream: in Redis, in the registry of streams, or in the configuration.

    Raises:
        MissingError: it is nowhere, or is no stream.
        redis.exceptions.RedisError: see `Session.explaining`.
    """
    kind = text(session.call(stream, "TYPE", stream))
    if kind not in ("stream", "none"):
        raise MissingError(f"{stream} is a {kind}, not a stream")
    if kind == "stream":
        return
    known = {text(name) for name in session.call(keys.STREAMS, "SMEMBERS", keys.STREAMS)}
    known |= configured(session).keys()
    if stream not in known:
        raise MissingError(f"there is no stream {stream!r}{nearest(stream, sorted(known))}")


def overdue(session: Session, stream: str, now_ms: int) -> tuple[int, float | None]:
    """Return how many delayed messages of a stream should have been delivered, and for how many
    seconds the first of them has; those of the last few seconds are not counted.

    Raises:
        redis.exceptions.RedisError: see `Session.explaining`.
    """
    until = now_ms - _LATE_MS
    sets = (keys.delayed(stream), keys.repairs(stream))
    *counts, first, first_repair = session.call_many(
        stream,
        [
            *(("ZCOUNT", key, "-inf", until) for key in sets),
            *(("ZRANGE", key, 0, 0, "WITHSCORES") for key in sets),
        ],
    )
    if not sum(counts):
        return 0, None
    due_ms = min(float(found[1]) for found in (first, first_repair) if found)
    # A foreign hand may have put it before all times.
    return sum(counts), (now_ms - max(0.0, due_ms)) / 1000


def overdue_told(count: int, seconds: float) -> str:
    """Return what `overdue` found as a sentence that says what to do."""
    messages = "1 delayed message is" if count == 1 else f"{count:,} delayed messages are"
    return (
        f"{messages} overdue, the first by {span(seconds)}; does wakeq-delay run?"
        " systemctl status wakeq-delay"
    )


def read_pause(value: bytes | None) -> dict[str, Any] | None:
    """Return since when (ms), by whom and why a stream is paused; None: it is not.

    Whatever stands there pauses: what somebody has put there by hand is taken as the reason.
    """
    if value is None:
        return None
    try:
        found = json.loads(value)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        found = {"reason": value.decode(errors="backslashreplace")}
    since = found.get("since")
    return {
        "since": since if isinstance(since, int) else None,
        "by": str(found.get("by", "")),
        "reason": str(found.get("reason", "")),
    }


def pause_told(pause: dict[str, Any]) -> str:
    """Return what `read_pause` found as part of a sentence."""
    since = f" since {times.local(pause['since'] / 1000)}" if pause["since"] is not None else ""
    by = f" by {pause['by']}" if pause["by"] else ""
    return f"paused{since}{by}{': ' if pause['reason'] else ''}{pause['reason']}"


def text(value: bytes | str) -> str:
    """Return a name from Redis as text."""
    return value if isinstance(value, str) else value.decode(errors="backslashreplace")
