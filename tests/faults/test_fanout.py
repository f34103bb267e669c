"""wakeq-fanout while gateways are killed or paused, and Redis is lost: what its clients see."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import NotifySocket
from fanout_host import Client, FanoutHost
from fault_proxy import FaultProxy
from redis_servers import RedisServer, wait_until
from wakeq import FanoutClient


@pytest.fixture
def hosts(short_dir: Path, own_redis: RedisServer) -> Iterator[list[FanoutHost]]:
    """Two hosts."""
    found = []
    for number in range(2):
        (short_dir / str(number)).mkdir()
        found.append(FanoutHost(short_dir / str(number), own_redis.url))
    yield found
    for host in found:
        host.close()


def acknowledge(client: Client, room: str = "r") -> str:
    """Take the next message, acknowledge it, and return its id."""
    message = client.message()
    client.done("ack", room=room, id=message["id"])
    return str(message["id"])


# -- gateways --------------------------------------------------------------------------------


def test_clients_of_a_killed_gateway_are_timed_out_and_the_others_go_on(
    hosts: list[FanoutHost], own_redis: RedisServer
) -> None:
    here, there = hosts
    here.start("--timeout=5min")
    doomed = there.start("--timeout=4s")
    stays, lost = here.member("r"), [there.member("r") for _ in range(3)]
    one, two = (stays.done("send", room="r", data=n)["id"] for n in range(2))
    assert lost[0].message()["id"] == one

    doomed.kill()

    assert all(not client.events and is_hung_up_after(client, one) for client in lost)
    assert acknowledge(stays) == one
    assert acknowledge(stays) == two
    metrics = stays.done("metrics", room="r")["metrics"]
    assert (metrics["clients"], metrics["timeouts"]) == (1, 3)


def is_hung_up_after(client: Client, message_id: str) -> bool:
    """Tell whether nothing more came than one message."""
    while raw := client._lines.readline():
        assert message_id.encode() in raw
    return True


def test_who_comes_back_after_a_kill_has_what_it_had_not_acknowledged(
    hosts: list[FanoutHost],
) -> None:
    here, there = hosts
    here.start()
    doomed = there.start()
    before = there.member("r", client="ada")
    sender = here.client()
    one, two = (sender.done("send", room="r", data=n)["id"] for n in range(2))
    assert before.message()["id"] == one
    doomed.kill()

    after = here.member("r", client="ada")

    assert acknowledge(after) == one
    assert acknowledge(after) == two
    assert sender.done("metrics", room="r")["metrics"]["timeouts"] == 0


def test_a_gateway_that_was_paused_tells_its_clients_that_they_were_timed_out(
    hosts: list[FanoutHost],
) -> None:
    here, there = hosts
    here.start("--timeout=5min")
    paused = there.start("--timeout=4s")
    stays, behind = here.member("r"), there.member("r")
    one = stays.done("send", room="r", data=1)["id"]
    assert behind.message()["id"] == one
    paused.send(signal.SIGSTOP)
    two = stays.done("send", room="r", data=2)["id"]
    assert acknowledge(stays) == one
    assert acknowledge(stays) == two  # the other one was given up
    ref = behind.say("ack", room="r", id=one)

    paused.send(signal.SIGCONT)

    answers = [behind.hear(), behind.hear()]
    (event,) = [told for told in answers if "event" in told]
    (answer,) = [told for told in answers if "ref" in told]
    assert event == {"event": "ejected", "room": "r", "reason": "timed-out"}
    assert (answer["ref"], answer["ok"], answer["error"]) == (ref, False, "timed-out")
    behind.done("subscribe", room="r")


# -- Redis -----------------------------------------------------------------------------------


def test_redis_that_comes_back_with_all_it_had_is_not_noticed_but_by_a_delay(
    short_dir: Path, redis_server: Callable[..., RedisServer]
) -> None:
    server = redis_server("--appendonly", "yes", "--appendfsync", "always")
    host = FanoutHost(short_dir, server.url)
    try:
        gateway = host.start()
        clients = [host.member("r") for _ in range(3)]
        ids = [clients[0].done("send", room="r", data=n)["id"] for n in range(2)]
        assert acknowledge(clients[0]) == ids[0]
        server.kill()
        gateway.wait_log("Redis was lost")

        assert clients[1].message()["id"] == ids[0]
        ref = clients[1].say("ack", room="r", id=ids[0])
        assert clients[2].refused("send", room="r", data=3) == "unavailable"
        clients[1].done("ping")
        server.start()

        gateway.wait_log("Redis is back")
        while (answer := clients[1].hear()).get("ref") != ref:
            assert "event" in answer
        assert answer["ok"]
        assert acknowledge(clients[2]) == ids[0]
        for client in clients:
            assert acknowledge(client) == ids[1]
    finally:
        host.close()


def test_redis_that_comes_back_empty_is_told_to_everybody(
    hosts: list[FanoutHost], own_redis: RedisServer
) -> None:
    host = hosts[0]
    gateway = host.start()
    clients = [host.member("r") for _ in range(3)]
    own_redis.kill()
    gateway.wait_log("Redis was lost")
    own_redis.start()

    for client in clients:
        assert client.event() == {"event": "ejected", "room": "r", "reason": "not-subscribed"}
        assert client.refused("ping", room="r") == "not-subscribed"
    clients[0].done("subscribe", room="r")
    sent = clients[0].done("send", room="r", data=1)["id"]
    assert acknowledge(clients[0]) == sent


def test_who_hangs_up_while_redis_is_away_leaves_when_it_is_back(
    short_dir: Path, redis_server: Callable[..., RedisServer]
) -> None:
    server = redis_server("--appendonly", "yes", "--appendfsync", "always")
    host = FanoutHost(short_dir, server.url)
    try:
        gateway = host.start()
        stays, goes = host.member("r"), host.member("r")
        server.kill()
        gateway.wait_log("Redis was lost")
        goes.close()
        server.start()
        with FanoutClient(server.url) as rooms:
            wait_until(lambda: len(rooms.room_state("r").clients) == 1)
            assert rooms.room_metrics("r").timeouts == 0
        stays.done("ping", room="r")
    finally:
        host.close()


def test_a_stop_while_redis_is_away_says_who_could_not_be_taken_out(
    hosts: list[FanoutHost], own_redis: RedisServer
) -> None:
    gateway = hosts[0].start()
    client = hosts[0].member("r")
    own_redis.stop()
    assert gateway.stop() == 0
    assert client.event() == {"event": "ejected", "room": "r", "reason": "stopping"}
    assert gateway.count("not all clients could leave their rooms; they will be timed out") == 1


@pytest.mark.parametrize("size", [1, 3, 40, 200])
def test_an_acknowledgement_whose_reply_was_lost_is_answered_once_and_well(
    short_dir: Path, own_redis: RedisServer, size: int
) -> None:
    with FaultProxy(own_redis.url) as proxy:
        host = FanoutHost(short_dir, proxy.url)
        try:
            host.start()
            first, second = host.member("r"), host.member("r")
            for number in range(5):
                sent = first.done("send", room="r", data=number)["id"]
                proxy.replies.cut_after(size)
                assert acknowledge(first) == sent
                assert acknowledge(second) == sent
            with FanoutClient(own_redis.url) as rooms:
                metrics = rooms.room_metrics("r")
            assert (metrics.rounds, metrics.acknowledged, metrics.timeouts) == (5, 10, 0)
        finally:
            host.close()


def test_redis_that_does_not_answer_is_told_and_others_are_not_held_up(
    short_dir: Path, own_redis: RedisServer
) -> None:
    with FaultProxy(own_redis.url) as proxy:
        host = FanoutHost(short_dir, proxy.url)
        try:
            host.start("--timeout=1min")
            asks, pings = host.member("r"), host.client()
            proxy.replies.held = True
            ref = asks.say("peek", room="r")
            pings.done("ping")
            proxy.heal()
            while (answer := asks.hear()).get("ref") != ref:
                pass
            assert answer["ok"] or answer["error"] == "unavailable"
            wait_until(lambda: asks.ask("peek", room="r")["ok"])
        finally:
            host.close()


def test_who_is_taken_over_before_it_has_joined_hears_that_it_was_not_subscribed(
    short_dir: Path, own_redis: RedisServer
) -> None:
    with FaultProxy(own_redis.url) as proxy:
        host = FanoutHost(short_dir, proxy.url)
        try:
            host.start()
            first, second, other = (host.client() for _ in range(3))
            other.done("peek", room="r")
            proxy.replies.held = True
            first.say("subscribe", room="r", client="ada")
            other.done("ping")  # by now it has been asked for
            second.say("subscribe", room="r", client="ada")
            assert first.event() == {"event": "ejected", "room": "r", "reason": "taken-over"}
            proxy.heal()
            answer = first.hear()
            assert (answer["ok"], answer.get("error")) == (False, "taken-over")
            assert second.hear()["ok"]
            assert first.refused("ping", room="r") == "taken-over"
            second.done("ping", room="r")
        finally:
            host.close()


@pytest.mark.parametrize("kills", [0, 1], ids=["requests", "rings"])
def test_that_one_of_two_connections_was_lost_is_taken_back(
    hosts: list[FanoutHost], own_redis: RedisServer, notify_socket: NotifySocket, kills: int
) -> None:
    host = hosts[0]
    host.env |= notify_socket.env
    gateway = host.start()
    client = host.member("r")
    notify_socket.wait_for("STATUS=1 connections, 1 clients in rooms")
    redis = own_redis.client()
    redis.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
    ref = client.say("state", room="r")
    wait_until(lambda: any("b" in row["flags"] for row in redis.client_list()))

    for row in redis.client_list():
        if row["name"] == "wakeq-fanout" and int(row["sub"]) == kills:
            redis.client_kill_filter(_id=row["id"])
    gateway.wait_log("Redis was lost")
    redis.execute_command("CLIENT", "UNPAUSE")

    gateway.wait_log("Redis is back")
    while (answer := client.hear()).get("ref") != ref:
        assert "event" in answer
    assert answer["ok"]
    said = len(notify_socket.messages)
    client.done("ping", room="r")
    host.member("r")
    notify_socket.wait_for("STATUS=2 connections, 2 clients in rooms", after=said)
    assert gateway.count("Redis was lost") == 1


def test_a_redis_that_is_full_refuses_sends_and_lets_rounds_end(
    hosts: list[FanoutHost], own_redis: RedisServer
) -> None:
    host = hosts[0]
    host.start()
    client = host.member("r")
    sent = client.done("send", room="r", data=1)["id"]
    own_redis.client().config_set("maxmemory", "1")
    assert client.refused("send", room="r", data=2) == "unavailable"
    assert acknowledge(client) == sent
    client.done("unsubscribe", room="r")


def test_scripts_that_redis_has_forgotten_are_sent_again(
    hosts: list[FanoutHost], own_redis: RedisServer
) -> None:
    host = hosts[0]
    host.start()
    client = host.member("r")
    for number in range(3):
        sent = client.done("send", room="r", data=number)["id"]
        own_redis.client().script_flush()
        assert acknowledge(client) == sent
