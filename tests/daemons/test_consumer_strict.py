"""Strict order: one owner at a time, take-over in order, and an owner that was paused."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import NotifySocket
from consumer_host import HOST
from fault_proxy import FaultProxy
from faults_host import processor_ticks
from redis_servers import RedisServer, wait_until
from strict_host import GROUP, STREAM, StrictHost
from wakeq import keys

OWNER = keys.owner(STREAM, GROUP)
FAILING = """
def handle(message):
    record(message.text(), message.attempt)
    if message.text() == "2" and message.attempt < {good}: raise ValueError("not yet")
"""
# Stops at a message, in one process, until there is a file.
GATED = """
import os, time
def handle(message):
    record(message.text(), os.getpid())
    time.sleep(0.005)
    while message.text() == os.environ.get("STOP_AT") and not os.path.exists({go!r}):
        time.sleep(0.01)
"""
# The loop, but not the lane, stands still at one place until there is a file.
LATE = """
import os, time
from wakeq import failpoint
is_late = False
def hit(name):
    global is_late
    if name == {point!r} and not is_late:
        is_late = True
        open({late!r}, "w").close()
        while not os.path.exists({go!r}): time.sleep(0.01)
failpoint.hit = hit
from wakeq.consumer.main import main
main()
"""


@pytest.fixture
def host(short_dir: Path, redis: RedisServer) -> Iterator[StrictHost]:
    made = StrictHost(short_dir, redis)
    yield made
    made.close()


# -- one owner -------------------------------------------------------------------------------


def test_handles_all_in_order(host: StrictHost) -> None:
    host.use()
    host.fill(500)
    consumer = host.start()
    host.wait_begun(500)
    host.fill(500)
    host.wait_begun(1000)
    host.check_order(1000)
    assert consumer.stop() == 0
    assert host.pending() == 0
    assert "process" not in host.owner()
    assert host.stats()["handled"] == "1000"


def test_of_three_that_start_at_once_one_handles(host: StrictHost) -> None:
    host.use(seconds=0.005)
    host.fill(200)
    consumers = [host.start(name) for name in ("orders", "orders:2", "orders:3")]
    host.wait_begun(200)
    wait_until(lambda: sum(each.count("standing by") for each in consumers) == 2)
    host.wait_done()
    host.check_order(200)
    assert host.repeats() == 0
    assert len({pid for _, pid in host.runs()}) == 1


def test_an_owner_on_another_host_is_not_taken_for_dead(host: StrictHost) -> None:
    host.use(seconds=0.005)
    first = host.start_elsewhere()
    host.fill(100)
    host.wait_begun(10)
    second = host.start()
    second.wait_log("standing by")
    host.wait_begun(100)
    assert {pid for _, pid in host.runs()} == {first.pid}
    assert host.owner()["consumer"] == "elsewhere/orders"
    assert "owner=elsewhere/orders" in second.output


def test_a_standby_that_exits_says_who_is_active(host: StrictHost) -> None:
    host.use(standby="exit")
    host.start_elsewhere()
    host.fill(1)
    host.wait_begun(1)
    second = host.start()
    assert second.wait_exit() == 75
    assert "consumer elsewhere/orders owns group orders" in second.output


def test_a_standby_is_ready_says_whom_it_waits_for_and_is_watched(
    host: StrictHost, notify_socket: NotifySocket
) -> None:
    host.use()
    host.start_elsewhere()
    wait_until(lambda: host.owner().get("process"))
    wake = host.wake_socket()
    lease = host.connect()
    host.start(wake=wake, WATCHDOG_USEC="200000", **notify_socket.env)
    notify_socket.wait_for("READY=1")
    assert "STATUS=standing by: elsewhere/orders is active" in notify_socket.messages
    wait_until(lambda: notify_socket.messages.count("WATCHDOG=1") >= 3)
    lease.sendall(b"status\n")
    assert b'"state":"standing by"' in lease.recv(1000).replace(b": ", b":")


def test_a_standby_costs_nothing(host: StrictHost) -> None:
    host.use(lease="9s")
    first = host.start_elsewhere()
    host.fill(10)
    host.wait_begun(10)
    second = host.start()
    second.wait_log("standing by")

    def wait_renewal() -> None:
        until = host.owner()["until"]
        wait_until(lambda: host.owner()["until"] != until)

    wait_renewal()
    before = processor_ticks(first), processor_ticks(second)
    wait_renewal()  # three seconds
    assert processor_ticks(second) - before[1] < 60
    assert processor_ticks(first) - before[0] < 60


# -- take-over -------------------------------------------------------------------------------


def test_a_standby_takes_over_at_once_when_the_owner_leaves(host: StrictHost) -> None:
    host.use()
    first = host.start_elsewhere()
    host.fill(1)
    host.wait_begun(1)
    second = host.start("orders:2")
    second.wait_log("standing by")
    host.fill(10)
    host.wait_begun(11)
    assert first.stop() == 0
    second.wait_log("took over")
    host.fill(10)
    host.wait_begun(21)
    host.check_order(21)
    assert host.redis.xlen(keys.retry(STREAM, GROUP)) == 0


def test_a_standby_takes_over_when_the_owner_goes_to_sleep(host: StrictHost) -> None:
    go = host.directory / "go"
    host.use(GATED.format(go=str(go)))
    first = host.start("orders", "--idle-timeout", "2.5s", STOP_AT="0")
    host.fill(1)
    host.wait_begun(1)
    second = host.start_elsewhere()
    second.wait_log("standing by")
    go.touch()
    assert first.wait_exit() == 0
    second.wait_log("took over")


def test_the_death_of_an_owner_beside_it_is_noticed_at_once(host: StrictHost) -> None:
    host.use(lease="1h", seconds=0.002)
    host.fill(100)
    consumers = [host.start(name) for name in ("orders", "orders:2", "orders:3")]
    wait_until(lambda: sum(each.count("standing by") for each in consumers) == 2)
    for killed in range(2):
        wait_until(lambda: host.owner().get("process"))
        name = host.owner()["consumer"].partition("/")[2]
        owner = consumers[("orders", "orders:2", "orders:3").index(name)]
        before = len(host.records)
        host.fill(300)
        wait_until(lambda before=before: len(host.records) > before)
        owner.kill()
        taken = killed + 1
        wait_until(lambda taken=taken: sum(each.count("took over") for each in consumers) == taken)
    host.wait_begun(700)
    host.wait_done()
    host.check_order(700)


def test_the_death_of_an_owner_elsewhere_is_noticed_within_its_lease(host: StrictHost) -> None:
    host.use(seconds=0.01, lease="5s")
    host.fill(300)
    first = host.start_elsewhere()
    host.wait_begun(20)
    second = host.start()
    second.wait_log("standing by")
    first.kill()
    second.wait_log("took over")
    host.wait_begun(300)
    host.wait_done()
    host.check_order(300)


def test_a_successor_with_the_same_name_goes_on_at_once(host: StrictHost) -> None:
    host.use(lease="1h", seconds=0.005)
    host.fill(100)
    consumer = host.start()
    host.wait_begun(10)
    consumer.kill()
    host.start()
    host.wait_begun(100)
    host.wait_done()
    host.check_order(100)


def test_takes_over_a_hundred_thousand_in_order_also_if_some_are_deleted(
    host: StrictHost,
) -> None:
    host.use()
    host.redis.xgroup_create(STREAM, GROUP, "0", mkstream=True)
    total, part = 100_000, 10_000
    ids = []
    for start in range(0, total, part):
        ids += host.publish(*range(start, start + part))
        host.redis.xreadgroup(GROUP, f"gone/{start}", {STREAM: ">"}, count=part)
    gone = [entry_id for number, entry_id in enumerate(ids) if number % 1000 == 7]
    host.redis.xdel(STREAM, *gone)
    host.publish(total)
    consumer = host.start()
    host.wait_done(300)
    assert [number for number, _ in host.runs()] == [
        number for number in range(total + 1) if number % 1000 != 7 or number == total
    ]
    (only,) = host.redis.xinfo_consumers(STREAM, GROUP)
    assert only["name"].decode() == f"{HOST}/orders"
    consumer.wait_log(f"count={total}")


def test_messages_that_are_deleted_during_a_take_over_do_not_hold_it_up(host: StrictHost) -> None:
    host.use()
    host.redis.xgroup_create(STREAM, GROUP, "0", mkstream=True)
    ids = host.publish(*range(3000))
    host.redis.xreadgroup(GROUP, "gone", {STREAM: ">"}, count=3000)
    consumer = host.start(WAKEQ_FAILPOINT="after_take_over:stop@1")
    wait_until(lambda: host.redis.xpending_range(STREAM, GROUP, "-", "+", 1, f"{HOST}/orders"))
    stat = Path(f"/proc/{consumer.pid}/stat")
    wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")
    host.redis.xdel(STREAM, *ids[10:2990])
    consumer.send(signal.SIGCONT)
    wait_until(lambda: len(host.records) == 20)
    assert [n for n, _ in host.runs()] == [*range(10), *range(2990, 3000)]
    wait_until(lambda: host.pending() == 0)
    assert consumer.stop() == 0


def test_any_bytes_are_taken_over(host: StrictHost) -> None:
    host.use("def handle(message): record(message.body.hex())\n")
    bodies = [b"", b"\x00", b"\xff\xfe", b"\r\n$-1\r\n", bytes(range(256))]
    host.redis.xgroup_create(STREAM, GROUP, "0", mkstream=True)
    host.publish(*bodies)
    host.redis.xreadgroup(GROUP, b"\xff/ %d", {STREAM: ">"}, count=9)
    host.start()
    assert host.wait_records(len(bodies)) == [body.hex() for body in bodies]
    wait_until(lambda: host.pending() == 0)


def test_a_standby_goes_on_after_a_reload_of_the_owner(host: StrictHost) -> None:
    hold = host.directory / "hold"
    code = f"import os, time\nwhile os.path.exists({str(hold)!r}): time.sleep(0.01)\n"
    host.use(code + "def handle(message): record(message.text(), os.getpid())\n")
    first = host.start()
    host.fill(10)
    host.wait_begun(10)
    second = host.start_elsewhere()
    second.wait_log("standing by")
    hold.touch()  # it may come back before the other one has heard that it left
    first.send(signal.SIGHUP)
    second.wait_log("took over")
    hold.unlink()
    first.wait_log("standing by")
    host.fill(10)
    host.wait_begun(20)
    host.check_order(20)
    assert host.runs()[-1][1] == second.pid


def test_a_standby_stops_at_once(host: StrictHost) -> None:
    host.use()
    first = host.start()
    host.fill(1)
    host.wait_begun(1)
    second = host.start("orders:2")
    second.wait_log("standing by")
    assert second.stop() == 0
    host.fill(1)
    host.wait_begun(2)
    assert first.stop() == 0


# -- who was the owner -------------------------------------------------------------------------


def test_a_paused_owner_does_nothing_any_more(host: StrictHost) -> None:
    go = host.directory / "go"
    host.use(GATED.format(go=str(go)), lease="2s")
    host.fill(300)
    first = host.start(STOP_AT="20")
    host.wait_begun(21)
    first.send(signal.SIGSTOP)
    host.use(GATED.format(go=str(go)))
    second = host.start_elsewhere()
    second.wait_log("took over")
    host.fill(50)
    host.wait_begun(60)
    go.touch()
    first.send(signal.SIGCONT)
    assert first.wait_exit() == 75
    assert "another owner" in first.output
    host.wait_begun(350)
    wait_until(lambda: host.pending() == 0)
    host.check_order(350)
    assert host.owner()["consumer"] == "elsewhere/orders"


@pytest.mark.parametrize("point", ["before_own", "after_own", "after_take_over", "after_read",
                                   "before_acknowledge"])  # fmt: skip
def test_an_owner_that_is_late_at_any_place_does_nothing_any_more(
    host: StrictHost, point: str
) -> None:
    host.use(seconds=0.005, lease="1s")
    host.fill(100)
    late, go = host.directory / "late", host.directory / "go"
    code = LATE.format(point=point, late=str(late), go=str(go))
    first = host.run([host.interpreter, "-c", code, "orders"])
    wait_until(late.exists)
    host.use(seconds=0.005)
    second = host.start_elsewhere()
    host.wait_begun(100)
    wait_until(lambda: host.pending() == 0)
    go.touch()
    if point == "before_own":
        first.wait_log("standing by")
    else:
        assert first.wait_exit() == 75
    host.fill(10)
    host.wait_begun(110)
    host.check_order(110)
    assert host.runs()[-1][1] == second.pid


def test_an_owner_whose_handler_holds_everything_up_does_nothing_any_more(
    host: StrictHost,
) -> None:
    pipe = host.directory / "pipe"
    os.mkfifo(pipe)
    code = f"""
