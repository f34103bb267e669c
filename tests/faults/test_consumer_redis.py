"""wakeq-consumer when Redis fails it: away, refusing, cut off, emptied under its hands."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis as redis_py

from consumer_host import ConsumerProcess
from fake_server import GREETING, FakeServer
from fault_proxy import FaultProxy
from faults_host import GROUP, RETRY, STREAM, FaultHost
from redis_servers import RedisServer, free_port, wait_until

LOST, BACK = "lost Redis", "found Redis again"


@pytest.fixture
def host(short_dir: Path, own_redis: RedisServer) -> Iterator[FaultHost]:
    host = FaultHost(short_dir, own_redis)
    yield host
    host.close()


@pytest.fixture
def proxy(own_redis: RedisServer) -> Iterator[FaultProxy]:
    with FaultProxy(own_redis.url) as proxy:
        yield proxy


@pytest.fixture
def far_host(short_dir: Path, own_redis: RedisServer, proxy: FaultProxy) -> Iterator[FaultHost]:
    """A host whose consumer reaches Redis through the proxy."""
    host = FaultHost(short_dir, own_redis, proxy.url)
    yield host
    host.close()


@contextmanager
def load(host: FaultHost, every_s: float = 0.002, at_once: int = 5) -> Iterator[None]:
    """Publish all the while, over and over if Redis is away; those that it confirmed count."""
    ended = threading.Event()

    def publish() -> None:
        while not ended.wait(every_s):
            try:
                host.fill(at_once)
            except redis_py.RedisError:
                continue

    thread = threading.Thread(target=publish, name="load")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def ready(host: FaultHost, *options: str, **env: str) -> ConsumerProcess:
    """Start the consumer, and return when it has handled a first message."""
    process = host.start("orders", *options, **env)
    host.fill(1)
    host.wait_handled(len(host.published))
    wait_until(host.settled)
    return process


def blocked(host: FaultHost) -> bool:
    """Tell whether the consumer waits for messages in a read."""
    return any(int(client["flags"].count("b")) for client in host.redis.client_list())


def lost_once(process: ConsumerProcess) -> None:
    """Fail unless the consumer says once that it has lost Redis, and once that it is back."""
    process.wait_log(BACK)
    assert process.count(LOST) == process.count(BACK) == 1


def refused(process: ConsumerProcess, code: int, *texts: str) -> None:
    """Fail unless the consumer exits with a code and one line of log that says all of this."""
    assert process.wait_exit() == code, process.lines
    errors = [line for line in process.lines if "went to sleep" not in line]
    assert len(errors) == 1, process.lines
    for text in texts:
        assert text in errors[0]


# -- away --------------------------------------------------------------------------------------


def test_gives_up_after_the_start_timeout_with_one_line(host: FaultHost) -> None:
    host.use()
    host.env["WAKEQ_REDIS_URL"] = f"redis://127.0.0.1:{free_port()}"
    began = time.monotonic()
    process = host.start("orders", "--start-timeout", "3s")
    assert process.wait_exit() == 69
    assert time.monotonic() - began > 3
    assert process.count("waiting for Redis") == 1
    assert process.count("[error") == 1
    assert len(process.lines) == 2


def test_goes_on_when_redis_comes_up_late(host: FaultHost, own_redis: RedisServer) -> None:
    host.use()
    host.fill(0)
    own_redis.stop()
    process = host.start()
    process.wait_log("waiting for Redis")
    own_redis.start()
    host.fill(10)
    host.check(duplicates=0)
    assert process.stop() == 0
    assert process.count("waiting for Redis") == 1


def test_a_redis_that_is_killed_and_restarted_under_load_loses_nothing(
    short_dir: Path, redis_server: Callable[..., RedisServer]
) -> None:
    server = redis_server("--appendonly", "yes", "--appendfsync", "always")
    host = FaultHost(short_dir, server)
    try:
        host.use("slow", concurrency=2, prefetch=10)
        process = ready(host)
        for _ in range(4):
            host.fill(300)
            host.wait_more_runs(50)
            server.kill()
            server.start()
        # An acknowledgement whose reply was lost is sent again, and counted once.
        host.check(duplicates=4 * 20)
        assert process.stop() == 0
        assert process.count(LOST) == process.count(BACK) <= 4
        assert process.count(LOST) >= 1
    finally:
        host.close()


def test_an_outage_is_logged_once_however_long_it_lasts(
    host: FaultHost, own_redis: RedisServer
) -> None:
    host.use()
    process = ready(host)
    own_redis.kill()
    process.wait_log(LOST)
    time.sleep(2)  # a dozen tries
    own_redis.start()
    process.wait_log(BACK)
    host.published.clear()  # this server keeps nothing
    host.fill(10)
    host.check(duplicates=0, counted=False)
    assert (process.count(LOST), process.count(BACK)) == (1, 1)


def test_stops_at_once_while_redis_is_away(host: FaultHost, own_redis: RedisServer) -> None:
    host.use()
    process = ready(host)
    own_redis.kill()
    process.wait_log(LOST)
    assert process.stop(25) == 0  # and does not wait for it, for a minute


# -- cut off -----------------------------------------------------------------------------------


@pytest.mark.parametrize("handler", ["fast", "publishing"])
@pytest.mark.parametrize("direction", ["requests", "replies"])
def test_a_connection_cut_at_any_byte_loses_nothing(
    far_host: FaultHost, proxy: FaultProxy, direction: str, handler: str
) -> None:
    host = far_host
    host.use(handler, prefetch=8)
    process = ready(host)
    flow = getattr(proxy, direction)
    cuts = [*range(1, 120, 3), *range(120, 1500, 37)]
    for count in cuts:
        flow.cut_after(count)
        host.fill(3)
        host.wait_handled(len(host.published))
    proxy.heal()
    host.check(duplicates=0, counted=True)
    if handler == "publishing":
        bodies = [fields[b"body"].decode() for _, fields in host.redis.xrange("out")]
        assert sorted(bodies) == sorted(host.published)
    assert process.stop() == 0
    assert process.count(LOST) == process.count(BACK) >= 20


def test_client_kill_under_load_loses_nothing(host: FaultHost) -> None:
    host.use("slow", concurrency=2)
    process = ready(host)
    with load(host):
        for _ in range(20):
            host.wait_more_runs(20)
            for client in host.redis.client_list():
                if client["name"].startswith("wakeq-consumer/"):
                    host.redis.client_kill_filter(client["id"])
    host.check(duplicates=0)
    assert process.stop() == 0


def test_a_half_open_connection_is_noticed_and_replaced(
    far_host: FaultHost, proxy: FaultProxy
) -> None:
    host = far_host
    host.use()
    process = ready(host)
    wait_until(lambda: blocked(host))
    proxy.half_open()
    ids = host.fill(5)
    # A read that blocks for 5 s, and 15 s that an answer may take.
    process.wait_log(LOST)
    proxy.cut()
    proxy.heal()
    host.check(duplicates=0)
    assert "does not answer" in process.output
    assert set(ids) <= host.handled()
    lost_once(process)


def test_a_message_that_goes_to_a_connection_that_only_redis_has_yet_is_handled_all_the_same(
    far_host: FaultHost, proxy: FaultProxy
) -> None:
    host = far_host
    host.use("slow")
    process = ready(host)
    lost: list[str] = []
    while set(lost) <= host.handled():  # else the old read was over by then
        wait_until(lambda: blocked(host))
        found = process.count(BACK)
        proxy.cut_unheard()
        process.wait_log(BACK, found + 1)
        # The read that blocks for longer is answered first.
        lost = host.fill(1)
        wait_until(lambda lost=lost: host.pending() == 1 or lost[0] in host.handled())
    with load(host):
        wait_until(lambda: lost[0] in host.handled(), 30)
    host.check(duplicates=0)
    assert process.stop() == 0


def test_a_consumer_with_children_goes_on_over_a_new_connection(host: FaultHost) -> None:
    """They have the old one open, which epoll tells of for as long."""
    host.use("forking")
    ready(host)
    host.fill(5)
    host.check(duplicates=0)
    for _ in range(2):
        for client in host.redis.client_list():
            if client["name"].startswith("wakeq-consumer/"):
                host.redis.client_kill_filter(client["id"])
        host.fill(5)
        host.check(duplicates=5, counted=False)


def test_a_pause_of_redis_is_waited_for(host: FaultHost) -> None:
    host.use("slow")
    process = ready(host)
    with load(host):
        host.wait_more_runs(20)
        host.redis.client_pause(3000, all=True)
    host.check(duplicates=0)
    assert process.count(LOST) == 0


# -- refusing ----------------------------------------------------------------------------------


def test_waits_for_redis_to_load_its_data(
    short_dir: Path, redis_server: Callable[..., RedisServer]
) -> None:
    # Half a millisecond for each command that it loads, and it answers after every 1024. That is
    # long enough for who is to see it, and cut short then.
    server = redis_server("--appendonly", "yes", "--key-load-delay", "500")
    host = FaultHost(short_dir, server)
    try:
        host.use()
        process = ready(host)
        pipeline = host.redis.pipeline()
        for _ in range(120_000):
            pipeline.rpush("filler", "x")
        pipeline.execute()
        server.kill()
        starting = threading.Thread(target=server.start)
        starting.start()
        process.wait_log(LOST)
        wait_until(lambda: said(server, b"PING").startswith(b"-LOADING"))
        other = host.start("orders:2")
        other.wait_log("waiting for Redis")
        assert said(server, b"CONFIG SET key-load-delay 0") == b"+OK\r\n"
        starting.join()
        host.fill(5)
        host.check(duplicates=0)
        lost_once(process)
        assert "LOADING" in other.output
        assert other.stop() == 0
        assert other.count("waiting for Redis") == 1
    finally:
        host.close()


def said(server: RedisServer, line: bytes) -> bytes:
    """Return what Redis says to a line, also while it is loading; nothing if it is not up."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        try:
            connection.connect(str(server.socket_path))
            connection.sendall(line + b"\r\n")
            return connection.recv(1000)
        except OSError:
            return b""


