"""wakeq-wakeup as a process: who is woken, and when."""

from __future__ import annotations

import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import NotifySocket
from redis_servers import RedisServer, wait_until
from wakeup_host import HOST, WakeupHost


@pytest.fixture
def host(short_dir: Path, redis: RedisServer, notify_socket: NotifySocket) -> Iterator[WakeupHost]:
    host = WakeupHost(short_dir, redis)
    host.env |= notify_socket.env
    yield host
    host.close()


def commands(host: WakeupHost) -> dict[str, int]:
    """Return how often each command was called."""
    return {
        name.removeprefix("cmdstat_"): values["calls"]
        for name, values in host.redis.info("commandstats").items()
    }


def test_wakes_a_consumer_for_a_message_and_again_for_the_next_one(
    host: WakeupHost, notify_socket: NotifySocket
) -> None:
    orders = host.consumer("orders")
    daemon = host.start()
    notify_socket.wait_for("READY=1")
    for _ in range(3):
        assert not orders.woken()
        host.redis.xadd("orders", {"a": "b"})
        orders.wait_woken()
        assert orders.handle() == 1
        orders.sleep()
    notify_socket.wait_for("STATUS=watching 1 consumers: 1 asleep, 0 awake, 0 backing off; 3 wakes")
    assert host.redis.smembers("wakeq:streams") == {b"orders"}
    assert daemon.stop() == 0
    assert daemon.lines == []
    notify_socket.wait_for("STOPPING=1")


def test_wakes_at_once_whoever_has_a_backlog(host: WakeupHost) -> None:
    orders, mail = host.consumer("orders"), host.consumer("mail")
    host.redis.xadd("orders", {"a": "b"})
    host.redis.xadd("wakeq:{mail}:retry:mail", {"a": "b"})
    host.start()
    orders.wait_woken()
    mail.wait_woken()


def test_a_message_between_the_look_and_the_watch_is_not_lost(
    host: WakeupHost, notify_socket: NotifySocket
) -> None:
    orders = host.consumer("orders")
    daemon = host.start(WAKEQ_FAILPOINT="before_watch:stop@1")
    stat = Path(f"/proc/{daemon.process.pid}/stat")
    wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")
    host.redis.xadd("orders", {"a": "b"})
    notify_socket.collected()
    assert "READY=1" not in notify_socket.messages
    daemon.process.send_signal(signal.SIGCONT)
    orders.wait_woken()


def test_what_comes_while_a_consumer_goes_to_sleep_wakes_it_again(host: WakeupHost) -> None:
    orders = host.consumer("orders")
    host.start()
    host.redis.xadd("orders", {"a": "b"})
    for _ in range(3):
        orders.wait_woken()
        orders.handle()
        host.redis.xadd("orders", {"a": "b"})
        orders.sleep()
    orders.wait_woken()


def test_an_awake_consumer_is_not_watched(host: WakeupHost, notify_socket: NotifySocket) -> None:
    orders = host.consumer("orders")
    host.start()
    notify_socket.wait_for("READY=1")
    host.redis.xadd("orders", {"a": "b"})
    orders.wait_woken()
    before = commands(host)
    for _ in range(100):
        host.redis.xadd("orders", {"a": "b"})
        assert orders.handle()
    after = commands(host)
    assert {name for name in after if after[name] != before.get(name)} == {
        *("xadd", "xreadgroup", "xack", "xgroup|create", "info")
    }


def test_finds_sockets_configuration_groups_and_streams_that_come_later(
    host: WakeupHost, notify_socket: NotifySocket
) -> None:
    daemon = host.start()
    notify_socket.wait_for("READY=1")
    (host.runtime_dir / "consumer").mkdir(parents=True)
    orders = host.consumer("orders")
    host.redis.xgroup_create("orders", "orders", "$", mkstream=True)
    host.redis.xadd("orders", {"a": "b"})
    orders.wait_woken()

    mail = host.at(host.runtime_dir / "consumer" / "mail.sock", "mail", "post", "mail")
    daemon.wait_log("consumers/mail.toml: there is no such file")
    host.redis.xadd("post", {"a": "b"})
    host.configure("mail", 'handler = "a:b"\nstream = "post"\n')
    mail.wait_woken()


