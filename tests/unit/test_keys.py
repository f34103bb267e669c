"""The names of keys."""

from __future__ import annotations

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from redis.crc import key_slot

from wakeq import keys


def is_tagged(stream: str) -> bool:
    """Tell whether Redis Cluster hashes only a part of the name, as its specification says."""
    start = stream.find("{")
    end = stream.find("}", start + 1)
    return start >= 0 and end > start + 1


def slot(name: str) -> int:
    return int(key_slot(name.encode()))


@pytest.mark.parametrize(
    ("stream", "prefix"),
    [
        ("orders", "wakeq:{orders}"),
        ("shop:{7}:orders", "wakeq:shop:{7}:orders"),
        ("{7}", "wakeq:wakeq:{7}"),
        ("{7}:{8}", "wakeq:wakeq:{7}:{8}"),
        ("open{", "wakeq:{open{}"),
        ("{}empty", "wakeq:{{}empty}"),
    ],
)
def test_keys_of_a_stream_begin_with_its_prefix(stream: str, prefix: str) -> None:
    assert keys.prefix(stream) == prefix
    assert keys.retry(stream, "g") == f"{prefix}:retry:g"
    assert keys.stats(stream, "g") == f"{prefix}:stats:g"
    assert keys.alive(stream, "g", "host/c") == f"{prefix}:alive:g:host/c"
    assert keys.dedup(stream, "k") == f"{prefix}:dedup:k"


@given(st.text(st.sampled_from("ab:{}/ä "), min_size=1), st.text(max_size=5))
def test_keys_stand_in_the_slot_of_their_stream(stream: str, group: str) -> None:
    # A name with a } but no tag cannot be wrapped; see `keys.prefix`.
    assume(is_tagged(stream) or "}" not in stream)
    for key in (keys.retry(stream, group), keys.stats(stream, group), keys.dedup(stream, group)):
        assert slot(key) == slot(stream)
    for key in (keys.lease("n", stream), keys.emission(stream, "n")):
        assert slot(key) == slot(stream)
    for key in (keys.node_process(stream, "n", "h/1"), keys.node_processes(stream, "n")):
        assert slot(key) == slot(stream)


@given(st.text(st.sampled_from("a:{}")), st.text(min_size=1))
@example("{a}", "a")
@example("{a}", ":{a}")
def test_different_streams_have_different_prefixes(one: str, other: str) -> None:
    assume(one not in ("", other))
    assert keys.prefix(one) != keys.prefix(other)
