"""Kinds of settings: how a value is read from TOML or from text, checked and described.

A section of the configuration is a class whose attributes are made by the functions below:

    class Consumer(Section):
        concurrency = integer("how many messages are handled at once", 1, low=1, high=1000)

The class then knows its settings by name (`Consumer.table`), and an instance has their
values with the right types. A setting stands there once; files, environment, options, help
and man pages all come from it. What is wrong with a value is raised as `Wrong`, which the
caller completes with where the value stood.
"""

from __future__ import annotations

from collections.abc import Callable

from wakeq.backoff import Growth

TYPE_CHECKING = False  # typing itself takes longer to import than it is worth here
if TYPE_CHECKING:
    from typing import Any, ClassVar, cast
else:

    def cast(_kind, value):
        return value


_SECONDS = {
    **dict.fromkeys(("us", "usec", "µs"), 1e-6),
    **dict.fromkeys(("ms", "msec"), 1e-3),
    **dict.fromkeys(("", "s", "sec", "second", "seconds"), 1.0),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hr", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
    **dict.fromkeys(("w", "week", "weeks"), 604800.0),
}
# The whole range of 32-bit milliseconds that every Redis command and poll(2) take.
_LONGEST_SECONDS = 2_000_000.0
_NUMBERED_MOST = 1024
_GROWTH = '{ base = "1s", factor = 2, cap = "10min" }'


class Wrong(Exception):
    """A value is not what the setting takes; the text goes on after the setting's name."""


class Setting:
    """One setting: its name, default, help line, and how a value of it is read.

    `read` takes what TOML gives (str, int, float, bool, list, dict); `from_text` tells whether
    text from the environment or an option is read as a TOML string, too, or needs `parse`.
    """

    __slots__ = ("default", "describe", "help", "name", "parse", "read")

    def __init__(
        self,
        help_line: str,
        default: object,
        read: Callable[[object], object],
        describe: str,
        parse: Callable[[str], object] | None = None,
    ) -> None:
        self.name = ""
        self.help = help_line
        self.default = default
        self.read = read
        self.parse = parse or read
        self.describe = describe

    @property
    def option(self) -> str:
        """Return the command-line option of this setting."""
        return "--" + self.name.rstrip("_").replace("_", "-")

    @property
    def variable(self) -> str:
        """Return the environment variable of this setting."""
        return "WAKEQ_" + self.name.rstrip("_").upper()

    @property
    def key(self) -> str:
        """Return the key of this setting in a configuration file."""
        return self.name.rstrip("_")


class Section:
    """Values of one table of settings, as attributes."""

    table: ClassVar[dict[str, Setting]] = {}

    def __init_subclass__(cls) -> None:
        cls.table = dict(cls.table)
        for name, setting in list(vars(cls).items()):
            if isinstance(setting, Setting):
                setting.name = name
                cls.table[setting.key] = setting

    def __init__(self) -> None:
        for setting in self.table.values():
            setattr(self, setting.name, setting.default)


def parse_duration(text: str, longest: float = _LONGEST_SECONDS) -> float:
    """Return the seconds of a time span such as `30s`, `1h 30min` or `0.5`.

    The form is that of systemd.time(7): numbers with units, added up; no unit means seconds.

    Raises:
        Wrong: the text is no time span, or it is longer than `longest` (seconds).
    """
    total, rest = 0.0, text.strip()
    if not rest:
        raise Wrong(f"must be a time span such as 500ms, 30s or 5min, not {text!r}")
    while rest:
        digits = len(rest) - len(rest.lstrip("0123456789."))
        tail = rest[digits:].lstrip()
        letters = len(tail) - len(tail.lstrip("abcdefghijklmnopqrstuvwxyzµ"))
        unit = tail[:letters]
        try:
            total += float(rest[:digits]) * _SECONDS[unit]
        except (ValueError, KeyError):
            raise Wrong(f"must be a time span such as 500ms, 30s or 5min, not {text!r}") from None
        rest = tail[letters:].lstrip()
    if total > longest:
        raise Wrong(f"must be at most {longest:.0f} seconds, not {text!r}")
    return total


def format_duration(seconds: float) -> str:
    """Return a time span in the form that `parse_duration` reads."""
    if seconds and seconds < 1:
        return f"{_plain(seconds * 1000)}ms"
    if seconds >= 60 and seconds % 60 == 0:
        return f"{_plain(seconds / 60)}min"
    return f"{_plain(seconds)}s"


def _plain(number: float) -> str:
    """Return a number without an exponent, which `parse_duration` does not read."""
    return str(number) if isinstance(number, int) else f"{number:.6f}".rstrip("0").rstrip(".")


def text(help_line: str, default: object, describe: str = "text") -> str:
    """Make a setting that takes text."""

    def read(value: object) -> str:
        if not isinstance(value, str) or not value:
            raise Wrong(f"must be text, not {value!r}")
        return value

    return cast(str, Setting(help_line, default, read, describe))


def choice(help_line: str, default: str, *choices: str) -> str:
    """Make a setting that takes one of a few words."""

    def read(value: object) -> str:
        if value not in choices:
            raise Wrong(f"must be {' or '.join(map(repr, choices))}, not {value!r}")
        return value

    return cast(str, Setting(help_line, default, read, " | ".join(choices)))


def integer(help_line: str, default: int, *, low: int, high: int) -> int:
    """Make a setting that takes a whole number in a range."""

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise Wrong(f"must be {low} to {high}, not {value!r}")
        return value

    def parse(value: str) -> int:
        try:
            return read(int(value))
        except ValueError:
            raise Wrong(f"must be {low} to {high}, not {value!r}") from None

    return cast(int, Setting(help_line, default, read, f"{low}..{high}", parse))