def test_a_changed_file_moves_a_consumer_to_another_stream(
    host: WakeupHost, notify_socket: NotifySocket
) -> None:
    orders = host.consumer("orders")
    host.start()
    notify_socket.wait_for("READY=1")
    host.configure("orders", 'handler = "a:b"\nstream = "new"\n')
    host.redis.xadd("new", {"a": "b"})
    orders.wait_woken()


def test_a_group_that_starts_at_the_end_counts_from_the_first_look(
    host: WakeupHost, notify_socket: NotifySocket
) -> None:
    host.redis.xadd("orders", {"old": "1"})
    orders = host.consumer("orders", 'handler = "a:b"\nstart = "$"\n')
    host.start()
    notify_socket.wait_for("READY=1")
    assert not orders.woken()
    host.redis.xadd("orders", {"new": "1"})
    orders.wait_woken()
    assert orders.handle() == 1


def test_all_of_four_hundred_streams_are_watched(
    host: WakeupHost, notify_socket: NotifySocket
) -> None:
    consumers = [host.consumer(f"q{number}") for number in range(400)]
    host.start()
    notify_socket.wait_for("READY=1")
    for consumer in consumers:
        host.redis.xadd(consumer.stream, {"a": "b"})
    host.wait_woken(consumers, 300)


def test_without_any_consumer_it_waits(host: WakeupHost, notify_socket: NotifySocket) -> None:
    daemon = host.start()
    notify_socket.wait_for("STATUS=watching 0 consumers: 0 asleep, 0 awake, 0 backing off; 0 wakes")
    assert daemon.stop() == 0


def test_a_dead_consumer_with_messages_in_hand_is_woken_without_a_new_one(
    host: WakeupHost, notify_socket: NotifySocket
) -> None:
    orders = host.consumer("orders")
    host.start()
    host.redis.xadd("orders", {"a": "b"})
    orders.wait_woken()
    orders.read()
    # A killed consumer leaves its alive key behind.
    host.redis.set(f"wakeq:{{orders}}:alive:orders:{orders.name}", "gone", ex=30)
    orders.sleep()
    orders.wait_woken()


def test_messages_of_a_consumer_that_is_gone_wake_when_they_may_be_claimed(
    host: WakeupHost,
) -> None:
    orders = host.consumer("orders", 'handler = "a:b"\nclaim_after = "1s"\n')
    host.redis.xadd("orders", {"a": "b"})
    began = time.monotonic()
    orders.read("elsewhere/orders")
    host.start()
    orders.wait_woken()
    assert time.monotonic() - began > 0.9


def test_messages_of_a_consumer_that_lives_elsewhere_are_left_to_it(
    host: WakeupHost, notify_socket: NotifySocket
) -> None:
    orders = host.consumer("orders", 'handler = "a:b"\nclaim_after = "1s"\n')
    host.redis.xadd("orders", {"a": "b"})
    orders.read("elsewhere/orders")
    alive = "wakeq:{orders}:alive:orders:elsewhere/orders"
    host.redis.set(alive, "1")
    host.start()
    notify_socket.wait_for("READY=1")
    host.redis.xadd("orders", {"a": "b"})
    looks = commands(host)["evalsha"]
    # One for the message, and what it led to, and one that shows that this is over.
    wait_until(lambda: commands(host)["evalsha"] >= looks + 3)
    assert not orders.woken()
    host.redis.delete(alive)
    orders.wait_woken()


def test_instances_are_woken_one_by_one_as_the_lag_grows(host: WakeupHost) -> None:
    first = host.consumer("orders", 'handler = "a:b"\nscale_lag = 10\n')
    second, third = host.consumer("orders:2"), host.consumer("orders:3")
    host.start()
    host.redis.xadd("orders", {"a": "b"})
    first.wait_woken()
    for _ in range(15):
        host.redis.xadd("orders", {"a": "b"})
    second.wait_woken()
    assert not third.woken()
    for _ in range(15):
        host.redis.xadd("orders", {"a": "b"})
    third.wait_woken()


