"""Where the value of a setting comes from; `sections` has the settings.

Lowest first: the defaults below, the table of the same name in `wakeq.toml`, the instance's
own file, the environment (`WAKEQ_*`), the options. Each error names the place that is wrong,
what is wrong there and what is right.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import combinations

from wakeq import toml
from wakeq.errors import ConfigError, UsageError
from wakeq.first_sections import TABLE_NAMES, Common, Consumer, Place
from wakeq.settings import Section, Setting, Wrong, nearest

TYPE_CHECKING = False  # typing itself takes longer to import than it is worth here
if TYPE_CHECKING:
    from typing import Any, TypeVar

    from wakeq.sections import Bridge, Delay, Fanout, Leader, Node, Trim, Wakeup

    AnySection = TypeVar("AnySection", bound=Section)

__all__ = ["Common", "Config", "Consumer", "Place", "instance_base", "read_file"]

# Where a bridge may take messages from: from one of them.
_SOURCES = ("channel", "pattern", "shard_channels", "list")
_NAME_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


def instance_base(name: str) -> str:
    """Return the consumer that an instance belongs to: `orders` for `orders:2`.

    Raises:
        UsageError: the name cannot be that of a unit's instance.
    """
    base, colon, number = name.partition(":")
    if not base or not set(base) <= _NAME_LETTERS or base.startswith("."):
        raise UsageError(f"a name has letters, digits, '_', '.' and '-', not {name!r}")
    if colon and not (number.isascii() and number.isdigit()):
        raise UsageError(f"an instance is written NAME:NUMBER, not {name!r}")
    return base


def read_file(path: str, optional: bool = False) -> dict[str, Any]:
    """Return the content of a TOML file; with `optional`, nothing if there is none.

    Raises:
        ConfigError: it cannot be read, or is no TOML.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return toml.loads(file.read())
    except FileNotFoundError:
        if optional:
            return {}
        raise ConfigError(f"{path}: there is no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from None


class Config:
    """Reads sections for one program: its files, its environment, its options.

    What is not for a consumer is loaded when it is asked for.

    Args:
        options: what the command line said, by the name of the setting.
        environ: the environment.
        own: the section that is the program's own; for it, Place and Common the environment
            and the options count. Other sections come from the files alone.
    """

    def __init__(
        self,
        options: Mapping[str, str] | None = None,
        environ: Mapping[str, str] = os.environ,
        own: type[Section] | None = None,
    ) -> None:
        self._options = options or {}
        self._environ = environ
        self._own = own
        self.place = Place()
        self._overlay(self.place)
        self._main: dict[str, Any] | None = None

    def common(self) -> Common:
        """Return what wakeq.toml says for all."""
        section = Common()
        path = self._main_path()
        self._apply(section, self._main_file(), path, skip=TABLE_NAMES)
        self._overlay(section)
        return section

    def wakeup(self) -> Wakeup:
        """Return the settings of wakeq-wakeup."""
        from wakeq.sections import Wakeup

        return self._whole(Wakeup(), "wakeup")

    def delay(self) -> Delay:
        """Return the settings of wakeq-delay.

        Raises:
            ConfigError: a setting is wrong, or there are two repairs.
        """
        from wakeq.sections import Delay

        section = self._whole(Delay(), "delay")
        if section.repair and section.repair_exec:
            raise ConfigError(
                f"{self._main_path()}: [delay] has both repair and repair_exec, but only one can"
                " be run"
            )
        return section

    def leader(self) -> Leader:
        """Return the settings of wakeq-leader."""
        from wakeq.sections import Leader

        return self._whole(Leader(), "leader")

    def fanout(self) -> Fanout:
        """Return the settings of wakeq-fanout."""
        from wakeq.sections import Fanout

        return self._whole(Fanout(), "fanout")

    def trim(self) -> Trim:
        """Return the settings of wakeq-trim.

        Raises:
            ConfigError: a setting is wrong, or they contradict each other.
        """
        from wakeq.sections import Trim

        section = self._whole(Trim(), "trim")
        if 0 < section.max_length < section.keep:
            raise ConfigError(
                f"max_length must be at least keep, which is {section.keep}, or 0 for none,"
                f" not {section.max_length}"
            )
        return section

    def consumer(self, name: str) -> Consumer:
        """Return the settings of a consumer, or of one of its instances.

        Raises:
            ConfigError: a setting is wrong, or there is neither handler nor exec.
        """
        base = instance_base(name)
        section = Consumer()
        self._apply_table(section, "consumer")
        path = os.path.join(self.place.config_dir, "consumers", f"{base}.toml")
        given = self._given(Consumer)
        # With a handler on the command line, no file is needed: the first try of a developer.
        values = read_file(path, optional="handler" in given or "exec" in given)
        self._apply(section, values, path)
        self._choose(section, ("handler", "exec"), values, path)
        self._overlay(section)
        if not section.handler and not section.exec_:
            raise ConfigError(
                f'{path}: must have handler = "package.module:callable"'
                ' or exec = ["/usr/bin/program"]'
            )
        if section.exec_ and section.python:
            raise ConfigError(f"{path}: python is for a handler, not for exec")
        if section.order == "strict" and section.concurrency > 1:
            raise ConfigError(
                f'{path}: order = "strict" handles one message after the other,'
                f" so concurrency must be 1, not {section.concurrency}"
            )
        section.stream = section.stream or base
        section.group = section.group or base
        return section

    def node(self, name: str) -> Node:
        """Return the settings of a node, or of one of its instances.

        Raises:
            ConfigError: a setting is wrong, or two contradict each other.
        """
        from wakeq.sections import Node

        base = instance_base(name)
        section = Node()
        self._apply_table(section, "node")
        path = os.path.join(self.place.config_dir, "nodes", f"{base}.toml")
        values = read_file(path, optional=bool(self._given(Node)))
        self._apply(section, values, path)
        for pair in (
            ("stream", "list"), ("handler", "exec"),
            ("interval", "calendar"), ("generate", "generate_exec"),
        ):  # fmt: skip
            self._choose(section, pair, values, path)
        self._overlay(section)
        if section.python and not (section.handler or section.generate):
            raise ConfigError(f"{path}: python is for a handler or generate, and there is neither")
        if section.error_list and not section.list_:
            raise ConfigError(f"{path}: error_list is for a list, a stream has dead letters")
        if not section.list_:
            section.stream = section.stream or base
        section.group = section.group or base
        return section

    def bridge(self, name: str) -> Bridge:
        """Return the settings of a bridge, or of one of its instances.

        Raises:
            ConfigError: a setting is wrong, or there is not one source exactly.
        """
        from wakeq.keys import OWN
        from wakeq.sections import Bridge

        base = instance_base(name)
        section = Bridge()
        self._apply_table(section, "bridge")
        path = os.path.join(self.place.config_dir, "bridges", f"{base}.toml")
        values = read_file(path, optional=bool(self._given(Bridge) & set(_SOURCES)))
        self._apply(section, values, path)
        for pair in (*combinations(_SOURCES, 2), ("transform", "exec")):
            self._choose(section, pair, values, path)
        self._overlay(section)
        if not (section.channel or section.pattern or section.shard_channels or section.list_):
            raise ConfigError(f"{path}: must have one of {', '.join(_SOURCES)}")
        for source in (section.channel, section.pattern, *section.shard_channels):
            if source.startswith(OWN):
                raise ConfigError(
                    f"{path}: channels that begin with {OWN} are wakeq's own: {source}"
                )
        return section

    def _whole(self, section: AnySection, table: str) -> AnySection:
        self._apply_table(section, table)
        self._overlay(section)
        return section

    def _choose(
        self, section: Section, pair: tuple[str, str], values: dict[str, Any], path: str
    ) -> None:
        """Of two settings that exclude each other, let the highest place that names one decide."""
        given = self._given(type(section))
        for named, where in ((given, "environment and options"), (values, path)):
            first, second = (key in named for key in pair)
            if first and second:
                raise ConfigError(f"{where}: has both {pair[0]} and {pair[1]}, but only one can be")
            if first or second:
                setting = section.table[pair[first]]
                setattr(section, setting.name, setting.default)
                return

    def _main_path(self) -> str:
        return os.path.join(self.place.config_dir, "wakeq.toml")

    def _main_file(self) -> dict[str, Any]:
        if self._main is None:
            self._main = read_file(self._main_path(), optional=True)
        return self._main

    def _apply_table(self, section: Section, name: str) -> None:
        values = self._main_file().get(name, {})
        path = self._main_path()
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: {name} must be a table, [{name}], not {values!r}")
        self._apply(section, values, f"{path}: [{name}]")

    def _apply(self, section: Section, values: dict[str, Any], where: str, skip: Any = ()) -> None:
        for key, value in values.items():
            setting = section.table.get(key)
            if setting is not None:
                _set(section, setting, setting.read, value, f"{where}: {key}")
            elif key not in skip:
                known = [*section.table, *skip]
                raise ConfigError(f"{where}: unknown setting {key!r}{nearest(key, known)}")

    def _given(self, kind: type[Section]) -> set[str]:
        """Return the keys of a section that the environment or an option sets."""
        if self._own is not kind:
            return set()
        return {
            key
            for key, setting in kind.table.items()
            if setting.name in self._options or self._environ.get(setting.variable)
        }

    def _overlay(self, section: Section) -> None:
        if not isinstance(section, Place | Common) and type(section) is not self._own:
            return
        for setting in section.table.values():
            value = self._environ.get(setting.variable)
            if value:  # set but empty is as good as not set
                _set(section, setting, setting.parse, value, f"environment: {setting.variable}")
            if setting.name in self._options:
                try:
                    value = self._options[setting.name]
                    setattr(section, setting.name, setting.parse(value))
                except Wrong as wrong:
                    raise UsageError(f"{setting.option} {wrong}") from None


def _set(section: Section, setting: Setting, read: Any, value: object, where: str) -> None:
    try:
        setattr(section, setting.name, read(value))
    except Wrong as wrong:
        raise ConfigError(f"{where} {wrong}") from None