def test_waits_at_a_replica_until_it_is_the_master(host: FaultHost, own_redis: RedisServer) -> None:
    host.use()
    process = ready(host)
    own_redis.client().execute_command("REPLICAOF", "127.0.0.1", free_port())
    process.wait_log(LOST)
    assert "READONLY" in process.output or "UNBLOCKED" in process.output
    time.sleep(1)
    own_redis.client().execute_command("REPLICAOF", "NO", "ONE")
    host.fill(5)
    host.check(duplicates=0)
    lost_once(process)


def test_gives_up_at_the_start_if_redis_stays_a_replica(
    host: FaultHost, own_redis: RedisServer
) -> None:
    host.use()
    own_redis.client().execute_command("REPLICAOF", "127.0.0.1", free_port())
    process = host.start("orders", "--start-timeout", "3s")
    assert process.wait_exit() == 69
    assert "READONLY" in process.lines[-1]
    assert len(process.lines) == 2


def test_a_missing_password_is_refused_clearly(host: FaultHost) -> None:
    host.use()
    host.redis.config_set("requirepass", "secret")
    refused(host.start(), 77, "refuses the login (NOAUTH", "put user and password into redis_url")


def test_a_wrong_password_is_refused_clearly_and_not_shown(
    host: FaultHost, own_redis: RedisServer
) -> None:
    host.use()
    host.redis.config_set("requirepass", "secret")
    host.env["WAKEQ_REDIS_URL"] = own_redis.url.replace("unix://", "unix://:guess@")
    process = host.start()
    refused(process, 77, "refuses the login (WRONGPASS")
    assert "guess" not in process.output


