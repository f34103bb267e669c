"""wakeq-bridge: elements of a list, moved to a stream, each once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge_host import HOST, STREAM, BridgeHost, bridge_host, workers_of
from redis_servers import RedisServer, wait_until
from wakeq import keys
from wakeup_host import Daemon

COUNT = 40_000


@pytest.fixture
def host(tmp_path: Path, redis: RedisServer) -> Iterator[BridgeHost]:
    with bridge_host(tmp_path, redis) as found:
        found.configure(list_="jobs")
        yield found


def taken(host: BridgeHost) -> list[bytes]:
    """Return all elements that workers have taken and not published."""
    pattern = keys.bridge_taken("jobs", "clicks", "*")
    return [
        element
        for key in host.redis.scan_iter(pattern)
        for element in host.redis.lrange(key, 0, -1)
    ]


def test_moves_what_is_there_and_what_comes_in_the_order_of_the_list(host: BridgeHost) -> None:
    host.fill(1000)
    host.start()
    host.wait_entries(1000)
    host.redis.lpush("jobs", '{"number":"1000"}', "later")
    entries = host.wait_entries(1002)
    assert [int(entry[b"number"]) for entry in entries[:1001]] == list(range(1001))
    assert entries[-1] == {b"body": b"later", b"consumer_id": f"{HOST}/clicks/1".encode()}
    assert host.redis.llen("jobs") == 0
    assert taken(host) == []
    assert host.stats() == {"handled": 1002, "published": 1002}


def test_takes_from_the_left_if_told_to(host: BridgeHost) -> None:
    host.configure(list_="jobs", list_end="left")
    host.redis.rpush("jobs", *(f"{n}" for n in range(600)))
    host.start()
    host.wait_entries(600)
    host.redis.rpush("jobs", "600")
    assert [int(entry[b"body"]) for entry in host.wait_entries(601)] == list(range(601))


def test_several_workers_and_instances_share_a_list(host: BridgeHost) -> None:
    host.configure(list_="jobs", workers=2)
    host.start(workers=2)
    host.start("clicks:2", workers=2)
    # The first elements are given to all of them.
    wait_until(lambda: [c["cmd"] for c in host.redis.client_list()].count("blmove") == 4)
    host.fill(COUNT)
    host.wait_entries(COUNT, 60)
    assert host.numbers() == list(range(COUNT))
    assert len({entry[b"consumer_id"] for entry in host.entries()}) > 1


def test_a_stop_puts_back_what_was_not_published(host: BridgeHost) -> None:
    # So slow that a busy machine's stop does not come when all is moved.
    path = host.code("import time\ndef transform(m):\n    time.sleep(0.002)\n    return m.json()\n")
    host.configure(list_="jobs", workers=2, transform=path)
    host.fill(COUNT)
    daemon = host.start(workers=2)
    wait_until(lambda: host.redis.xlen(STREAM) > 100)
    assert daemon.stop() == 0
    assert taken(host) == []
    moved = host.redis.xlen(STREAM)
    assert moved < COUNT
    assert host.redis.llen("jobs") == COUNT - moved
    host.configure(list_="jobs", workers=2)
    host.start(workers=2)
    host.wait_entries(COUNT)
    assert host.numbers() == list(range(COUNT))


def test_a_stop_waits_for_what_was_taken(host: BridgeHost) -> None:
    code = """
import time
def transform(message):
    open(__file__ + ".began", "w").close()
    time.sleep(11)
    return message.body
"""
    host.configure(list_="jobs", transform=host.code(code))
    daemon = host.start()
    host.redis.lpush("jobs", "slow")
    wait_until((host.app_dir / "shop.py.began").exists)
    assert daemon.stop() == 0
    assert [entry[b"body"] for entry in host.entries()] == [b"slow"]
    assert daemon.count("stopped before all was done") == 0


def begin_what_takes_for_ever(host: BridgeHost) -> Daemon:
    """Start a bridge, and wait until it has an element in hand that it is never done with."""
    code = """
import signal
def transform(message):
    open(__file__ + ".began", "w").close()
    while True:
        signal.pause()