def flag(help_line: str, default: bool = False) -> bool:
    """Make a setting that is on or off."""
    words = {"1": True, "yes": True, "true": True, "on": True}
    words |= {"0": False, "no": False, "false": False, "off": False}

    def read(value: object) -> bool:
        if not isinstance(value, bool):
            raise Wrong(f"must be true or false, not {value!r}")
        return value

    def parse(value: str) -> bool:
        try:
            return words[value.lower()]
        except KeyError:
            raise Wrong(f"must be yes or no, not {value!r}") from None

    return cast(bool, Setting(help_line, default, read, "true | false", parse))


def duration(help_line: str, default: float, *, low: float = 0.0, off: bool = False) -> float:
    """Make a setting that takes a time span; its value is in seconds.

    With `off`, 0 is taken too, whatever `low` says, and means that there is none.
    """

    def read(value: object) -> float:
        return _read_span(value, low, off)

    return cast(float, Setting(help_line, default, read, "time span"))


def _read_span(value: object, low: float, off: bool = False) -> float:
    if isinstance(value, str):
        seconds = parse_duration(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = parse_duration(_plain(value)) if value >= 0 else -1.0
    else:
        raise Wrong(f"must be a time span such as 500ms, 30s or 5min, not {value!r}")
    if seconds < low and not (off and seconds == 0):
        or_off = " (or 0 for none)" if off else ""
        raise Wrong(f"must be at least {format_duration(low)}{or_off}, not {value!r}")
    return seconds


def growth(help_line: str, default: Growth) -> Growth:
    """Make a setting that says how the wait between tries grows; what is left out is as default."""

    def read(value: object) -> Growth:
        if not isinstance(value, dict):
            raise Wrong(f"must be a table such as {_GROWTH}, not {value!r}")
        if unknown := sorted(value.keys() - {"base", "factor", "cap"}):
            raise Wrong(f"has base, factor and cap, not {unknown[0]!r}")
        factor = value.get("factor", default.factor)
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            raise Wrong(f"has a factor that must be a number, not {factor!r}")
        if not 1 <= factor <= 100:
            raise Wrong(f"has a factor that must be 1 to 100, not {factor!r}")
        spans = []
        for name, least, usual in (("base", 0.001, default.base), ("cap", 0.0, default.cap)):
            try:
                spans.append(_read_span(value.get(name, usual), least))
            except Wrong as wrong:
                raise Wrong(f"has a {name} that {wrong}") from None
        if spans[1] < spans[0]:
            raise Wrong(
                f"has a cap, {format_duration(spans[1])}, below its base,"
                f" {format_duration(spans[0])}"
            )
        return Growth(spans[0], float(factor), spans[1])

    def parse(value: str) -> Growth:
        parts = dict(part.partition("=")[::2] for part in value.replace(",", " ").split())
        try:
            return read({k: float(v) if k == "factor" else v for k, v in parts.items()})
        except ValueError:
            raise Wrong(f"must be such as base=1s,factor=2,cap=10min, not {value!r}") from None

    return cast(Growth, Setting(help_line, default, read, "base=1s,factor=2,cap=10min", parse))


def command(help_line: str) -> list[str]:
    """Make a setting that takes a program with its arguments; none by default."""

    def read(value: object) -> list[str]:
        if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
            raise Wrong(f'must be a list such as ["/usr/bin/program", "argument"], not {value!r}')
        if not value[0].startswith("/"):
            raise Wrong(f"must begin with the full path of a program, not {value[0]!r}")
        return value

    def parse(value: str) -> list[str]:
        import shlex  # only who sets a program outside a file pays for it

        try:
            return read(shlex.split(value))
        except ValueError as error:
            raise Wrong(f"must be a command line, not {value!r}: {error}") from None

    return cast("list[str]", Setting(help_line, [], read, "list of text", parse))


def patterns(help_line: str) -> list[str]:
    """Make a setting that takes names with `*`, `?` and `[a-z]` in them; none by default."""

    def read(value: object) -> list[str]:
        if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
            raise Wrong(f'must be a list such as ["orders", "mail-*"], not {value!r}')
        return value

    return cast("list[str]", Setting(help_line, [], read, "names", lambda v: read(v.split())))


def numbered(help_line: str) -> list[str]:
    """Make a setting that takes names with numbers, `log:0..7` for eight; none by default."""

    def read(value: object) -> list[str]:
        if not isinstance(value, str):
            raise Wrong(f'must be such as "log:0..7", not {value!r}')
        head, dots, last = value.rpartition("..")
        base = head.rstrip("0123456789")
        first = head[len(base) :]
        if not (dots and base and first.isdigit() and last.isascii() and last.isdigit()):
            raise Wrong(f'must be such as "log:0..7", not {value!r}')
        if not int(first) <= int(last) < int(first) + _NUMBERED_MOST:
            raise Wrong(f"must be 1 to {_NUMBERED_MOST} names, the lowest first, not {value!r}")
        return [f"{base}{number}" for number in range(int(first), int(last) + 1)]

    return cast("list[str]", Setting(help_line, [], read, "NAME:0..N", read))


def nearest(word: str, known: Any) -> str:
    """Return ` (did you mean X?)` for the known word that is most like this one, or nothing."""
    import difflib  # only a mistake pays for it

    close = difflib.get_close_matches(word, list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""