def test_a_missing_right_is_refused_clearly(host: FaultHost) -> None:
    host.use()
    host.redis.execute_command("ACL", "SETUSER", "default", "-xreadgroup")
    refused(host.start(), 77, "does not permit this user", "xreadgroup")


def test_a_right_that_is_taken_away_while_running_is_refused_clearly(host: FaultHost) -> None:
    host.use()
    process = ready(host)
    host.redis.execute_command("ACL", "SETUSER", "default", "-xreadgroup")
    host.fill(1)
    refused(process, 77, "does not permit this user", "xreadgroup")


def test_acknowledges_also_when_redis_is_out_of_memory(host: FaultHost) -> None:
    host.use("slow", prefetch=16)
    host.fill(1000)
    process = host.start()
    host.wait_handled(50)
    host.redis.config_set("maxmemory", 1)
    host.wait_handled(1000)
    wait_until(host.settled)
    assert process.count(LOST) == 0
    host.redis.config_set("maxmemory", 0)
    host.check(duplicates=0, counted=False)
    assert process.stop() == 0


def test_starts_and_drains_when_redis_is_out_of_memory(host: FaultHost) -> None:
    """Else nobody could make room again: what is not acknowledged cannot be trimmed."""
    host.use("slow", prefetch=16)
    host.fill(100)
    host.redis.config_set("maxmemory", 1)
    process = host.start()
    host.wait_handled(100)
    wait_until(host.settled)
    assert process.stop() == 0
    host.redis.config_set("maxmemory", 0)
    host.check(duplicates=0)