import ctypes, os, time
def handle(message):
    record(message.text(), os.getpid())
    if message.text() == "20" and os.environ.get("HOLD"):
        # Waits for a writer, with the lock that all threads need.
        ctypes.PyDLL(None).open({os.fsencode(pipe)!r}, os.O_RDONLY)
    time.sleep(0.005)
"""
    host.use(code, lease="1s")
    host.fill(100)
    first = host.start(HOLD="1")
    host.wait_begun(21)
    host.use(code)
    second = host.start_elsewhere()
    second.wait_log("took over")
    writer = os.open(pipe, os.O_RDWR)
    assert first.wait_exit() == 75
    os.close(writer)
    host.wait_begun(100)
    host.wait_done()
    host.check_order(100)
    assert host.repeats() >= 1


def test_the_program_of_an_owner_of_before_is_ended_with_it(host: StrictHost) -> None:
    program = host.program('echo "$$ begun" >> "$RECORD"; sleep 3600; echo "late" >> "$RECORD"\n')
    host.configure(exec_=[program], order="strict", lease="1s", drain_timeout="1s")
    host.fill(1)
    first = host.start()
    (begun,) = host.wait_records(1)
    first.send(signal.SIGSTOP)
    host.configure(exec_=[program], order="strict", drain_timeout="1s")
    second = host.start_elsewhere()
    host.wait_records(2)
    first.send(signal.SIGCONT)
    assert first.wait_exit() == 75
    wait_until(lambda: not Path(f"/proc/{begun.split()[0]}").exists())
    second.stop()
    assert "late" not in host.records


def test_an_owner_that_redis_forgot_goes_on(host: StrictHost) -> None:
    host.use(seconds=0.002, lease="6s")
    host.fill(500)
    consumer = host.start()
    for count in (50, 150, 250):
        host.wait_begun(count)
        host.redis.delete(OWNER)
        wait_until(lambda: host.owner().get("process"))
    host.wait_begun(500)
    host.wait_done()
    host.check_order(500)
    assert host.repeats() == 0
    assert consumer.stop() == 0


def test_goes_on_when_redis_comes_back_empty(short_dir: Path, own_redis: RedisServer) -> None:
    host = StrictHost(short_dir, own_redis)
    try:
        host.use()
        host.fill(10)
        consumer = host.start()
        host.wait_begun(10)
        own_redis.kill()
        own_redis.start()
        host.publish(*range(10, 20))
        host.wait_begun(20)
        host.check_order(20)
        assert consumer.stop() == 0
    finally:
        host.close()


def test_cut_connections_neither_change_the_order_nor_the_owner(
    short_dir: Path, redis: RedisServer
) -> None:
    host = StrictHost(short_dir, redis)
    try:
        with FaultProxy(redis.url) as proxy:
            host.env["WAKEQ_REDIS_URL"] = proxy.url
            host.use(seconds=0.001)
            host.fill(100)
            host.redis.xgroup_create(STREAM, GROUP, "0")
            host.redis.xreadgroup(GROUP, "gone", {STREAM: ">"}, count=100)
            for cut in (40, 100, 300, 600, 1000):
                flow = proxy.replies if cut % 200 else proxy.requests
                flow.cut_after(cut)
                count = len(host.records)
                host.fill(100)
                if cut == 40:
                    consumer = host.start()
                wait_until(lambda count=count: len(host.records) > count)
            host.wait_begun(600)
            host.wait_done()
            assert consumer.stop() == 0
        host.check_order(600)
        assert host.repeats() == 0
    finally:
        host.close()


# -- what holds the line -----------------------------------------------------------------------


def test_a_failed_message_holds_the_line(host: StrictHost) -> None:
    host.use(FAILING.format(good=4))
    host.fill(6)
    host.start()
    wait_until(lambda: "5 1" in host.records)
    assert host.records == ["0 1", "1 1", "2 1", "2 2", "2 3", "2 4", "3 1", "4 1", "5 1"]


def test_a_dead_letter_gives_the_line_free(host: StrictHost) -> None:
    host.use(FAILING.format(good=99), max_attempts=2)
    host.fill(4)
    host.start()
    wait_until(lambda: "3 1" in host.records)
    assert host.records == ["0 1", "1 1", "2 1", "2 2", "3 1"]
    wait_until(lambda: host.pending() == 0)
    assert host.redis.xlen(keys.dead(STREAM, GROUP)) == 1


@pytest.mark.parametrize("is_killed", [False, True])
def test_the_next_owner_goes_on_with_the_attempts(host: StrictHost, is_killed: bool) -> None:
    code = """
