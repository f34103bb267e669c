"""Kinds of settings: what they take, and what they say about what they do not take."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wakeq.backoff import Growth
from wakeq.settings import (
    Section,
    Setting,
    Wrong,
    choice,
    command,
    duration,
    flag,
    format_duration,
    growth,
    integer,
    nearest,
    parse_duration,
    text,
)


class Every(Section):
    """One of each kind."""

    word = text("a word", "w", "WORD")
    colour = choice("a colour", "red", "red", "blue")
    number = integer("a number", 3, low=1, high=10)
    on = flag("a switch")
    pause = duration("a pause", 1.0, low=0.5, off=True)
    exec_ = command("a program")
    waits = growth("a growing wait", Growth(1.0, 2.0, 600.0))


def setting(name: str) -> Setting:
    return Every.table[name]


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("30", 30), ("0", 0), ("0.5", 0.5), (".5", 0.5), ("500ms", 0.5), ("250 ms", 0.25),
        ("5us", 5e-6), ("5µs", 5e-6), ("30s", 30), ("5min", 300), ("5m", 300), ("2h", 7200),
        ("1h 30min", 5400), ("1h30min", 5400), ("1d", 86400), ("1week", 604800), ("2w", 1209600),
        ("1 hour", 3600), (" 5 sec ", 5),
    ],
)  # fmt: skip
def test_reads_a_time_span(written: str, seconds: float) -> None:
    assert parse_duration(written) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "written",
    ["", " ", "soon", "5 parsecs", "-5s", "1e3", "nan", "inf", "5s!", "1.2.3s", "s", "٣s"],
)
def test_refuses_what_is_no_time_span(written: str) -> None:
    with pytest.raises(Wrong, match="must be a time span such as"):
        parse_duration(written)


def test_refuses_a_time_span_beyond_what_redis_takes() -> None:
    assert parse_duration("23d") * 1000 < 2**31
    with pytest.raises(Wrong, match="must be at most"):
        parse_duration("24d")


@given(st.text())
def test_any_text_is_a_time_span_or_wrong(written: str) -> None:
    with suppress(Wrong):
        assert parse_duration(written) >= 0


@given(st.integers(0, 2_000_000_000))
def test_what_is_formatted_can_be_read(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, rel=1e-5)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0, "0s"),
        (0.25, "250ms"),
        (30.0, "30s"),
        (90.0, "90s"),
        (600, "10min"),
        (1_234_567.0, "1234567s"),
    ],
)
def test_formats_a_time_span_as_people_write_it(seconds: float, shown: str) -> None:
    assert format_duration(seconds) == shown


def test_a_section_has_its_defaults() -> None:
    section = Every()
    assert (section.word, section.number, section.on, section.exec_) == ("w", 3, False, [])


def test_a_setting_is_named_after_its_attribute() -> None:
    exec_ = setting("exec")
    assert (exec_.name, exec_.key) == ("exec_", "exec")
    assert (exec_.option, exec_.variable) == ("--exec", "WAKEQ_EXEC")


def test_a_subclass_has_the_settings_of_its_base_too() -> None:
    class More(Every):
        extra = integer("one more", 1, low=0, high=2)

    assert set(More.table) == {*Every.table, "extra"}
    assert "extra" not in Every.table


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("word", "x", "x"), ("colour", "blue", "blue"), ("number", 10, 10), ("on", True, True),
        ("pause", 2, 2.0), ("pause", 0.75, 0.75), ("pause", "2min", 120.0), ("pause", 0, 0.0),
        ("exec", ["/bin/true", "-x"], ["/bin/true", "-x"]),
    ],
)  # fmt: skip
def test_reads_a_value_of_a_file(name: str, value: object, read: object) -> None:
    assert setting(name).read(value) == read


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("word", 5, "must be text, not 5"),
        ("word", "", "must be text, not ''"),
        ("colour", "green", "must be 'red' or 'blue', not 'green'"),
        ("colour", ["red"], "must be 'red' or 'blue'"),
        ("number", 0, "must be 1 to 10, not 0"),
        ("number", 11, "must be 1 to 10, not 11"),
        ("number", "5", "must be 1 to 10, not '5'"),
        ("number", True, "must be 1 to 10, not True"),
        ("number", 5.0, "must be 1 to 10, not 5.0"),
        ("on", "yes", "must be true or false, not 'yes'"),
        ("on", 1, "must be true or false, not 1"),
        ("pause", True, "must be a time span"),
        ("pause", -1, "must be at least 500ms (or 0 for none), not -1"),
        ("pause", 0.1, "must be at least 500ms"),
        ("pause", float("nan"), "must be"),
        ("pause", float("inf"), "must be"),
        ("pause", 10**400, "must be at most"),
        ("pause", [], "must be a time span"),
        ("exec", [], "must be a list such as"),
        ("exec", "/bin/true", "must be a list such as"),
        ("exec", ["/bin/true", 5], "must be a list such as"),
        ("exec", ["true"], "must begin with the full path of a program, not 'true'"),
    ],
)
def test_says_what_is_wrong_with_a_value_of_a_file(
    name: str, value: object, complaint: str
) -> None:
    with pytest.raises(Wrong) as caught:
        setting(name).read(value)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("name", "written", "parsed"),
    [
        ("word", "x", "x"), ("number", "5", 5), ("on", "Yes", True), ("on", "off", False),
        ("pause", "2s", 2.0), ("exec", "/bin/echo 'a b'", ["/bin/echo", "a b"]),
    ],
)  # fmt: skip
def test_parses_text(name: str, written: str, parsed: object) -> None:
    assert setting(name).parse(written) == parsed


@pytest.mark.parametrize(
    ("name", "written", "complaint"),
    [
        ("number", "many", "must be 1 to 10, not 'many'"),
        ("number", "0", "must be 1 to 10, not 0"),
        ("on", "perhaps", "must be yes or no, not 'perhaps'"),
        ("exec", "/bin/echo 'open", "must be a command line"),
        ("exec", "echo", "must begin with the full path"),
    ],
)
def test_says_what_is_wrong_with_text(name: str, written: str, complaint: str) -> None:
    with pytest.raises(Wrong) as caught:
        setting(name).parse(written)
    assert complaint in str(caught.value)


def test_names_the_nearest_known_word() -> None:
    assert nearest("handlr", ["handler", "exec"]) == " (did you mean 'handler'?)"
    assert nearest("zzz", ["handler", "exec"]) == ""


# -- growing waits -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "option", "known"),
    [
        ({}, "", (1.0, 2.0, 600.0)),
        ({"base": "500ms"}, "base=500ms", (0.5, 2.0, 600.0)),
        ({"base": 3, "factor": 1, "cap": "1h"}, "base=3,factor=1,cap=1h", (3.0, 1.0, 3600.0)),
        ({"factor": 1.5}, " factor=1.5 ", (1.0, 1.5, 600.0)),
        ({"base": "2s", "cap": "2s"}, "cap=2s base=2s", (2.0, 2.0, 2.0)),
    ],
)
def test_reads_how_a_wait_grows(
    table: dict[str, object], option: str, known: tuple[float, float, float]
) -> None:
    for value in (setting("waits").read(table), setting("waits").parse(option)):
        assert isinstance(value, Growth)
        assert (value.base, value.factor, value.cap) == known
        again = setting("waits").parse(str(value))
        assert isinstance(again, Growth)
        assert (again.base, again.factor, again.cap) == known


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("1s", "must be a table such as { base"),
        (5, "must be a table such as { base"),
        ({"bas": "1s"}, "has base, factor and cap, not 'bas'"),
        ({"base": "soon"}, "has a base that must be a time span"),
        ({"base": 0}, "has a base that must be at least 1ms, not 0"),
        ({"cap": -1}, "has a cap that must be at least"),
        ({"factor": "2"}, "has a factor that must be a number, not '2'"),
        ({"factor": True}, "has a factor that must be a number, not True"),
        ({"factor": 0.5}, "has a factor that must be 1 to 100, not 0.5"),
        ({"factor": 101}, "has a factor that must be 1 to 100, not 101"),
        ({"factor": float("nan")}, "has a factor that must be 1 to 100, not nan"),
        ({"base": "1h", "cap": "1min"}, "has a cap, 1min, below its base, 60min"),
        ({"base": "1h"}, "has a cap, 10min, below its base, 60min"),
    ],
)
def test_says_what_is_wrong_with_how_a_wait_grows(table: object, said: str) -> None:
    with pytest.raises(Wrong) as caught:
        setting("waits").read(table)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("option", ["1s", "base", "factor=two", "base=1s;cap=2s", "speed=3"])
def test_refuses_an_option_that_is_no_growing_wait(option: str) -> None:
    with pytest.raises(Wrong):
        setting("waits").parse(option)
