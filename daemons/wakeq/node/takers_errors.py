"""The error list of a node: messages of its list that failed, each with its error, as JSON."""

import base64
import json
from datetime import UTC, datetime
from typing import Any, NamedTuple

from wakeq.cli.screen import as_json
from wakeq.errors import HandlerFailure, Reject, Retry

_LONGEST_ERROR = 1000


def told(error: BaseException) -> str:
    """Return an error in one line, with its type unless the text says all about it."""
    text = str(error) if isinstance(error, HandlerFailure) else ""
    text = text or f"{type(error).__name__}: {error}".rstrip(": ")
    return " ".join(text.split())[:_LONGEST_ERROR]


def is_expected(error: BaseException) -> bool:
    """Tell whether a handler says by an error what is to be done, so that no traceback helps."""
    return isinstance(error, Retry | Reject | HandlerFailure)


def entry(message: bytes, error: str, at_seconds: float, node: str, attempts: int) -> bytes:
    """Return what goes to the error list for a message.

    Args:
        message: the message; what is no text is kept as `{"base64": ...}`.
        error: why it failed.
        at_seconds: when, since 1970.
        node: which process handled it.
        attempts: how often its handler was begun, as far as that is known.
    """
    at = datetime.fromtimestamp(at_seconds, UTC).isoformat(timespec="milliseconds")
    content: dict[str, Any] = {"message": as_json(message), "error": error}
    content |= {"at": at.replace("+00:00", "Z"), "node": node, "attempts": attempts}
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return text.encode(errors="backslashreplace")


class Entry(NamedTuple):
    """An entry of an error list, as it is read; what somebody else put there has no error."""

    raw: bytes
    message: bytes
    error: str
    at: str
    node: str
    attempts: int


def read(raw: bytes) -> Entry:
    """Return an entry of an error list."""
    try:
        content = json.loads(raw.decode())
        message, error = content["message"], str(content["error"])
        body = (
            message.encode()
            if isinstance(message, str)
            else base64.b64decode(message["base64"], None, True)
        )
        attempts = int(content.get("attempts", 0))
    except (ValueError, TypeError, KeyError, RecursionError):
        return Entry(raw, raw, "", "", "", 0)
    return Entry(raw, body, error, str(content.get("at", "")), str(content.get("node", "")),
                 attempts)  # fmt: skip
