"""Acknowledgements that a gateway has gathered when their clients leave, or it stops."""

from __future__ import annotations

import fcntl
import json
import signal
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from consumer_host import ConsumerProcess
from fanout_host import Client, FanoutHost
from redis_servers import RedisServer, wait_until
from wakeq import FanoutClient


@pytest.fixture
def host(short_dir: Path, redis: RedisServer) -> Iterator[FanoutHost]:
    host = FanoutHost(short_dir, redis.url)
    yield host
    host.close()


def line(op: str, **fields: object) -> bytes:
    return json.dumps({"op": op, "room": "r", **fields}).encode() + b"\n"


def pause(gateway: ConsumerProcess) -> None:
    """Stop a gateway, so that all that comes until it goes on comes in one of its turns."""
    stat = Path(f"/proc/{gateway.pid}/stat")
    # It is in its select, not in the middle of a turn.
    wait_until(lambda: stat.read_text().rpartition(") ")[2].startswith("S"))
    gateway.send(signal.SIGSTOP)
    wait_until(lambda: stat.read_text().rpartition(") ")[2].startswith("T"))


def answers(client: Client, count: int) -> list[bool]:
    """Return whether requests were carried out, by their ref, from 0 on."""
    found: dict[int, bool] = {}
    while len(found) < count:
        told = client.hear()
        if "event" not in told:
            found[told["ref"]] = told["ok"]
    return [found[ref] for ref in range(count)]


@pytest.mark.parametrize("others", [0, 1])
def test_a_message_that_was_acknowledged_stays_so_when_its_client_leaves_in_the_same_write(
    host: FanoutHost, others: int
) -> None:
    host.start()
    leaves, rest = host.member("r"), [host.member("r") for _ in range(others)]
    sent = leaves.done("send", room="r", data=1)["id"]
    assert leaves.message()["id"] == sent

    leaves.write(line("ack", id=sent, ref=0) + line("unsubscribe", ref=1))

    assert answers(leaves, 2) == [True, True]
    for client in rest:
        client.done("unsubscribe", room="r")
    metrics = leaves.done("metrics", room="r")["metrics"]
    assert (metrics["acknowledged"], metrics["backlog"], metrics["outstanding"]) == (1, 0, "")


def test_a_message_that_was_acknowledged_stays_so_when_its_client_hangs_up(
    host: FanoutHost,
) -> None:
    host.start()
    client, goes = host.client(), host.member("r")
    sent = client.done("send", room="r", data=1)["id"]
    assert goes.message()["id"] == sent

    goes.write(line("ack", id=sent))
    goes.close()

    host.wait_clients("r", 0)
    metrics = client.done("metrics", room="r")["metrics"]
    assert (metrics["acknowledged"], metrics["backlog"]) == (1, 0)


def test_what_was_acknowledged_just_before_a_stop_stays_so(
    host: FanoutHost, redis: RedisServer
) -> None:
    gateway = host.start()
    quick, slow = host.member("r"), host.member("r")
    sent = quick.done("send", room="r", data=1)["id"]
    assert quick.message()["id"] == slow.message()["id"] == sent
    quick.write(line("ack", id=sent, ref=0))
    while unread(quick):
        pass  # at once, while it is gathered

    gateway.send(signal.SIGTERM)

    assert gateway.wait_exit() == 0
    assert answers(quick, 1) == [True]
    with FanoutClient(redis.url) as rooms:
        metrics = rooms.room_metrics("r")
    assert (metrics.acknowledged, metrics.backlog, metrics.clients) == (1, 0, 0)


def unread(client: Client) -> int:
    """Return how many bytes the gateway has not read yet."""
    raw = fcntl.ioctl(client.socket, termios.TIOCOUTQ, b"\0" * 4)
    return int.from_bytes(raw, sys.byteorder)


def test_an_acknowledgement_is_answered_when_all_of_its_room_were_unsubscribed_by_others(
    host: FanoutHost, redis: RedisServer
) -> None:
    quick, slow = host.client(), host.client()
    gateway = host.start("--idle-timeout=2.5s")  # there is somebody, or it might end before
    for client, name in ((quick, "quick"), (slow, "slow")):
        client.done("subscribe", room="r", client=name)
    sent = quick.done("send", room="r", data=1)["id"]
    assert quick.message()["id"] == slow.message()["id"] == sent
    pause(gateway)
    quick.write(line("ack", id=sent, ref=0))
    with FanoutClient(redis.url) as rooms:
        rooms.unsubscribe("r", "quick")
        rooms.unsubscribe("r", "slow")

    gateway.send(signal.SIGCONT)

    assert answers(quick, 1) == [False]
    quick.close()
    slow.close()
    assert gateway.wait_exit() == 0
