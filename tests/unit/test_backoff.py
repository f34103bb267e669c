"""Waiting times between tries."""

from __future__ import annotations

import random

import pytest

from wakeq.backoff import Backoff, Growth


def test_doubles_up_to_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    backoff = Backoff(base=0.1, cap=1.0)
    assert [backoff.next() for _ in range(6)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_draws_from_the_whole_range(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[float, float]] = []
    monkeypatch.setattr(random, "uniform", lambda low, high: drawn.append((low, high)) or low)
    assert Backoff(base=2.0, cap=3.0).next() == 0
    assert drawn == [(0, 2.0)]


def test_begins_anew_after_a_success() -> None:
    backoff = Backoff(base=0.1, cap=100.0)
    for _ in range(8):
        backoff.next()
    backoff.reset()
    assert backoff.next() <= 0.1


def test_stays_at_the_cap_however_often_it_fails() -> None:
    backoff = Backoff(base=0.1, cap=5.0)
    backoff.tries = 100_000
    assert 0 <= backoff.next() <= 5.0


def test_the_longest_wait_grows_by_its_factor_up_to_the_cap() -> None:
    growth = Growth(1.0, 3.0, 20.0)
    assert [growth.longest(tries) for tries in range(1, 6)] == [1, 3, 9, 20, 20]
    assert growth.longest(10**9) == 20.0
    assert all(0 <= growth.wait(2) <= 3 for _ in range(100))
