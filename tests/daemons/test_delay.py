"""wakeq-delay as a process: when it delivers, what it survives, what it says."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from glob import glob
from pathlib import Path

import pytest

from conftest import NotifySocket
from delay_host import DelayHost
from fault_proxy import FaultProxy
from redis_servers import Cluster, RedisServer, Sentinels, wait_until
from wakeq import Publisher, keys

DATA, DELAYED = keys.delayed_data("orders"), keys.delayed("orders")
RETRY = keys.retry("orders", "g")
# In so many, thousands of messages may be asked for, and not all of a test's.
_FEW_BYTES = 10_000


@pytest.fixture
def host(
    short_dir: Path, own_redis: RedisServer, notify_socket: NotifySocket
) -> Iterator[DelayHost]:
    host = DelayHost(short_dir, own_redis)
    host.env |= notify_socket.env
    yield host
    host.close()


def entry_ms(host: DelayHost, key: str = "orders") -> list[int]:
    """Return when each entry was added, by the clock of Redis."""
    return [int(entry.split(b"-")[0]) for entry, _ in host.redis.xrange(key)]


def commands(host: DelayHost) -> int:
    return int(host.redis.info("stats")["total_commands_processed"])


def scans(host: DelayHost) -> int:
    """Return how often it has gone through the registry."""
    return int(host.redis.info("commandstats")["cmdstat_sscan"]["calls"])


def bell(host: DelayHost) -> int:
    """Return the id of the connection that listens to the doorbell."""
    (found,) = [c for c in host.redis.client_list() if c["sub"] == "1"]
    return int(found["id"])


# -- delivery --------------------------------------------------------------------------------


def test_delivers_at_the_time_and_under_the_id_that_was_given(
    host: DelayHost, notify_socket: NotifySocket
) -> None:
    host.start("--recheck", "1h")
    notify_socket.wait_for("READY=1")
    message_id = host.publish(delay=1.0)
    wait_until(host.entries)
    assert host.entries() == [{b"wakeq.first_id": message_id.encode(), b"body": b"x"}]
    # Never early. How late is a matter of the machine.
    assert entry_ms(host)[0] - int(message_id.split("-")[0]) >= 1000


def test_a_ring_in_the_middle_of_a_long_sleep_is_heard(
    host: DelayHost, notify_socket: NotifySocket
) -> None:
    host.publish(delay=3600)
    host.start("--recheck", "1h")
    notify_socket.wait_for("READY=1")
    host.publish(body="soon", delay=0.05)
    wait_until(lambda: [fields[b"body"] for fields in host.entries()] == [b"soon"])
    assert host.left() == 1


@pytest.mark.parametrize("due", [1, 1e15], ids=["due", "not due"])
def test_a_stream_that_nobody_registered_is_found_by_its_ring_and_registered(
    host: DelayHost, notify_socket: NotifySocket, due: float
) -> None:
    host.start("--recheck", "1h")
    notify_socket.wait_for("READY=1")
    host.put("1-0", due, "", "1-0", "body", "x", stream="mail")
    host.ring("mail")
    wait_until(lambda: host.redis.smembers(keys.STREAMS) == {b"mail"})
    assert len(host.entries("mail")) == (due == 1)


def test_a_stream_that_nobody_registered_is_found_although_its_first_look_failed(
    host: DelayHost, notify_socket: NotifySocket
) -> None:
    daemon = host.start("--recheck", "1h")
    notify_socket.wait_for("READY=1")
    host.put("1-0", 1, "", "1-0", "body", "x", stream="mail")
    host.redis.config_set("maxmemory", 1)
    host.ring("mail")
    daemon.wait_log("Redis was lost")
    host.redis.config_set("maxmemory", 0)
    wait_until(lambda: host.entries("mail"))
    wait_until(lambda: host.redis.smembers(keys.STREAMS) == {b"mail"})


def test_rings_for_what_is_not_there_leave_nothing_behind(
    host: DelayHost, notify_socket: NotifySocket
) -> None:
    host.start("--recheck", "1h")
    notify_socket.wait_for("READY=1")
    # A channel is that of all databases.
    with Publisher(f"{host.url}?db=1") as elsewhere:
        elsewhere.publish("letters", "x", delay=3600)
    for number in range(100):
        host.ring(f"foreign{number}")
    # The second is published after the turn in which the rings are heard at the latest.
    for count in (1, 2):
        host.publish(delay=0.01)
        wait_until(lambda count=count: len(host.entries()) == count)
    notify_socket.wait_for("STATUS=0 delayed in 1 streams, 2 moved, 0/s")
    assert host.redis.smembers(keys.STREAMS) == {b"orders"}


def test_finds_what_was_delayed_before_it_started(host: DelayHost) -> None:
    host.publish(at=datetime.now(UTC) - timedelta(days=1))
    host.fail(7)
    host.start()
    wait_until(lambda: host.entries() and host.entries(RETRY))
    assert host.entries(RETRY)[0][b"wakeq.first_id"] == b"7-0"
    assert host.left() == 0


def test_many_streams_are_each_delivered_in_the_order_of_their_times(host: DelayHost) -> None:
    streams = [f"s{i}" for i in range(100)]
    now_ms = int(time.time() * 1000)
    for stream in streams:
        host.redis.sadd(keys.STREAMS, stream)
        for number in (2, 0, 1):
            first = f"{number}-0"
            host.put(first, now_ms + number, "", first, "body", str(number), stream=stream)
    host.start()
    wait_until(lambda: all(host.redis.xlen(stream) == 3 for stream in streams))
    for stream in streams:
        assert [fields[b"body"] for fields in host.entries(stream)] == [b"0", b"1", b"2"]


def fill(host: DelayHost, count: int) -> None:
    """Have so many messages of the same text overdue, of a stream that is registered."""
    script = (
        "for i = 1, tonumber(ARGV[1]) do local id = i .. '-1000000'"
        " local items = {'', id, 'wakeq.first_id', id, 'body', 'x'}"
        " redis.call('HSET', KEYS[2], id, cmsgpack.pack(items))"
        " redis.call('ZADD', KEYS[1], 1, id) end"
    )
    host.redis.eval(script, 2, DELAYED, DATA, count)
    host.redis.sadd(keys.STREAMS, "orders")


def delivered(host: DelayHost) -> list[int]:
    return sorted(int(fields[b"wakeq.first_id"].split(b"-")[0]) for fields in host.entries())


def test_two_of_them_deliver_each_message_once(host: DelayHost) -> None:
    fill(host, 20_000)
    daemons = [host.start(), host.start()]
    wait_until(lambda: not host.left(), 120)
    assert delivered(host) == list(range(1, 20_001))
    assert [daemon.stop() for daemon in daemons] == [0, 0]
    assert len(host.entries()) == 20_000


def test_killed_again_and_again_it_loses_and_doubles_nothing(host: DelayHost) -> None:
    fill(host, 20_000)
    left = [20_000]
    with FaultProxy(host.url) as proxy:
        for flow in itertools.cycle((proxy.requests, proxy.replies)):
            if not left[-1]:
                break
            # In the middle of a request, or of a reply, before it can have asked for all.
            flow.hold_after(_FEW_BYTES)
            daemon = host.start(WAKEQ_REDIS_URL=proxy.url)
            wait_until(lambda flow=flow: not (flow.room() and host.left()))
            daemon.kill()
            proxy.heal()
            wait_until(lambda: not proxy.connections)
            left.append(host.left())
    assert len(left) > 2, "it was never killed in the middle"
    assert delivered(host) == list(range(1, 20_001))


@pytest.mark.parametrize("offset", ["-1h", "+1h"])
def test_the_clock_of_the_host_changes_nothing(
    host: DelayHost, notify_socket: NotifySocket, offset: str
) -> None:
    (library,) = glob("/usr/lib/*/faketime/libfaketime.so.1")
    message_id = host.publish(delay=1.5)
    later = host.publish(delay=1800)
    daemon = host.start(
        *("--recheck", "1h"),
        LD_PRELOAD=library, FAKETIME=offset, FAKETIME_DONT_FAKE_MONOTONIC="1", TZ="UTC",
    )  # fmt: skip
    notify_socket.wait_for("READY=1")
    wait_until(host.entries)
    assert entry_ms(host)[0] - int(message_id.split("-")[0]) >= 1500
    assert host.redis.hkeys(DATA) == [later.encode()]
    # Its clock is wrong indeed: its log says so.
    host.redis.client_kill_filter(_id=bell(host))
    daemon.wait_log("Redis is back")
    (line,) = [line for line in daemon.lines if "Redis is back" in line]
    shown = datetime.strptime(line[:8], "%H:%M:%S").replace(tzinfo=UTC)
    off = (shown - datetime.now(UTC)).total_seconds() % 86400
    assert min(abs(off - 3600), abs(off - 82_800)) < 60


# -- hints that are lost ---------------------------------------------------------------------


def test_a_lost_subscription_is_noticed_and_everything_looked_at_again(
    host: DelayHost, notify_socket: NotifySocket
) -> None:
    daemon = host.start("--recheck", "1h")
    notify_socket.wait_for("READY=1")
    host.redis.sadd(keys.STREAMS, "orders")
    listener = bell(host)
    pipeline = host.redis.pipeline()
    pipeline.execute_command("CLIENT", "KILL", "ID", listener)
    # Nobody rings for it.
    pipeline.eval(
        "redis.call('HSET', KEYS[2], '1-0', cmsgpack.pack({'', '1-0', 'body', 'x'}))"
        " redis.call('ZADD', KEYS[1], 1, '1-0')", 2, DELAYED, DATA,
    )  # fmt: skip
    pipeline.execute()
    wait_until(host.entries)
    daemon.wait_log("Redis is back")
    assert daemon.count("Redis was lost") == 1
    host.publish(body="heard", delay=0.01)
    wait_until(lambda: len(host.entries()) == 2)


def test_who_may_not_ring_is_served_at_the_recheck(
    host: DelayHost, notify_socket: NotifySocket
) -> None:
    host.redis.execute_command("ACL", "SETUSER", "shy", "on", ">pw", "~*", "+@all", "resetchannels")
    host.start("--recheck", "1s")
    notify_socket.wait_for("READY=1")
    host.url = host.url.replace("unix://", "unix://shy:pw@")
    host.publish(delay=0.1)
    wait_until(host.entries)


def test_the_server_may_close_the_idle_connection(
    host: DelayHost, notify_socket: NotifySocket
) -> None:
    daemon = host.start("--recheck", "1h")
    notify_socket.wait_for("READY=1")
    host.publish(delay=3600)
    # It has heard that, so nothing is asked until there is another ring.
    wait_until(lambda: any(line.startswith("STATUS=1 delayed") for line in notify_socket.messages))
    (idle,) = [
        c for c in host.redis.client_list() if c["name"] == "wakeq-delay" and c["sub"] == "0"
    ]
    time.sleep(1.2)  # the pause is what makes it idle
    host.redis.client_kill_filter(_id=idle["id"])
    host.publish(body="soon", delay=0.01)
    wait_until(host.entries)
    assert daemon.stop() == 0
    assert not daemon.lines


# -- what is wrong with messages and streams -------------------------------------------------


def test_foreign_garbage_holds_up_nobody_and_is_told_once(
    host: DelayHost, notify_socket: NotifySocket
) -> None:
    host.redis.sadd(keys.STREAMS, "orders", "broken", b"\xff", "")
    host.redis.zadd(DELAYED, {"1-0": 1, "gone-0": 2, b"\xfe": 3, "1-5@g": 1})
    host.redis.hset(DATA, mapping={"1-0": b"garbage", "1-5@g": b"\xc1", "stray-0": b"x"})
    host.redis.set(keys.delayed("broken"), "a string")
    daemon = host.start("--recheck", "1s")
    notify_socket.wait_for("READY=1")
    host.publish(delay=0.01)
    wait_until(lambda: len(host.entries()) == 1)
    daemon.wait_log("a stream cannot be looked at")
    daemon.wait_log("delivery was put off", 2)
    daemon.wait_log("a delayed message was dropped", 3)
    before = scans(host)
    wait_until(lambda: scans(host) > before + 1)  # looked at again
    assert len(daemon.lines) == 6
    assert set(host.redis.hkeys(DATA)) == {b"1-0", b"1-5@g"}
    (line,) = [line for line in daemon.lines if "message_id=stray-0" in line]
    assert "nothing says when it is due" in line


def test_a_stream_that_is_none_holds_up_only_its_own_messages(
    host: DelayHost, notify_socket: NotifySocket
) -> None:
    host.redis.set(RETRY, "a string")
    host.fail(7)
    daemon = host.start()
    notify_socket.wait_for("READY=1")
    host.publish(delay=0.01)
    wait_until(host.entries)
    daemon.wait_log("delivery was put off")
    (line,) = daemon.lines
    assert "message_id=7-0" in line
    assert "group=g" in line
    assert f"{RETRY}: WRONGTYPE" in line
    host.redis.delete(RETRY)
    host.redis.zadd(DELAYED, {"7-0@g": 1})
    host.ring()
    wait_until(lambda: host.entries(RETRY))


def test_a_stream_that_the_user_may_not_touch_holds_up_no_other(
    host: DelayHost, notify_socket: NotifySocket
) -> None:
    acl = ("on", ">pw", "+@all", "&*", f"~{keys.OWN}*", "~orders*")
    host.redis.execute_command("ACL", "SETUSER", "clerk", *acl)
    streams = [f"{kind}{number}" for number in range(50) for kind in ("bills", "orders")]
    for stream in streams:
        host.publish(stream, at=datetime.now(UTC) - timedelta(days=1))
    host.env["WAKEQ_REDIS_URL"] = host.url.replace("unix://", "unix://clerk:pw@")
    daemon = host.start("--recheck", "1s")
    notify_socket.wait_for("READY=1")
    wait_until(lambda: all(host.entries(f"orders{number}") for number in range(50)))
    daemon.wait_log("a stream cannot be looked at", 50)
    before = scans(host)
    wait_until(lambda: scans(host) > before + 1)  # looked at again
    assert len(daemon.lines) == 50
    host.redis.execute_command("ACL", "SETUSER", "clerk", "~bills*")
    wait_until(lambda: all(host.entries(f"bills{number}") for number in range(50)))


def test_logs_each_message_for_who_follows_it(host: DelayHost) -> None:
    host.fail(7)
    daemon = host.start("--log-level", "debug")
    message_id = host.publish(delay=0.01)
    daemon.wait_log("delayed message was delivered")
    daemon.wait_log("message was delivered again")
    assert daemon.count(f"message_id={message_id}") == 1
    assert daemon.count("stream=orders group=g message_id=7-0 entry=") == 1


# -- Redis is away, or refuses ---------------------------------------------------------------


def test_redis_that_is_away_is_waited_for(
    host: DelayHost, own_redis: RedisServer, notify_socket: NotifySocket
) -> None:
    own_redis.stop()
    host.start()
    notify_socket.wait_for("STATUS=")
    assert "READY=1" not in notify_socket.messages
    own_redis.start()
    notify_socket.wait_for("READY=1")


def test_it_gives_up_after_the_start_timeout(host: DelayHost, own_redis: RedisServer) -> None:
    own_redis.stop()
    daemon = host.start("--start-timeout", "300ms")
    assert daemon.wait_exit() == 69
    assert "cannot be reached" in daemon.lines[-1]


def test_redis_that_is_lost_is_told_once_and_taken_up_again(
    host: DelayHost, own_redis: RedisServer, notify_socket: NotifySocket
) -> None:
    daemon = host.start()
    notify_socket.wait_for("READY=1")
    own_redis.kill()
    daemon.wait_log("Redis was lost")
    before = len(notify_socket.messages)
    wait_until(lambda: sum("try" in line for line in notify_socket.messages[before:]) >= 3)
    own_redis.start()
    daemon.wait_log("Redis is back")
    host.redis = own_redis.client()
    host.publish(delay=0.01)
    wait_until(host.entries)
    assert len(daemon.lines) == 2


@pytest.mark.parametrize("readonly", [True, False], ids=["READONLY", "OOM"])
def test_a_server_that_cannot_write_is_waited_for(
    host: DelayHost, notify_socket: NotifySocket, readonly: bool
) -> None:
    daemon = host.start("--recheck", "1s")
    notify_socket.wait_for("READY=1")
    message_id = host.publish(delay=3600)
    with host.redis.pipeline() as at_once:  # else it could be delivered before
        at_once.zadd(DELAYED, {message_id: 1})
        if readonly:
            at_once.slaveof("127.0.0.1", 1)
        else:
            at_once.config_set("maxmemory", 1)
        at_once.execute()
    daemon.wait_log("Redis was lost")
    host.redis.slaveof()
    host.redis.config_set("maxmemory", 0)
    daemon.wait_log("Redis is back")
    wait_until(host.entries)
    assert daemon.count("Redis was lost") == 1


def test_a_user_without_rights_is_told_so(host: DelayHost) -> None:
    host.redis.execute_command("ACL", "SETUSER", "poor", "on", ">pw", "~*", "+@connection")
    host.env["WAKEQ_REDIS_URL"] = host.url.replace("unix://", "unix://poor:pw@")
    daemon = host.start()
    assert daemon.wait_exit() == 77
    assert "does not permit this user" in daemon.lines[-1]


# -- its life --------------------------------------------------------------------------------


def test_says_how_things_are(host: DelayHost, notify_socket: NotifySocket) -> None:
    host.start()
    notify_socket.wait_for("READY=1")
    notify_socket.wait_for("STATUS=0 delayed in 0 streams, 0 moved, 0/s")
    host.publish(delay=3600)
    host.publish(delay=0.01)
    wait_until(lambda: any("1 delayed in 1 streams, next due in" in line and "1 moved" in line
                           for line in notify_socket.messages))  # fmt: skip


def test_at_rest_it_asks_nothing(host: DelayHost, notify_socket: NotifySocket) -> None:
    host.publish(delay=3600)
    host.start("--recheck", "1h")
    notify_socket.wait_for("READY=1")
    notify_socket.wait_for("STATUS=")
    before = commands(host)
    time.sleep(1)  # what is measured is a second of nothing
    assert commands(host) == before + 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stops_at_once(
    host: DelayHost, notify_socket: NotifySocket, number: signal.Signals
) -> None:
    host.publish(delay=3600)
    daemon = host.start()
    notify_socket.wait_for("READY=1")
    daemon.process.send_signal(number)
    assert daemon.wait_exit() == 0
    notify_socket.wait_for("STOPPING=1")
    assert not daemon.lines


def test_stops_while_there_is_a_backlog(host: DelayHost, notify_socket: NotifySocket) -> None:
    fill(host, 50_000)
    with FaultProxy(host.url) as proxy:
        # It waits for a reply when it is stopped.
        proxy.requests.hold_after(_FEW_BYTES)
        daemon = host.start(WAKEQ_REDIS_URL=proxy.url)
        wait_until(lambda: host.left() < 50_000 and not proxy.requests.room())
        daemon.process.terminate()
        proxy.heal()
        assert daemon.wait_exit() == 0
    left = host.left()
    assert left > 0, "all was moved before it was stopped"
    assert len(host.entries()) == 50_000 - left


def test_feeds_the_watchdog_while_it_makes_progress(
    host: DelayHost, notify_socket: NotifySocket
) -> None:
    daemon = host.start(WATCHDOG_USEC="200000")
    notify_socket.wait_for("READY=1")
    for _ in range(3):
        notify_socket.wait_for("WATCHDOG=1", after=len(notify_socket.messages))
    assert daemon.stop() == 0


def test_reads_its_configuration_again(host: DelayHost, notify_socket: NotifySocket) -> None:
    host.configure('[delay]\nrecheck = "1h"\n')
    daemon = host.start()
    notify_socket.wait_for("READY=1")
    host.configure("[delay]\nrecheck = 0\n")
    os.kill(daemon.process.pid, signal.SIGHUP)
    daemon.wait_log("nothing was reloaded")
    assert daemon.count("recheck must be at least 1s") == 1
    host.configure('log_level = "debug"\n[delay]\nrecheck = "2s"\n')
    os.kill(daemon.process.pid, signal.SIGHUP)
    daemon.wait_log("configuration was read again")
    host.publish(delay=0.01)
    daemon.wait_log("delayed message was delivered")


def test_refuses_a_wrong_configuration(host: DelayHost) -> None:
    host.configure('[delay]\nrecheckk = "1h"\n')
    daemon = host.start()
    assert daemon.wait_exit() == 78
    assert "unknown setting 'recheckk' (did you mean 'recheck'?)" in daemon.lines[-1]


# -- several servers -------------------------------------------------------------------------


def on_each(cluster: Cluster) -> list[str]:
    """Return a stream of each node."""
    names: dict[int, str] = {}
    for number in itertools.count():
        names.setdefault(cluster.owner(f"s{number}"), f"s{number}")
        if len(names) == 3:
            return [names[index] for index in range(3)]


def length(cluster: Cluster, stream: str) -> int:
    return int(cluster.nodes[cluster.owner(stream)].ask("XLEN", stream))


def test_on_a_cluster_it_delivers_on_every_node(
    short_dir: Path, cluster: Cluster, notify_socket: NotifySocket
) -> None:
    streams = on_each(cluster)
    host = DelayHost(short_dir, cluster.nodes[0], cluster.url())
    host.env |= notify_socket.env
    try:
        host.publish(streams[0], delay=0.2)
        daemon = host.start("--recheck", "1h")
        notify_socket.wait_for("READY=1")
        for stream in streams:
            host.publish(stream, delay=0.2)
        wait_until(lambda: [length(cluster, stream) for stream in streams] == [2, 1, 1])
        cluster.move(streams[1], cluster.owner(streams[2]))
        host.publish(streams[1], delay=0.2)
        wait_until(lambda: length(cluster, streams[1]) == 2)
        assert not daemon.lines
    finally:
        host.close()


def test_a_node_of_a_cluster_that_is_gone_holds_up_no_other(
    short_dir: Path, cluster: Cluster, notify_socket: NotifySocket
) -> None:
    for node in cluster.nodes:
        node.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
    streams = on_each(cluster)
    registry = cluster.owner(keys.STREAMS)
    gone, stays = [index for index in range(3) if index != registry]
    host = DelayHost(short_dir, cluster.nodes[registry], cluster.url(registry, stays))
    host.env |= notify_socket.env
    try:
        for stream in streams:
            host.publish(stream, delay=1.5)
        daemon = host.start("--recheck", "1s")
        notify_socket.wait_for("READY=1")
        cluster.nodes[gone].kill()
        wait_until(lambda: length(cluster, streams[stays]) == 1)
        daemon.wait_log("Redis was lost")
    finally:
        host.close()


@pytest.mark.parametrize("repaired", [False, True])
def test_a_node_of_a_cluster_that_is_full_holds_up_no_other(
    short_dir: Path, cluster: Cluster, notify_socket: NotifySocket, repaired: bool
) -> None:
    streams = on_each(cluster)
    registry = cluster.owner(keys.STREAMS)
    full, other = [index for index in range(3) if index != registry]
    host = DelayHost(short_dir, cluster.nodes[full], cluster.url(registry))
    host.env |= notify_socket.env
    if repaired:
        path = host.code("def repair(message): pass")
        host.configure(f'[delay]\nrepair = "{path}"\n')
    try:
        daemon = host.start("--recheck", "1h")
        notify_socket.wait_for("READY=1")
        waiting, repairs = keys.delayed(streams[full]), keys.repairs(streams[full])
        if repaired:
            host.put("1-0@g", 0, "g", "1-0", "body", "x", stream=streams[full])
        else:
            message_id = host.publish(streams[full], delay=3600)
        with host.redis.pipeline() as at_once:  # else it could be delivered before
            if repaired:
                at_once.rename(waiting, repairs)
            else:
                at_once.zadd(waiting, {message_id: 1})
            at_once.config_set("maxmemory", 1)
            at_once.execute()
        cluster.nodes[full].ask("PUBLISH", keys.DOORBELL, streams[full])
        if not repaired:
            daemon.wait_log("Redis was lost")
        for _ in range(5):
            host.publish(streams[other], delay=0.1)
        wait_until(lambda: length(cluster, streams[other]) == 5)
        cluster.nodes[full].ask("CONFIG", "SET", "maxmemory", "0")
        place = keys.retry(streams[full], "g") if repaired else streams[full]
        wait_until(lambda: length(cluster, place) == 1)
        if repaired:
            assert not [line for line in daemon.lines if "Redis was lost" in line]
        else:
            daemon.wait_log("Redis is back")
    finally:
        host.close()


def test_after_a_failover_it_goes_on_with_the_new_master(
    short_dir: Path, notify_socket: NotifySocket
) -> None:
    directory = short_dir / "s"
    directory.mkdir()
    sentinels = Sentinels(directory)
    host = None
    try:
        sentinels.start()
        host = DelayHost(short_dir, sentinels.master, sentinels.url)
        host.env |= notify_socket.env
        daemon = host.start("--recheck", "1h")
        notify_socket.wait_for("READY=1")
        host.publish(delay=0.1)
        wait_until(host.entries)
        host.publish(body="later", delay=3600)
        # WAIT is about what its own connection wrote.
        host.redis.set("written", "x")
        assert host.redis.execute_command("WAIT", 2, 30_000) == 2
        port = sentinels.master_port
        sentinels.master.kill()
        sentinels.await_failover(port)
        daemon.wait_log("Redis is back")
        host.redis = sentinels.master.client()
        host.publish(body="new", delay=0.1)
        wait_until(lambda: len(host.entries()) == 2)
        assert host.left() == 1
    finally:
        if host is not None:
            host.close()
        sentinels.stop()
