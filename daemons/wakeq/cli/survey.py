"""Looks at streams, groups and consumers in Redis; only reads, and connects to no consumer."""

import os
from typing import Any

from redis.exceptions import RedisError

from wakeq import keys
from wakeq.cli import streams
from wakeq.cli.screen import readable
from wakeq.cli.session import Session
from wakeq.config import Consumer
from wakeq.errors import WakeqError
from wakeq.redis_client import server_error

# Unread messages are counted one by one only up to here, and only over so many bytes.
_COUNT_MOST = 1000
_COUNT_BYTES = 4 * 1024 * 1024

Expected = dict[str, dict[str, list[str]]]
Report = dict[str, Any]


class Survey:
    """Makes a report of each stream that wakeq looks after.

    Attributes:
        problems: what kept a consumer's configuration, or a stream, from being read, a line each.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._host = os.uname().nodename
        self._starts: dict[tuple[str, str], str] = {}
        self.problems: list[str] = []

    def run(self) -> list[Report]:
        """Return a report of each stream, by name: see `_stream` for its shape.

        Of one that Redis answers with an error for, it tells no more than that it has a problem.

        Raises:
            redis.exceptions.RedisError: see `Session.explaining`; also if none can be read.
        """
        expected = self._expected()
        registered = self._session.call(keys.STREAMS, "SMEMBERS", keys.STREAMS)
        names = {_text(stream) for stream in registered} | set(expected)
        reports, errors = [], []
        for stream in sorted(names):
            try:
                reports.append(self._stream(stream, expected.get(stream, {})))
            except RedisError as error:
                if (reply := server_error(error)) is None:
                    raise
                errors.append(error)
                reports.append(_empty(stream) | {"problem": "cannot be read"})
                self.problems.append(f"{readable(stream.encode(), 60)} cannot be read: {reply}")
        if errors and len(errors) == len(names):
            raise errors[0]
        return reports

    def _expected(self) -> Expected:
        """Return the consumers' names that this host has, by stream and group."""
        expected: Expected = {}
        sockets = self._session.sockets()
        for name in sorted({*sockets, *self._session.configured()}):
            try:
                settings = self._session.config.consumer(name)
            except WakeqError as error:
                self.problems.append(str(error))
                continue
            consumers = expected.setdefault(settings.stream, {}).setdefault(settings.group, [])
            self._note_start(settings)
            if name in sockets:
                consumers.append(f"{self._host}/{name}")
        return expected

    def _note_start(self, settings: Consumer) -> None:
        self._starts[settings.stream, settings.group] = settings.start

    def _stream(self, stream: str, expected: dict[str, list[str]]) -> Report:
        commands = [
            ("TYPE", stream), ("XLEN", stream), ("XINFO GROUPS", stream),
            ("XRANGE", stream, "-", "+", "COUNT", 1), ("TIME",),
            ("ZCARD", keys.delayed(stream)), ("ZCARD", keys.repairs(stream)),
            ("GET", keys.paused(stream)),
        ]  # fmt: skip
        kind, length, found, first, time, delayed, repairs, paused = self._session.call_many(
            stream, commands, raises=False
        )
        if isinstance(kind, Exception):
            raise kind
        kind, report = _text(kind), _empty(stream)
        if kind not in ("stream", "none"):
            return report | {"problem": f"is a {kind}, not a stream"}
        for reply in (length, first, time, delayed, repairs, paused):
            if isinstance(reply, Exception):
                raise reply
        report |= {"delayed": delayed + repairs, "paused": streams.read_pause(paused)}
        groups = _unless_missing(found) or []
        report["length"] = length
        now_ms = time[0] * 1000 + time[1] // 1000
        if report["delayed"]:
            late = streams.overdue(self._session, stream, now_ms)
            report["overdue"], report["overdue_seconds"] = late
        oldest = first[0][0] if first else None
        known = {_text(group["name"]): group for group in groups}
        for name in sorted({*known, *expected}):
            if name in known:
                entry = self._group(stream, known[name], length, oldest, now_ms)
            else:
                entry = self._missing_group(stream, name, length, oldest, now_ms)
            entry |= self._beside(stream, name, entry)
            entry["owner"] = self._owner(stream, name)
            entry["consumers"] = self._consumers(
                stream, name, expected.get(name, []), known.get(name)
            )
            for consumer in entry["consumers"]:
                if entry["owner"] not in (None, consumer["name"]) and consumer["state"] == "awake":
                    consumer["state"] = "standing by"
            report["groups"].append(entry)
        return report

    def _group(
        self, stream: str, found: Report, length: int, oldest: bytes | None, now_ms: int
    ) -> Report:
        name, delivered = _text(found["name"]), _text(found["last-delivered-id"])
        commands = [
            ("XRANGE", stream, f"({delivered}", "+", "COUNT", 1),
            ("XPENDING", stream, found["name"]),
            ("HMGET", keys.stats(stream, name), "handled", "failed"),
        ]
        following, pending, counters = self._session.call_many(stream, commands)
        unread, exact = 0, True
        if following:
            unread, exact = self._unread(stream, found, length, oldest)
        return {
            "group": name,
            "unread": unread,
            "unread_exact": exact,
            "oldest_unread_seconds": _age(following[0][0] if following else None, now_ms),
            "pending": pending["pending"],
            "oldest_pending_seconds": _age(pending["min"], now_ms),
            "handled": int(counters[0] or 0),
            "failed": int(counters[1] or 0),
        }

    def _beside(self, stream: str, name: str, entry: Report) -> Report:
        """Return what the group has beside the stream, and how many are pending in all."""
        retry = keys.retry(stream, name)
        length, pending, dead = self._session.call_many(
            stream,
            [("XLEN", retry), ("XPENDING", retry, name), ("XLEN", keys.dead(stream, name))],
            raises=False,
        )
        for reply in (length, dead):
            if isinstance(reply, Exception):
                raise reply
        # The retry stream, or the group in it, is made with the consumer's first start.
        found = _unless_missing(pending)
        taken = found["pending"] if found else 0
        return {"pending": entry["pending"] + taken, "retry": length - taken, "dead": dead}

    def _owner(self, stream: str, group: str) -> str | None:
        """Return who handles the messages now, in strict order; else None."""
        key = keys.owner(stream, group)
        process, name = self._session.call(stream, "HMGET", key, "process", "consumer")
        return _text(name) if process else None

    def _unread(
        self, stream: str, found: Report, length: int, oldest: bytes | None
    ) -> tuple[int, bool]:
        """Return how many messages after the last delivered one there are, and whether that is
        exact, or there are more.

        Redis's own figure (lag) is right when the oldest message was delivered, so that no
        trimming has gone beyond what was read; Redis gives none after a deletion.
        """
        delivered = _text(found["last-delivered-id"])
        if oldest is not None and _order(_text(oldest)) > _order(delivered):
            return length, True
        lag = found.get("lag")
        if isinstance(lag, int):
            return max(1, min(lag, length)), True
        return self._count(stream, delivered)

    def _count(self, stream: str, delivered: str) -> tuple[int, bool]:
        counted, size, step = 0, 0, 10
        while counted < _COUNT_MOST and size < _COUNT_BYTES:
            entries = self._session.call(
                stream, "XRANGE", stream, f"({delivered}", "+", "COUNT", step
            )
            counted += len(entries)
            if len(entries) < step:
                return counted, True
            size += sum(len(k) + len(v) for _, fields in entries for k, v in fields.items())
            delivered = _text(entries[-1][0])
            step = min(100, _COUNT_MOST - counted)
        return counted, False

    def _missing_group(
        self, stream: str, name: str, length: int, oldest: bytes | None, now_ms: int
    ) -> Report:
        """Return the report of a group that its consumer will make at its first start."""
        from_oldest = self._starts.get((stream, name)) == "0"
        return {
            "group": name,
            "unread": length if from_oldest else 0,
            "unread_exact": True,
            "oldest_unread_seconds": _age(oldest if from_oldest else None, now_ms),
            "pending": 0,
            "oldest_pending_seconds": None,
            "handled": 0,
            "failed": 0,
        }

    def _consumers(
        self, stream: str, group: str, expected: list[str], found: Report | None
    ) -> list[Report]:
        pending = dict.fromkeys(expected, 0)
        if found is not None:
            consumers = self._session.call(stream, "XINFO CONSUMERS", stream, found["name"])
            pending |= {_text(consumer["name"]): consumer["pending"] for consumer in consumers}
        names = sorted(pending)
        if not names:
            return []
        alive = self._session.call_many(
            stream, [("EXISTS", keys.alive(stream, group, name)) for name in names]
        )
        return [
            {
                "name": name,
                # Elsewhere it may be asleep or gone: only its host knows.
                "state": "awake" if lives else "asleep" if name in expected else "absent",
                "pending": pending[name],
            }
            for name, lives in zip(names, alive, strict=True)
        ]


def _empty(stream: str) -> Report:
    return {
        "stream": stream, "length": 0, "delayed": 0, "overdue": 0, "overdue_seconds": None,
        "paused": None, "groups": [],
    }  # fmt: skip


def _unless_missing(reply: Any) -> Any:
    """Return what Redis says of a stream or a group, None if there is none.

    Raises:
        redis.exceptions.RedisError: it may not say.
    """
    if not isinstance(reply, Exception):
        return reply
    if str(reply).removeprefix("ERR ").startswith(("no such key", "NOGROUP ")):
        return None
    raise reply


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode(errors="backslashreplace")


def _order(entry_id: str) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence or 0)


def _age(entry_id: bytes | str | None, now_ms: int) -> float | None:
    """Return how many seconds ago a message was published, by its id."""
    if entry_id is None:
        return None
    return max(0, now_ms - _order(_text(entry_id))[0]) / 1000
