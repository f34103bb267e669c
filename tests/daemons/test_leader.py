"""wakeq-leader and the election as processes: one of many leads, whatever is done to them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from glob import glob
from pathlib import Path

import pytest

from conftest import NotifySocket
from fault_proxy import FaultProxy
from leader_host import LEASE, NAME, LeaderHost
from redis_servers import Cluster, RedisServer, Sentinels, wait_until
from wakeq import keys
from wakeup_host import Daemon

# Lease and trust, for those who must not lose it because a busy machine has them stand still.
LONGER = 5.0, 3.5


@pytest.fixture
def host(short_dir: Path, own_redis: RedisServer) -> Iterator[LeaderHost]:
    host = LeaderHost(short_dir, own_redis)
    yield host
    host.close()


def holder(host: LeaderHost) -> str:
    return (host.redis.hget(LEASE, "holder") or b"").decode()


def wait_reigns(host: LeaderHost, count: int, deadline_s: float = 60) -> None:
    """Wait until so many have been elected, one after another."""
    wait_until(lambda: len(host.reigns()) >= count, deadline_s, f"{count} were elected")


def listeners(host: LeaderHost) -> int:
    channel = keys.vacancy(NAME)
    return int(dict(host.redis.pubsub_numsub(channel))[channel.encode()])


def wait_candidates(host: LeaderHost, count: int) -> None:
    """Wait until so many listen, and have asked once."""
    wait_until(lambda: listeners(host) == count, 180, f"{count} candidates")


# -- one of many -----------------------------------------------------------------------------


def test_the_first_of_all_waits_for_a_lease_and_then_leads(
    host: LeaderHost, notify_socket: NotifySocket
) -> None:
    seconds, usec = host.redis.time()
    daemon = host.start(**notify_socket.env)
    status = "STATUS=candidate, waiting for a lease to run out that Redis has forgotten"
    notify_socket.wait_for(status)
    notify_socket.wait_for("READY=1")
    told = notify_socket.messages
    assert told.index(status) < told.index("READY=1")
    daemon.wait_log("elected")
    # A token is the time of the election; Redis has it decide by whole milliseconds.
    waited_us = int(host.redis.hget(LEASE, "token")) - (seconds * 1_000_000 + usec)
    assert waited_us > 3_000_000 - 1000
    notify_socket.wait_for(f"STATUS=leads, token {host.redis.hget(LEASE, 'token').decode()}")
    assert daemon.stop() == 0
    assert "STOPPING=1" in notify_socket.messages


def test_who_stands_while_another_leads_says_who_that_is_and_is_not_ready(
    host: LeaderHost, notify_socket: NotifySocket
) -> None:
    host.vacate()
    leader = host.start("--lease=10min")
    leader.wait_log("elected")
    host.start("--lease=10min", **notify_socket.env)
    who = f"{os.uname().nodename}/{leader.process.pid}"
    notify_socket.wait_for(f"STATUS=candidate, {who} leads")
    assert "READY=1" not in notify_socket.messages


def test_after_a_clean_stop_the_next_one_leads_at_once(host: LeaderHost) -> None:
    host.vacate()
    # With such a lease only who was told can be so quick.
    leader = host.start("--lease=10min")
    leader.wait_log("elected")
    follower = host.start("--lease=10min")
    wait_candidates(host, 1)
    assert leader.stop() == 0
    follower.wait_log("elected")


def test_of_fifty_one_leads_and_each_that_stops_is_followed(host: LeaderHost) -> None:
    host.vacate()
    daemons = {f"p{n}": host.record(f"p{n}", lease=60, trust=40) for n in range(50)}
    wait_candidates(host, 49)
    for count in (1, 2, 3):
        wait_reigns(host, count)
        name = wait_until(lambda: holder(host))
        assert daemons[name].stop() == 0
    wait_reigns(host, 4)
    host.assert_one_at_a_time()


def test_a_candidate_asks_less_than_once_a_second(host: LeaderHost) -> None:
    host.vacate()
    host.start("--lease=10s").wait_log("elected")
    before, began = host.redis.info("commandstats"), time.monotonic()
    host.start("--lease=10s")
    wait_candidates(host, 1)

    def asked() -> int:
        stats = host.redis.info("commandstats")
        return sum(
            stats.get(name, {"calls": 0})["calls"] - before.get(name, {"calls": 0})["calls"]
            for name in ("cmdstat_eval", "cmdstat_evalsha")
        )

    # The leader renews every three seconds, the candidate asks when the lease might be over.
    wait_until(lambda: asked() >= 6, 60)
    assert time.monotonic() - began > 6


# -- deaths and pauses -----------------------------------------------------------------------


def test_after_kill_9_the_next_one_leads_when_the_lease_is_over(host: LeaderHost) -> None:
    host.vacate()
    leader = host.start("--lease=3s")
    leader.wait_log("elected")
    follower = host.start("--lease=3s")
    wait_candidates(host, 1)
    renewed_ms = int(host.redis.hget(LEASE, "until")) - 3000
    leader.kill()
    follower.wait_log("elected")
    token_ms = int(host.redis.hget(LEASE, "token")) / 1000
    # Not before the lease is over; and a machine that does not run it gets half a minute.
    assert 3000 <= token_ms - renewed_ms < 33_000


def test_who_was_paused_for_longer_than_the_lease_leads_no_more(host: LeaderHost) -> None:
    host.vacate()
    paused = host.record("one", *LONGER)
    wait_reigns(host, 1)
    host.record("two", *LONGER)
    wait_candidates(host, 1)
    paused.process.send_signal(signal.SIGSTOP)
    wait_reigns(host, 2)
    paused.process.send_signal(signal.SIGCONT)
    paused.wait_log("lost")
    wait_candidates(host, 1)
    assert len(host.assert_one_at_a_time()) == 2


def test_what_was_asked_for_before_a_pause_is_not_taken_after_it(host: LeaderHost) -> None:
    host.vacate()
    with FaultProxy(host.url) as proxy:
        paused = host.record("one", *LONGER, url=proxy.url)
        wait_reigns(host, 1)
        # A reply is on its way when it is paused.
        beat = int(host.redis.hget(LEASE, "beat"))
        proxy.replies.delay_s = 2.0
        wait_until(lambda: int(host.redis.hget(LEASE, "beat")) > beat)
        paused.process.send_signal(signal.SIGSTOP)
        host.record("two", *LONGER)
        wait_reigns(host, 2)
        proxy.replies.delay_s = 0
        paused.process.send_signal(signal.SIGCONT)
        paused.wait_log("lost")
        wait_candidates(host, 1)
        assert len(host.assert_one_at_a_time()) == 2


def test_a_leader_that_was_paused_ends_at_once_when_it_goes_on(host: LeaderHost) -> None:
    host.vacate()
    leader = host.start("--lease=6s")
    leader.wait_log("elected")
    leader.process.send_signal(signal.SIGSTOP)
    follower = host.start("--lease=6s")
    follower.wait_log("elected")
    leader.process.send_signal(signal.SIGCONT)
    assert leader.wait_exit() == 75
    leader.wait_log("the lease was lost")
    assert follower.count("lost") == 0


def test_killed_and_started_again_and_again_one_leads_at_a_time(host: LeaderHost) -> None:
    host.vacate()
    running: dict[str, Daemon] = {f"p{n}": host.record(f"p{n}") for n in range(3)}
    for count in range(1, 6):
        wait_reigns(host, count)
        name = wait_until(lambda: (found := holder(host)) in running and found)
        running.pop(str(name)).kill()
        running[f"q{count}"] = host.record(f"q{count}")
    wait_reigns(host, 6)
    host.assert_one_at_a_time()


# -- Redis -----------------------------------------------------------------------------------


def test_a_restart_of_redis_that_loses_the_key_makes_no_second_leader(
    host: LeaderHost, own_redis: RedisServer
) -> None:
    host.vacate()
    leader = host.start("--lease=60s")
    leader.wait_log("elected")
    token = host.redis.hget(LEASE, "token")
    follower = host.start("--lease=60s")
    wait_candidates(host, 1)

    own_redis.restart()

    host.redis = own_redis.client()
    wait_until(lambda: host.redis.hget(LEASE, "token") == token, 50, "the leader has its lease")
    wait_candidates(host, 1)
    leader.wait_log("Redis is back")
    follower.wait_log("Redis is back")
    assert leader.process.poll() is None
    assert follower.count("elected") == 0


def test_without_redis_the_leader_gives_up_and_nobody_else_leads(
    host: LeaderHost, own_redis: RedisServer
) -> None:
    host.vacate()
    leader = host.start()
    leader.wait_log("elected")
    follower = host.start()
    wait_candidates(host, 1)

    own_redis.kill()

    assert leader.wait_exit() == 75
    assert leader.count("Redis was lost") == 1
    assert leader.count("could not be renewed in time") == 1
    assert follower.count("elected") == 0
    own_redis.start()
    follower.wait_log("elected")


def test_a_leader_whose_connection_is_cut_connects_anew_and_stays(host: LeaderHost) -> None:
    host.vacate()
    with FaultProxy(host.url) as proxy:
        leader = host.start("--lease=10s", url=proxy.url)
        leader.wait_log("elected")
        for count in (1, 2, 3):
            beat = int(host.redis.hget(LEASE, "beat"))
            proxy.cut()
            leader.wait_log("Redis is back", count)
            wait_until(lambda beat=beat: int(host.redis.hget(LEASE, "beat")) > beat)
        assert leader.stop() == 0
    assert holder(host) == ""


def test_who_is_cut_off_gives_up_before_another_one_leads(host: LeaderHost) -> None:
    host.vacate()
    with FaultProxy(host.url) as proxy:
        host.record("cut off", *LONGER, url=proxy.url)
        wait_reigns(host, 1)
        host.record("other", *LONGER)
        wait_candidates(host, 1)

        proxy.half_open()

        wait_reigns(host, 2)
        before, after = host.assert_one_at_a_time()
        # It had the lease for 5 s, and trusted it for 3.5 s.
        assert after.begin - before.last > 1
        proxy.heal()
        wait_candidates(host, 1)
        assert len(host.assert_one_at_a_time()) == 2


def test_a_reply_that_comes_too_late_is_not_believed(host: LeaderHost) -> None:
    host.vacate()
    with FaultProxy(host.url) as proxy:
        # Each reply takes longer than the trust.
        proxy.replies.delay_s = 0.7
        slow = host.record("slow", lease=2, trust=0.6, url=proxy.url)
        wait_until(lambda: holder(host) == "slow")
        wait_until(lambda: slow.count("trouble") >= 2)
        assert host.reigns() == []


def test_a_redis_that_is_slow_for_less_than_the_trust_costs_no_lease(host: LeaderHost) -> None:
    host.vacate()
    leader = host.start("--lease=30s")
    leader.wait_log("elected")
    token, beat = host.redis.hmget(LEASE, "token", "beat")
    # Over several renewals, and over connecting anew.
    host.redis.execute_command("CLIENT", "PAUSE", 22_000)
    wait_until(lambda: int(host.redis.hget(LEASE, "beat")) > int(beat), 60)
    assert host.redis.hget(LEASE, "token") == token
    leader.wait_log("Redis is back")
    assert leader.count("lost, trying") == 1
    assert leader.stop() == 0


def test_a_leader_ends_when_the_token_is_anothers(host: LeaderHost) -> None:
    # A replica was promoted that had another history.
    host.vacate()
    leader = host.start()
    leader.wait_log("elected")
    theirs = {"holder": "elsewhere", "who": "web2/7", "token": 9 * 10**15, "beat": 0}
    host.redis.hset(LEASE, mapping=theirs)
    assert leader.wait_exit() == 75
    leader.wait_log("web2/7 leads now")
    assert holder(host) == "elsewhere"


def test_a_server_that_became_a_replica_is_none_to_lead_by(
    host: LeaderHost, own_redis: RedisServer
) -> None:
    host.vacate()
    leader = host.start()
    leader.wait_log("elected")
    own_redis.ask("CONFIG", "SET", "replica-read-only", "yes")
    own_redis.ask("REPLICAOF", "127.0.0.1", "1")
    assert leader.wait_exit() == 75
    assert leader.count("READONLY") == 1
    follower = host.start("--start-timeout=1min")
    own_redis.ask("REPLICAOF", "NO", "ONE")
    follower.wait_log("elected")


def test_missing_rights_are_said_at_the_start(host: LeaderHost, own_redis: RedisServer) -> None:
    own_redis.ask("ACL", "SETUSER", "small", "on", ">p", "+@all", "-eval", "-evalsha", "~*", "&*")
    daemon = host.start(url=host.url.replace("unix://", "unix://small:p@"))
    assert daemon.wait_exit() == 77
    daemon.wait_log("does not permit this user")


def test_without_the_right_to_listen_it_asks_instead(
    host: LeaderHost, own_redis: RedisServer
) -> None:
    host.vacate()
    leader = host.start("--lease=10min")
    leader.wait_log("elected")
    own_redis.ask("ACL", "SETUSER", "deaf", "on", ">p", "+@all", "~*", "resetchannels")
    follower = host.start("--lease=10min", url=host.url.replace("unix://", "unix://deaf:p@"))
    wait_until(lambda: any(client["user"] == "deaf" for client in host.redis.client_list()))
    assert leader.stop() == 0
    follower.wait_log("elected")


def test_redis_that_is_not_there_at_the_start_is_waited_for(host: LeaderHost) -> None:
    daemon = host.start("--start-timeout=500ms", url="redis://127.0.0.1:1")
    assert daemon.wait_exit() == 69
    daemon.wait_log("cannot be reached")


# -- several servers -------------------------------------------------------------------------


def test_after_a_failover_the_leader_is_the_same(short_dir: Path) -> None:
    directory = short_dir / "s"
    directory.mkdir()
    sentinels = Sentinels(directory)
    sentinels.start()
    host = LeaderHost(short_dir, sentinels.master)
    try:
        host.vacate()
        leader = host.start("--lease=60s", url=sentinels.url)
        leader.wait_log("elected")
        follower = host.start("--lease=60s", url=sentinels.url)
        wait_candidates(host, 1)
        token = host.redis.hget(LEASE, "token")
        # It waits for what its own connection has written, and all before that.
        with host.redis.client() as writer:
            writer.set("last", 1)
            assert writer.execute_command("WAIT", 2, 20_000) == 2
        port = sentinels.master_port

        sentinels.master.kill()

        sentinels.await_failover(port)
        leader.wait_log("Redis is back")
        follower.wait_log("Redis is back")
        host.redis = sentinels.master.client()
        assert host.redis.hget(LEASE, "token") == token
        assert leader.stop() == 0
        follower.wait_log("elected")
    finally:
        host.close()
        sentinels.stop()


def test_on_a_cluster_the_server_is_found_and_a_stop_is_heard(short_dir: Path) -> None:
    directory = short_dir / "c"
    directory.mkdir()
    cluster = Cluster(directory)
    cluster.start()
    owner = cluster.owner(LEASE)
    host = LeaderHost(short_dir, cluster.nodes[owner])
    try:
        host.vacate()
        url = cluster.url((owner + 1) % 3)
        leader = host.start("--lease=10min", url=url)
        leader.wait_log("elected")
        follower = host.start("--lease=10min", url=url)
        wait_candidates(host, 1)
        assert leader.stop() == 0
        follower.wait_log("elected")
    finally:
        host.close()
        cluster.stop()


# -- clocks and settings ---------------------------------------------------------------------


@pytest.mark.parametrize("offset", ["-1h", "+1h"])
def test_the_clock_of_the_host_changes_nothing(host: LeaderHost, offset: str) -> None:
    (library,) = glob("/usr/lib/*/faketime/libfaketime.so.1")
    env = {"LD_PRELOAD": library, "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    host.vacate()
    leader = host.start("--lease=6s", **env)
    leader.wait_log("elected")
    follower = host.start("--lease=6s")
    wait_candidates(host, 1)
    beat = int(host.redis.hget(LEASE, "beat"))
    wait_until(lambda: int(host.redis.hget(LEASE, "beat")) > beat + 2)
    assert follower.count("elected") == 0
    leader.kill()
    follower.wait_log("elected")


def test_a_clock_of_redis_that_is_set_forward_makes_no_second_leader(host: LeaderHost) -> None:
    # What follows from it: all leases seem to be over.
    host.vacate()
    host.record("one", lease=10, trust=8)
    wait_reigns(host, 1)
    host.redis.hset(LEASE, "until", 1)
    host.record("two", lease=10, trust=8)
    wait_candidates(host, 1)
    beat = int(host.redis.hget(LEASE, "beat"))
    wait_until(lambda: int(host.redis.hget(LEASE, "beat")) > beat + 1)
    assert len(host.assert_one_at_a_time()) == 1


def test_a_lease_that_does_not_cover_the_watchdog_is_refused(host: LeaderHost) -> None:
    daemon = host.start("--lease=4s", WATCHDOG_USEC="3000000")
    assert daemon.wait_exit() == 78
    daemon.wait_log("lease must be at least 4.3s, not 4s")


def test_a_leader_feeds_its_watchdog(host: LeaderHost, notify_socket: NotifySocket) -> None:
    host.vacate()
    host.start("--lease=5s", WATCHDOG_USEC="600000", **notify_socket.env)
    notify_socket.wait_for("READY=1")
    for _ in range(3):
        notify_socket.wait_for("WATCHDOG=1", after=len(notify_socket.messages))


def test_a_name_with_a_number_is_refused(host: LeaderHost) -> None:
    daemon = host.start(name="night:2")
    assert daemon.wait_exit() == 64
    daemon.wait_log("what is led has no number")
