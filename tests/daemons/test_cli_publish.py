"""wakeq publish, and what all subcommands share: usage, errors, exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from redis_servers import RedisServer, wait_until
from wakeq_command import Wakeq


@pytest.fixture
def wakeq(redis: RedisServer, short_dir: Path) -> Wakeq:
    return Wakeq(short_dir, redis.url)


def entries(redis: RedisServer, stream: str = "orders") -> list[dict[bytes, bytes]]:
    return [fields for _, fields in redis.client().xrange(stream)]


def test_publishes_a_body_and_prints_the_id(wakeq: Wakeq, redis: RedisServer) -> None:
    result = wakeq.run("publish", "orders", '{"id": 7}')
    ((entry_id, fields),) = redis.client().xrange("orders")
    assert result.code == 0
    assert result.lines == [entry_id.decode()]
    assert fields == {b"body": b'{"id": 7}'}


def test_publishes_fields_and_a_key(wakeq: Wakeq, redis: RedisServer) -> None:
    result = wakeq.run("publish", "orders", "--field", "a=1", "--field", "b=x=y", "--key", "k")
    assert result.code == 0
    assert entries(redis) == [{b"a": b"1", b"b": b"x=y", b"wakeq.key": b"k"}]


def test_registers_the_stream(wakeq: Wakeq, redis: RedisServer) -> None:
    wakeq.run("publish", "orders", "x")
    assert redis.client().smembers("wakeq:streams") == {b"orders"}


def test_reads_a_binary_body_from_stdin(wakeq: Wakeq, redis: RedisServer) -> None:
    body = bytes(range(256)) * 1000
    assert wakeq.run("publish", "orders", "-", stdin=body).code == 0
    assert entries(redis) == [{b"body": body}]


def test_takes_arguments_that_are_no_utf8_as_they_are(wakeq: Wakeq, redis: RedisServer) -> None:
    assert wakeq.run("publish", "orders", b"a\xff", "--field", b"f=\xfe").code == 0
    assert entries(redis) == [{b"body": b"a\xff", b"f": b"\xfe"}]


def test_publishes_each_line_in_order(wakeq: Wakeq, redis: RedisServer) -> None:
    lines = [b"%d" % i for i in range(2500)]
    result = wakeq.run("publish", "orders", "--lines", stdin=b"\n".join(lines))
    assert result.code == 0
    assert len(set(result.lines)) == 2500
    assert [fields[b"body"] for fields in entries(redis)] == lines


def test_publishes_a_line_when_it_comes(wakeq: Wakeq, redis: RedisServer) -> None:
    process = wakeq.start("publish", "orders", "--lines", stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE)  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"first\n")
    process.stdin.flush()
    first = process.stdout.readline()
    process.stdin.close()
    process.wait(60)
    process.stdout.close()
    assert first.strip() == redis.client().xrange("orders")[0][0]


def test_publishes_a_message_several_times(wakeq: Wakeq, redis: RedisServer) -> None:
    # The option stands between the arguments.
    result = wakeq.run("publish", "orders", "--count", "3", "x", "--quiet")
    assert result.code == 0
    assert result.out == ""
    assert entries(redis) == [{b"body": b"x"}] * 3


def test_publishes_a_body_that_looks_like_an_option(wakeq: Wakeq, redis: RedisServer) -> None:
    assert wakeq.run("publish", "orders", "--", "--weird").code == 0
    assert entries(redis) == [{b"body": b"--weird"}]


def test_prints_json(wakeq: Wakeq) -> None:
    result = wakeq.run("publish", "orders", "--json", "x")
    (line,) = result.json()
    assert line["stream"] == "orders"
    assert line["id"].endswith("-0")


def test_publishes_once_for_a_deduplication_key(wakeq: Wakeq, redis: RedisServer) -> None:
    first = wakeq.run("publish", "orders", "x", "--dedup", "order-7")
    second = wakeq.run("publish", "orders", "x", "--dedup", "order-7")
    assert (first.code, second.code) == (0, 0)
    assert first.lines == second.lines
    assert len(entries(redis)) == 1


def test_remembers_a_deduplication_key_for_its_window(wakeq: Wakeq, redis: RedisServer) -> None:
    wakeq.run("publish", "orders", "x", "--dedup", "k", "--dedup-window", "1h")
    assert 3_000_000 < redis.client().pttl("wakeq:{orders}:dedup:k") <= 3_600_000


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "a command is needed"),
        (["publis"], "invalid choice: 'publis'"),
        (["publish"], "give a STREAM"),
        (["publish", ""], "STREAM: must not be empty"),
        (["publish", b"a\xff", "x"], "STREAM: must be UTF-8"),
        (["publish", "orders"], "give a BODY"),
        (["publish", "orders", "x", "y"], "unrecognized arguments: y"),
        (["publish", "orders", "--field", "nothing"], "--field must be K=V, not 'nothing'"),
        (["publish", "orders", "--field", "=x"], "--field must be K=V"),
        (["publish", "orders", "--field", "wakeq.attempt=2"], "must not begin with 'wakeq.'"),
        (["publish", "orders", "x", "--count", "0"], "must be a number from 1 on, not '0'"),
        (["publish", "orders", "x", "--count", "many"], "must be a number from 1 on"),
        (["publish", "orders", "x", "--lines"], "not from both"),
        (["publish", "orders", "--lines", "--dedup", "k"], "--dedup is for one message"),
        (["publish", "orders", "x", "--dedup", "k", "--dedup-window", "soon"], "a time span"),
        (["publish", "orders", "x", "--dedup", "k", "--dedup-window", "0"], "dedup_window"),
        (["publish", "orders", "x", "--cou", "2"], "unrecognized arguments"),
    ],
)
def test_explains_wrong_usage(wakeq: Wakeq, words: list[str], complaint: str) -> None:
    result = wakeq.run(*words)
    assert result.code == 64
    assert complaint in result.err
    assert "Try 'wakeq --help'" in result.err


def test_says_that_redis_is_down(wakeq: Wakeq, short_dir: Path) -> None:
    result = wakeq.run("--redis-url", f"unix://{short_dir}/none", "publish", "orders", "x")
    assert result.code == 69
    assert f"unix://{short_dir}/none cannot be reached: No such file" in result.err


def test_takes_the_redis_url_after_the_subcommand_too(wakeq: Wakeq, short_dir: Path) -> None:
    result = wakeq.run("publish", "orders", "x", "--redis-url", f"unix://{short_dir}/none")
    assert result.code == 69


def test_takes_the_redis_url_from_the_file(wakeq: Wakeq, redis: RedisServer) -> None:
    (wakeq.etc / "wakeq.toml").write_text(f'redis_url = "{redis.url}"\n')
    del wakeq.env["WAKEQ_REDIS_URL"]
    assert wakeq.run("publish", "orders", "x").code == 0


def test_refuses_a_wrong_redis_url(wakeq: Wakeq) -> None:
    result = wakeq.run("publish", "orders", "x", "--redis-url", "http://:secret@localhost")
    assert result.code == 78
    assert "redis_url must begin with" in result.err
    assert "secret" not in result.err


def test_refuses_a_wrong_configuration_file(wakeq: Wakeq) -> None:
    (wakeq.etc / "wakeq.toml").write_text('redis_urk = "x"\n')
    result = wakeq.run("publish", "orders", "x")
    assert result.code == 78
    assert "unknown setting 'redis_urk' (did you mean 'redis_url'?)" in result.err


def test_says_that_the_key_is_no_stream(wakeq: Wakeq, redis: RedisServer) -> None:
    redis.client().set("orders", "text")
    result = wakeq.run("publish", "orders", "x")
    assert result.code == 78
    assert "stream orders" in result.err and "something other than a stream" in result.err


def test_says_how_many_lines_were_published_before_a_refusal(
    wakeq: Wakeq, redis: RedisServer
) -> None:
    redis.client().set("orders", "text")
    result = wakeq.run("publish", "orders", "--lines", stdin=b"a\nb\n")
    assert result.code == 78
    assert "0 messages were published" in result.err


def test_says_that_the_password_is_missing(short_dir: Path, redis_server: object) -> None:
    server = redis_server("--requirepass", "geheim")  # type: ignore[operator]
    result = Wakeq(short_dir, server.url).run("publish", "orders", "x")
    assert result.code == 77
    assert "put user and password into redis_url" in result.err


def test_says_that_redis_is_out_of_memory(short_dir: Path, own_redis: RedisServer) -> None:
    own_redis.client().config_set("maxmemory", "1")
    result = Wakeq(short_dir, own_redis.url).run("publish", "orders", "x")
    assert result.code == 69
    assert "cannot answer now: OOM" in result.err


def test_ends_with_130_when_interrupted(wakeq: Wakeq, redis: RedisServer) -> None:
    process = wakeq.start("publish", "orders", "--lines", stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"first\n")
    process.stdin.flush()
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == b""


def test_is_silent_when_its_reader_has_enough(wakeq: Wakeq) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = wakeq.start("publish", "orders", "--count", "5000", "x", stdout=writer,
                          stderr=subprocess.PIPE)  # fmt: skip
    os.close(writer)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 141
    assert err == b""


def test_help_begins_with_examples_and_is_quick(wakeq: Wakeq) -> None:
    result = wakeq.run("--help")
    assert result.code == 0
    assert result.out.index("examples:") < result.out.index("options:")
    code = "import sys, wakeq.cli.main; print('redis' in sys.modules, 'asyncio' in sys.modules)"
    loaded = subprocess.run(
        [os.environ.get("PYTHON", __import__("sys").executable), "-c", code],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert loaded.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("command", ["publish", "produce", "status", "peek", "wake", "check"])
def test_each_subcommand_helps(wakeq: Wakeq, command: str) -> None:
    result = wakeq.run(command, "--help")
    assert result.code == 0
    assert f"wakeq {command}" in result.out
    assert result.out.index("examples:") < result.out.index("options:")


def test_prints_its_version(wakeq: Wakeq) -> None:
    result = wakeq.run("--version")
    assert result.code == 0
    assert result.out.startswith("wakeq 0.")


def test_waits_for_the_whole_of_stdin(wakeq: Wakeq, redis: RedisServer) -> None:
    process = wakeq.start("publish", "orders", "-", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(b"half, ")
    process.stdin.flush()
    process.communicate(b"and the rest", timeout=60)
    wait_until(lambda: process.returncode == 0)
    assert entries(redis) == [{b"body": b"half, and the rest"}]
