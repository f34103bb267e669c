"""Messages: encoding what is published, and reading what a stream gives."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wakeq.errors import Retry
from wakeq.message import Message, Publish, encode, unfold


def message(*items: bytes, entry_id: bytes = b"5-0") -> Message:
    return Message("orders", 0, entry_id, items)


@pytest.mark.parametrize(
    ("body", "encoded"),
    [
        (b"\xff", b"\xff"), ("ä", "ä".encode()), ("", b""), (bytearray(b"x"), b"x"),
        (memoryview(b"x"), b"x"), ({"a": [1, "ä"]}, '{"a":[1,"ä"]}'.encode()), (7, b"7"),
        (True, b"true"), ([], b"[]"), (0, b"0"), (False, b"false"),
    ],
)  # fmt: skip
def test_encodes_a_body(body: object, encoded: bytes) -> None:
    assert encode(body) == [b"body", encoded]


def test_encodes_fields_and_a_key() -> None:
    fields: dict[str | bytes, bytes | str | int | float] = {"a": 1, b"\xff": 0.5, "t": "x"}
    assert encode(fields=fields, key="north") == [
        b"a", b"1", b"\xff", b"0.5", b"t", b"x", b"wakeq.key", b"north",
    ]  # fmt: skip


def test_refuses_a_message_with_nothing_in_it() -> None:
    with pytest.raises(ValueError, match="must have a body or a field"):
        encode()


@pytest.mark.parametrize("name", ["wakeq.attempt", b"wakeq."])
def test_refuses_fields_that_are_ours(name: str | bytes) -> None:
    with pytest.raises(ValueError, match="must not begin with"):
        encode("x", {name: 1})


def test_refuses_what_json_cannot_say() -> None:
    with pytest.raises(TypeError):
        encode(object())


def test_a_publish_has_its_stream_and_items() -> None:
    publish = Publish("orders", {"id": 7}, fields={"n": 1}, key=b"k")
    assert publish.stream == "orders"
    assert publish.items == [b"body", b'{"id":7}', b"n", b"1", b"wakeq.key", b"k"]


@given(
    st.one_of(st.none(), st.binary()),
    st.dictionaries(st.binary().filter(lambda n: not n.startswith(b"wakeq.") and n != b"body"),
                    st.binary(), min_size=1),
    st.one_of(st.none(), st.binary()),
)  # fmt: skip
def test_what_is_encoded_can_be_read(
    body: bytes | None, fields: dict[str | bytes, bytes | str | int | float], key: bytes | None
) -> None:
    read = message(*encode(body, fields, key))
    assert read.body == (body or b"")
    assert {k: v for k, v in read.fields.items() if k != b"body"} == fields
    assert read.key == (key or b"")


def test_reads_the_body() -> None:
    read = message(b"body", b'{"a": 1}')
    assert read.body == b'{"a": 1}'
    assert read.text() == '{"a": 1}'
    assert read.json() == {"a": 1}


def test_a_body_that_is_missing_is_empty() -> None:
    assert message(b"a", b"1").body == b""
    assert message().fields == {}


def test_refuses_to_read_a_body_as_what_it_is_not() -> None:
    with pytest.raises(UnicodeDecodeError):
        message(b"body", b"\xff").text()
    with pytest.raises(ValueError, match="Expecting value"):
        message(b"body", b"").json()


def test_does_not_show_our_fields_among_the_others() -> None:
    read = message(b"a", b"1", b"wakeq.key", b"k", b"wakeq.attempt", b"2")
    assert read.fields == {b"a": b"1"}
    assert (read.key, read.attempt) == (b"k", 2)


def test_of_a_field_that_stands_twice_the_last_counts() -> None:
    assert message(b"a", b"1", b"a", b"2").fields == {b"a": b"2"}


def test_a_retried_message_keeps_its_first_id() -> None:
    assert message(b"a", b"1").id == "5-0"
    assert message(b"a", b"1", b"wakeq.first_id", b"1-0").id == "1-0"


@pytest.mark.parametrize("written", [b"", b"x", b"-1", "²".encode(), b"1.5"])
def test_an_attempt_that_is_no_number_is_the_first(written: bytes) -> None:
    assert message(b"wakeq.attempt", written).attempt == 1


def test_a_value_that_looks_like_our_field_is_none() -> None:
    assert message(b"a", b"wakeq.key", b"b", b"k").key == b""


def test_shows_itself_with_id_and_stream() -> None:
    assert repr(message()) == "<Message 5-0 of orders>"


def test_an_attempt_may_be_any_text() -> None:
    for text, attempt in ((b"7", 7), (b"", 1), (b"-2", 1), (b"x", 1), (b"9" * 5000, 999_999_999)):
        assert Message("s", 0, b"1-0", [b"wakeq.attempt", text]).attempt == attempt


@pytest.mark.parametrize("delay", [-1, -0.001, float("nan"), float("inf"), 1e12, "1min"])
def test_a_retry_takes_no_delay_that_is_none(delay: Any) -> None:
    with pytest.raises(ValueError, match="delay must be seconds, 0 or more, not"):
        Retry(delay=delay)


def test_a_retry_takes_fields_as_a_publish_does() -> None:
    retry = Retry("later", delay=0, fields={"body": {"a": 1}, b"raw": b"\xff", "n": 7})
    assert retry.fields == {b"body": b'{"a":1}', b"raw": b"\xff", b"n": b"7"}
    assert (str(retry), retry.delay) == ("later", 0)
    assert (str(Retry()), Retry().delay, Retry().fields) == ("", None, {})
    with pytest.raises(ValueError, match=r"must not begin with 'wakeq\.'"):
        Retry(fields={"wakeq.attempt": "1"})


@pytest.mark.parametrize("blob", [b"abc", b"\0\0\0\1a", b"\0\0\0\1a\0\0\0\2b", b"\xff" * 9])
def test_what_was_not_folded_is_not_unfolded(blob: bytes) -> None:
    items = [b"body", b"x", b"wakeq.folded", blob]
    assert unfold(items) == items
    assert Message("s", 1, b"1-0", items).body == b"x"
