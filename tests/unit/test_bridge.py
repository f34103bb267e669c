"""The parts of wakeq-bridge: the rate, what becomes of a message, what is said to workers."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wakeq.bridge import talk
from wakeq.bridge.channel import Channel, channels, describe
from wakeq.bridge.holder import Holder
from wakeq.bridge.link import Link
from wakeq.bridge.maker import Maker, Outcome
from wakeq.bridge.meter import Meter
from wakeq.bridge.reader import Line, Memory, Reader
from wakeq.bridge.subscription import Subscription
from wakeq.bridge.transform import Items, Received, fields
from wakeq.config import Config
from wakeq.errors import ConfigError, Reject, UnavailableError, UsageError
from wakeq.redis_url import RedisURL
from wakeq.sections import Bridge


class Clock:
    """A clock that stands until it is moved, in milliseconds."""

    def __init__(self) -> None:
        self.now = 1_700_000_000_000

    def __call__(self) -> int:
        return self.now


# -- the rate --------------------------------------------------------------------------------


def test_the_rate_counts_what_is_a_second_old_and_nothing_older() -> None:
    clock = Clock()
    meter = Meter(clock)
    assert meter.rate() == 0
    meter.add()
    meter.add()
    assert meter.rate() == 2
    clock.now += 10
    meter.add()
    assert meter.rate() == 3
    clock.now += 990
    meter.add()
    assert meter.rate() == 4
    clock.now += 1
    assert meter.rate() == 2
    clock.now += 10
    assert meter.rate() == 1


def test_the_rate_takes_one_bucket_for_a_millisecond_however_much_happens() -> None:
    clock = Clock()
    meter = Meter(clock)
    for _ in range(1000):
        meter.add(250)
    clock.now += 1
    meter.add()
    assert meter.rate() == 250_001
    assert len(meter._buckets) == 2


@given(st.lists(st.tuples(st.integers(0, 700), st.integers(1, 9))))
def test_the_rate_is_that_of_all_that_is_young_enough(steps: list[tuple[int, int]]) -> None:
    clock = Clock()
    meter = Meter(clock)
    seen: list[tuple[int, int]] = []
    for pause, count in steps:
        clock.now += pause
        meter.add(count)
        seen.append((clock.now, count))
        assert meter.rate() == sum(n for when, n in seen if clock.now - when <= 1000)


# -- the fields of a message -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('{"a": "x"}', {"a": "x"}),
        ("{}", {}),
        (' \n{"a":1}\t', {"a": "1"}),
        ('{"a": 1.10, "b": 1e400, "c": -0, "d": 1E2}',
         {"a": "1.10", "b": "1e400", "c": "-0", "d": "1E2"}),
        ('{"a": -0}', {"a": "-0"}),
        ('{"a": -0, "b": 0, "c": 10}', {"a": "-0", "b": "0", "c": "10"}),
        ('{"a": 0, "b-0": 0}', {"a": "0", "b-0": "0"}),
        ('{"a": ["\\ud800"]}', {"a": '["\\ud800"]'}),
        ('{"a": NaN, "b": -Infinity}', {"a": "NaN", "b": "-Infinity"}),
        ('{"a": 12345678901234567890123.0}', {"a": "12345678901234567890123.0"}),
        ('{"a": 12345678901234567890123}', {"a": "12345678901234567890123"}),
        ('{"a": true, "b": false, "c": null}', {"a": "true", "b": "false", "c": "null"}),
        ('{"a": {"b" : [1, 2.50]} , "c": "d"}', {"a": '{"b" : [1, 2.50]}', "c": "d"}),
        ('{"a": [], "b\\u00e4\\n": "\\u20ac"}', {"a": "[]", "bä\n": "€"}),
        ('{"a": "x", "a": "y"}', {"a": "y"}),
        ('{"a": [1], "a": "y"}', {"a": "y"}),
        ('{"a": "y", "b": "x", "a": [1]}', {"a": "[1]", "b": "x"}),
        ('{"": "x"}', {"": "x"}),
        ('{"}": ["{", "}", "\\""], ":": ","}', {"}": '["{", "}", "\\""]', ":": ","}),
    ],
)  # fmt: skip
def test_the_members_of_an_object_are_the_fields(body: str, expected: dict[str, str]) -> None:
    items = [item.decode() for item in fields(body.encode())]
    assert dict(zip(items[::2], items[1::2], strict=True)) == expected


@pytest.mark.parametrize(
    "body",
    [b"", b"x", b"[]", b"1", b'"x"', b"null", b'{"a"}', b'{"a":1} {"b":2}', b'{"a":1}x',
     b"\xff{}", b'\xef\xbb\xbf{"a":1}', b'{"a":"\xff"}', b'{"a":"\\udc00"}', b'{"\\udc00":[1]}',
     b'{"wakeq.key":"x"}', b'{"a":' * 100_000, b'{"a":"line\nbreak"}',
     b'{"a":' + b"1" * 5000 + b"}"],
)  # fmt: skip
def test_what_cannot_be_fields_is_the_body(body: bytes) -> None:
    assert fields(body) == [b"body", body]


def test_an_object_of_too_many_members_is_the_body() -> None:
    most = json.dumps({str(n): "x" for n in range(3900)}).encode()
    more = json.dumps({str(n): "x" for n in range(3901)}).encode()
    assert len(fields(most)) == 7800
    assert fields(more) == [b"body", more]


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text(), some, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text().filter(lambda name: not name.startswith("wakeq.")), _json))
def test_the_fields_say_what_the_object_says(value: dict[str, Any]) -> None:
    items = [item.decode() for item in fields(json.dumps(value).encode())]
    found = dict(zip(items[::2], items[1::2], strict=True))
    assert found.keys() == value.keys()
    for name, said in found.items():
        assert said == value[name] if isinstance(value[name], str) else True
        if not isinstance(value[name], str):
            assert json.loads(said) == value[name]


# -- what a worker makes ---------------------------------------------------------------------


def make(maker: Maker, *bodies: bytes, number: int = 1) -> Outcome:
    return maker.make(number, [(b"news", list(bodies))])


def upper(message: Received) -> list[Items]:
    if message.body == b"reject":
        raise Reject("no")
    return [[b"body", message.body.upper()]] * len(message.body)


def test_a_batch_is_made_into_what_the_script_takes() -> None:
    maker = Maker(None, "host/b/1", [], lambda *_: None, 0)
    outcome = make(maker, b'{"a":"1"}', b"x")
    assert outcome.arguments == [
        b"4", b"a", b"1", b"consumer_id", b"host/b/1", b"4", b"body", b"x", b"consumer_id",
        b"host/b/1",
    ]  # fmt: skip
    assert (outcome.received, outcome.published, outcome.dead) == (2, 2, 0)


def test_what_a_transform_makes_is_counted_and_what_it_rejects_is_buried() -> None:
    outcome = make(Maker(upper, "host/b/1", [], lambda *_: None, 0), b"ab", b"", b"reject")
    assert (outcome.received, outcome.published, outcome.dead) == (3, 2, 1)
    assert outcome.error == "Reject: no"
    assert outcome.arguments[:2] == [b"4", b"body"]
    letter = outcome.arguments[10:]
    assert letter[0] == b"-%d" % (len(letter) - 1)
    assert letter[1:3] == [b"wakeq.error", b"Reject: no"]
    assert letter[-4:] == [b"wakeq.channel", b"news", b"body", b"reject"]


def test_a_careful_maker_tells_each_message_and_skips_those_that_ended_it() -> None:
    told: list[tuple[int, int]] = []
    maker = Maker(upper, "w", [(7, 1)], lambda *place: told.append(place), 1)
    outcome = make(maker, b"a", b"b", b"c", number=7)
    assert told == [(7, 0), (7, 2)]
    assert (outcome.published, outcome.dead) == (2, 1)
    assert outcome.error == "Crashed: the worker did not survive it"
    assert make(maker, b"a", b"b", number=8).published == 2
    assert len(told) == 2


# -- who takes a channel ---------------------------------------------------------------------


def test_a_cut_counts_from_when_a_channel_is_held_not_from_its_first_mark() -> None:
    def subscribe(_key: str) -> Subscription:
        raise AssertionError

    (channel,) = found = [Channel("news", "clicks", ("",))]
    url = RedisURL("redis://localhost")
    holder = Holder(Link(url), found, ("host/clicks", "process"), 5.0, subscribe)
    assert not holder.disconnect()
    channel.held = True
    assert holder.disconnect()
    assert not holder.disconnect()


def test_no_room_for_a_thread_is_told_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    memory = Memory(1000)
    line = Line(RedisURL("unix:///nowhere"), "test")
    line._socket, other = socket.socketpair()
    opened = os.listdir("/proc/self/fd")
    with other, monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(UnavailableError, match="no thread can be started: can't start"):
            Reader(line, memory, -1)
    assert (line.connected, memory.readers) == (False, ())
    assert len(os.listdir("/proc/self/fd")) <= len(opened) - 2


# -- what is said to workers -----------------------------------------------------------------


def test_what_is_said_arrives_whole_and_in_order() -> None:
    here, there = socket.socketpair()
    near, far = talk.Talk(here), talk.Talk(there)
    near.say(talk.BATCH, 1, [(b"c", [b"x", b"y"])])
    near.say(talk.MORE)
    near.finish()
    heard: list[Any] = []
    while (some := far.hear()) is not None:
        heard += some
    assert heard == [("batch", 1, [(b"c", [b"x", b"y"])]), ("more",)]
    near.close()
    far.close()


def test_what_is_said_in_pieces_is_put_together() -> None:
    here, there = socket.socketpair()
    far = talk.Talk(there)
    near = talk.Talk(here)
    near.say("a" * 300)
    raw = there.recv(1000)
    for at in range(0, len(raw), 7):
        here.sendall(raw[at : at + 7])
        heard = far.hear()
        assert heard == ([] if at + 7 < len(raw) else [("a" * 300,)])
    near.close()
    far.close()


# -- the settings ----------------------------------------------------------------------------


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    (tmp_path / "bridges").mkdir()
    return tmp_path


def read(etc: Path, text: str, options: dict[str, str] | None = None) -> Bridge:
    (etc / "bridges/clicks.toml").write_text(text)
    return Config(options, {"WAKEQ_CONFIG_DIR": str(etc)}, Bridge).bridge("clicks:2")


def test_a_bridge_has_one_source(etc: Path) -> None:
    assert read(etc, 'channel = "news"\n').channel == "news"
    with pytest.raises(ConfigError, match=r"has both channel and list"):
        read(etc, 'channel = "news"\nlist = "jobs"\n')
    with pytest.raises(ConfigError, match=r"must have one of channel, pattern, shard_channels"):
        read(etc, "workers = 2\n")
    with pytest.raises(ConfigError, match=r"has both transform and exec"):
        read(etc, 'channel = "c"\ntransform = "a:b"\nexec = ["/bin/true"]\n')


@pytest.mark.parametrize(
    "text", ['channel = "wakeq:doorbell"', 'pattern = "wakeq:*"', 'shard_channels = "wakeq:0..1"']
)
def test_channels_of_wakeqs_own_are_no_source(etc: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="channels that begin with wakeq: are wakeq's own: wakeq"):
        read(etc, text)


def test_an_option_names_another_source_than_the_file(etc: Path) -> None:
    section = read(etc, 'pattern = "news.*"\n', {"list_": "jobs"})
    assert (section.pattern, section.list_) == ("", "jobs")


def test_a_source_on_the_command_line_needs_no_file(etc: Path) -> None:
    config = Config({"channel": "news"}, {"WAKEQ_CONFIG_DIR": str(etc)}, Bridge)
    assert config.bridge("other").channel == "news"
    with pytest.raises(ConfigError, match="there is no such file"):
        Config({"workers": "2"}, {"WAKEQ_CONFIG_DIR": str(etc)}, Bridge).bridge("other")


def test_numbered_channels(etc: Path) -> None:
    assert read(etc, 'shard_channels = "log:0..2"\n').shard_channels == ["log:0", "log:1", "log:2"]
    assert read(etc, 'shard_channels = "log:9..10"\n').shard_channels == ["log:9", "log:10"]
    assert read(etc, 'shard_channels = "log7..7"\n').shard_channels == ["log7"]


@pytest.mark.parametrize(
    "value", ['"log"', '"log:0"', '"log:0.."', '"0..3"', '"log:3..1"', '"log:0..5000"', '"..3"',
              "7", '["a"]', '"log:0..x"', '"log:0..-1"'],
)  # fmt: skip
def test_what_are_no_numbered_channels(etc: Path, value: str) -> None:
    with pytest.raises(ConfigError, match="shard_channels must be"):
        read(etc, f"shard_channels = {value}\n")


def test_a_wrong_range_on_the_command_line_is_wrong_usage(etc: Path) -> None:
    with pytest.raises(UsageError, match=r"--shard-channels must be such as"):
        read(etc, "", {"shard_channels": "log"})


@pytest.mark.parametrize(
    ("text", "names", "described"),
    [
        ('channel = "news"', ["news"], "channel news"),
        ('pattern = "n*"', ["n*"], "channels n*"),
        ('shard_channels = "l:0..1"', ["l:0", "l:1"], "channels l:0 to l:1"),
        ('list = "jobs"', [], "list jobs"),
    ],
)
def test_a_source_in_words(etc: Path, text: str, names: list[str], described: str) -> None:
    section = read(etc, text)
    assert [channel.name for channel in channels(section, "clicks")] == names
    assert describe(section) == described
