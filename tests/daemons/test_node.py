"""wakeq-node as processes: all consume, one is elected and emits, whatever is done to them."""

from __future__ import annotations

import calendar
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import NotifySocket
from node_host import NAME, NodeHost
from redis_servers import Cluster, RedisServer, wait_until
from wakeq import keys

LEASE = keys.lease(NAME, NAME)
# For who must not lose it because a busy machine has it stand still.
LONG = "--lease=10min"
RECORDS = "def handle(message): record(message.text())\n"
STUCK = "import time\ndef handle(message):\n    record('begun')\n    time.sleep(10000)\n"


@pytest.fixture
def host(short_dir: Path, own_redis: RedisServer) -> Iterator[NodeHost]:
    host = NodeHost(short_dir, own_redis)
    host.configure(interval=0.1)
    host.vacate()
    yield host
    host.close()


def wait_follower(host: NodeHost, count: int = 1) -> None:
    """Wait until so many followers listen for a vacancy, and have asked once."""
    channel = keys.vacancy(NAME, NAME)
    wait_until(
        lambda: dict(host.redis.pubsub_numsub(channel))[channel.encode()] == count,
        message=f"{count} followers",
    )


def children(pid: int) -> list[int]:
    """Return the child processes of a process."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


# -- the failures of the reference ---------------------------------------------------------------


def test_a_handler_that_hangs_for_ever_does_not_hinder_taking_over(host: NodeHost) -> None:
    # The queue is empty but for what hangs: there is no backlog that would move anything.
    leader = host.start_node(NAME, "--interval=1h")
    host.wait_emitted(1)
    host.configure(interval=0.1, handler=host.handler(STUCK), workers=1, drain_timeout="1h")
    follower = host.start_node(NAME, LONG)
    host.wait_records(1)
    wait_follower(host)

    leader.kill()

    follower.wait_log("elected")
    assert {one.token for one in host.wait_more(3)[-3:]} == {int(host.redis.hget(LEASE, "token"))}
    follower.terminate()
    wait_until(lambda: host.leader_pid() == 0, 60, "it hands over although a handler hangs")
    follower.terminate()
    assert follower.wait_exit() == 0


def test_after_kill_9_another_one_emits_although_nothing_is_in_the_stream(host: NodeHost) -> None:
    leader = host.start_node(NAME, "--interval=1h", "--lease=5s")
    host.wait_emitted(1)
    follower = host.start_node(NAME, LONG)
    wait_follower(host)
    host.redis.xtrim(NAME, maxlen=0)
    renewed_ms = int(host.redis.hget(LEASE, "until")) - 5000

    leader.kill()

    follower.wait_log("elected")
    wait_until(lambda: host.redis.xlen(NAME))
    token_ms = int(host.redis.hget(LEASE, "token")) / 1000
    # Not before the lease is over; and a machine that does not run it gets half a minute.
    assert 5000 <= token_ms - renewed_ms < 35_000


def test_who_was_paused_for_longer_than_the_lease_emits_nothing_stale(host: NodeHost) -> None:
    host.configure(interval=0.02)
    first, second = (host.start_node(NAME, "--lease=5s") for _ in range(2))
    paused = host.wait_leader(first, second)
    other = second if paused is first else first
    for _ in range(2):
        host.wait_more(5)
        paused.send(signal.SIGSTOP)
        other.wait_log("elected", other.count("elected") + 1)
        host.wait_more(5)
        paused.send(signal.SIGCONT)
        paused.wait_log("the lease was lost")
        wait_follower(host)
        host.wait_more(5)
        paused, other = other, paused
    host.check_emitted()


def test_what_was_begun_before_a_pause_is_refused_after_it(host: NodeHost) -> None:
    # It stops itself between its last look at the lease and its request.
    host.configure(interval=0.1)
    leader = host.start_node(NAME, "--lease=5s", WAKEQ_FAILPOINT="before_emit:stop@4")
    wait_until(lambda: "\tT (stopped)" in Path(f"/proc/{leader.pid}/status").read_text())
    follower = host.start_node(NAME, LONG)
    follower.wait_log("elected")
    host.wait_more(3)
    before = refusals(host)

    leader.send(signal.SIGCONT)

    leader.wait_log("the lease was lost")
    host.wait_more(3)
    assert len({one.token for one in host.check_emitted()}) == 2
    assert refusals(host) > before


def refusals(host: NodeHost) -> int:
    """Return how often a leader was refused that had been superseded."""
    # Not every version of the client knows how to read it.
    found = str(host.redis.info("errorstats").get("errorstat_FENCED", "count=0"))
    return int("".join(filter(str.isdigit, found)))


# -- one of many ---------------------------------------------------------------------------------


def test_all_consume_and_the_leader_emits_what_they_handle(
    host: NodeHost, notify_socket: NotifySocket
) -> None:
    host.configure(interval=0.1, handler=host.handler(RECORDS))
    leader = host.start_node(NAME, LONG)
    host.wait_leader(leader)
    follower = host.start_node(NAME, LONG, **notify_socket.env)
    records = host.wait_records(5)
    bodies = [one.body.decode() for one in host.emitted()]
    assert set(records) <= set(bodies) | {one.body.decode() for one in host.emitted()}
    who = f"{os.uname().nodename}/{leader.pid}"
    notify_socket.wait_for("READY=1")
    wait_until(
        lambda: any(
            line.startswith(f"STATUS=follower, {who} leads; 0 of 100 workers busy, ")
            for line in notify_socket.messages
        )
    )
    assert follower.stop() == 0
    assert leader.stop() == 0
    assert "STOPPING=1" in notify_socket.messages


def test_the_elected_one_stops_consuming_and_consumes_again_when_it_has_lost(
    host: NodeHost,
) -> None:
    host.configure(interval="1h", handler=host.handler("def handle(m): record(_os.getpid())\n"))
    node = host.start_node(NAME, "--lease=3s")
    node.wait_log("elected")
    wait_until(lambda: not children(node.pid), 60, "the consuming process ends")
    # Another one leads: the lease is another's.
    theirs = {"holder": "elsewhere", "who": "web2/7", "token": 9 * 10**15, "beat": 0}
    host.redis.hset(LEASE, mapping=theirs | {"until": 10**16, "lease": 10**6})
    node.wait_log("the lease was lost")
    node.wait_log("web2/7 leads now")
    (child,) = wait_until(lambda: children(node.pid))
    host.publish("x", stream=NAME)
    wait_until(lambda: str(child) in host.records)


def test_a_leader_that_consumes_goes_on(host: NodeHost) -> None:
    host.configure(interval=0.05, handler=host.handler(RECORDS), leader_consumes=True)
    node = host.start_node()
    node.wait_log("elected")
    host.wait_records(5)
    assert node.stop() == 0


def test_after_a_clean_stop_the_next_one_emits_at_once(host: NodeHost) -> None:
    # With such a lease only who was told can be so quick; and what is being handled takes longer.
    host.configure(interval=0.1, handler=host.handler(STUCK), workers=1, leader_consumes=True)
    leader = host.start_node(NAME, "--lease=10min", "--drain-timeout=2s")
    host.wait_records(1)
    follower = host.start_node(NAME, "--lease=10min", "--drain-timeout=0")
    wait_follower(host)
    leader.terminate()
    follower.wait_log("elected")
    host.wait_more(2)
    assert leader.wait_exit() == 0
    host.check_emitted()


def test_without_a_handler_it_only_emits_and_says_so(
    host: NodeHost, notify_socket: NotifySocket
) -> None:
    leader = host.start_node(NAME, LONG)
    leader.wait_log("elected")
    assert children(leader.pid) == []
    host.start_node(NAME, LONG, **notify_socket.env)
    notify_socket.wait_for("READY=1")
    who = f"{os.uname().nodename}/{leader.pid}"
    notify_socket.wait_for(f"STATUS=follower, {who} leads; without a handler; 2 connections")


def test_a_body_is_a_unique_id_and_the_time(host: NodeHost) -> None:
    host.start_node()
    emitted = host.wait_emitted(4)
    ids, times = zip(*(one.body.decode().split(" ") for one in emitted), strict=True)
    assert len(set(ids)) == len(ids)
    for one, text in zip(emitted, times, strict=True):
        assert text.endswith("Z")
        parsed = time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S")
        assert abs(calendar.timegm(parsed) - one.ms / 1000) < 60
    assert b"clock" in host.redis.smembers(keys.STREAMS)


def test_several_instances_run_on_one_host(host: NodeHost) -> None:
    host.configure(interval=0.05, handler=host.handler("def handle(m): record(_os.getpid())\n"))
    nodes = [host.start_node(name) for name in (NAME, NAME, f"{NAME}:2")]
    host.wait_leader(*nodes)
    wait_until(lambda: len(set(host.records)) >= 2, 60, "two of them consume")
    for node in nodes:
        assert node.stop() == 0


# -- the consuming process -----------------------------------------------------------------------


def test_a_consuming_process_that_dies_is_started_again(host: NodeHost) -> None:
    host.configure(interval="1h", handler=host.handler(RECORDS), leader_consumes=True)
    node = host.start_node(NAME, LONG)
    host.wait_records(1)
    (child,) = children(node.pid)
    os.kill(child, signal.SIGKILL)
    node.wait_log("the consuming process ended")
    host.publish("after", stream=NAME)
    wait_until(lambda: "after" in host.records)
    assert node.count("elected") == 1


def test_the_consuming_process_dies_with_the_node(host: NodeHost) -> None:
    host.configure(interval="1h", handler=host.handler(STUCK), leader_consumes=True)
    node = host.start_node()
    host.wait_records(1)
    (child,) = children(node.pid)
    node.kill()
    wait_until(lambda: not _runs(child), 60, "it dies")


def _runs(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_handler_that_cannot_be_loaded_ends_the_node_at_its_start(host: NodeHost) -> None:
    host.configure(handler="nowhere:nothing")
    node = host.start_node()
    assert node.wait_exit() == 78
    assert node.count("cannot be imported") == 1


def test_what_cannot_be_handled_in_time_is_handed_back_at_a_stop(host: NodeHost) -> None:
    host.configure(
        interval="1h", handler=host.handler(STUCK), leader_consumes=True, drain_timeout=0
    )
    node = host.start_node()
    host.wait_records(1)
    assert node.stop() == 0
    node.wait_log("handed back")


def test_a_second_signal_does_not_wait_for_handlers(host: NodeHost) -> None:
    host.configure(
        interval="1h", handler=host.handler(STUCK), leader_consumes=True, drain_timeout="1h"
    )
    node = host.start_node()
    host.wait_records(1)
    node.terminate()
    wait_until(lambda: host.leader_pid() == 0, 60, "the lease is handed over")
    assert node.running
    node.terminate()
    assert node.wait_exit() == 0


# -- Redis ---------------------------------------------------------------------------------------


def test_a_restart_of_redis_is_survived(host: NodeHost, own_redis: RedisServer) -> None:
    host.configure(interval=0.05, handler=host.handler(RECORDS), leader_consumes=True)
    node = host.start_node(NAME, "--lease=30s")
    host.wait_emitted(3)
    own_redis.restart()
    host.redis = own_redis.client()
    host.wait_emitted(3)
    node.wait_log("Redis is back")
    assert node.count("the lease was lost") == 0
    assert node.stop() == 0


def test_redis_that_is_not_there_at_the_start_is_waited_for(host: NodeHost) -> None:
    node = host.start_node(NAME, "--start-timeout=500ms", "--redis-url=redis://127.0.0.1:1")
    assert node.wait_exit() == 69
    node.wait_log("cannot be reached")


def test_a_stream_that_is_none_is_told_once_and_tried_again(host: NodeHost) -> None:
    host.redis.set(NAME, "text")
    node = host.start_node()
    node.wait_log("WRONGTYPE")
    assert node.count("Redis was lost") == 1
    host.redis.delete(NAME)
    host.wait_emitted(2)
    assert node.count("Redis was lost") == 1


def test_on_a_cluster_all_keys_are_in_one_slot(short_dir: Path) -> None:
    directory = short_dir / "c"
    directory.mkdir()
    cluster = Cluster(directory)
    cluster.start()
    owner = cluster.owner(NAME)
    host = NodeHost(short_dir, cluster.nodes[owner])
    try:
        host.vacate()
        host.configure(interval=0.1, handler=host.handler(RECORDS), leader_consumes=True)
        url = f"--redis-url={cluster.url((owner + 1) % 3)}"
        node = host.start_node(NAME, url, "--lease=1min")
        host.wait_emitted(3)
        host.wait_records(3)
        process = keys.node_process(NAME, NAME, f"{os.uname().nodename}/{node.pid}")
        wait_until(lambda: host.redis.exists(process))
        assert node.stop() == 0
        registry = cluster.nodes[cluster.owner(keys.STREAMS)].client()
        assert registry.smembers(keys.STREAMS) == {NAME.encode()}
    finally:
        host.close()
        cluster.stop()


# -- figures -------------------------------------------------------------------------------------


def test_live_figures_are_in_redis_while_it_lives(host: NodeHost) -> None:
    host.configure(interval=0.1, handler=host.handler(RECORDS), leader_consumes=True)
    node = host.start_node(NAME, LONG)
    host.wait_records(1)
    process = f"{os.uname().nodename}/{node.pid}"
    key = keys.node_process(NAME, NAME, process)

    def handled() -> bool:
        return int(host.redis.hget(key, "handled") or 0) > 0

    wait_until(handled)
    figures = {k.decode(): v.decode() for k, v in host.redis.hgetall(key).items()}
    assert figures["role"] == "leader"
    assert figures["token"] == host.redis.hget(LEASE, "token").decode()
    assert int(figures["emitted"]) > 0
    assert (figures["failed"], figures["workers"]) == ("0", "100")
    assert (figures["host"], figures["pid"]) == (os.uname().nodename, str(node.pid))
    assert 0 < host.redis.ttl(key) <= 300
    assert host.redis.zrange(keys.node_processes(NAME, NAME), 0, -1) == [process.encode()]
    assert node.stop() == 0
    wait_until(lambda: not host.redis.exists(key), 60, "it takes its figures away")


def test_a_node_feeds_its_watchdog(host: NodeHost, notify_socket: NotifySocket) -> None:
    host.start_node(WATCHDOG_USEC="600000", **notify_socket.env)
    notify_socket.wait_for("READY=1")
    for _ in range(3):
        notify_socket.wait_for("WATCHDOG=1", after=len(notify_socket.messages))