import os
from wakeq import Retry
def handle(message):
    record(message.text(), message.attempt)
    if message.text() == "2" and message.attempt < 6:
        raise Retry(delay=3600 if os.environ.get("IS_FIRST") and message.attempt == 2 else 0)
"""
    host.use(code)
    host.fill(4)
    first = host.start(IS_FIRST="1")
    wait_until(lambda: "2 2" in host.records)
    wait_until(lambda: host.owner().get("held", "").endswith("=3"))
    second = host.start("orders:2")
    second.wait_log("standing by")
    if is_killed:
        first.kill()
    else:
        assert first.stop() == 0
    wait_until(lambda: "3 1" in host.records)
    attempts = [int(line.split()[1]) for line in host.records if line.startswith("2 ")]
    assert attempts == [1, 2, 3, 4, 5, 6]


def test_what_holds_the_line_waits_for_the_end_of_a_pause(host: StrictHost) -> None:
    code = """
import os
def handle(message):
    record(message.text(), message.attempt)
    if message.text() == "2" and not os.path.exists(os.environ["GOOD"]): raise ValueError
"""
    host.use(code, max_attempts=0)
    good = host.directory / "good"
    host.fill(4)
    consumer = host.start(GOOD=str(good))
    wait_until(lambda: len(host.records) > 6)

    def wait_looks(count: int) -> None:
        looks = host.redis.info("commandstats")["cmdstat_exists"]["calls"]
        wait_until(
            lambda: host.redis.info("commandstats")["cmdstat_exists"]["calls"] >= looks + count
        )

    host.redis.set(keys.paused(STREAM), "x")
    # Each attempt that fails brings a look; they may come to Redis several at once. After that
    # there is one a second.
    wait_looks(4)
    wait_looks(2)
    count = len(host.records)
    wait_looks(2)
    assert len(host.records) == count
    good.touch()
    host.redis.delete(keys.paused(STREAM))
    wait_until(lambda: "3 1" in host.records)
    assert consumer.stop() == 0


def test_a_coroutine_that_is_overdue_holds_the_line(host: StrictHost) -> None:
    code = """
