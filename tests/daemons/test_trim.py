"""wakeq-trim as a process, and wakeq trim: what goes, what stays, and what is said about it."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import NotifySocket
from redis_servers import Cluster, RedisServer, is_stopped, wait_until
from wakeq import keys
from wakeq_command import Wakeq
from wakeup_host import Daemon


class Host:
    """A host with wakeq-trim, and the command beside it."""

    def __init__(self, directory: Path, server: RedisServer, url: str = "") -> None:
        self.server = server
        self.client = server.client()
        self.wakeq = Wakeq(directory, url or server.url)
        self._daemons: list[Daemon] = []

    def configure(self, text: str) -> None:
        """Write the table [trim]."""
        (self.wakeq.etc / "wakeq.toml").write_text(f"[trim]\n{text}\n")

    def fill(self, stream: str, count: int, handled: int | None = None, seen: bool = True) -> None:
        """Add messages 1-0, 2-0 …, of which a group has handled the first ones."""
        pipe = self.client.pipeline(transaction=False)
        for number in range(1, count + 1):
            pipe.xadd(stream, {"body": number}, id=f"{number}-0")
        if handled is not None:
            pipe.xgroup_create(stream, "g", f"{handled}-0" if handled else "0")
        if seen:
            pipe.sadd(keys.STREAMS, stream)
        pipe.execute()

    def start(self, *options: str, **env: str) -> Daemon:
        """Start wakeq-trim."""
        command = [sys.executable, "-c", "from wakeq.trim.main import main; main()", *options]
        daemon = Daemon(command, os.environ | {"NO_COLOR": "1"} | self.wakeq.env | env)
        self._daemons.append(daemon)
        return daemon

    def run(self, *options: str, **env: str) -> tuple[int, str]:
        """Run wakeq-trim to its end, and return its exit code and what it logged."""
        daemon = self.start(*options, **env)
        code = daemon.wait_exit()
        log = "\n".join(daemon.lines)
        assert "Traceback" not in log
        return code, log

    def close(self) -> None:
        """End everything."""
        for daemon in self._daemons:
            daemon.kill()


@pytest.fixture
def host(short_dir: Path, redis: RedisServer) -> Iterator[Host]:
    made = Host(short_dir / "h", redis)
    yield made
    made.close()


@pytest.fixture
def own_host(short_dir: Path, own_redis: RedisServer) -> Iterator[Host]:
    """A host whose Redis is its own."""
    made = Host(short_dir / "h", own_redis)
    yield made
    made.close()


def logged(log: str, stream: str) -> dict[str, str]:
    """Return the fields of the one line about a stream."""
    (line,) = [line for line in log.splitlines() if f"stream={stream} " in f"{line} "]
    return dict(re.findall(r"(\w+)=(\S+)", line))


# -- what goes and what stays ----------------------------------------------------------------


def test_trims_the_streams_that_wakeq_has_seen(host: Host, notify_socket: NotifySocket) -> None:
    host.fill("orders", 5000, 4500)
    host.fill("mail", 1001, 1001)
    host.fill("unknown", 5000, 5000, seen=False)
    code, log = host.run(**notify_socket.env)
    assert code == 0
    assert [host.client.xlen(name) for name in ("orders", "mail", "unknown")] == [1000, 1000, 5000]
    assert logged(log, "orders").items() >= {"removed": "4000", "left": "1000"}.items()
    assert logged(log, "mail").items() >= {"removed": "1", "left": "1000"}.items()
    assert len(log.splitlines()) == 2
    notify_socket.wait_for("STATUS=2 streams looked at, 4001 messages removed")
    notify_socket.wait_for("STOPPING=1")
    doing = "STATUS=trimming stream 2 of 2, orders: 2000 messages removed"
    assert doing in notify_socket.messages


def test_nothing_unread_goes_however_much_it_is(host: Host) -> None:
    host.fill("orders", 20_000, 0)
    host.fill("mail", 20_000)
    for _ in range(2):
        assert host.run() == (0, "")
    assert host.client.xlen("orders") == host.client.xlen("mail") == 20_000


def test_what_a_dead_consumer_has_pending_stays(host: Host) -> None:
    host.fill("orders", 3000, 0)
    host.client.xreadgroup("g", "dead", {"orders": ">"}, count=3000)
    host.client.xack("orders", "g", *(f"{number}-0" for number in range(1, 101)))
    host.configure("keep = 5")
    assert host.run()[0] == 0
    assert host.client.xlen("orders") == 2900


def test_patterns_name_more_streams(host: Host) -> None:
    host.configure('streams = ["day-?", "plain", "log[ab]*"]\nkeep = 10')
    # So that one page of SCAN does not have them all.
    host.client.mset({f"other{number}": "" for number in range(5000)})
    for name in ("day-1", "day-2", "day-10", "plain", "loga-x", "logc", "seen"):
        host.fill(name, 100, 100, seen=name == "seen")
    host.client.set("day-3", "no stream, so not meant")
    assert host.run()[0] == 0
    lengths = {name: host.client.xlen(name) for name in ("day-1", "day-2", "plain", "loga-x")}
    assert set(lengths.values()) == {10}
    assert host.client.xlen("seen") == 10
    assert host.client.xlen("day-10") == host.client.xlen("logc") == 100


def test_four_hundred_streams_are_all_trimmed(host: Host) -> None:
    host.configure('streams = ["s*"]\nkeep = 1')
    names = [f"s{number}" for number in range(400)]
    for name in names:
        host.fill(name, 3, 3, seen=False)
    assert host.run()[0] == 0
    assert {host.client.xlen(name) for name in names} == {1}


def test_keys_of_our_own_are_never_trimmed(host: Host) -> None:
    host.configure('streams = ["*"]\nkeep = 1')
    own = [keys.retry("orders", "g"), keys.retry("{a}b", "g"), keys.dead("orders", "g")]
    for name in own:
        host.fill(name, 100, 100)
    host.fill("orders", 100, 100, seen=False)
    assert host.run()[0] == 0
    assert [host.client.xlen(name) for name in own] == [100, 100, 100]
    assert host.client.xlen("orders") == 1
    assert host.wakeq.run("trim", own[0]).code == 64


def test_a_name_that_is_no_text_is_trimmed_too(host: Host) -> None:
    name: Any = b"\xff\n"
    host.fill(name, 100, 100)
    code, log = host.run("--keep=1")
    assert (code, host.client.xlen(name)) == (0, 1)
    assert "removed=99" in log
    host.client.xadd(name, {"a": "b"})
    assert host.wakeq.run("trim", "--json").code == 0


def test_a_stream_that_is_gone_is_left_in_the_registry(host: Host) -> None:
    host.client.sadd(keys.STREAMS, "gone")
    code, log = host.run("--log-level=debug")
    assert (code, "nothing to remove" in log) == (0, True)
    assert host.client.smembers(keys.STREAMS) == {b"gone"}


def test_max_length_loses_what_it_says_and_logs_it(host: Host) -> None:
    host.fill("orders", 9000, 3000)
    host.fill("nobody", 2500)
    host.fill("quick", 9000, 9000)
    code, log = host.run("--max-length=2000", "--keep=100")
    assert code == 0
    lengths = [host.client.xlen(name) for name in ("orders", "nobody", "quick")]
    assert lengths == [2000, 2000, 100]
    lost = [line for line in log.splitlines() if "because of max_length" in line]
    assert len(lost) == 2
    assert [line for line in log.splitlines() if "warning" in line] == lost
    assert "count=500 left=2000 max_length=2000" in lost[0]
    assert "count=4000 left=2000 max_length=2000" in lost[1]
    assert "stream=orders removed=3000" in log


def test_max_length_below_keep_is_refused(host: Host) -> None:
    code, log = host.run("--max-length=999")
    assert code == 78
    assert "max_length must be at least keep, which is 1000, or 0 for none, not 999" in log


# -- what goes wrong -------------------------------------------------------------------------


def test_something_else_of_that_name_is_reported_and_the_others_are_trimmed(host: Host) -> None:
    host.client.sadd(keys.STREAMS, "a", "z")
    host.client.set("a", "value")
    host.client.lpush("z", "value")
    host.fill("orders", 2000, 2000)
    code, log = host.run()
    assert code == 78
    assert log.count("it is a string, not a stream") == log.count("it is a list") == 1
    assert host.client.xlen("orders") == 1000
    assert (host.client.get("a"), host.client.llen("z")) == (b"value", 1)


def test_a_stream_that_the_user_may_not_touch_is_reported(own_host: Host) -> None:
    own_host.fill("orders", 2000, 2000)
    own_host.fill("secret", 2000, 2000)
    own_host.client.acl_setuser(
        "trimmer", enabled=True, passwords=["+pw"], categories=["+@all"],
        keys=["orders", keys.STREAMS],
    )  # fmt: skip
    url = own_host.server.url.replace("unix://", "unix://trimmer:pw@")
    code, log = own_host.run(f"--redis-url={url}")
    assert code == 77
    assert log.count("stream was not trimmed") == 1
    assert "stream=secret" in log
    assert own_host.client.xlen("orders") == 1000
    own_host.client.acl_setuser("trimmer", enabled=True, reset_keys=True, keys=["orders"])
    code, log = own_host.run(f"--redis-url={url}")
    assert code == 77
    assert "does not permit" in log


def test_the_rights_that_it_needs_are_few(own_host: Host) -> None:
    own_host.configure('streams = ["or*"]')
    own_host.fill("orders", 2000, 2000)
    commands = ["smembers", "scan", "eval", "evalsha", "type", "xlen", "xrange", "xpending",
                "xtrim", "xinfo|groups", "client|setname"]  # fmt: skip
    own_host.client.acl_setuser(
        "trimmer", enabled=True, passwords=["+pw"], keys=["*"],
        commands=[f"+{command}" for command in commands],
    )  # fmt: skip
    url = own_host.server.url.replace("unix://", "unix://trimmer:pw@")
    code, log = own_host.run(f"--redis-url={url}")
    assert code == 0, log
    assert own_host.client.xlen("orders") == 1000


def test_redis_that_is_not_there_is_waited_for_and_then_it_gives_up(
    own_host: Host, notify_socket: NotifySocket
) -> None:
    own_host.server.kill()
    code, log = own_host.run("--start-timeout=2s", **notify_socket.env)
    assert code == 69
    assert "cannot be reached" in log
    assert "waiting for Redis, try 1" in notify_socket.wait_for("STATUS=")


def test_redis_that_comes_within_the_time_is_used(
    own_host: Host, notify_socket: NotifySocket
) -> None:
    own_host.server.kill()
    daemon = own_host.start(**notify_socket.env)
    notify_socket.wait_for("STATUS=")
    own_host.server.start()
    assert daemon.wait_exit() == 0
    assert daemon.lines == []


def test_a_replica_is_not_used(own_host: Host) -> None:
    own_host.fill("orders", 2000, 2000)
    own_host.client.execute_command("REPLICAOF", "127.0.0.1", "1")
    code, log = own_host.run("--start-timeout=300ms")
    assert code == 69
    assert "READONLY" in log
    assert own_host.client.xlen("orders") == 2000


def test_redis_that_is_lost_meanwhile_is_waited_for(
    redis_server: Callable[..., RedisServer], short_dir: Path
) -> None:
    server = redis_server("--appendonly", "yes", "--appendfsync", "always")
    host = Host(short_dir / "h", server)
    try:
        host.fill("orders", 20_000, 20_000)
        daemon = host.start(WAKEQ_FAILPOINT="after_slice:stop@3")
        wait_until(lambda: host.client.xlen("orders") < 20_000 and is_stopped(daemon.process.pid))
        assert host.client.xlen("orders") > 1000
        server.kill()
        daemon.process.send_signal(signal.SIGCONT)
        daemon.wait_log("Redis was lost")
        server.start()
        daemon.wait_log("Redis is back")
        assert daemon.wait_exit() == 0
        assert server.client().xlen("orders") == 1000
        assert daemon.count("stream was trimmed") == 1
    finally:
        host.close()


def test_a_stop_ends_it_after_the_slice(host: Host) -> None:
    host.fill("orders", 50_000, 50_000)
    daemon = host.start(WAKEQ_FAILPOINT="after_slice:stop@1")
    wait_until(lambda: host.client.xlen("orders") < 50_000 and is_stopped(daemon.process.pid))
    daemon.process.terminate()
    daemon.process.send_signal(signal.SIGCONT)
    assert daemon.wait_exit() == 0
    left = host.client.xlen("orders")
    assert 30_000 < left < 50_000
    (line,) = daemon.lines
    assert f"removed={50_000 - left} left={left}" in line


def test_a_stop_ends_the_waiting_for_redis(own_host: Host, notify_socket: NotifySocket) -> None:
    own_host.server.kill()
    daemon = own_host.start(**notify_socket.env)
    notify_socket.wait_for("STATUS=")
    assert daemon.stop() == 0


def test_killed_at_any_time_it_has_taken_nothing_that_was_needed(host: Host) -> None:
    host.fill("orders", 20_000, 15_000)
    daemon = host.start(WAKEQ_FAILPOINT="after_slice:kill@3")
    assert daemon.wait_exit() == -9
    # Slices get smaller while Redis is slow.
    assert 14_000 <= host.client.xlen("orders") < 20_000
    assert host.run()[0] == 0
    assert host.client.xlen("orders") == 5000


def test_several_at_once_lose_and_count_together_what_one_would(host: Host) -> None:
    host.fill("orders", 60_000, 20_000)
    options = ("--max-length=5000", "--keep=100")
    daemons = [host.start(*options) for _ in range(3)]
    assert [daemon.wait_exit() for daemon in daemons] == [0, 0, 0]
    log = "\n".join(line for daemon in daemons for line in daemon.lines)
    assert host.client.xlen("orders") == 5000
    assert sum(map(int, re.findall(r"removed=(\d+)", log))) == 20_000
    assert sum(map(int, re.findall(r"count=(\d+)", log))) == 35_000


def test_it_makes_room_when_redis_has_no_memory_left(own_host: Host) -> None:
    own_host.fill("orders", 50_000, 50_000)
    own_host.client.config_set("maxmemory", own_host.client.info("memory")["used_memory"])
    assert own_host.run()[0] == 0
    assert own_host.client.xlen("orders") == 1000
    assert own_host.client.xadd("orders", {"a": "b"})


# -- Redis Cluster ---------------------------------------------------------------------------


@pytest.fixture
def cluster(short_dir: Path) -> Iterator[Cluster]:
    (short_dir / "c").mkdir()
    nodes = Cluster(short_dir / "c")
    try:
        nodes.start()
        yield nodes
    finally:
        nodes.stop()


def test_on_a_cluster_every_master_is_seen_to(cluster: Cluster, short_dir: Path) -> None:
    names = [f"s{number}" for number in range(30)]
    assert {cluster.owner(name) for name in names} == {0, 1, 2}
    for number, name in enumerate(names):
        client = cluster.nodes[cluster.owner(name)].client()
        for entry in range(1, 101):
            client.xadd(name, {"a": "b"}, id=f"{entry}-0")
        client.xgroup_create(name, "g", "90-0")
        if number % 2:
            registry = cluster.nodes[cluster.owner(keys.STREAMS)].client()
            registry.sadd(keys.STREAMS, name)
    host = Host(short_dir / "h", cluster.nodes[0], cluster.url(1))
    host.configure('keep = 5\nstreams = ["s[0-9]*"]')
    # What is known by then of who has which slot becomes wrong meanwhile.
    cluster.move(names[0], (cluster.owner(names[0]) + 1) % 3)

    told = host.wakeq.run("trim", "--dry-run", "--json")
    assert [stream["removed"] for stream in told.json()[0]["streams"]] == [90] * 30
    assert host.run()[0] == 0

    lengths = {cluster.nodes[cluster.owner(name)].ask("XLEN", name) for name in names}
    assert lengths == {10}


# -- the command -----------------------------------------------------------------------------


def test_a_dry_run_says_what_a_run_then_does(host: Host) -> None:
    host.configure("keep = 10\nmax_length = 700")
    host.fill("orders", 3333, 2222)
    host.fill("mail", 1234, 1234)
    host.fill("nobody", 800)
    host.fill("short", 7, 7)
    dry = host.wakeq.run("trim", "--dry-run", "--json")
    assert dry.code == 0
    assert [host.client.xlen(name) for name in ("orders", "nobody")] == [3333, 800]
    done = host.wakeq.run("trim", "--json")
    assert done.code == 0
    (said,), (did,) = dry.json(), done.json()
    assert (said["dry_run"], did["dry_run"]) == (True, False)
    assert said["streams"] == did["streams"]
    assert {each.pop("stream"): tuple(each.values()) for each in did["streams"]} == {
        "orders": (2222, 411, 700), "mail": (1224, 0, 10), "nobody": (0, 100, 700),
        "short": (0, 0, 7),
    }  # fmt: skip
    assert host.client.xlen("orders") == 700


def test_shows_a_table(host: Host) -> None:
    host.fill("orders", 3000, 2500)
    result = host.wakeq.run("trim", "--dry-run")
    assert [line.split() for line in result.lines[:2]] == [
        ["STREAM", "REMOVED", "LOST", "LEFT"], ["orders", "2,000", "0", "1,000"],
    ]  # fmt: skip
    assert result.lines[2] == "Nothing was removed: this is what would be."
    assert host.client.xlen("orders") == 3000
    result = host.wakeq.run("trim")
    assert (result.code, len(result.lines)) == (0, 2)
    assert host.client.xlen("orders") == 1000


def test_trims_only_the_streams_that_are_named(host: Host) -> None:
    host.fill("orders", 2000, 2000)
    host.fill("mail", 2000, 2000, seen=False)
    result = host.wakeq.run("trim", "mail", "gone")
    assert result.code == 66
    assert "gone: there is no such stream" in result.err
    assert (host.client.xlen("orders"), host.client.xlen("mail")) == (2000, 1000)


def test_the_command_says_that_there_is_nothing(host: Host) -> None:
    result = host.wakeq.run("trim")
    assert result.code == 0
    assert "No streams to trim" in result.out


def test_the_command_reports_what_is_no_stream(host: Host) -> None:
    host.client.set("text", "value")
    host.fill("orders", 2000, 2000)
    result = host.wakeq.run("trim", "text", "orders")
    assert result.code == 78
    assert "is a string, not a stream" in result.out
    assert host.client.xlen("orders") == 1000


def test_the_command_says_that_redis_is_not_there(own_host: Host) -> None:
    own_host.server.kill()
    result = own_host.wakeq.run("trim")
    assert (result.code, result.out) == (69, "")
    assert "cannot be reached" in result.err