def test_consumers_of_other_hosts_count_as_awake(
    host: WakeupHost, notify_socket: NotifySocket
) -> None:
    orders = host.consumer("orders", 'handler = "a:b"\nscale_lag = 10\n')
    orders.join()
    for name in ("one/orders", "two/orders"):
        host.redis.xgroup_createconsumer("orders", "orders", name)
        host.redis.set(f"wakeq:{{orders}}:alive:orders:{name}", "1")
    for _ in range(15):
        host.redis.xadd("orders", {"a": "b"})
    host.start()
    notify_socket.wait_for("READY=1")
    assert not orders.woken()
    for _ in range(15):
        host.redis.xadd("orders", {"a": "b"})
    orders.wait_woken()


STRICT = 'handler = "a:b"\norder = "strict"\nscale_lag = 1\n'


def lives_elsewhere(host: WakeupHost, name: str = "one/orders") -> None:
    host.redis.xgroup_createconsumer("orders", "orders", name)
    host.redis.set(f"wakeq:{{orders}}:alive:orders:{name}", "1")


def test_in_strict_order_one_instance_is_woken_however_much_there_is(host: WakeupHost) -> None:
    first = host.consumer("orders", STRICT)
    second, other = host.consumer("orders:2"), host.consumer("other")
    host.start()
    host.redis.xadd("orders", {"a": "b"})
    first.wait_woken()
    for _ in range(50):
        host.redis.xadd("orders", {"a": "b"})
    for _ in range(3):  # each of these is a look
        host.redis.xadd("other", {"a": "b"})
        other.wait_woken().handle()
        other.sleep()
    assert not second.woken()
    first.handle()
    first.sleep()
    host.redis.xadd("orders", {"a": "b"})
    # The second, if that was there before the look that follows a sleep: the first one rests.
    sockets = [first.socket, second.socket]
    ready = wait_until(lambda: select.select(sockets, [], [], 0)[0])
    awake, asleep = (first, second) if ready == [first.socket] else (second, first)
    awake.wait_woken()
    assert not asleep.woken()


def test_in_strict_order_one_is_woken_to_stand_by_while_another_host_is_at_it(
    host: WakeupHost,
) -> None:
    orders, second = host.consumer("orders", STRICT), host.consumer("orders:2")
    orders.join()
    lives_elsewhere(host)
    host.redis.xadd("orders", {"a": "b"})
    orders.read("one/orders")
    host.start()
    orders.wait_woken()
    assert not second.woken()


def test_in_strict_order_nobody_is_woken_to_stand_by_for_nothing(
    host: WakeupHost, notify_socket: NotifySocket
) -> None:
    orders = host.consumer("orders", STRICT)
    orders.join()
    lives_elsewhere(host)
    host.redis.xadd("orders", {"a": "b"})
    host.redis.xack("orders", "orders", *orders.read("one/orders"))
    host.start()
    notify_socket.wait_for("READY=1")
    assert not orders.woken()


def test_in_strict_order_nobody_is_woken_who_would_exit_at_once(host: WakeupHost) -> None:
    orders = host.consumer("orders", STRICT + 'standby = "exit"\n')
    orders.join()
    lives_elsewhere(host)
    host.redis.xadd("orders", {"a": "b"})
    orders.read("one/orders")
    host.redis.xadd("orders", {"a": "b"})
    other = host.consumer("other")
    host.start("--recheck=1s")
    host.redis.xadd("other", {"a": "b"})
    other.wait_woken()
    assert not orders.woken()
    # What the other one had is not left to it for claim_after, once it is dead.
    host.redis.delete("wakeq:{orders}:alive:orders:one/orders")
    orders.wait_woken()


def test_own_pending_messages_wake_the_very_instance_that_has_them(host: WakeupHost) -> None:
    first, second = host.consumer("orders"), host.consumer("orders:2")
    host.redis.xadd("orders", {"a": "b"})
    first.read(second.name)
    host.start()
    second.wait_woken()
    assert not first.woken()


