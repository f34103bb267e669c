"""What people see: colours only on a terminal, aligned columns, values made safe and short."""

import json
import os
import sys
from collections.abc import Sequence
from typing import Any, TextIO

from wakeq.errors import UsageError
from wakeq.settings import format_duration

_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}


def colours(stream: TextIO | None = None) -> bool:
    """Tell whether a stream (stdout) takes colours: a terminal, and no NO_COLOR or TERM=dumb."""
    stream = stream or sys.stdout
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return stream.isatty() and not plain


def paint(text: str, colour: str, on: bool) -> str:
    """Return the text in a colour, if `on`."""
    return f"\x1b[{_CODES[colour]}m{text}\x1b[0m" if on and colour else text


def print_json(value: Any) -> None:
    """Print a value as one line of JSON."""
    print(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def agreed(command: str, what: str) -> bool:
    """Ask at the terminal whether to do something, `Delete 3 dead letters` say.

    Raises:
        UsageError: there is no terminal.
    """
    if not sys.stdin.isatty():
        question = what[0].lower() + what[1:]
        raise UsageError(f"{command}: {question}? Say --yes, there is nobody to be asked")
    print(f"{what}? [y/N] ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline().strip().lower() in ("y", "yes")
    if not answer:
        print("Nothing was done.", file=sys.stderr)
    return answer


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[list[str]]:
    """Return the cells padded so that columns align; those in `right` to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        [
            cell.rjust(widths[i]) if i in right else cell.ljust(widths[i])
            for i, cell in enumerate(row)
        ]
        for row in rows
    ]


def span(seconds: float) -> str:
    """Return a time span in two units at most: `820ms`, `3.2s`, `4min 5s`, `2d 3h`."""
    if seconds < 1:
        return f"{max(0, round(seconds * 1000))}ms"
    if seconds < 59.95:
        return format_duration(round(seconds, 1))
    whole = round(seconds)
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    parts = []
    for name, size in units:
        if whole >= size:
            parts.append(f"{whole // size}{name}")
            whole %= size
    return " ".join(parts[:2])


def readable(value: bytes, most: int = 120) -> str:
    """Return a value for people: text as it is, but what is not printable escaped; a long one
    shortened, with its length."""
    shown = value[:most]
    try:
        # A character may be cut in two.
        text = shown.decode(errors="strict" if len(shown) == len(value) else "ignore")
    except UnicodeDecodeError:
        text = "".join(chr(b) if 32 <= b < 127 else f"\\x{b:02x}" for b in shown)
    else:
        text = "".join(c if c.isprintable() else _escaped(c) for c in text)
    return f"{text}… ({len(value):,} bytes)" if len(value) > most else text


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def as_json(value: bytes) -> Any:
    """Return a value for JSON: text, or `{"base64": ...}` if it is no text."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        import base64

        return {"base64": base64.b64encode(value).decode()}
