"""Many clients in many rooms through two gateways, while things break: each client sees each
message of its time in the room once, in the same order as every other.

`WAKEQ_TEST_SOAK=60` makes it a thousand clients in a hundred rooms, for so many seconds.
"""

from __future__ import annotations

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
OPTIONS = ("--timeout=3s", "--log-level=warning")


class Session:
    """One subscription over one connection, and the messages that came by it."""

    def __init__(self, gateway: int, path: Path, room: str) -> None:
        self.gateway = gateway
        self.room = room
        self.ids: list[str] = []
        self.joined_at = 0.0  # when the answer to the subscription was seen
        self.ended = ""
        self._rest = b""
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.socket.setblocking(False)
        self._write({"op": "subscribe", "room": room})

    def _write(self, request: dict[str, Any]) -> None:
        try:
            self.socket.send(json.dumps(request).encode() + b"\n")
        except OSError as error:
            self.ended = self.ended or str(error)

    def read(self) -> None:
        """Take what has come, and acknowledge."""
        try:
            chunk = self.socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self.ended = self.ended or "hung up"
            return
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._take(json.loads(line))

    def _take(self, told: dict[str, Any]) -> None:
        if told.get("event") == "message":
            assert self.joined_at, "a message came before the answer to the subscription"
            assert not self.ended, "a message came after the end"
            self.ids.append(told["id"])
            self._write({"op": "ack", "room": self.room, "id": told["id"]})
        elif told.get("event") == "ejected":
            self.ended = told["reason"]
        elif "client" in told:
            self.joined_at = time.monotonic()
        elif not told["ok"] and not self.joined_at:
            self.ended = told["error"]

    def close(self) -> None:
        """Hang up."""
        self.ended = self.ended or "closed"
        self.socket.close()


class Soak:
    """All sessions, and what breaks."""

    def __init__(self, hosts: list[FanoutHost], server: RedisServer, seed: int) -> None:
        self.chance = random.Random(seed)
        self.rooms = [f"room {number}" for number in range(ROOMS)]
        self.all: list[Session] = []
        self.sent: dict[str, list[tuple[float, str]]] = {room: [] for room in self.rooms}
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
            session = Session(index, self._hosts[index].path, room)
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
                if session.ended:
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

    def break_something(self) -> None:
        """Have one of many things happen."""
        what = self.chance.choice(
            ["leave"] * 6 + ["connections", "connections", "scripts", "sleep", "pause", "kill"]
        )
        self.faults.append(what)
        redis = self._server.client()
        if what == "leave":
            joined = [session for session in self._of_fd.values() if session.joined_at]
            for session in self.chance.sample(joined, min(len(joined), CLIENTS // 50)):
                self._drop(session)
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
        wait_until(lambda: soak.listen(0.05) or all(s.joined_at for s in soak.all), 60)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            soak.send()
            if soak.chance.random() < 0.2:
                soak.break_something()
            soak.keep_up()
            soak.listen(0.05)

        def drained() -> bool:
            soak.keep_up()
            soak.listen(0.2)
            return soak.outstanding() == 0

        wait_until(drained, 60, f"all is delivered, after {soak.faults}")
        soak.listen(0.2)
    finally:
        soak.close()
    for room in soak.rooms:
        check_room(room, [s for s in soak.all if s.room == room], soak.sent[room])
    assert sum(len(session.ids) for session in soak.all) > CLIENTS
    assert {"leave", "connections"} <= set(soak.faults)


def check_room(room: str, sessions: list[Session], sent: list[tuple[float, str]]) -> None:
    """Check what the sessions of one room have seen."""
    order = sorted({message_id for s in sessions for message_id in s.ids} | {i for _, i in sent})
    place = {message_id: number for number, message_id in enumerate(order)}
    for session in sessions:
        seen = [place[message_id] for message_id in session.ids]
        # Without a gap, without a repeat, in the order of all.
        assert seen == list(range(seen[0], seen[0] + len(seen))) if seen else True, (room, seen)
        if session.ended == "closed" and session.joined_at:
            stayed = {i for began, i in sent if began > session.joined_at}
            missed = stayed - set(session.ids)
            # It has left before those, and they are the last ones.
            last = max((place[i] for i in session.ids), default=-1)
            assert all(place[message_id] > last for message_id in missed), (room, missed)
    told = {message_id for session in sessions for message_id in session.ids}
    # Somebody was always there, or came.
    assert {message_id for _, message_id in sent} <= told, room