"""
    host.configure(list_="jobs", transform=host.code(code), drain_timeout="500ms", timeout="10min")
    daemon = host.start()
    host.redis.lpush("jobs", "endless")
    wait_until((host.app_dir / "shop.py.began").exists)
    return daemon


def test_a_stop_says_how_much_it_has_put_back_when_the_time_was_over(host: BridgeHost) -> None:
    daemon = begin_what_takes_for_ever(host)
    assert daemon.stop() == 0
    (line,) = [line for line in daemon.lines if "the rest is in the list again" in line]
    assert "count=1" in line
    assert host.redis.lrange("jobs", 0, -1) == [b"endless"]
    assert taken(host) == []


def test_a_stop_says_that_what_was_taken_cannot_be_put_back(host: BridgeHost) -> None:
    daemon = begin_what_takes_for_ever(host)
    host.redis.delete("jobs")
    host.redis.set("jobs", "no list")
    assert daemon.stop() == 69
    assert any("the next one to run puts it back" in line for line in daemon.lines)
    assert taken(host) == [b"endless"]


def test_a_bridge_that_is_killed_loses_and_doubles_nothing(host: BridgeHost) -> None:
    host.configure(list_="jobs", workers=2)
    for number in range(3):
        host.fill(COUNT, first=COUNT * number)
        before = host.redis.xlen(STREAM)
        daemon = host.launch()
        wait_until(lambda before=before: host.redis.xlen(STREAM) > before + 500)
        workers = workers_of(daemon)
        daemon.process.kill()
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        daemon.kill()
    host.start(workers=2)
    host.wait_entries(3 * COUNT, 180)
    assert host.numbers() == list(range(3 * COUNT))
    assert host.stats()["handled"] == 3 * COUNT


def test_workers_end_by_themselves_when_the_daemon_is_killed(host: BridgeHost) -> None:
    daemon = host.start()
    (pid,) = workers_of(daemon)
    daemon.kill()
    wait_until(lambda: not Path(f"/proc/{pid}/exe").exists(), 60, "the worker has ended")


def test_another_instance_puts_back_what_one_that_is_gone_had_taken(host: BridgeHost) -> None:
    key = keys.bridge_taken("jobs", "clicks", "gone/clicks/1")
    host.redis.rpush(key, "first", "second")
    host.redis.sadd(keys.bridge_takers("jobs", "clicks"), "gone/clicks/1")
    host.redis.lpush("jobs", "third")
    host.start("clicks", "--lease=1s")
    bodies = [entry[b"body"] for entry in host.wait_entries(3)]
    assert sorted(bodies) == [b"first", b"second", b"third"]
    assert taken(host) == []


def test_fewer_workers_leave_nothing_of_those_before(host: BridgeHost) -> None:
    host.redis.rpush(keys.bridge_taken("jobs", "clicks", f"{HOST}/clicks/4"), "left")
    host.redis.sadd(keys.bridge_takers("jobs", "clicks"), f"{HOST}/clicks/4")
    host.start()
    (entry,) = host.wait_entries(1)
    assert entry[b"body"] == b"left"


def test_an_element_that_ends_its_worker_is_a_dead_letter(host: BridgeHost) -> None:
    code = """
import os, signal
def transform(message):
    if message.text() == "poison":
        os.kill(os.getpid(), signal.SIGKILL)
    return message.body
"""
    host.configure(list_="jobs", transform=host.code(code))
    host.redis.rpush("jobs", *["after"] * 10, "poison", *["before"] * 10)
    host.start()
    entries = host.wait_entries(20, 60)
    assert [entry[b"body"] for entry in entries] == [b"before"] * 10 + [b"after"] * 10
    (letter,) = host.dead()
    assert letter[b"body"] == b"poison"
    assert letter[b"wakeq.channel"] == b"jobs"


def test_asks_redis_nothing_while_the_list_is_empty(host: BridgeHost) -> None:
    host.configure(list_="jobs", lease="60s")
    host.start()
    host.redis.lpush("jobs", "one")
    host.wait_entries(1)
    (client,) = wait_until(lambda: [c for c in host.redis.client_list() if c["cmd"] == "blmove"])
    stats = host.redis.info("commandstats")
    assert client["name"] == "wakeq-bridge"
    host.redis.lpush("jobs", "two")
    host.wait_entries(2)
    again = host.redis.info("commandstats")
    assert again["cmdstat_blmove"]["calls"] - stats["cmdstat_blmove"]["calls"] <= 2
