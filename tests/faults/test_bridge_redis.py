"""wakeq-bridge when Redis is down, lost, full, or cuts it off."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from bridge_host import CHANNEL, HOST, IDS, STREAM, BridgeHost, bridge_host, stopped, workers_of
from conftest import NotifySocket
from redis_servers import RedisServer, wait_until
from wakeq import keys


@pytest.fixture
def host(tmp_path: Path, own_redis: RedisServer) -> Iterator[BridgeHost]:
    with bridge_host(tmp_path, own_redis) as found:
        found.configure(lease="1s")
        yield found


@contextmanager
def marks_of(host: BridgeHost) -> Iterator[Any]:
    """Provide what hears the marks of the channel."""
    with host.redis.pubsub() as marks:
        marks.subscribe(keys.bridge_marks(CHANNEL, "clicks", 0))
        wait_until(lambda: (marks.get_message() or {}).get("type") == "subscribe")
        yield marks


def wait_asked(host: BridgeHost, times: int) -> None:
    """Wait until the bridge has kept the channel so many times more."""
    seen: set[bytes | None] = set()

    def enough() -> bool:
        seen.add(host.redis.hget(keys.bridge_lease(CHANNEL, "clicks"), "until"))
        return len(seen) > times

    wait_until(enough, 30, "it asks")


def test_waits_for_redis_at_the_start(
    host: BridgeHost, own_redis: RedisServer, notify_socket: NotifySocket
) -> None:
    own_redis.stop()
    host.launch(**notify_socket.env)
    status = notify_socket.wait_for("STATUS=", 30)
    assert status.startswith("STATUS=waiting for Redis, try 1: ")
    own_redis.start()
    host.redis = own_redis.client()
    notify_socket.wait_for("READY=1", 30)
    host.publish("hello")
    host.wait_entries(1)


def test_gives_up_when_redis_does_not_come(host: BridgeHost, own_redis: RedisServer) -> None:
    own_redis.stop()
    daemon = host.launch("clicks", "--start-timeout=500ms")
    assert daemon.wait_exit() == 69
    assert "cannot be reached" in daemon.lines[-1]


def test_goes_on_after_redis_was_restarted_and_says_that_messages_may_be_lost(
    host: BridgeHost, own_redis: RedisServer
) -> None:
    daemon = host.start()
    host.wait_begun()
    own_redis.restart()
    host.redis = own_redis.client()
    host.wait_begun()
    wait_until(lambda: len(host.ids()) == 1)
    host.publish("again")
    host.wait_entries(1)
    daemon.wait_log("a subscription was cut, messages may be lost")
    assert daemon.count("a subscription was cut") == 1
    assert not any("client-output-buffer-limit" in line for line in daemon.lines)
    assert daemon.stop() == 0


def test_publishes_what_it_has_when_redis_is_back(host: BridgeHost, own_redis: RedisServer) -> None:
    gate = host.app_dir / "gate"
    code = f"""
import os, time
def transform(message):
    while message.json()["number"] == "100" and not os.path.exists({str(gate)!r}):
        time.sleep(0.01)
    return message.json()
