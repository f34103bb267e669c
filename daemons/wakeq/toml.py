"""TOML, read quickly where it is simple.

tomllib takes a fifth of a consumer's start-up time to import, and the files of most consumers
are a few lines of `key = "text"` and `key = 5`. Those are read here; whatever is not such a
line has the whole text read by tomllib, so every file means what TOML says it means.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing itself takes longer to import than it is worth here
if TYPE_CHECKING:
    from typing import Any

_KEY = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
_DIGITS = frozenset("0123456789")


def loads(text: str) -> dict[str, Any]:
    """Return what a TOML document says.

    Raises:
        ValueError: it is no TOML (tomllib.TOMLDecodeError).
    """
    simple = _loads_simple(text)
    if simple is not None:
        return simple
    import tomllib

    return tomllib.loads(text)


def _loads_simple(text: str) -> dict[str, Any] | None:
    """Return what a simple document says, or None if it may not be simple."""
    document: dict[str, Any] = {}
    table = document
    for raw in text.split("\n"):
        line = raw.strip(" \t")
        if not line:
            continue
        if not line.isprintable():
            return None
        if line[0] == "#":
            continue
        if line[0] == "[":
            name = line[1:-1]
            if line[-1] != "]" or not name or not _KEY.issuperset(name) or name in document:
                return None
            table = document[name] = {}
            continue
        key, equals, value = line.partition("=")
        key = key.rstrip(" \t")
        if not equals or not key or not _KEY.issuperset(key) or key in table:
            return None
        parsed = _value(value.lstrip(" \t"))
        if parsed is None:
            return None
        table[key] = parsed
    return document


def _value(text: str) -> Any:
    """Return a plain string, whole number or truth value, or None if it is anything else."""
    if len(text) >= 2 and text[0] == '"' and text[-1] == '"':
        inner = text[1:-1]
        return None if '"' in inner or "\\" in inner else inner
    if text == "true":
        return True
    if text == "false":
        return False
    if text and _DIGITS.issuperset(text) and (text[0] != "0" or text == "0"):
        return int(text)
    return None