def test_what_cannot_be_published_for_lack_of_memory_is_published_later(host: FaultHost) -> None:
    host.use("publishing")
    process = ready(host)
    host.use("gated_publishing")
    process.stop()
    process = host.start()
    host.fill(20)
    wait_until(host.begun)
    host.redis.config_set("maxmemory", 1)
    host.open_gate()
    process.wait_log(LOST)
    time.sleep(2)  # a dozen tries
    host.redis.config_set("maxmemory", 0)
    host.check(duplicates=0)
    assert host.redis.xlen("out") == 21
    assert process.stop() == 0
    assert process.count(LOST) == process.count(BACK) == 1
    assert "OOM" in process.output
    assert process.count("message failed") == 0


def test_waits_until_redis_can_write_to_its_disk(host: FaultHost, own_redis: RedisServer) -> None:
    host.use("slow")
    process = ready(host)
    host.redis.config_set("save", "1000000 1")
    (own_redis.directory / "dump.rdb").mkdir()  # where the server would write
    host.redis.bgsave()
    wait_until(lambda: host.redis.info("persistence")["rdb_last_bgsave_status"] == "err")
    process.wait_log(LOST)
    assert "MISCONF" in process.output
    time.sleep(1)
    host.redis.config_set("stop-writes-on-bgsave-error", "no")
    host.fill(5)
    host.check(duplicates=0)
    lost_once(process)


def test_waits_for_a_script_that_keeps_redis_busy(host: FaultHost, own_redis: RedisServer) -> None:
    host.use("slow")
    process = ready(host)
    host.fill(500)
    host.redis.config_set("busy-reply-threshold", 100)
    endless = threading.Thread(target=run_until_killed, args=(own_redis,))
    endless.start()
    process.wait_log(LOST)
    assert "BUSY" in process.output
    time.sleep(1)
    own_redis.client().script_kill()
    endless.join()
    host.check(duplicates=0)
    lost_once(process)


def run_until_killed(server: RedisServer) -> None:
    """Run a script that does not end by itself."""
    with pytest.raises(redis_py.ResponseError):
        server.client().eval("while true do end", 0)


def test_a_script_flush_is_not_noticed(host: FaultHost) -> None:
    host.use("slow", concurrency=2)
    process = ready(host)
    with load(host):
        for _ in range(10):
            host.wait_more_runs(20)
            host.redis.script_flush()
    host.check(duplicates=0)
    assert process.stop() == 0
    assert len(process.lines) == 1


def test_waits_while_redis_has_too_many_clients(host: FaultHost, own_redis: RedisServer) -> None:
    host.use()
    client = own_redis.client()
    client.config_set("maxclients", 1)
    process = host.start()
    process.wait_log("waiting for Redis")
    assert "max number of clients" in process.output
    time.sleep(0.5)
    client.config_set("maxclients", 100)
    host.fill(5)
    host.check(duplicates=0)


def test_refuses_a_server_that_is_too_old(host: FaultHost) -> None:
    host.use()
    greeting = b"".join(GREETING).replace(b":7.0.15", b":6.2.15")
    with FakeServer(lambda _: greeting) as old:
        host.env["WAKEQ_REDIS_URL"] = old.url
        refused(host.start(), 78, "is version 6.2", "needs Redis 7.0 or Valkey 7.2")


def test_a_stream_that_is_none_is_refused_at_the_start(host: FaultHost) -> None:
    host.use()
    host.redis.set(STREAM, "text")
    refused(host.start(), 78, "something other than a stream", STREAM)


def test_a_stream_that_becomes_something_else_is_refused(host: FaultHost) -> None:
    host.use()
    process = ready(host)
    pipeline = host.redis.pipeline()
    pipeline.delete(STREAM)
    pipeline.set(STREAM, "text")
    pipeline.execute()
    refused(process, 78, "something other than a stream", STREAM)


