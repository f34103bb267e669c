"""The example configuration: what it says is a default is one, and all of it can be read."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from wakeq.config import Common, Config
from wakeq.node.timetable import Timetable
from wakeq.sections import TABLES

EXAMPLES = Path(__file__).parents[2] / "packaging/config"


def test_what_is_commented_out_is_the_default() -> None:
    text = (EXAMPLES / "wakeq.toml").read_text()
    # As if each line that shows a setting were not commented out.
    shown = tomllib.loads(re.sub(r"(?m)^#(?=\w+ = )", "", text))
    for name, section in {"": Common, **TABLES}.items():
        values = shown if not name else shown[name]
        for key, value in values.items():
            if key in TABLES:
                continue
            setting = section.table[key]
            if setting.default in ("", []):
                continue  # off, so what is shown is an example
            # Some kinds of values are only equal in what they say.
            assert str(setting.read(value)) == str(setting.default), key


def test_nothing_is_set_in_it() -> None:
    sections = tomllib.loads((EXAMPLES / "wakeq.toml").read_text())
    assert set(sections) <= set(TABLES)
    assert not any(sections.values())


def test_every_common_setting_is_in_it() -> None:
    text = (EXAMPLES / "wakeq.toml").read_text()
    for key in Common.table:
        assert re.search(rf"(?m)^#{key} = ", text), key


@pytest.mark.parametrize("path", sorted((EXAMPLES / "consumers").iterdir()), ids=lambda p: p.stem)
def test_each_consumer_is_right(path: Path) -> None:
    Config({"config_dir": str(EXAMPLES)}).consumer(path.stem)


@pytest.mark.parametrize("path", sorted((EXAMPLES / "bridges").iterdir()), ids=lambda p: p.stem)
def test_each_bridge_is_right(path: Path) -> None:
    Config({"config_dir": str(EXAMPLES)}).bridge(path.stem)


@pytest.mark.parametrize("path", sorted((EXAMPLES / "nodes").iterdir()), ids=lambda p: p.stem)
def test_each_node_is_right(path: Path) -> None:
    settings = Config({"config_dir": str(EXAMPLES)}).node(path.stem)
    Timetable(settings)
