"""Every setting of wakeq, and where its value comes from.

Lowest first: the defaults below, the table of the same name in `wakeq.toml`, the instance's
own file, the environment (`WAKEQ_*`), the options. Each error names the place that is wrong,
what is wrong there and what is right.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from wakeq import toml
from wakeq.backoff import Growth
from wakeq.errors import ConfigError, UsageError
from wakeq.settings import (
    Section,
    Setting,
    Wrong,
    choice,
    command,
    duration,
    flag,
    growth,
    integer,
    nearest,
    patterns,
    text,
)

TYPE_CHECKING = False  # typing itself takes longer to import than it is worth here
if TYPE_CHECKING:
    from typing import Any


_NAME_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


class Place(Section):
    """Where the files are: from options and the environment only."""

    config_dir = text("where wakeq.toml and consumers/ are", "/etc/wakeq", "DIR")
    runtime_dir = text("where consumer/NAME.sock are", "/run/wakeq", "DIR")


class Common(Section):
    """What every daemon and the command need: the top level of wakeq.toml."""

    redis_url = text(
        "the Redis server: redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://",
        "redis://127.0.0.1:6379/0",
        "URL",
    )
    start_timeout = duration(
        "how long to try to reach Redis at the start before giving up with exit code 69", 60.0
    )
    log_level = choice("the least level that is logged", "info", "debug", "info", "warning")


class Consumer(Section):
    """A consumer: consumers/NAME.toml, with defaults for all in [consumer] of wakeq.toml."""

    stream = text("the stream to read (default: NAME)", "")
    group = text("the consumer group (default: NAME)", "")
    start = choice("where a new group begins: 0, the oldest message, or $, the next one", "0",
                   "0", "$")  # fmt: skip
    handler = text("what to call for each message: package.module:callable or /a/file.py:callable",
                   "")  # fmt: skip
    exec_ = command("what to run for each message instead: a program with its arguments")
    python = text("run the handler with this interpreter, of the application's own environment",
                  "", "FILE")  # fmt: skip
    concurrency = integer("how many messages are handled at once", 1, low=1, high=1000)
    prefetch = integer("at most this many messages in hand for each of them", 1000,
                       low=1, high=10000)  # fmt: skip
    order = choice("none; key: messages with the same wakeq.key one after another; strict: all"
                   " messages, by one consumer of the group at a time", "none",
                   "none", "key", "strict")  # fmt: skip
    standby = choice("strict order, another consumer is at it: wait for it to leave, or exit",
                     "wait", "wait", "exit")  # fmt: skip
    lease = duration("strict order, after a crash another consumer takes over after this long",
                     10.0, low=1.0)  # fmt: skip
    timeout = duration("a message that takes longer has failed (0: no limit)", 0.0,
                       low=0.001, off=True)  # fmt: skip
    max_attempts = integer("a message that failed so often is a dead letter (0: never)", 10,
                           low=0, high=1_000_000)  # fmt: skip
    max_crashes = integer("so is a message whose handler ended the whole process so often", 3,
                          low=1, high=1000)  # fmt: skip
    backoff = growth("how long to wait at most before another try, each time a random part of it",
                     Growth(1.0, 2.0, 600.0))  # fmt: skip
    idle_timeout = duration("exit when nothing came for this long", 30.0, low=2.5)
    drain_timeout = duration("at a stop, how long to wait for messages being handled", 60.0)
    claim_after = duration("take over messages of a consumer that is gone after this long", 60.0,
                           low=1.0)  # fmt: skip
    scale_lag = integer("wake one more instance for each so many unread messages", 1000,
                        low=1, high=1_000_000_000)  # fmt: skip


class Wakeup(Section):
    """wakeq-wakeup: [wakeup] of wakeq.toml."""

    recheck = duration("look at everything again this often, should a hint be lost", 60.0, low=1.0)
    starts = integer("start at most this many consumers at once (0: two for each CPU)", 0,
                     low=0, high=1000)  # fmt: skip
    discover = flag("also wake groups whose name is the path of a socket")


class Trim(Section):
    """wakeq-trim and wakeq trim: [trim] of wakeq.toml."""

    keep = integer("leave at least so many of the newest messages of each stream", 1000,
                   low=0, high=1_000_000_000)  # fmt: skip
    max_length = integer(
        "LOSES MESSAGES: remove all but so many, even those that a group needs (0: never)", 0,
        low=0, high=1_000_000_000,
    )  # fmt: skip
    streams = patterns("trim these streams, too, not only those that wakeq has seen")


class Delay(Section):
    """wakeq-delay: [delay] of wakeq.toml."""

    recheck = duration("look at everything again this often, should a hint be lost", 60.0, low=1.0)
    repair = text("what to call for each failed message before it is delivered again:"
                  " package.module:callable or /a/file.py:callable", "")  # fmt: skip
    repair_exec = command("what to run for each failed message instead: a program, arguments")
    repair_timeout = duration("a repair that takes longer has failed", 30.0, low=0.1)


class Leader(Section):
    """wakeq-leader: [leader] of wakeq.toml."""

    lease = duration("after a crash or a cut of the network another host leads after this long",
                     10.0, low=1.0)  # fmt: skip
    stop_timeout = duration("how long what is bound to the target may take to stop: at least as"
                            " long as any TimeoutStopSec= of it", 2.0)  # fmt: skip


# Tables of wakeq.toml, by name; the top level is Common.
TABLES: dict[str, type[Section]] = {
    "consumer": Consumer,
    "wakeup": Wakeup,
    "delay": Delay,
    "trim": Trim,
    "leader": Leader,
}


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
        self._apply(section, self._main_file(), path, skip=TABLES)
        self._overlay(section)
        return section

    def wakeup(self) -> Wakeup:
        """Return the settings of wakeq-wakeup."""
        section = Wakeup()
        self._apply_table(section, "wakeup")
        self._overlay(section)
        return section

    def delay(self) -> Delay:
        """Return the settings of wakeq-delay.

        Raises:
            ConfigError: a setting is wrong, or there are two repairs.
        """
        section = Delay()
        self._apply_table(section, "delay")
        self._overlay(section)
        if section.repair and section.repair_exec:
            raise ConfigError(
                f"{self._main_path()}: [delay] has both repair and repair_exec, but only one can"
                " be run"
            )
        return section

    def leader(self) -> Leader:
        """Return the settings of wakeq-leader."""
        section = Leader()
        self._apply_table(section, "leader")
        self._overlay(section)
        return section

    def trim(self) -> Trim:
        """Return the settings of wakeq-trim.

        Raises:
            ConfigError: a setting is wrong, or they contradict each other.
        """
        section = Trim()
        self._apply_table(section, "trim")
        self._overlay(section)
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
        if "handler" in values and "exec" in values:
            raise ConfigError(f"{path}: has both handler and exec, but only one can be run")
        # The highest place that names either decides, so the other is taken back.
        for named in (given, values):
            if "handler" in named or "exec" in named:
                setattr(section, *(("exec_", []) if "handler" in named else ("handler", "")))
                break
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