# -- emptied under its hands -------------------------------------------------------------------


def destroy_both(step: redis_py.client.Pipeline) -> None:
    """Destroy both groups in one step, so that they are made again in one, too."""
    for key in (STREAM, RETRY):
        step.xgroup_destroy(key, GROUP)
    step.execute()


GONE: dict[str, Callable[[redis_py.Redis], object]] = {
    "FLUSHALL": lambda client: client.flushall(),
    "DEL of the stream": lambda client: client.delete(STREAM),
    "XGROUP DESTROY": lambda client: client.xgroup_destroy(STREAM, GROUP),
    "XGROUP DESTROY of both": lambda client: destroy_both(client.pipeline()),
    "DEL of the retry stream": lambda client: client.delete(RETRY),
}


@pytest.mark.parametrize("fault", GONE)
def test_what_comes_after_the_loss_of_the_group_is_handled_by_a_waiting_consumer(
    host: FaultHost, fault: str
) -> None:
    host.use()
    host.fill(50)
    process = host.start()
    host.check(duplicates=0)
    wait_until(lambda: blocked(host))
    GONE[fault](host.redis)
    host.fill(50)
    host.check(duplicates=0, counted=False)
    if "retry" not in fault:
        process.wait_log("made the group again")
    assert process.stop() == 0
    assert process.count("made the group again") == (0 if "retry" in fault else 1)
    assert process.count(LOST) == 0


@pytest.mark.parametrize("fault", GONE)
def test_what_comes_after_the_loss_of_the_group_is_handled_under_load(
    host: FaultHost, fault: str
) -> None:
    # What is in hand is bounded by number: how long each step takes is the machine's affair.
    host.use("slow", concurrency=2, prefetch=10)
    process = ready(host)
    times = 5
    with load(host):
        for _ in range(times):
            host.wait_more_runs(100)
            GONE[fault](host.redis)
    last = host.fill(1)
    wait_until(lambda: last[0] in host.handled(), 60)
    if "XGROUP" in fault or "retry" in fault:
        # The entries are there yet, so not even one may be missing; and none is handled again
        # but those that were in hand when their group was lost.
        host.check(duplicates=times * 40, counted=False)
    wait_until(host.settled)
    assert process.count("made the group again") <= times
    assert process.count(LOST) == 0
    assert process.stop() == 0


@pytest.mark.parametrize("handler", ["slow", "publishing"])
def test_a_group_that_is_destroyed_while_the_consumer_sleeps_is_made_where_it_was(
    host: FaultHost, handler: str
) -> None:
    host.use(handler, start="$")
    process = ready_from_now(host)
    host.fill(100)
    host.check(duplicates=0)
    assert process.stop() == 0
    host.redis.xgroup_destroy(STREAM, GROUP)
    host.fill(50)
    host.start()
    host.check(duplicates=0)


def ready_from_now(host: FaultHost) -> ConsumerProcess:
    """Start a consumer whose group begins now, and return when it is made."""
    process = host.start()
    wait_until(lambda: host.redis.exists(STREAM) and host.redis.xinfo_groups(STREAM))
    return process


def test_a_stream_that_was_deleted_and_made_anew_meanwhile_is_read_from_its_beginning(
    host: FaultHost,
) -> None:
    host.use("slow", start="$")
    process = ready_from_now(host)
    host.fill(10)
    host.check(duplicates=0)
    assert process.stop() == 0
    host.redis.delete(STREAM)
    host.published.clear()
    host.published.append(host.redis.xadd(STREAM, {"body": "x"}, id="5-1").decode())
    host.start()
    host.check(duplicates=0, counted=False)


def test_publishes_of_a_group_that_is_lost_are_published_all_the_same(host: FaultHost) -> None:
    host.use("gated_publishing")
    host.fill(3)
    host.start()
    wait_until(host.begun)
    host.redis.xgroup_destroy(STREAM, GROUP)
    host.open_gate()
    wait_until(lambda: host.redis.xlen("out") >= 3)
    host.check(duplicates=3, counted=False)
    bodies = {fields[b"body"].decode() for _, fields in host.redis.xrange("out")}
    assert bodies == set(host.published)