"""
    host.configure(transform=host.code(code), lease="1s")
    daemon = host.start()
    host.wait_begun()
    host.burst(1000)
    wait_until(lambda: host.redis.xlen(STREAM) > 20)
    wait_until(lambda: host.unread() == 0)
    own_redis.stop()  # and what was in the stream is gone
    gate.touch()
    daemon.wait_log("Redis was lost", deadline_s=30)
    own_redis.start()
    host.redis = own_redis.client()
    daemon.wait_log("Redis is back", deadline_s=30)
    wait_until(lambda: 999 in host.numbers(), 60, "the last one is published")
    numbers = host.numbers()
    assert len(set(numbers)) == len(numbers)
    assert numbers == list(range(numbers[0], 1000))
    assert numbers[0] <= 100


def test_a_subscription_that_is_killed_is_taken_up_again_and_counted(
    host: BridgeHost, notify_socket: NotifySocket
) -> None:
    daemon = host.start(**notify_socket.env)
    host.wait_begun()
    (client,) = host.subscriptions()
    host.redis.client_kill_filter(_id=client)
    daemon.wait_log("a subscription was cut, messages may be lost")
    line = next(line for line in daemon.lines if "a subscription was cut" in line)
    assert "client-output-buffer-limit" in line
    wait_until(lambda: host.subscriptions() not in ([], [client]))

    def arrives() -> bool:
        # What comes before its first mark is dropped, or has nobody listen.
        host.redis.publish(CHANNEL, "again")
        return bool(host.entries())

    wait_until(arrives)
    assert host.stats()["cuts"] == 1
    wait_until(
        lambda: any("cut off 1 times, messages may be lost" in m for m in notify_socket.messages)
    )


def test_takes_what_comes_after_a_cut_while_much_waits_in_memory(host: BridgeHost) -> None:
    daemon = host.start()
    host.wait_begun()
    (worker,) = workers_of(daemon)
    with stopped(worker):  # nothing is published
        host.burst(5000)
        wait_until(lambda: host.unread() == 0)
        with marks_of(host) as marks:
            for round_ in range(2):
                (client,) = host.subscriptions()
                host.redis.client_kill_filter(_id=client)
                wait_until(lambda: (marks.get_message() or {}).get("type") == "message")
                host.burst(100, first=5000 + 100 * round_)
                wait_until(lambda: host.unread() == 0)
    host.wait_entries(5200)
    assert host.numbers() == list(range(5200))
    daemon.wait_log("a subscription was cut, messages may be lost", 2)


def test_says_that_memory_is_full_before_redis_cuts_it_off_and_loses_nothing_of_what_it_read(
    host: BridgeHost, notify_socket: NotifySocket
) -> None:
    host.redis.config_set("client-output-buffer-limit", "pubsub 4mb 0 0")
    host.configure(lease="1s", memory_mib=1)
    daemon = host.start(**notify_socket.env)
    host.wait_begun()
    (worker,) = workers_of(daemon)
    with stopped(worker):  # nothing is published
        host.burst(20_000)  # some 2 MB
        daemon.wait_log("memory is at its bound, reading stands still")
        assert daemon.count("a subscription was cut") == 0
        wait_until(
            lambda: any("memory is at its bound, reading stands still" in m
                        for m in notify_socket.messages)
        )  # fmt: skip
        host.burst(100_000, first=20_000)  # beyond what Redis keeps
    daemon.wait_log("a subscription was cut, messages may be lost", deadline_s=30)
    daemon.wait_log("reading goes on", deadline_s=30)

    def is_taken_again() -> bool:
        host.redis.publish(CHANNEL, '{"number":"999999"}')
        return 999_999 in host.numbers()

    wait_until(is_taken_again, 60)
    numbers = [number for number in host.numbers() if number < 999_999]
    assert numbers[:10_000] == list(range(10_000))
    assert len(set(numbers)) == len(numbers)
    assert len(numbers) < 120_000


def test_says_that_it_takes_the_messages_also_while_much_waits_in_memory(
    host: BridgeHost, notify_socket: NotifySocket
) -> None:
    daemon = host.start(**notify_socket.env)
    host.wait_begun()
    (worker,) = workers_of(daemon)
    with stopped(worker), marks_of(host) as marks:
        host.burst(5000)
        wait_until(lambda: host.unread() == 0)
        (client,) = host.subscriptions()
        host.redis.client_kill_filter(_id=client)
        wait_until(lambda: (marks.get_message() or {}).get("type") == "message")
        notify_socket.wait_for("READY=1", 30)
        seen = notify_socket.collected()  # and what was said before the mark was sent
        wait_until(lambda: any("cut off 1" in m for m in notify_socket.messages[seen:]))
        assert not any("standing by" in m for m in notify_socket.messages[seen:])
    host.wait_entries(5000)


def test_what_lost_connections_have_left_counts_as_memory(host: BridgeHost) -> None:
    host.configure(lease="1s", memory_mib=1)
    daemon = host.start()
    host.wait_begun()
    (worker,) = workers_of(daemon)
    with stopped(worker), marks_of(host) as marks:
        host.burst(10_000)  # some 700 KB
        wait_until(lambda: host.unread() == 0)
        (client,) = host.subscriptions()
        host.redis.client_kill_filter(_id=client)
        wait_until(lambda: (marks.get_message() or {}).get("type") == "message")
        assert daemon.count("memory is at its bound") == 0
        host.burst(10_000, first=10_000)
        daemon.wait_log("memory is at its bound, reading stands still")
    host.wait_entries(20_000)
    assert host.numbers() == list(range(20_000))
    daemon.wait_log("reading goes on")


def test_a_burst_of_more_than_redis_keeps_for_a_subscriber_is_processed_as_a_whole(
    host: BridgeHost,
) -> None:
    host.configure(workers=4, lease="5s")
    daemon = host.start(workers=4)
    host.wait_begun()
    with ExitStack() as meanwhile:
        for worker in workers_of(daemon):  # nothing is published
            meanwhile.enter_context(stopped(worker))
        # Each time less than Redis keeps; 34 MB, which it would not.
        for first in range(0, 500_000, 100_000):
            host.burst(100_000, first)
            wait_until(lambda: host.unread() == 0, 60, "all is read")
    wait_until(lambda: host.redis.xlen(STREAM) >= 500_000, 300, "all is processed")
    assert host.stats() == {"handled": 500_000, "published": 500_000}
    assert host.numbers() == list(range(500_000))
    assert daemon.count("a subscription was cut") == 0


def test_keeps_what_it_received_while_redis_has_no_memory_left(host: BridgeHost) -> None:
    daemon = host.start()
    host.wait_begun()
    host.redis.config_set("maxmemory", 1)
    host.burst(5000)
    daemon.wait_log("Redis was lost, trying again", deadline_s=30)
    assert host.redis.xlen(STREAM) == 0
    host.redis.config_set("maxmemory", 0)
    host.wait_entries(5000)
    assert host.numbers() == list(range(5000))
    daemon.wait_log("Redis is back")


def test_a_worker_that_ends_while_nothing_can_be_published_is_given_the_same_again(
    host: BridgeHost, tmp_path: Path
) -> None:
    code = f"""
