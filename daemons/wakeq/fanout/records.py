"""What the rooms tell: messages, clients, states, metrics; times are in seconds, by Redis."""

import contextlib
import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

_COUNTERS = ("acknowledged", "timeouts", "dropped", "refused", "missed", "invalid")
NUMBER_MOST = 2**53  # beyond it, scores and the numbers of Lua and JSON have gaps


class Queued(NamedTuple):
    """A message, apart from who gets it.

    Attributes:
        id: names it, and says when it was sent: microseconds since 1970.
        data: what was sent.
        producer: who sent it, as the sender says.
        priority: lower is delivered first; None where that does not matter any more.
    """

    id: str
    data: bytes
    producer: str
    priority: int | None = None

    @property
    def sent_at(self) -> float:
        """When it was sent, in seconds since 1970."""
        return int(self.id) / 1e6

    def text(self) -> str:
        """Return the data as text.

        Raises:
            UnicodeDecodeError: it is not UTF-8.
        """
        return self.data.decode()

    def json(self) -> Any:
        """Return what the data, which is JSON, stands for.

        Raises:
            ValueError: it is not JSON.
        """
        return json.loads(self.data)


class RoomClient(NamedTuple):
    """What a room knows of a client.

    Attributes:
        worker: who delivers to it.
        mode: `sync`, `async` or `observer`.
        joined_at: since when it is there.
        seen_at: when it was heard of last.
        timeout: how long it may be silent, in seconds.
        waiting: the outstanding message waits for its acknowledgement.
    """

    worker: str
    mode: str
    joined_at: float
    seen_at: float
    timeout: float
    waiting: bool


class RoomMetrics(NamedTuple):
    """The figures of a room.

    Attributes:
        clients, sync: how many there are, and how many of them are waited for.
        backlog: how many messages wait, without the outstanding one.
        delay: for how long the oldest of them has waited, in seconds.
        outstanding: the id of the outstanding message, empty if there is none.
        waiting: how many have not acknowledged it.
        round_age: for how long it is outstanding, in seconds.
        sent, oob: how many were sent in line, and out of band.
        rounds: how many were delivered.
        acknowledged, timeouts: how many acknowledgements there were, and time-outs.
        dropped, refused: messages that nobody was there for, and for which there was no room.
        missed: how many were removed before a worker had read them; see `rooms`.
        invalid: what somebody else has put in line, and is no message; it was dropped.
    """

    room: str
    clients: int
    sync: int
    backlog: int
    delay: float
    outstanding: str
    waiting: int
    round_age: float
    sent: int
    oob: int
    rounds: int
    acknowledged: int
    timeouts: int
    dropped: int
    refused: int
    missed: int
    invalid: int

    @property
    def is_empty(self) -> bool:
        """Tell whether nobody is there, and nothing waits."""
        return not (self.clients or self.backlog or self.outstanding)


class RoomState(NamedTuple):
    """A room in one moment: its figures, who is there, and the outstanding message."""

    metrics: RoomMetrics
    clients: dict[str, RoomClient]
    message: Queued | None

    @property
    def acknowledged(self) -> set[str]:
        """Who has acknowledged the outstanding message, or is not waited for in this round."""
        return {name for name, of in self.clients.items() if of.mode == "sync" and not of.waiting}


class Metrics(NamedTuple):
    """The figures of all rooms.

    Attributes:
        rooms: how many there are with a client or a message.
        waiting_rooms: how many of them have a backlog.
        clients, backlog: of all rooms together.
        sent, oob, rounds, acknowledged, timeouts, dropped, refused, missed, invalid: the
            same.
        top: the rooms that have most of what was asked for, most first.
        broken: rooms that are left out, because somebody else has written there; at most 100.
    """

    rooms: int
    waiting_rooms: int
    clients: int
    backlog: int
    sent: int
    oob: int
    rounds: int
    acknowledged: int
    timeouts: int
    dropped: int
    refused: int
    missed: int
    invalid: int
    top: list[RoomMetrics]
    broken: list[str]


def read_message(raw: bytes, priority: bytes | None = None) -> Queued:
    """Return a message as room.lua packs it.

    Raises:
        ValueError: it is none.
    """
    end = 21 + int(raw[16:21]) if raw[:21].isdigit() else 0
    if not 21 <= end <= len(raw):
        raise ValueError(f"no message of a room: {raw[:40]!r}")
    rank = None
    if priority is not None:
        score = float(priority)
        rank = int(score) if math.isfinite(score) else int(math.copysign(NUMBER_MOST, score))
    # The length may cut a character in two, if somebody else has written it.
    return Queued(raw[:16].decode(), raw[end:], raw[21:end].decode(errors="replace"), rank)


def read_peek(reply: Sequence[Any]) -> list[Queued]:
    """Return the messages that wait; what is none is left out."""
    found = []
    for raw, score in zip(reply[::2], reply[1::2], strict=True):
        try:
            found.append(read_message(raw, score))
        except ValueError:
            continue
    return found


def read_metrics(room: str, reply: Sequence[Any]) -> RoomMetrics:
    """Return the figures in a reply of room_state.lua."""
    now_us, pairs, message, backlog, clients, sync, waiting, oldest = reply[:8]
    figures = {name.decode(): value for name, value in zip(pairs[::2], pairs[1::2], strict=True)}
    names = ("sent", "oob", "round", *_COUNTERS)
    sums = [int(figures.get(name, 0)) for name in names]
    delay = max(0.0, (now_us - int(oldest)) / 1e6) if oldest else 0.0
    released = figures.get("released")
    age = max(0.0, now_us / 1e6 - int(released) / 1000) if released else 0.0
    outstanding = message[:16].decode(errors="replace")
    return RoomMetrics(room, clients, sync, backlog, delay, outstanding, waiting, age, *sums)


def unused_seconds(reply: Sequence[Any]) -> float:
    """Return how long ago somebody has joined, or sent something, by a reply of room_state.lua."""
    now_us, pairs = int(reply[0]), reply[1]
    figures = dict(zip(pairs[::2], pairs[1::2], strict=True))
    used_us = max(int(figures.get(b"seq", 0)), int(figures.get(b"used", 0)) * 1000)
    return max(0.0, (now_us - used_us) / 1e6)


def read_state(room: str, reply: Sequence[Any]) -> RoomState:
    """Return the state in a reply of room_state.lua."""
    clients: dict[str, RoomClient] = {}
    rows = iter(reply[8])
    for name, worker, mode, joined, until, timeout, waiting in zip(*[rows] * 7, strict=True):
        seen = (until - timeout) / 1000
        clients[name.decode()] = RoomClient(
            worker.decode(), mode.decode(), joined / 1000, seen, timeout / 1000, bool(waiting)
        )
    message = None
    with contextlib.suppress(ValueError):  # somebody else has written it
        message = read_message(reply[2]) if reply[2] else None
    return RoomState(read_metrics(room, reply), clients, message)


def add_up(found: Sequence[RoomMetrics], top: list[RoomMetrics], broken: list[str]) -> Metrics:
    """Return the figures of all rooms."""
    live = [one for one in found if not one.is_empty]
    names = ("sent", "oob", "rounds", *_COUNTERS)
    return Metrics(
        rooms=len(live),
        waiting_rooms=sum(one.backlog > 0 for one in live),
        clients=sum(one.clients for one in live),
        backlog=sum(one.backlog for one in live),
        **{name: sum(getattr(one, name) for one in found) for name in names},
        top=top,
        broken=broken,
    )
