"""What a leader publishes: made by a callable or a program, which may fail, hang or crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from node_host import NAME, NodeHost
from redis_servers import RedisServer, wait_until
from wakeq import keys
from wakeq.message import Publish
from wakeq.node.generate import as_items, callable_make, program_make

# For who must not lose it because a busy machine has it stand still.
LONG = "--lease=10min"


@pytest.fixture
def host(short_dir: Path, own_redis: RedisServer) -> Iterator[NodeHost]:
    host = NodeHost(short_dir, own_redis)
    host.vacate()
    yield host
    host.close()


def bodies(host: NodeHost) -> list[bytes]:
    return [fields.get(b"body", b"") for _, fields in host.redis.xrange(NAME)]


def seq(host: NodeHost) -> int:
    return int(host.redis.hget(keys.emission(NAME, NAME), "seq") or 0)


# -- what is made --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "items"),
    [
        (None, []),
        ([], []),
        ("ä", [[b"body", "ä".encode()]]),
        (b"\xff", [[b"body", b"\xff"]]),
        ({"a": 1, "b": "x"}, [[b"a", b"1", b"b", b"x"]]),
        (Publish("s", {"n": 1}, key="k"), [[b"body", b'{"n":1}', b"wakeq.key", b"k"]]),
        (["a", b"b"], [[b"body", b"a"], [b"body", b"b"]]),
    ],
)
def test_what_may_be_returned_for_a_stream(made: object, items: list[Any]) -> None:
    assert as_items(made, "s", is_list=False) == items


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        (5, "a message is text, bytes"),
        ([["a"]], "a message is text, bytes"),
        (Publish("other", "x"), "a node publishes to its stream, s, not to other"),
        ({"wakeq.seq": 1}, "must not begin with"),
        ({}, "a message must have a body or a field"),
        (["x"] * 1001, "at most 1000 messages at a time, not 1001"),
        ({str(n): 1 for n in range(3901)}, "at most 3900 fields, not 3901"),
        ([{str(n): 1 for n in range(3900)}] * 116, "at most 450000 fields at a time, not 452400"),
        ([b"x" * 2**20] * 513, "at most 512 MiB of messages at a time"),
    ],
)
def test_what_may_not_be_returned_for_a_stream(made: object, complaint: str) -> None:
    with pytest.raises((TypeError, ValueError), match=complaint):
        as_items(made, "s", is_list=False)


def test_as_much_as_may_be_returned_is_published_at_once(host: NodeHost) -> None:
    code = "count = 0\ndef make():\n    global count\n    count += 1\n"
    code += "    fields = dict.fromkeys(map(str, range(3900)), 1)\n"
    code += "    return [fields] * (115 if count == 2 else 116)\n"
    host.configure(interval=0.5, generate=host.handler(code, function="make"))
    node = host.start_node(NAME, LONG)
    wait_until(lambda: host.redis.xlen(NAME) == 115, 180, f"{node.lines}")
    node.wait_log("at most 450000 fields at a time")
    assert node.stop() == 0


def test_what_may_be_returned_for_a_list() -> None:
    assert as_items(["a", b"\xff"], "l", is_list=True) == [[b"a"], [b"\xff"]]
    with pytest.raises(TypeError, match="a message for a list is text or bytes"):
        as_items({"a": 1}, "l", is_list=True)


def test_a_program_makes_the_body_of_one_message(host: NodeHost) -> None:
    make = program_make([host.program('printf "%s" "$WAKEQ_NODE $WAKEQ_SEQ $WAKEQ_TIME"')], "n")
    assert make(3, "then") == b"n 3 then"
    assert program_make(["/bin/true"], "n")(1, "") is None


# -- as processes --------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "async "])
def test_a_callable_makes_the_messages(host: NodeHost, prefix: str) -> None:
    code = f"count = 0\n{prefix}def make():\n    global count\n    count += 1\n"
    code += "    return None if count == 2 else [f'{count}a', {'body': f'{count}b'}]\n"
    host.configure(interval=0.05, generate=host.handler(code, function="make"))
    node = host.start_node(NAME, LONG)
    wait_until(lambda: seq(host) >= 3)
    assert bodies(host)[:4] == [b"1a", b"1b", b"3a", b"3b"]
    assert node.stop() == 0


def test_a_program_makes_the_messages(host: NodeHost) -> None:
    script = 'echo about this >&2\n[ "$WAKEQ_SEQ" = 2 ] || printf "%s" "$WAKEQ_SEQ"\n'
    host.configure(interval=0.05, generate_exec=[host.program(script)])
    node = host.start_node(NAME, LONG)
    wait_until(lambda: seq(host) >= 3)
    assert bodies(host)[:2] == [b"1", b"3"]
    node.wait_log("about this")


def test_a_failure_is_said_once_and_the_leader_goes_on(host: NodeHost) -> None:
    code = "count = 0\ndef make():\n    global count\n    count += 1\n"
    code += "    if 2 <= count <= 5: raise RuntimeError('nothing there')\n    return str(count)\n"
    host.configure(interval=0.05, generate=host.handler(code, function="make"))
    node = host.start_node(NAME, LONG)
    wait_until(lambda: seq(host) >= 7)
    assert bodies(host)[:3] == [b"1", b"6", b"7"]
    node.wait_log("messages are made again")
    assert node.count("RuntimeError: nothing there") >= 1
    assert node.count("messages could not be made") == 1
    assert node.count("the lease was lost") == 0


def test_what_takes_too_long_is_ended_and_costs_no_lease(host: NodeHost) -> None:
    marker = host.directory / "went"
    code = f"import os, time\ndef make():\n    if not os.path.exists({str(marker)!r}):\n"
    code += (
        f"        open({str(marker)!r}, 'w').close()\n        time.sleep(10000)\n    return 'x'\n"
    )
    generate = host.handler(code, function="make")
    host.configure(interval=0.05, generate=generate, generate_timeout=10)
    node = host.start_node(NAME, "--lease=5s")
    node.wait_log("took longer than generate_timeout allows")
    wait_until(lambda: bodies(host))
    assert (node.count("elected"), node.count("the lease was lost")) == (1, 0)


def test_what_ends_its_process_is_started_again(host: NodeHost) -> None:
    marker = host.directory / "went"
    code = f"import os\ndef make():\n    if not os.path.exists({str(marker)!r}):\n"
    code += f"        open({str(marker)!r}, 'w').close()\n        os._exit(3)\n    return 'x'\n"
    host.configure(interval=0.05, generate=host.handler(code, function="make"))
    node = host.start_node(NAME, LONG)
    node.wait_log("it ended its own process")
    wait_until(lambda: bodies(host))
    assert node.count("elected") == 1


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"generate": "nowhere:nothing"}, "generate 'nowhere:nothing' cannot be imported"),
        ({"generate_exec": ["/no/program"]}, "generate_exec: there is no program /no/program"),
        (
            {"generate": "nowhere:nothing", "python": "/no/bin/python"},
            "python /no/bin/python cannot be run: No such file or directory",
        ),
        ({"calendar": "tomorrowish"}, "calendar: must be a calendar time"),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(
    host: NodeHost, settings: dict[str, Any], complaint: str
) -> None:
    host.configure(**settings)
    node = host.start_node()
    assert node.wait_exit() == 78
    assert node.count(complaint) == 1


def test_a_callable_that_yields_is_refused(host: NodeHost) -> None:
    path = host.handler("def make():\n    yield 1\n", function="make")
    with pytest.raises(Exception, match="has a yield"):
        callable_make(path)


def test_the_applications_own_interpreter_makes_the_messages(host: NodeHost) -> None:
    venv = host.directory / "venv"
    command = [sys.executable, "-m", "venv", "--without-pip", "--symlinks", str(venv)]
    subprocess.run(command, check=True)
    code = "import sys\ndef make():\n    return sys.prefix\n"
    generate = host.handler(code, function="make")
    host.configure(interval=0.05, generate=generate, python=str(venv / "bin/python"))
    host.start_node()
    host.wait_emitted(1)
    assert bodies(host)[0] == str(venv).encode()


def test_what_makes_messages_dies_with_the_node(host: NodeHost) -> None:
    code = "import os, time\ndef make():\n    record(os.getpid())\n    time.sleep(10000)\n"
    host.configure(interval=0.05, generate=host.handler(code, function="make"))
    node = host.start_node()
    pid = int(host.wait_records(1)[0])
    node.kill()

    def has_ended() -> bool:
        try:
            return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return True

    wait_until(has_ended)


def test_a_result_that_comes_after_the_lease_was_lost_is_thrown_away(host: NodeHost) -> None:
    gate = host.directory / "gate"
    os.mkfifo(gate)
    code = f"def make():\n    record('begun')\n    return open({str(gate)!r}).read()\n"
    host.configure(interval=0.05, generate=host.handler(code, function="make"))
    paused = host.start_node()
    host.wait_records(1)
    paused.send(signal.SIGSTOP)
    other = host.start_node(NAME, LONG, "--generate-exec=/bin/echo new")
    other.wait_log("elected")
    wait_until(lambda: bodies(host))
    gate.write_text("stale")
    paused.send(signal.SIGCONT)
    paused.wait_log("the lease was lost")
    host.wait_more(3)
    assert set(bodies(host)) == {b"new\n"}
    host.check_emitted()


def test_calendar_times_are_emitted_for_once_each(host: NodeHost) -> None:
    host.configure(calendar="*:*:0/0.2", generate_exec=[host.program('printf "%s" "$WAKEQ_TIME"')])
    first, second = host.start_node(), host.start_node()
    for _ in range(3):
        host.wait_more(3)
        leader = host.wait_leader(first, second)
        other = second if leader is first else first
        leader.stop()
        other.wait_log("elected")
        first, second = other, host.start_node()
    host.wait_more(2)
    times = bodies(host)
    assert len(set(times)) == len(times)
    assert times == sorted(times)
    assert {text[-5:] for text in times} <= {b".%d00Z" % n for n in (0, 2, 4, 6, 8)}
    host.check_emitted()