import os
def transform(message):
    with open({str(tmp_path / "pid")!r}, "w") as file:
        file.write(str(os.getpid()))
    return message.body
"""
    # It is a worker that finds Redis full; the other one waits for a message meanwhile.
    host.configure(transform=host.code(code), workers=2, lease="60s")
    daemon = host.start(workers=2)
    host.wait_begun()
    host.redis.config_set("maxmemory", 1)
    host.publish("one")
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    daemon.wait_log("Redis was lost, trying again")
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    daemon.wait_log("a worker ended, starting another one")
    wait_until(lambda: len(workers_of(daemon)) == 2)
    host.redis.config_set("maxmemory", 0)
    assert [entry[b"body"] for entry in host.wait_entries(1)] == [b"one"]
    host.publish("two")
    assert [entry[b"body"] for entry in host.wait_entries(2)] == [b"one", b"two"]
    assert daemon.stop() == 0


def test_hears_on_for_as_long_as_redis_has_no_memory_left(host: BridgeHost) -> None:
    daemon = host.start()
    host.wait_begun()
    host.redis.config_set("maxmemory", 1)
    with marks_of(host) as marks:
        for number in range(3):
            wait_asked(host, 3)
            host.burst(100, first=100 * number)
            wait_until(lambda: host.unread() == 0)
            daemon.wait_log("a subscription was cut", number)
            assert daemon.count("a subscription was cut") == number
            (client,) = host.subscriptions()
            host.redis.client_kill_filter(_id=client)
            wait_until(lambda: (marks.get_message() or {}).get("type") == "message")
    assert host.redis.xlen(STREAM) == 0
    host.redis.config_set("maxmemory", 0)
    host.wait_entries(300)
    assert host.numbers() == list(range(300))
    wait_until(lambda: host.stats().get("cuts") == 3)
    daemon.wait_log("Redis is back")


def test_keeps_its_channel_while_nothing_of_large_messages_can_be_published(
    host: BridgeHost,
) -> None:
    host.configure(lease="6s")  # longer than a busy machine has the bridge stand still
    daemon = host.start()
    host.wait_begun()
    host.start("clicks:2")
    host.redis.config_set("maxmemory", 1)
    bodies = [b"%05d" % number * 2000 for number in range(600)]  # a batch is a megabyte
    host.publish(*bodies)
    daemon.wait_log("Redis was lost, trying again")
    wait_asked(host, 5)  # for longer than a lease
    assert host.holder() == f"{HOST}/clicks"
    host.redis.config_set("maxmemory", 0)
    assert sorted(entry[b"body"] for entry in host.wait_entries(600)) == bodies
    assert {entry[b"consumer_id"] for entry in host.entries()} == {f"{HOST}/clicks/1".encode()}


def test_a_stop_while_a_worker_takes_nothing_more_publishes_all(host: BridgeHost) -> None:
    daemon = host.start()
    host.wait_begun()
    (worker,) = workers_of(daemon)
    with stopped(worker):
        bodies = [b"%05d" % number * 2000 for number in range(600)]
        host.publish(*bodies)
        daemon.process.terminate()
        wait_until(lambda: host.redis.pubsub_numsub(CHANNEL)[0][1] == 0, 30, "it takes no more")
    assert daemon.wait_exit() == 0
    assert sorted(entry[b"body"] for entry in host.entries()) == bodies


def test_hears_on_when_redis_answers_with_an_error(host: BridgeHost) -> None:
    daemon = host.start()
    host.wait_begun()
    host.redis.set(IDS, "no list")
    daemon.wait_log("Redis was lost, trying again")
    wait_asked(host, 3)
    host.publish("heard")
    host.wait_entries(1)
    assert daemon.count("a subscription was cut") == 0
    host.redis.delete(IDS)
    wait_until(lambda: len(host.ids()) == 1)
    daemon.wait_log("Redis is back")


def test_what_cannot_be_published_at_a_stop_is_said(
    host: BridgeHost, own_redis: RedisServer
) -> None:
    daemon = host.start("clicks", "--drain-timeout=1s")
    host.wait_begun()
    host.redis.config_set("maxmemory", 1)
    host.burst(5000)
    daemon.wait_log("Redis was lost, trying again", deadline_s=30)
    assert daemon.stop() == 69
    assert any("messages are lost" in line for line in daemon.lines)


def test_a_list_is_moved_on_after_redis_was_lost(
    host: BridgeHost, redis_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    server = redis_server("--appendonly", "yes", "--appendfsync", "always")
    (tmp_path / "second").mkdir()
    with bridge_host(tmp_path / "second", server) as other:
        other.configure(list_="jobs", lease="1s")
        daemon = other.start()
        other.fill(20_000)
        wait_until(lambda: other.redis.xlen(STREAM) > 500, 30)
        server.restart()
        other.redis = server.client()
        other.wait_entries(20_000, 60)
        assert other.numbers() == list(range(20_000))
        other.redis.lpush("jobs", "last")
        other.wait_entries(20_001, 60)
        assert daemon.stop() == 0


def test_a_user_without_the_rights_is_told_so(host: BridgeHost, own_redis: RedisServer) -> None:
    host.redis.execute_command("ACL", "SETUSER", "narrow", "on", ">x", "+@all", "~*", "&other")
    url = own_redis.url.replace("unix://", "unix://narrow:x@")
    daemon = host.launch("clicks", f"--redis-url={url}")
    assert daemon.wait_exit() == 77
    assert "does not permit" in daemon.lines[-1]


def test_a_bridge_that_is_killed_is_taken_up_at_the_next_start(host: BridgeHost) -> None:
    host.configure(lease="5min")
    first = host.start()
    host.wait_begun()
    (process,) = host.redis.hmget(lease := keys.bridge_lease(CHANNEL, "clicks"), "process")
    first.kill()
    host.start()
    # Its predecessor's lease does not hold it up.
    wait_until(lambda: host.redis.hget(lease, "process") != process, 60)
    host.wait_begun()
    host.publish("hello")
    host.wait_entries(1)
