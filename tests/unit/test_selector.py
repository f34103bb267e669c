"""The selector: who is called when, and what is left of a file that is closed."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from wakeq.selector import Selector


@pytest.fixture
def selector() -> Iterator[Selector]:
    made = Selector()
    yield made
    made.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        try:
            os.close(fd)
        except OSError:
            pass  # by the test


def test_names_what_can_be_read(selector: Selector, pipe: tuple[int, int]) -> None:
    called: list[str] = []
    selector.register(pipe[0], lambda: called.append("x"))
    assert selector.wait(0.001) == []
    os.write(pipe[1], b"x")
    assert selector.wait(30) == [pipe[0]]
    selector.call(pipe[0])
    assert called == ["x"]


def test_names_what_has_ended(selector: Selector, pipe: tuple[int, int]) -> None:
    selector.register(pipe[0], lambda: None)
    os.close(pipe[1])
    assert selector.wait(30) == [pipe[0]]


def test_calls_nobody_for_what_was_unregistered(selector: Selector, pipe: tuple[int, int]) -> None:
    called: list[str] = []
    selector.register(pipe[0], lambda: called.append("x"))
    os.write(pipe[1], b"x")
    (ready,) = selector.wait(30)
    selector.unregister(pipe[0])
    selector.call(ready)
    assert called == []
    assert selector.wait(0) == []


def test_a_closed_file_may_be_forgotten_late(selector: Selector, pipe: tuple[int, int]) -> None:
    def call() -> None: ...

    selector.register(pipe[0], call)
    os.close(pipe[0])
    selector.forget(call)
    # The same number again, as of a connection that takes the place of another.
    assert os.dup2(pipe[1], pipe[0]) == pipe[0]
    os.close(pipe[0])
    other, write = os.pipe()
    assert other == pipe[0]
    selector.register(other, call)
    os.write(write, b"x")
    assert selector.wait(30) == [other]
    os.close(write)


def test_refuses_what_it_waits_for_already(selector: Selector, pipe: tuple[int, int]) -> None:
    selector.register(pipe[0], lambda: None)
    with pytest.raises(OSError, match="exists"):
        selector.register(pipe[0], lambda: None)


def test_is_not_told_of_a_closed_file_that_somebody_else_has_open(selector: Selector) -> None:
    called: list[str] = []
    old, new = os.pipe(), os.pipe()
    selector.register(new[0], lambda: called.append("another"))
    selector.register(old[0], lambda: called.append("old"))
    elsewhere = os.dup(old[0])  # as a child process has it
    os.close(old[0])
    selector.unregister(old[0])
    os.dup2(new[0], old[0])  # the number is used again
    selector.register(old[0], lambda: called.append("new"))
    os.write(old[1], b"x")
    assert selector.wait(0.01) == []
    os.write(new[1], b"x")
    assert sorted(selector.wait(30)) == sorted((new[0], old[0]))
    for fd in (*old, *new, elsewhere):
        os.close(fd)
