"""What is known of bridges: where they take messages from and to, and how many it were."""

import json
from typing import Any

from wakeq import keys
from wakeq.cli.session import Session
from wakeq.cli.streams import text

_COUNTERS = ("handled", "published", "dead", "cuts")


def reports(session: Session) -> list[dict[str, Any]]:
    """Return a report of each bridge that has run, by name.

    Raises:
        redis.exceptions.RedisError: see `Session.explaining`.
    """
    found = session.call(keys.BRIDGES, "HGETALL", keys.BRIDGES)
    told = {text(name): _read(value) for name, value in found.items()}
    return [_report(session, name, told[name]) for name in sorted(told)]


def _read(value: bytes) -> dict[str, str]:
    """Return what a bridge has told of itself; whatever stands there."""
    try:
        told = json.loads(value)
    except ValueError:
        told = None
    told = told if isinstance(told, dict) else {}
    return {key: str(told.get(key, "")) for key in ("source", "stream", "ids")}


def _report(session: Session, name: str, told: dict[str, str]) -> dict[str, Any]:
    report: dict[str, Any] = {"bridge": name, "source": told["source"], "stream": told["stream"]}
    report |= {"workers": 0, "instances": [], **dict.fromkeys(_COUNTERS, 0)}
    stream, ids = told["stream"], told["ids"]
    if not stream or not ids:
        return report
    stats = keys.stats(stream, keys.bridge_group(name))
    counters = session.call(stream, "HMGET", stats, *_COUNTERS)
    seconds, _ = session.call(ids, "TIME")
    living = session.call(ids, "ZRANGEBYSCORE", keys.enlisted(ids), seconds * 1000, "+inf")
    # Each is HOST/INSTANCE/NUMBER, and an instance is NAME or NAME:NUMBER.
    instances = [text(living_id).rpartition("/")[0] for living_id in living]
    own = [i for i in instances if i.rpartition("/")[2].partition(":")[0] == name]
    report |= {"workers": len(own), "instances": sorted(set(own))}
    return report | dict(zip(_COUNTERS, (int(count or 0) for count in counters), strict=True))
