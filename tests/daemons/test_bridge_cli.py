"""What the command `wakeq` does for bridges: publish --channel, status, dead letters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge_host import CHANNEL, HOST, STREAM, BridgeHost, bridge_host
from redis_servers import RedisServer, wait_until
from wakeq import keys
from wakeq_command import Wakeq


@pytest.fixture
def wakeq(redis: RedisServer, short_dir: Path) -> Wakeq:
    return Wakeq(short_dir, redis.url)


@pytest.fixture
def host(tmp_path: Path, redis: RedisServer) -> Iterator[BridgeHost]:
    with bridge_host(tmp_path, redis) as found:
        found.configure()
        yield found


def test_publishes_to_a_channel_and_says_how_many_have_received_it(
    wakeq: Wakeq, host: BridgeHost
) -> None:
    host.start()
    host.wait_begun()
    result = wakeq.run("publish", "--channel", CHANNEL, '{"a": 1}')
    assert (result.code, result.lines) == (0, ["received by 1"])
    result = wakeq.run("publish", b"\xff", "--channel", CHANNEL, "--json", "--count", "2")
    assert result.json() == [{"channel": CHANNEL, "receivers": 1}] * 2
    result = wakeq.run("publish", "--channel", CHANNEL, "--quiet", "-", stdin=b"from stdin")
    assert (result.code, result.out) == (0, "")
    result = wakeq.run("publish", "--channel", CHANNEL, "--lines", stdin=b"one\ntwo\n")
    assert result.lines == ["received by 1"] * 2
    found = [entry.get(b"body") or entry[b"a"] for entry in host.wait_entries(6)]
    assert found == [b"1", b"\xff", b"\xff", b"from stdin", b"one", b"two"]


def test_says_that_nobody_listens_to_a_channel(wakeq: Wakeq) -> None:
    result = wakeq.run("publish", "--channel", "nowhere", "x")
    assert (result.code, result.out) == (69, "received by 0\n")
    assert "nobody listens to nowhere: the message was lost" in result.err
    result = wakeq.run("publish", "--channel", "nowhere", "x", "--count", "3", "--quiet")
    assert (result.code, result.out) == (69, "")
    assert "3 messages were lost" in result.err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("stream", "body"), "give a STREAM or --channel, not both"),
        ((), "give a BODY, or - to read it from stdin"),
        (("x", "--key", "k"), "--key is for a stream, a channel has none"),
        (("x", "--delay", "1s"), "--delay is for a stream, a channel has none"),
        (("x", "--lines"), "the bodies come from BODY or from --lines"),
    ],
)
def test_what_a_channel_does_not_have_is_wrong_usage(
    wakeq: Wakeq, words: tuple[str, ...], complaint: str
) -> None:
    result = wakeq.run("publish", "--channel", "c", *words)
    assert result.code == 64
    assert complaint in result.err


def test_a_stream_or_a_channel_must_be_said(wakeq: Wakeq) -> None:
    result = wakeq.run("publish")
    assert result.code == 64
    assert "give a STREAM, or --channel" in result.err


def test_shows_bridges_with_their_counts(wakeq: Wakeq, host: BridgeHost) -> None:
    host.configure(workers=2)
    daemon = host.start(workers=2)
    host.wait_begun()
    host.publish("one", "two")
    host.wait_entries(2)
    (report,) = wakeq.run("status", "--json").json()[0]["bridges"]
    assert report == {
        "bridge": "clicks", "source": f"channel {CHANNEL}", "stream": STREAM, "workers": 2,
        "instances": [f"{HOST}/clicks"], "handled": 2, "published": 2, "dead": 0, "cuts": 0,
    }  # fmt: skip
    lines = wakeq.run("status").lines
    assert lines[-2].split() == [
        *("BRIDGE", "SOURCE", "STREAM", "HANDLED", "PUBLISHED", "DEAD", "CUT", "OFF"),
        *("INSTANCES", "WORKERS"),
    ]
    assert lines[-1].split() == ["clicks", "channel", CHANNEL, STREAM, *"220012"]
    assert daemon.stop() == 0
    (report,) = wakeq.run("status", "--json").json()[0]["bridges"]
    assert (report["workers"], report["instances"], report["handled"]) == (0, [], 2)


def test_shows_what_is_no_report_of_a_bridge_as_far_as_it_can(
    wakeq: Wakeq, redis: RedisServer
) -> None:
    redis.client().hset(keys.BRIDGES, mapping={"a": "no json", "b": "[1]"})
    reports = wakeq.run("status", "--json").json()[0]["bridges"]
    assert [(report["bridge"], report["stream"]) for report in reports] == [("a", ""), ("b", "")]
    assert wakeq.run("status").code == 0


def test_the_dead_letters_of_a_bridge_can_be_listed_and_purged(
    wakeq: Wakeq, host: BridgeHost
) -> None:
    host.configure(transform=host.code("def transform(message):\n    raise ValueError('no')\n"))
    host.start()
    host.wait_begun()
    host.publish("it")
    wait_until(lambda: len(host.dead()) == 1)
    group = keys.bridge_group("clicks")
    listed = wakeq.run("dead", "list", STREAM, "--group", group)
    assert listed.code == 0
    assert "ValueError: no" in listed.out
    assert wakeq.run("dead", "purge", STREAM, "--group", group, "--all", "--yes").code == 0
    assert host.dead() == []


def test_check_reads_the_files_of_bridges(wakeq: Wakeq) -> None:
    folder = wakeq.etc / "bridges"
    folder.mkdir()
    (folder / "clicks.toml").write_text('channel = "news"\n')
    (folder / "typo.toml").write_text('chanel = "news"\n')
    (folder / "gone.toml").write_text('list = "jobs"\nexec = ["/nowhere/program"]\n')
    result = wakeq.run("check", "--json")
    assert result.code == 78
    found = {finding["about"]: finding for finding in result.json()}
    assert found["bridge clicks"]["text"] == f"channel news, stream {STREAM}"
    assert "did you mean 'channel'?" in found["bridge typo"]["text"]
    assert found["bridge gone"]["text"] == "exec: there is no program /nowhere/program"
