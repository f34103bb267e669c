"""What people see of the command: spans, values, tables, load and its pace."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wakeq.cli import load
from wakeq.cli.inspector import Inspector
from wakeq.cli.load import Load, Pace
from wakeq.cli.screen import readable, span, table


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0ms"), (-1, "0ms"), (0.82, "820ms"), (3.21, "3.2s"), (59.96, "1min"), (60, "1min"),
        (245, "4min 5s"), (3600, "1h"), (3605, "1h 5s"), (7380, "2h 3min"),
        (2 * 86400 + 3 * 3600 + 4, "2d 3h"),
    ],
)  # fmt: skip
def test_shows_a_time_span_in_two_units_at_most(seconds: float, shown: str) -> None:
    assert span(seconds) == shown


@given(st.binary(max_size=300))
def test_any_value_is_one_printable_line(value: bytes) -> None:
    shown = readable(value)
    assert shown.isprintable() or not shown
    assert len(shown) < 520


def test_cuts_no_character_in_two() -> None:
    assert readable(("a" + "ä" * 100).encode(), 10) == "aääää… (201 bytes)"


def test_aligns_columns() -> None:
    rows = [("name", "count"), ("a", "1,000"), ("longer", "5")]
    assert table(rows, right=(1,)) == [
        ["name  ", "count"], ["a     ", "1,000"], ["longer", "    5"],
    ]  # fmt: skip


def test_load_counts_on_from_batch_to_batch() -> None:
    made = Load("s", workers=2, payload_keys=0, size=None, words=False)
    first, second = list(made.messages(2)), list(made.messages(1))
    assert [message.items for message in first + second] == [
        [b"seq", b"%d" % i, b"worker", b"%d" % (i % 2)] for i in range(3)
    ]


@pytest.mark.parametrize("size", [1, 31, 32, 33, 5000])
@pytest.mark.parametrize("words", [False, True])
def test_a_body_has_its_size(size: int, words: bool) -> None:
    (message,) = Load("s", 1, 1, size, words).messages(1)
    expected = size if size != 32 or not words else None
    assert expected is None or len(message.items[-1]) == expected


def test_takes_its_own_words_without_a_dictionary(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(load, "_DICTIONARY", str(tmp_path / "none"))
    (message,) = Load("s", 1, 1, None, True).messages(1)
    assert message.items[-1].decode() in load._WORDS.split()


class Clock:
    """A clock that moves only when somebody waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.wait)

    def wait(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds


def test_without_an_interval_a_batch_is_due_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    assert Pace(0.0, 1).wait(10**6) == 1000
    assert Pace(0.0, 1).wait(7) == 7
    assert clock.now == 100.0


def test_workers_are_due_together(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    pace = Pace(0.1, 5)  # five workers, each twice a second
    due = [(pace.wait(100), round(clock.now - 100, 3)) for _ in range(3)]
    assert due == [(5, 0), (5, 0.5), (5, 1.0)]


def test_catches_up_after_a_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    pace = Pace(0.01, 1)
    assert pace.wait(10**6) == 1
    clock.now += 1.0
    assert pace.wait(10**6) == 100


@pytest.mark.parametrize(
    ("answer", "level", "text"),
    [
        ("LoadState=loaded\nActiveState=active\nUnitFileState=enabled", "ok", "enabled and active"),
        ("LoadState=not-found\nActiveState=inactive", "warning", "install the units"),
        ("LoadState=masked\nActiveState=inactive", "warning", "is masked to systemd"),
        ("LoadState=loaded\nActiveState=failed", "error", "systemctl reset-failed a.socket"),
        ("LoadState=loaded\nActiveState=inactive", "warning", "systemctl enable --now a.socket"),
        ("LoadState=loaded\nActiveState=active\nUnitFileState=disabled", "warning", "at boot"),
    ],
)
def test_judges_a_unit(tmp_path: Path, answer: str, level: str, text: str) -> None:
    finding = Inspector(None, False)._unit(fake_systemctl(tmp_path, f"echo '{answer}'"), "a.socket")  # type: ignore[arg-type]
    assert finding.level == level
    assert text in finding.text


@pytest.mark.parametrize(
    ("script", "text"), [("echo no bus >&2; exit 1", "no bus"), (None, "answer")]
)
def test_says_that_systemctl_does_not_answer(tmp_path: Path, script: str | None, text: str) -> None:
    program = fake_systemctl(tmp_path, script) if script else str(tmp_path / "none")
    finding = Inspector(None, False)._unit(program, "a.socket")  # type: ignore[arg-type]
    assert finding.level == "warning"
    assert text in finding.text


def fake_systemctl(directory: Path, script: str) -> str:
    program = directory / "systemctl"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)
