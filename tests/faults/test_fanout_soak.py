"""Many clients in many rooms through two gateways, while things break: each client sees each
message of its time in the room once, in the same order as every other. They also leave and come
back over the same connection; some are not waited for, and some messages are out of band.

`WAKEQ_TEST_SOAK=60` makes it a thousand clients in a hundred rooms, for so many seconds.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import select
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from consumer_host import ConsumerProcess
from fanout_host import FanoutHost
from redis_servers import RedisServer, wait_until
from wakeq import FanoutClient

SOAK_SECONDS = float(os.environ.get("WAKEQ_TEST_SOAK", "0"))
SECONDS = SOAK_SECONDS or 8.0
CLIENTS, ROOMS = (1000, 100) if SOAK_SECONDS else (200, 20)
NEEDED = {"leave", "unsubscribe", "connections"}  # to happen, whatever else does
OPTIONS = ("--timeout=3s", "--log-level=warning")


class Stay:
    """One subscription, and the messages that came by it."""

    def __init__(self, room: str, mode: str) -> None:
        self.room = room
        self.mode = mode
        self.ids: list[str] = []
        self.oobs: list[str] = []
        self.asked_at = time.monotonic()
        self.joined_at = 0.0  # when the answer to the subscription was seen
        self.ended = ""


class Session:
    """One connection, on which one subscription follows the other."""

    def __init__(self, gateway: int, path: Path, room: str, mode: str) -> None:
        self.gateway = gateway
        self.stays: list[Stay] = []
        self._rest = b""
        self._leaves = False
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.socket.setblocking(False)
        self._subscribe(room, mode)

    def _subscribe(self, room: str, mode: str) -> None:
        self.stays.append(Stay(room, mode))
        self._write({"op": "subscribe", "room": room, "mode": mode, "ref": "subscribe"})

    @property
    def stay(self) -> Stay:
        """The last subscription."""
        return self.stays[-1]

    def unsubscribe(self) -> None:
        """Leave the room, and come back when that is done."""
        if not self._leaves:
            self._leaves = True
            self._write({"op": "unsubscribe", "room": self.stay.room, "ref": "unsubscribe"})

    def _write(self, request: dict[str, Any]) -> None:
        # That the gateway is gone shows behind what it has sent before.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.send(json.dumps(request).encode() + b"\n")

    def _end(self, why: str) -> None:
        self.stay.ended = self.stay.ended or why

    def read(self) -> None:
        """Take what has come, and acknowledge."""
        try:
            chunk = self.socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self._end("hung up")
            return
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._take(json.loads(line))

    def _take(self, told: dict[str, Any]) -> None:
        stay = self.stay
        if told.get("event") == "message":
            assert stay.joined_at, "a message came before the answer to the subscription"
            assert not stay.ended, "a message came after the end"
            if told["oob"]:
                stay.oobs.append(told["id"])
            else:
                stay.ids.append(told["id"])
                if stay.mode == "sync":
                    self._write({"op": "ack", "room": stay.room, "id": told["id"]})
        elif told.get("event") == "ejected":
            self._end(told["reason"])
        elif told["ref"] == "subscribe":
            if told["ok"]:
                stay.joined_at = time.monotonic()
            else:
                self._end(told["error"])
        elif told["ref"] == "unsubscribe":
            if told["ok"] and not stay.ended:
                self._leaves = False
                stay.ended = "closed"
                self._subscribe(stay.room, stay.mode)
            else:
                self._end(told.get("error", "closed"))

    def close(self) -> None:
        """Hang up."""
        self._end("closed")
        self.socket.close()


class Soak:
    """All sessions, and what breaks."""

    def __init__(self, hosts: list[FanoutHost], server: RedisServer, seed: int) -> None:
        self.chance = random.Random(seed)
        self.rooms = [f"room {number}" for number in range(ROOMS)]
        self.all: list[Session] = []
        self.sent: dict[str, list[tuple[float, str]]] = {room: [] for room in self.rooms}
        # When it was begun and done.
        self.oobs: dict[str, list[tuple[float, float, str]]] = {room: [] for room in self.rooms}
        self.faults: list[str] = []
        self._hosts = hosts
        self._server = server
        self._gateways: list[ConsumerProcess | None] = [None] * len(hosts)
        self._due: list[float] = [0.0] * len(hosts)
        self._epoll = select.epoll()
        self._of_fd: dict[int, Session] = {}
        self._producer = FanoutClient(server.url)

    def keep_up(self) -> None:
        """Start gateways that are due, and connect until all clients are there."""
        for index, host in enumerate(self._hosts):
            if self._gateways[index] is None and time.monotonic() >= self._due[index]:
                self._gateways[index] = host.start(*OPTIONS)
        for number in range(len(self._of_fd), CLIENTS):
            # Whose turn it is in the listener's queue is not waited for.
            index = self.chance.randrange(len(self._hosts))
            room = self.rooms[number % ROOMS] if number else self.chance.choice(self.rooms)
            mode = "async" if self.chance.random() < 0.1 else "sync"
            session = Session(index, self._hosts[index].path, room, mode)
            self.all.append(session)
            self._of_fd[session.socket.fileno()] = session
            self._epoll.register(session.socket, select.EPOLLIN)

    def listen(self, seconds: float) -> None:
        """Read for so long."""
        deadline = time.monotonic() + seconds
        while (rest := deadline - time.monotonic()) > 0:
            for fd, _ in self._epoll.poll(rest, 1000):
                session = self._of_fd[fd]
                session.read()
                if session.stay.ended:
                    self._drop(session)

    def _drop(self, session: Session) -> None:
        fd = session.socket.fileno()
        self._epoll.unregister(fd)
        del self._of_fd[fd]
        session.close()

    def send(self) -> None:
        """Send a message to some rooms."""
        for room in self.chance.sample(self.rooms, max(1, ROOMS // 10)):
            began = time.monotonic()
            self.sent[room].append((began, self._producer.send(room, "x")))
        room, began = self.chance.choice(self.rooms), time.monotonic()
        oob = self._producer.send_out_of_band(room, "x")
        self.oobs[room].append((began, time.monotonic(), oob))

    def break_something(self) -> None:
        """Have one of many things happen."""
        what = self.chance.choice(
            ["leave"] * 6
            + ["unsubscribe"] * 6
            + ["connections", "connections", "scripts", "sleep", "pause", "kill"]
        )
        self.faults.append(what)
        redis = self._server.client()
        joined = [session for session in self._of_fd.values() if session.stay.joined_at]
        some = self.chance.sample(joined, min(len(joined), CLIENTS // 50))
        if what == "leave":
            for session in some:
                self._drop(session)
        elif what == "unsubscribe":
            for session in some:
                session.unsubscribe()
        elif what == "connections":
            for row in redis.client_list():
                if row["name"] == "wakeq-fanout" and self.chance.random() < 0.7:
                    redis.execute_command("CLIENT", "KILL", "ID", row["id"])
        elif what == "scripts":
            redis.script_flush()
        elif what == "sleep":
            redis.execute_command("CLIENT", "PAUSE", 300)
        else:
            self._hurt(what)
        redis.connection_pool.disconnect()

    def _hurt(self, what: str) -> None:
        index = self.chance.randrange(len(self._gateways))
        gateway = self._gateways[index]
        if gateway is None:
            return
        if what == "pause":
            gateway.send(signal.SIGSTOP)
            self.listen(self.chance.uniform(0.05, 0.5))
            gateway.send(signal.SIGCONT)
        else:
            gateway.kill()
            self._gateways[index] = None
            self._due[index] = time.monotonic() + self.chance.uniform(0, 1)

    def outstanding(self) -> int:
        """Return how many messages are not acknowledged by all yet."""
        found = self._producer.metrics(top=ROOMS)
        return found.backlog + sum(bool(room.outstanding) for room in found.top)

    def is_all_there(self) -> bool:
        """Tell whether all who are clients have got what they were to get."""
        stays = [session.stay for session in self._of_fd.values()]
        return all(stay.joined_at for stay in stays) and not any(
            missing(stay, self.sent[stay.room], self.oobs[stay.room]) for stay in stays
        )

    def close(self) -> None:
        """Hang up everywhere."""
        for session in list(self._of_fd.values()):
            self._drop(session)
        self._epoll.close()
        self._producer.close()


@pytest.fixture
def hosts(short_dir: Path, own_redis: RedisServer) -> Iterator[list[FanoutHost]]:
    found = []
    for number in range(2):
        (short_dir / str(number)).mkdir()
        found.append(FanoutHost(short_dir / str(number), own_redis.url))
    yield found
    for host in found:
        host.close()


@pytest.mark.parametrize("seed", [random.randrange(10**6)] if SOAK_SECONDS else [7])
def test_each_client_sees_each_message_of_its_time_once_and_in_order(
    hosts: list[FanoutHost], own_redis: RedisServer, seed: int
) -> None:
    soak = Soak(hosts, own_redis, seed)
    try:
        soak.keep_up()
        wait_until(lambda: soak.listen(0.05) or all(s.stay.joined_at for s in soak.all), 60)
        end, rounds = time.monotonic() + SECONDS, 0
        while time.monotonic() < end or rounds < 50 or not set(soak.faults) >= NEEDED:
            rounds += 1
            soak.send()
            if soak.chance.random() < 0.2:
                soak.break_something()
            soak.keep_up()
            soak.listen(0.05)

        def drained() -> bool:
            soak.keep_up()
            soak.listen(0.2)
            return soak.outstanding() == 0 and soak.is_all_there()

        wait_until(drained, 180, f"all is delivered, after {soak.faults}")
        soak.listen(0.2)
    finally:
        soak.close()
    stays = [stay for session in soak.all for stay in session.stays]
    for room in soak.rooms:
        here = [stay for stay in stays if stay.room == room]
        check_room(room, here, soak.sent[room])
        for stay in here:
            check_out_of_band(stay, soak.oobs[room])
    assert sum(len(stay.ids) for stay in stays) > CLIENTS


def missing(
    stay: Stay, sent: list[tuple[float, str]], oobs: list[tuple[float, float, str]]
) -> set[str]:
    """Return what was sent after somebody had joined, and has not come."""
    after = {i for began, i in sent if began > stay.joined_at}
    after |= {i for began, _, i in oobs if began > stay.joined_at}
    return after - set(stay.ids) - set(stay.oobs)


def check_room(room: str, stays: list[Stay], sent: list[tuple[float, str]]) -> None:
    """Check what came in line in one room."""
    order = sorted({message_id for stay in stays for message_id in stay.ids} | {i for _, i in sent})
    place = {message_id: number for number, message_id in enumerate(order)}
    for stay in stays:
        seen = [place[message_id] for message_id in stay.ids]
        if stay.mode == "async":
            # Of what goes back in line, because all who were waited for have gone, they see both.
            seen = [number for number, _ in itertools.groupby(seen)]
        # Without a gap, without a repeat, in the order of all.
        assert seen == list(range(seen[0], seen[0] + len(seen))) if seen else True, (room, seen)
        if stay.ended == "closed" and stay.joined_at:
            # It has left before those, and they are the last ones.
            last = max(seen, default=-1)
            missed = missing(stay, sent, [])
            assert all(place[message_id] > last for message_id in missed), (room, missed)
    told = {message_id for stay in stays for message_id in stay.ids}
    # Somebody was always there, or came.
    assert {message_id for _, message_id in sent} <= told, room


def check_out_of_band(stay: Stay, oobs: list[tuple[float, float, str]]) -> None:
    """Check what came out of band by one subscription: all of its time, once and in order."""
    ids = [i for _, _, i in oobs if i in set(stay.oobs)]
    assert stay.oobs == ids
    assert not [i for _, done, i in oobs if done < stay.asked_at and i in set(stay.oobs)]
    after = [i for began, _, i in oobs if stay.joined_at and began > stay.joined_at]
    # Those that came are the first ones of its time.
    got = [i for i in ids if i in set(after)]
    assert got == after[: len(got)], (stay.room, got, after)