import asyncio
async def handle(message):
    record(message.text(), message.attempt)
    if message.text() == "1" and message.attempt < 3: await asyncio.sleep(60)
"""
    host.use(code, timeout="200ms")
    host.fill(4)
    host.start()
    wait_until(lambda: "3 1" in host.records)
    assert host.records == ["0 1", "1 1", "1 2", "1 3", "2 1", "3 1"]


def test_nobody_begins_before_an_overdue_handler_has_ended(host: StrictHost) -> None:
    """A thread cannot be ended: the group is not given up, the end of the process frees it."""
    code = """
import os, time
def handle(message):
    record(message.text(), os.getpid(), "begun")
    if message.text() == "1" and os.environ.get("STUCK"): time.sleep(3600)
"""
    host.use(code, timeout="300ms", lease="1h")
    host.fill(4)
    first = host.start(STUCK="1")
    wait_until(lambda: len(host.records) == 2)
    second = host.start("orders:2")
    assert first.wait_exit() == 75
    assert host.owner()["token"]
    second.wait_log("took over")
    wait_until(lambda: len(host.records) == 5)
    assert [line.split()[0] for line in host.records] == ["0", "1", "1", "2", "3"]


def test_a_batch_that_fails_holds_the_line(host: StrictHost) -> None:
    code = """
from wakeq import batch
@batch(3)
def handle(messages):
    record(*(m.text() + "/" + str(m.attempt) for m in messages))
    if any(m.text() == "4" and m.attempt < 3 for m in messages): raise ValueError
"""
    host.use(code)
    host.fill(12)
    host.start()
    wait_until(lambda: host.records and "11/" in host.records[-1])
    done: list[int] = []
    for line in host.records:
        numbers = [int(word.partition("/")[0]) for word in line.split()]
        assert numbers == sorted(numbers)
        if done and numbers[0] <= done[-1]:  # the same ones again
            assert numbers[0] == done[-1]
            done.pop()
        done.append(numbers[0])
    seen = [word.partition("/")[0] for line in host.records for word in line.split()]
    assert list(dict.fromkeys(seen)) == [str(number) for number in range(12)]
    assert max(int(w.partition("/")[2]) for line in host.records for w in line.split()) == 3
