"""wakeq-wakeup when something is wrong: consumers that die, sockets that are gone, Redis lost."""

from __future__ import annotations

import itertools
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import NotifySocket
from redis_servers import RedisServer, wait_until
from wakeq import keys
from wakeup_host import WakeupHost

ASLEEP = "STATUS=watching 1 consumers: 1 asleep, 0 awake, 0 backing off; {} wakes"
LEFT = "STATUS=watching 1 consumers: 0 asleep, 0 awake, 0 backing off, 1 left alone; 0 wakes"


@pytest.fixture
def host(
    short_dir: Path, own_redis: RedisServer, notify_socket: NotifySocket
) -> Iterator[WakeupHost]:
    host = WakeupHost(short_dir, own_redis)
    host.env |= notify_socket.env
    yield host
    host.close()


def test_a_consumer_that_dies_after_each_wake_is_backed_off_until_it_works(
    host: WakeupHost,
) -> None:
    orders = host.consumer("orders")
    daemon = host.start()
    host.redis.xadd("orders", {"a": "b"})
    woken_at = []
    for _ in range(4):
        orders.wait_woken()
        woken_at.append(time.monotonic())
        orders.sleep()
    pauses = [after - before for before, after in itertools.pairwise(woken_at)]
    # Each pause is twice the one before; how late this test notices is the machine's affair.
    assert all(pause > least / 2 for pause, least in zip(pauses, (1, 2, 4), strict=True))
    orders.wait_woken().handle()
    orders.sleep()
    daemon.wait_log("consumer recovered")
    assert daemon.count("consumer is backed off") == 1


def test_streams_that_the_user_may_not_touch_hold_up_no_other(
    host: WakeupHost, notify_socket: NotifySocket
) -> None:
    acl = ("on", ">pw", "+@all", "&*", f"~{keys.OWN}*", "~orders*")
    host.redis.execute_command("ACL", "SETUSER", "clerk", *acl)
    host.env["WAKEQ_REDIS_URL"] = host.env["WAKEQ_REDIS_URL"].replace("://", "://clerk:pw@")
    orders = [host.consumer(f"orders{number}") for number in range(5)]
    bills = [host.consumer(f"bills{number}") for number in range(3)]
    daemon = host.start("--recheck=1s")
    notify_socket.wait_for("READY=1")
    daemon.wait_log("stream cannot be watched", times=3)
    for consumer in (*orders, *bills):
        host.redis.xadd(consumer.stream, {"a": "b"})
    host.wait_woken(orders)
    host.redis.execute_command("ACL", "SETUSER", "clerk", "~bills*")
    host.wait_woken(bills)
    assert daemon.count("Redis was lost") == 0


def test_a_consumer_that_reads_and_dies_has_made_no_progress(host: WakeupHost) -> None:
    orders = host.consumer("orders")
    daemon = host.start()
    host.redis.xadd("orders", {"a": "b"})

    def has_made_none() -> bool:
        if select.select([orders.socket], [], [], 0)[0]:
            orders.wait_woken()
            host.redis.xadd("orders", {"a": "b"})
            assert orders.read()
            orders.sleep()  # soon enough to have died of its start, unless the machine is busy
        return daemon.count("consumer is backed off") > 0

    wait_until(has_made_none)


def test_a_stopped_socket_is_reported_once_and_tried_again_when_it_is_back(
    host: WakeupHost, notify_socket: NotifySocket
) -> None:
    orders = host.consumer("orders")
    daemon = host.start("--recheck=1s")
    notify_socket.wait_for("READY=1")
    orders.stop()
    host.redis.xadd("orders", {"a": "b"})
    daemon.wait_log("Connection refused")
    seen = len(notify_socket.messages)
    notify_socket.wait_for(LEFT, after=seen)
    # At the re-check it is tried again, without a word.
    seen = len(notify_socket.messages)
    notify_socket.wait_for(LEFT, after=seen)
    assert daemon.count("Connection refused") == 1
    orders.listen()
    orders.wait_woken()
    daemon.wait_log("consumer can be woken again")


def test_another_instance_is_woken_instead_of_one_that_refuses(
    host: WakeupHost, notify_socket: NotifySocket
) -> None:
    first, second = host.consumer("orders"), host.consumer("orders:2")
    host.start()
    notify_socket.wait_for("READY=1")
    first.stop()
    host.redis.xadd("orders", {"a": "b"})
    second.wait_woken()


def test_a_vanished_socket_is_reported_once(host: WakeupHost, notify_socket: NotifySocket) -> None:
    orders = host.consumer("orders")
    daemon = host.start("--recheck=1s")
    notify_socket.wait_for("READY=1")
    orders.path.unlink()
    daemon.wait_log("consumer's socket is gone")
    notify_socket.wait_for("STATUS=watching 0 consumers: 0 asleep, 0 awake, 0 backing off; 0 wakes")
    orders.listen()
    host.redis.xadd("orders", {"a": "b"})
    orders.wait_woken()
    assert daemon.count("is gone") == 1


def test_a_wrong_file_is_reported_once_and_used_once_it_is_right(
    host: WakeupHost, notify_socket: NotifySocket
) -> None:
    orders = host.consumer("orders", 'handler = "a:b"\nconcurrency = 0\n')
    daemon = host.start("--recheck=1s")
    notify_socket.wait_for("READY=1")
    host.redis.xadd("orders", {"a": "b"})
    other = host.consumer("mail")  # that is found while the wrong one is passed over
    host.redis.xadd("mail", {"a": "b"})
    other.wait_woken()
    host.configure("orders")
    orders.wait_woken()
    daemon.wait_log("configuration was corrected")
    assert daemon.count("orders.toml: concurrency must be 1 to 1000, not 0") == 1


