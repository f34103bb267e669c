"""wakeq-bridge when scripts, keys or rights go, connections are cut, and Redis cannot write."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge_host import CHANNEL, STREAM, BridgeHost, bridge_host, stopped, workers_of
from conftest import NotifySocket
from redis_servers import RedisServer, wait_until
from wakeq import keys


@pytest.fixture
def host(tmp_path: Path, own_redis: RedisServer) -> Iterator[BridgeHost]:
    with bridge_host(tmp_path, own_redis) as found:
        found.configure(lease="1s", workers=2)
        yield found


def wait_some(host: BridgeHost, count: int) -> None:
    """Wait until so many more entries are in the stream."""
    target = host.redis.xlen(STREAM) + count
    wait_until(lambda: host.redis.xlen(STREAM) >= target, 30, "entries are added")


@pytest.mark.parametrize("source", ["channel", "list"])
def test_scripts_that_redis_has_forgotten_are_sent_again(host: BridgeHost, source: str) -> None:
    if source == "list":
        host.configure(list_="jobs", workers=2)
        host.fill(20_000)
        host.start(workers=2)
    else:
        host.start(workers=2)
        host.wait_begun()
        host.burst(20_000)
    for _ in range(5):
        host.redis.script_flush()
        if host.redis.xlen(STREAM) < 19_000:
            wait_some(host, 1)
    host.wait_entries(20_000)
    assert host.numbers() == list(range(20_000))


def cut_workers(host: BridgeHost) -> None:
    """Cut the connections over which something was published.

    That of the daemon is spared until it was answered: cut again before, it would count as lost,
    and with it what Redis still has for the bridge.
    """
    for client in host.redis.client_list():
        if client["name"] == "wakeq-bridge" and client["cmd"].startswith("eval"):
            host.redis.client_kill_filter(_id=client["id"])


@pytest.mark.parametrize("source", ["channel", "list"])
def test_workers_whose_connections_are_cut_lose_and_double_nothing(
    host: BridgeHost, source: str
) -> None:
    if source == "list":
        host.configure(list_="jobs", workers=2)
        host.fill(40_000)
        host.start(workers=2)
    else:
        host.start(workers=2)
        host.wait_begun()
        host.burst(40_000)
    for _ in range(10):
        cut_workers(host)
        if host.redis.xlen(STREAM) < 39_000:
            wait_some(host, 1)
    host.wait_entries(40_000)
    assert host.numbers() == list(range(40_000))


def test_a_worker_is_started_again_as_soon_as_there_is_room_for_it(host: BridgeHost) -> None:
    host.configure(lease="1s", workers=1)
    daemon = host.start()
    host.wait_begun()
    (worker,) = workers_of(daemon)
    limit = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (5, limit[1]))
    os.kill(worker, signal.SIGKILL)
    daemon.wait_log("a worker cannot start", 2)
    line = next(line for line in daemon.lines if "a worker cannot start" in line)
    assert "no process can be started: Too many open files" in line
    host.publish("kept")
    resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, limit)
    (entry,) = host.wait_entries(1)
    assert entry[b"body"] == b"kept"
    assert daemon.stop() == 0


def test_a_cut_at_a_stop_is_told_and_counted(host: BridgeHost) -> None:
    host.configure(workers=1, memory_mib=1, drain_timeout="60s")
    daemon = host.start()
    host.wait_begun()
    (worker,) = workers_of(daemon)
    with stopped(worker):  # nothing is published, so that reading comes to stand still
        host.publish(*[b"%04d" % number * 500 for number in range(4000)])
        daemon.wait_log("memory is at its bound, reading stands still")
        daemon.process.terminate()
        (client,) = host.subscriptions()
        # It is asked to unsubscribe, although the reply is not read yet: it stands behind the rest.
        wait_until(lambda: host.redis.pubsub_numsub(CHANNEL)[0][1] == 0, 30)
        host.redis.client_kill_filter(_id=client)
    assert daemon.wait_exit() == 69
    daemon.wait_log("a subscription was cut, messages may be lost")
    assert daemon.count("a subscription was cut") == 1
    assert host.stats()["cuts"] == 1
    assert 0 < len(host.entries()) < 4000


def test_a_cut_after_all_has_come_is_none(host: BridgeHost) -> None:
    host.configure(workers=1, drain_timeout="60s")
    daemon = host.start()
    host.wait_begun()
    (worker,) = workers_of(daemon)
    with stopped(worker):
        host.burst(2000)
        (client,) = host.subscriptions()
        daemon.process.terminate()
        wait_until(lambda: host.redis.pubsub_numsub(CHANNEL)[0][1] == 0, 30)
        wait_until(lambda: host.unread() == 0, 30)
        host.redis.client_kill_filter(_id=client)
    assert daemon.wait_exit() == 0
    assert host.numbers() == list(range(2000))
    assert daemon.count("a subscription was cut") == 0


def test_a_user_without_info_can_have_a_bridge(host: BridgeHost, own_redis: RedisServer) -> None:
    rights = ("on", ">x", "+@all", "-@dangerous", "~*", "&*")
    host.redis.execute_command("ACL", "SETUSER", "careful", *rights)
    host.env["WAKEQ_REDIS_URL"] = own_redis.url.replace("unix://", "unix://careful:x@")
    daemon = host.start(workers=2)
    host.wait_begun()
    host.publish("one")
    host.wait_entries(1)
    (client,) = host.subscriptions()
    host.redis.client_kill_filter(_id=client)
    daemon.wait_log("a subscription was cut, messages may be lost")
    wait_until(lambda: host.stats().get("cuts") == 1)
    assert daemon.stop() == 0


def test_a_redis_that_closes_idle_connections_was_not_lost(host: BridgeHost) -> None:
    host.configure(lease="60s", workers=2)  # else the daemon's connection is never idle
    daemon = host.start(workers=2)
    host.wait_begun()
    host.publish("one")
    host.wait_entries(1)

    def connections() -> set[str]:
        clients = host.redis.client_list(_type="normal")
        return {c["id"] for c in clients if c["name"] == "wakeq-bridge"}

    before = connections()
    host.redis.config_set("timeout", 1)
    wait_until(lambda: not before & connections(), 30)
    host.redis.config_set("timeout", 0)  # a new one is idle, too, while its process stands still
    host.publish("two")
    host.wait_entries(2)
    assert daemon.stop() == 0
    assert daemon.count("Redis was lost") == 0


def test_goes_on_when_somebody_deletes_all_keys(host: BridgeHost) -> None:
    daemon = host.start(workers=2)
    host.wait_begun()
    host.burst(5000)
    host.redis.flushall()
    host.wait_begun()
    wait_until(lambda: len(host.ids()) == 2)

    def arrives() -> bool:
        host.publish('{"number":"5000"}')
        return 5000 in host.numbers()

    wait_until(arrives)
    assert daemon.count("a subscription was cut") == 0
    wait_until(lambda: host.redis.sismember(keys.STREAMS, STREAM))
    assert daemon.stop() == 0


def test_keeps_what_it_received_while_redis_cannot_write_to_its_disk(host: BridgeHost) -> None:
    daemon = host.start(workers=2)
    host.wait_begun()
    (Path(host.redis.config_get("dir")["dir"]) / "dump.rdb").mkdir()
    host.redis.config_set("save", "3600 1")
    host.redis.bgsave()
    wait_until(lambda: host.redis.info("persistence")["rdb_last_bgsave_status"] == "err")
    host.burst(3000)
    daemon.wait_log("Redis was lost, trying again", deadline_s=30)
    host.redis.config_set("stop-writes-on-bgsave-error", "no")
    host.wait_entries(3000)
    assert host.numbers() == list(range(3000))
    assert daemon.count("a subscription was cut") == 0
    daemon.wait_log("Redis is back")


def test_goes_on_after_its_rights_were_taken_and_given_back(
    host: BridgeHost, own_redis: RedisServer, notify_socket: NotifySocket
) -> None:
    host.redis.execute_command("ACL", "SETUSER", "bridge", "on", ">x", "+@all", "~*", "&*")
    host.env["WAKEQ_REDIS_URL"] = own_redis.url.replace("unix://", "unix://bridge:x@")
    host.env |= notify_socket.env
    daemon = host.start(workers=2)
    notify_socket.wait_for("READY=1")  # else it would end: at its start, that is wrong
    host.redis.execute_command("ACL", "SETUSER", "bridge", "-@all")
    host.publish("one")
    daemon.wait_log("Redis was lost, trying again")
    assert daemon.process.poll() is None
    host.redis.execute_command("ACL", "SETUSER", "bridge", "+@all")
    (entry,) = host.wait_entries(1)
    assert entry[b"body"] == b"one"
    daemon.wait_log("Redis is back")
    assert daemon.count("a subscription was cut") == 0
    assert host.redis.pubsub_numsub(CHANNEL)[0][1] == 1
