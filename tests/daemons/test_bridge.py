"""wakeq-bridge: what it takes, what it publishes, how it starts and stops."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bridge_host import CHANNEL, HOST, IDS, STREAM, BridgeHost, bridge_host, stopped, workers_of
from conftest import NotifySocket
from redis_servers import RedisServer, wait_until
from wakeq import keys


@pytest.fixture
def host(tmp_path: Path, redis: RedisServer) -> Iterator[BridgeHost]:
    with bridge_host(tmp_path, redis) as found:
        found.configure()
        yield found


def test_publishes_the_fields_of_a_json_object_with_the_id_of_a_worker(host: BridgeHost) -> None:
    host.start()
    host.wait_begun()
    host.publish('{"message_id": "7", "price": 1.10, "tags": ["a", null], "paid": true, "n": -3}')
    (entry,) = host.wait_entries(1)
    assert entry == {
        b"message_id": b"7", b"price": b"1.10", b"tags": b'["a", null]', b"paid": b"true",
        b"n": b"-3", b"consumer_id": f"{HOST}/clicks/1".encode(),
    }  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [b"hello", b"", b"42", b'"text"', b'{"a": 1', b"\xff\xfe\x00binary\r\n", b'["a"]', b"null",
     b'{"a": "\\ud800"}', b'{"wakeq.first_id": "1-1"}', b"[" * 100_000],
)  # fmt: skip
def test_what_is_no_object_of_fields_goes_into_the_body(host: BridgeHost, body: bytes) -> None:
    host.start()
    host.wait_begun()
    host.publish(body)
    (entry,) = host.wait_entries(1)
    assert entry == {b"body": body, b"consumer_id": f"{HOST}/clicks/1".encode()}


def test_takes_messages_of_a_megabyte_and_more(host: BridgeHost) -> None:
    host.start()
    host.wait_begun()
    bodies = [bytes([65 + n]) * 1_000_000 for n in range(5)] + [os.urandom(3_000_000)]
    host.publish(*bodies)
    assert sorted(entry[b"body"] for entry in host.wait_entries(6)) == sorted(bodies)


def test_the_senders_own_consumer_id_stays_beside_that_of_the_worker(host: BridgeHost) -> None:
    host.start()
    host.wait_begun()
    host.publish('{"consumer_id": "mine"}')
    host.wait_entries(1)
    raw = host.redis.execute_command("XRANGE", STREAM, "-", "+")
    assert raw[0][1] == {b"consumer_id": f"{HOST}/clicks/1".encode()}
    script = "return redis.call('XRANGE', KEYS[1], '-', '+')[1][2]"
    items = host.redis.eval(script, 1, STREAM)
    assert items[:2] == [b"consumer_id", b"mine"]


def test_takes_all_channels_that_match_a_pattern_but_its_own(host: BridgeHost) -> None:
    host.configure(pattern="*")
    host.start()
    host.wait_begun(channel="*")
    host.publish("one", channel="news.art")
    host.publish("two", channel="other")
    host.redis.publish("wakeq:something", "no")
    host.publish("three", channel="last")
    bodies = [entry[b"body"] for entry in host.wait_entries(3)]
    assert bodies == [b"one", b"two", b"three"]


def test_takes_the_channels_of_shards_whichever_way_they_are_published_to(
    host: BridgeHost,
) -> None:
    host.configure(shard_channels="log:0..2")
    host.start()
    for number in range(3):
        host.wait_begun(channel=f"log:{number}")
        host.redis.execute_command("SPUBLISH", f"log:{number}", f"sharded {number}")
        host.publish(f"plain {number}", channel=f"log:{number}")
    bodies = {entry[b"body"] for entry in host.wait_entries(6)}
    assert bodies == {b"%b %d" % (k, n) for k in (b"sharded", b"plain") for n in range(3)}


def test_says_ready_when_messages_are_taken_and_how_it_is_doing(
    host: BridgeHost, notify_socket: NotifySocket
) -> None:
    host.launch(**notify_socket.env)
    notify_socket.wait_for("READY=1")
    host.publish("at once")
    host.wait_entries(1)
    wait_until(
        lambda: any("1 handled" in m for m in notify_socket.messages), message="figures are said"
    )
    (status,) = wait_until(
        lambda: {m for m in notify_socket.messages if "1 handled, 0/s" in m}, message="it falls"
    )
    assert status.startswith("STATUS=channel messages:published, ")


def test_logs_the_rate_while_there_is_traffic(host: BridgeHost) -> None:
    daemon = host.start()
    host.wait_begun()
    host.publish(*["x"] * 10)
    daemon.wait_log("messages were handled")
    line = next(line for line in daemon.lines if "messages were handled" in line)
    assert "stream=messages:processed" in line
    assert "handled=" in line


def test_the_ids_of_the_workers_stand_in_the_list_while_they_live(host: BridgeHost) -> None:
    host.configure(workers=3)
    host.redis.rpush(IDS, "somebody-elses")
    daemon = host.start(workers=3)
    assert set(host.ids()) == {*(f"{HOST}/clicks/{n}" for n in (1, 2, 3)), "somebody-elses"}
    assert daemon.stop() == 0
    assert host.ids() == ["somebody-elses"]
    assert host.redis.zcard(keys.enlisted(IDS)) == 0


def test_the_stop_of_one_instance_leaves_the_ids_of_another(host: BridgeHost) -> None:
    host.configure(workers=2)
    first = host.start(workers=2)
    host.start("clicks:2", workers=2)
    assert first.stop() == 0
    assert sorted(host.ids()) == [f"{HOST}/clicks:2/1", f"{HOST}/clicks:2/2"]


def test_the_start_after_a_crash_removes_stale_ids(host: BridgeHost) -> None:
    host.configure(workers=4)
    host.start(workers=4).kill()
    assert len(host.ids()) == 4
    host.configure(workers=1)
    host.start()
    wait_until(lambda: host.ids() == [f"{HOST}/clicks/1"], 60, "the stale ones are gone")


def test_the_ids_of_an_instance_that_never_comes_back_run_out(host: BridgeHost) -> None:
    host.redis.rpush(IDS, "gone/clicks/1")
    host.redis.zadd(keys.enlisted(IDS), {"gone/clicks/1": 1})
    host.start()
    assert host.ids() == [f"{HOST}/clicks/1"]


def test_the_name_of_an_instance_is_one_processes_alone(host: BridgeHost) -> None:
    host.start()
    second = host.launch()
    assert second.wait_exit() == 75
    assert "runs already" in second.lines[-1]
    assert "NAME:2" in second.lines[-1]


def test_a_long_lease_lets_no_name_run_out(host: BridgeHost) -> None:
    host.configure(lease="10min")
    daemon = host.start()
    host.wait_begun()
    alive = keys.alive(STREAM, keys.bridge_group("clicks"), f"{HOST}/clicks")
    wait_until(lambda: 0 < host.redis.pttl(alive) < 24_000, 60, "time passes")
    wait_until(lambda: host.redis.pttl(alive) > 27_000, 60, "the name is kept")
    assert daemon.stop() == 0


def test_trim_and_status_know_the_stream(host: BridgeHost) -> None:
    host.start()
    host.wait_begun()  # and before that it has written down all
    assert host.redis.sismember(keys.STREAMS, STREAM)
    told = json.loads(host.redis.hget(keys.BRIDGES, "clicks"))
    assert told == {"source": "channel messages:published", "stream": STREAM, "ids": IDS}


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_processes_all_of_a_burst(host: BridgeHost, workers: int) -> None:
    host.configure(workers=workers)
    host.start(workers=workers)
    host.wait_begun()
    host.burst(20_000)
    host.wait_entries(20_000, 60)
    assert host.numbers() == list(range(20_000))
    stats = host.stats()
    assert (stats["handled"], stats["published"]) == (20_000, 20_000)


def test_a_stop_in_the_middle_of_a_burst_publishes_all_that_was_received(host: BridgeHost) -> None:
    host.configure(workers=2)
    daemon = host.start(workers=2)
    host.wait_begun()
    with ExitStack() as meanwhile:
        for worker in workers_of(daemon):
            meanwhile.enter_context(stopped(worker))
        host.burst(50_000)  # all of it is with the bridge, or on the way to it
        assert host.redis.xlen(STREAM) < 50_000
        daemon.process.terminate()
        wait_until(lambda: host.redis.pubsub_numsub(CHANNEL)[0][1] == 0)
    assert daemon.wait_exit() == 0
    assert host.numbers() == list(range(50_000))


def test_a_second_signal_ends_it_at_once_and_says_what_is_lost(host: BridgeHost) -> None:
    path = host.code("import time\ndef transform(message):\n    time.sleep(60)\n")
    host.configure(transform=path)
    daemon = host.start()
    host.wait_begun()
    host.publish("one", "two")
    wait_until(lambda: len(workers_of(daemon)) == 1)
    daemon.process.terminate()
    wait_until(lambda: host.redis.pubsub_numsub(CHANNEL)[0][1] == 0)
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.wait_exit() == 69
    assert any("messages are lost" in line for line in daemon.lines)


def test_a_wrong_source_is_said_so(host: BridgeHost) -> None:
    (host.config_dir / "bridges" / "clicks.toml").write_text("workers = 1\n")
    daemon = host.launch()
    assert daemon.wait_exit() == 78
    assert "must have one of channel, pattern, shard_channels, list" in daemon.lines[-1]


@pytest.mark.parametrize(
    ("setting", "kind"), [("stream", "stream"), ("ids", "list"), ("list_", "list")]
)
def test_a_key_of_another_type_is_said_so(host: BridgeHost, setting: str, kind: str) -> None:
    host.redis.set("taken", 1)
    host.configure(**{setting: "taken"})
    daemon = host.launch()
    assert daemon.wait_exit() == 78
    assert f"taken is a string in Redis, not a {kind}" in daemon.lines[-1]


@pytest.mark.parametrize(
    ("first", "second"), [("stream", "ids"), ("stream", "list"), ("ids", "list")]
)
def test_one_key_for_two_things_is_a_wrong_configuration(
    host: BridgeHost, first: str, second: str
) -> None:
    settings = {"stream": "out", "ids": "workers", "list": "jobs", first: "same", second: "same"}
    host.configure(list_=settings.pop("list"), **settings)
    daemon = host.launch()
    assert daemon.wait_exit() == 78
    assert f"{first} and {second} must not be the same key, same" in daemon.lines[-1]


def test_a_stop_leaves_no_numbers_of_batches(host: BridgeHost) -> None:
    host.configure(workers=2)
    pattern = keys.bridge_batch(STREAM, "clicks", "*")
    for count in (1, 2):
        daemon = host.start(workers=2)
        host.wait_begun()
        host.publish("x")
        host.wait_entries(count)
        assert len(host.redis.keys(pattern)) == 1
        assert daemon.stop() == 0
        assert host.redis.keys(pattern) == []


def test_does_nothing_in_redis_when_nothing_happens(host: BridgeHost) -> None:
    host.configure(lease=30)
    host.start()
    host.wait_begun()
    host.publish("x")
    host.wait_entries(1)
    before = calls(host)
    host.publish("y")
    host.wait_entries(2)
    after = calls(host)
    assert after["cmdstat_publish"] == before["cmdstat_publish"] + 1
    # One script of four commands or so; and what the daemon does three times in a lease.
    assert sum(after.values()) - sum(before.values()) < 30


def calls(host: BridgeHost) -> dict[str, int]:
    """Return how often each command was called, but for those with which this test waits."""
    own = ("cmdstat_info", "cmdstat_xlen")
    found = host.redis.info("commandstats").items()
    return {name: stats["calls"] for name, stats in found if name not in own}