def test_what_is_no_stream_is_reported_and_disturbs_no_other(
    host: WakeupHost, notify_socket: NotifySocket
) -> None:
    host.redis.set("orders", "text")
    orders, mail = host.consumer("orders"), host.consumer("mail")
    daemon = host.start("--recheck=1s")
    notify_socket.wait_for("READY=1")
    host.redis.xadd("mail", {"a": "b"})
    mail.wait_woken().handle()
    host.redis.delete("mail")
    mail.sleep()
    host.redis.set("mail", "text")
    daemon.wait_log("WRONGTYPE", times=2)
    host.redis.delete("orders", "mail")
    for consumer in (orders, mail):
        host.redis.xadd(consumer.stream, {"a": "b"})
        consumer.wait_woken()


def test_a_restart_of_redis_is_logged_once_and_survived(
    host: WakeupHost, own_redis: RedisServer, notify_socket: NotifySocket
) -> None:
    orders, mail = host.consumer("orders"), host.consumer("mail")
    daemon = host.start()
    notify_socket.wait_for("READY=1")
    host.redis.xadd("mail", {"a": "b"})
    mail.wait_woken().handle()
    own_redis.kill()
    daemon.wait_log("Redis was lost")
    own_redis.start()
    daemon.wait_log("Redis is back")
    assert not mail.lease_ended()
    own_redis.client().xadd("orders", {"a": "b"})
    orders.wait_woken()
    assert daemon.count("Redis was lost") == daemon.count("Redis is back") == 1


def test_a_loading_or_forgetful_server_is_survived(
    host: WakeupHost, notify_socket: NotifySocket
) -> None:
    orders = host.consumer("orders")
    host.start()
    notify_socket.wait_for("READY=1")
    host.redis.script_flush()
    host.redis.xadd("orders", {"a": "b"})
    orders.wait_woken().handle()
    host.redis.flushall()
    orders.sleep()
    host.redis.xadd("orders", {"a": "b"}, id="1-1")
    orders.wait_woken()


def test_redis_down_at_the_start_ends_with_69(host: WakeupHost, own_redis: RedisServer) -> None:
    own_redis.stop()
    daemon = host.start("--start-timeout=1s")
    assert daemon.wait_exit() == 69
    assert daemon.count("cannot be reached") == 1
    assert daemon.count("Traceback") == 0


def test_redis_that_comes_late_is_waited_for(
    host: WakeupHost, own_redis: RedisServer, notify_socket: NotifySocket
) -> None:
    own_redis.stop()
    host.consumer("orders")
    host.start()
    wait_until(lambda: any("waiting for Redis, try 2" in m for m in notify_socket.messages))
    own_redis.start()
    notify_socket.wait_for("READY=1")


def test_a_wrong_password_ends_the_start_with_77(
    host: WakeupHost, redis_server: Callable[..., RedisServer]
) -> None:
    server = redis_server("--requirepass", "secret")
    daemon = host.start(WAKEQ_REDIS_URL=server.url)
    assert daemon.wait_exit() == 77
    assert daemon.count("refuses the login") == 1


def test_a_wrong_reload_changes_nothing_and_a_right_one_does(
    host: WakeupHost, notify_socket: NotifySocket
) -> None:
    host.consumer("orders")
    daemon = host.start()
    notify_socket.wait_for(ASLEEP.format(0))
    main = host.config_dir / "wakeq.toml"
    main.write_text("[wakeup]\nrechek = 1\n")
    os.kill(daemon.process.pid, signal.SIGHUP)
    daemon.wait_log("nothing was reloaded")
    main.write_text('[consumer]\nstream = "all"\n')
    os.kill(daemon.process.pid, signal.SIGHUP)
    daemon.wait_log("configuration was read again")
    orders = host.consumer("bills")
    host.redis.xadd("all", {"a": "b"})
    orders.wait_woken()


def test_a_server_that_was_named_in_a_wrong_reload_is_taken_in_the_next_one(
    host: WakeupHost, notify_socket: NotifySocket, redis_server: Callable[..., RedisServer]
) -> None:
    main = host.config_dir / "wakeq.toml"
    main.write_text(f'redis_url = "{host.env.pop("WAKEQ_REDIS_URL")}"\n')
    orders = host.consumer("orders")
    daemon = host.start()
    notify_socket.wait_for(ASLEEP.format(0))
    other = redis_server()
    main.write_text(f'redis_url = "{other.url}"\n[wakeup]\nstarts = -1\n')
    os.kill(daemon.process.pid, signal.SIGHUP)
    daemon.wait_log("nothing was reloaded")
    main.write_text(f'redis_url = "{other.url}"\n')
    os.kill(daemon.process.pid, signal.SIGHUP)
    daemon.wait_log("configuration was read again")
    other.client().xadd("orders", {"a": "b"})
    orders.wait_woken()


def test_the_watchdog_is_told_from_the_loop(host: WakeupHost, notify_socket: NotifySocket) -> None:
    host.start(WATCHDOG_USEC="200000")
    for _ in range(3):
        notify_socket.wait_for("WATCHDOG=1", after=len(notify_socket.messages))
