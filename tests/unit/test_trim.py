"""wakeq-trim: its settings, and how large a slice it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wakeq.config import Config
from wakeq.errors import ConfigError
from wakeq.sections import Trim
from wakeq.trim import trimmer as trimmer_module
from wakeq.trim.finder import is_own
from wakeq.trim.trimmer import Trimmed, Trimmer


def read(folder: Path, text: str, **env: str) -> Trim:
    (folder / "wakeq.toml").write_text(f"[trim]\n{text}\n")
    return Config(environ={"WAKEQ_CONFIG_DIR": str(folder), **env}, own=Trim).trim()


def test_loses_nothing_by_default(tmp_path: Path) -> None:
    settings = read(tmp_path, "")
    assert (settings.keep, settings.max_length, settings.streams) == (1000, 0, [])


def test_streams_are_a_list_or_words(tmp_path: Path) -> None:
    assert read(tmp_path, 'streams = ["a b", "c-*"]').streams == ["a b", "c-*"]
    assert read(tmp_path, "", WAKEQ_STREAMS="a  c-*").streams == ["a", "c-*"]


@pytest.mark.parametrize("value", ['"orders"', "[1]", '[""]', "{}"])
def test_streams_that_are_no_names_are_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError, match=r"streams must be a list such as"):
        read(tmp_path, f"streams = {value}")


@pytest.mark.parametrize(("text", "right"), [
    ("keep = 5\nmax_length = 5", True), ("keep = 5\nmax_length = 4", False),
    ("keep = 5\nmax_length = 0", True), ("max_length = 999", False),
])  # fmt: skip
def test_the_hard_limit_leaves_what_is_to_be_kept(tmp_path: Path, text: str, right: bool) -> None:
    if right:
        read(tmp_path, text)
        return
    with pytest.raises(ConfigError, match=r"max_length must be at least keep"):
        read(tmp_path, text)


@pytest.mark.parametrize(("name", "own"), [
    (b"wakeq:streams", True), (b"wakeq:{orders}:retry:g", True), (b"wakeq:{a}b:dead:g", True),
    (b"orders", False), (b"wakeq", False), (b"my:wakeq:x", False),
])  # fmt: skip
def test_knows_keys_of_our_own(name: bytes, own: bool) -> None:
    assert is_own(name) is own


class SlowServers:
    """Servers that take a time, said beforehand, for each slice, and note how large it was."""

    def __init__(self) -> None:
        self.now = 0.0
        self.seconds = 0.0
        self.asked: list[int] = []

    def monotonic(self) -> float:
        """Return the time."""
        return self.now

    def run(self, _script: Any, _keys: Any, arguments: tuple[Any, ...]) -> list[Any]:
        """Trim."""
        self.asked.append(arguments[2])
        self.now += self.seconds
        return [b"stream", 1, 0, 1, 0, b""]


def test_slices_become_smaller_when_redis_takes_long_and_larger_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    servers = SlowServers()
    monkeypatch.setattr(trimmer_module.time, "monotonic", servers.monotonic)
    trimmer = Trimmer(servers, Trim())  # type: ignore[arg-type]

    def take(count: int, seconds: float) -> list[int]:
        servers.seconds = seconds
        servers.asked.clear()
        for _ in range(count):
            assert trimmer.slice(Trimmed(b"s"))
        return servers.asked

    # A Redis that is far away takes as long for each: that is not its work.
    assert set(take(5, 0.030)) == {2000}
    assert take(4, 0.040) == [2000, 1000, 500, 250]
    assert min(take(10, 0.040)) == 20
    larger = take(30, 0.030)
    assert larger == sorted(larger)
    assert larger[-1] == 2000