def test_starts_only_a_few_at_a_time(host: WakeupHost, notify_socket: NotifySocket) -> None:
    consumers = [host.consumer(f"q{number}") for number in range(6)]
    for consumer in consumers:
        host.redis.xadd(consumer.stream, {"a": "b"})
    host.start("--starts=2")
    notify_socket.wait_for("STATUS=watching 6 consumers: 4 asleep, 2 awake, 0 backing off; 2 wakes")
    host.wait_woken(consumers)
    notify_socket.wait_for("STATUS=watching 6 consumers: 0 asleep, 6 awake, 0 backing off; 6 wakes")


def test_groups_named_by_a_socket_are_discovered(host: WakeupHost, short_dir: Path) -> None:
    for number in range(300):
        host.redis.xadd(f"other{number}", {"a": "b"})
    path = short_dir / "mq.sock"
    listed = host.at(path, "mq", "foo", str(path))
    listed.join()
    host.redis.xgroup_create("foo", str(short_dir / "missing.sock"), "0")
    host.start("--discover", "--recheck=1s")
    host.redis.xadd("foo", {"a": "b"})
    # Such a consumer closes each connection at once, and reads.
    listed.wait_woken().sleep()
    assert listed.handle() == 1
    later = host.at(short_dir / "later.sock", "mq", "foo", str(short_dir / "later.sock"))
    later.join()
    later.wait_woken()


def test_a_killed_and_restarted_wakeup_finds_who_is_awake_and_wakes_the_rest(
    host: WakeupHost, notify_socket: NotifySocket
) -> None:
    awake, *asleep = (host.consumer(f"q{number}") for number in range(50))
    first = host.start()
    notify_socket.wait_for("READY=1")
    host.redis.xadd("q0", {"a": "b"})
    awake.wait_woken().handle()
    host.redis.set(f"wakeq:{{q0}}:alive:q0:{HOST}/q0", "1")
    first.kill()
    assert awake.lease_ended()

    for consumer in asleep:
        host.redis.xadd(consumer.stream, {"a": "b"})
    host.start()
    host.wait_woken([awake, *asleep])  # the first for a new lease, which is no wake
    notify_socket.wait_for(
        "STATUS=watching 50 consumers: 0 asleep, 50 awake, 0 backing off; 49 wakes"
    )


def test_a_thousand_sleepers_cost_next_to_nothing(
    host: WakeupHost, notify_socket: NotifySocket
) -> None:
    count = 1000
    pipe = host.redis.pipeline(transaction=False)
    for number in range(count):
        for key in (f"q{number}", f"wakeq:{{q{number}}}:retry:q{number}"):
            pipe.xgroup_create(key, f"q{number}", "0", mkstream=True)
    pipe.execute()
    sockets = host.runtime_dir / "consumer"
    sockets.mkdir(parents=True)
    for number in range(count):
        host.configure(f"q{number}")
        (sockets / f"q{number}.sock").touch()
    daemon = host.start("--recheck=1s")
    notify_socket.wait_for("READY=1")
    # One for each 64; the last ones may not have come to Redis.
    wait_until(lambda: host.redis.info("clients")["blocked_clients"] == 16)
    seen = commands(host)
    wait_until(lambda: commands(host)["evalsha"] >= seen["evalsha"] + 20)
    after = commands(host)

    # Two re-checks, or more; each takes ten looks.
    requests = {
        name: calls - seen.get(name, 0)
        for name, calls in after.items()
        if calls > seen.get(name, 0) and name != "info"
    }
    # What a script calls is no request: about one command for each sleeper.
    looks = requests["evalsha"]
    inside = {name: requests.pop(name) for name in ("xinfo|groups", "xread", "exists")}
    assert inside == {"xinfo|groups": 100 * looks, "xread": 10 * looks, "exists": 2 * looks}
    per_recheck = (requests["evalsha"] + requests["sadd"]) / (looks / 10)
    reads_per_minute = count / 64 + 1
    assert sum(requests.values()) == requests["evalsha"] + requests["sadd"]
    assert (per_recheck + reads_per_minute) / count <= 0.1
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    (resident,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    assert int(resident) <= 40 * 1024
