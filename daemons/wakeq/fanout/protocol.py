"""What travels between wakeq-fanout and its clients: lines of JSON; see wakeq-fanout-protocol(7).

It reads requests, and writes answers and events. It does no I/O, and knows nothing of rooms.
"""

import base64
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, NoReturn

from wakeq.errors import RefusedError, RoomError, UnavailableError
from wakeq.fanout.records import NUMBER_MOST, Metrics, Queued, RoomMetrics, RoomState
from wakeq.settings import nearest

_TEXT = (str, "text")
_NUMBER = (int, "a whole number, -2**53 to 2**53")
_ANY = (object, "")
# What each operation takes besides `op` and `ref`; those with True must be there.
_FIELDS: dict[str, dict[str, tuple[type, str, bool]]] = {
    "subscribe": {
        "room": (*_TEXT, True), "client": (*_TEXT, False), "mode": (*_TEXT, False),
        "backlog": (*_TEXT, False), "timeout": (float, "a number of seconds", False),
    },
    "unsubscribe": {"room": (*_TEXT, True)},
    "send": {
        "room": (*_TEXT, True), "data": (*_ANY, True), "producer": (*_TEXT, False),
        "priority": (*_NUMBER, False),
    },
    "oob": {"room": (*_TEXT, True), "data": (*_ANY, True), "producer": (*_TEXT, False)},
    "ack": {"room": (*_TEXT, True), "id": (*_TEXT, True)},
    "ping": {"room": (*_TEXT, False)},
    "peek": {"room": (*_TEXT, True), "offset": (*_NUMBER, False), "limit": (*_NUMBER, False)},
    "metrics": {"room": (*_TEXT, False), "top": (*_NUMBER, False), "by": (*_TEXT, False)},
    "state": {"room": (*_TEXT, True)},
}  # fmt: skip
_REQUIRED = {op: [name for name in of if of[name][2]] for op, of in _FIELDS.items()}
_SHOWN = 40  # characters of what was wrong
# Arrays and objects in one another; far less than what Python can write or read again.
_NESTED_MOST = 100

_plain = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_escaped = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class Asked(NamedTuple):
    """A request: what to do, what the answer carries back, and the other fields."""

    op: str
    ref: object
    fields: dict[str, Any]


class BadRequest(Exception):
    """A line is no request; the text says why.

    Attributes:
        code: the same in a word: `bad-line`, `bad-request` or `too-long`.
        ref: what the answer carries back, as far as it is known.
    """

    def __init__(self, code: str, text: str, ref: object = None) -> None:
        super().__init__(text)
        self.code = code
        self.ref = ref


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_decoder = json.JSONDecoder(parse_constant=_no_constant)
_decode = _decoder.decode
_scan = vars(_decoder)["scan_once"]
# What JSON may begin with; a look at it is quicker than an error.
_BEGINS = b'{["-0123456789tfnNI \t\r\n'
_DONE = b'{"ref":null,"ok":true}\n'
# How the events begin that messages are, and nothing else does.
DELIVERY = b'{"event":"message",'


def _value(line: bytes) -> Any:
    try:
        text = line.decode()
        try:
            found, end = _scan(text, 0)
        except StopIteration:
            end = -1
        if end != len(text):  # space around it, or it is no JSON
            found = _decode(text)
    except UnicodeDecodeError:
        raise BadRequest("bad-line", "the line is not UTF-8") from None
    except RecursionError:
        raise BadRequest("bad-line", "the line is nested too deeply") from None
    except ValueError as error:
        raise BadRequest("bad-line", f"the line is not JSON: {error}") from None
    if _is_deep(line, found):
        raise BadRequest("bad-line", "the line is nested too deeply")
    return found


def _is_deep(raw: bytes, value: object) -> bool:
    """Tell whether JSON has more arrays and objects in one another than we take."""
    if raw.count(b"[") + raw.count(b"{") <= _NESTED_MOST:
        return False
    level = [value]
    for _ in range(_NESTED_MOST + 1):
        if not level:
            return False
        inner: list[object] = []
        for one in level:
            if isinstance(one, dict):
                inner += one.values()
            elif isinstance(one, list):
                inner += one
        level = [one for one in inner if isinstance(one, dict | list)]
    return bool(level)


def read(line: bytes) -> Asked:
    """Return the request that a line is.

    Raises:
        BadRequest: it is none.
    """
    found = _value(line)
    if type(found) is not dict:
        raise BadRequest("bad-line", "the line is not a JSON object")
    ref = found.pop("ref", None)
    op = found.pop("op", None)
    known = _FIELDS.get(op) if isinstance(op, str) else None
    if known is None:
        what = "there is no op" if op is None else f"unknown op {_short(op)}"
        raise BadRequest("bad-request", what + _hint(op, _FIELDS), ref)
    for name, value in found.items():
        rule = known.get(name)
        if rule is not None and type(value) is str and rule[0] is str:
            continue  # by far the most frequent
        if rule is None:
            text = f"{op} has no field {_short(name)}{_hint(name, (*known, 'ref'))}"
            raise BadRequest("bad-request", text, ref)
        kind, what, _ = rule
        if kind is not object and not _is(kind, value):
            text = f"{name} must be {what}, not {_short(value)}"
            raise BadRequest("bad-request", text, ref)
    for name in _REQUIRED[op]:
        if name not in found:
            raise BadRequest("bad-request", f"{op} needs the field {name!r}", ref)
    return Asked(op, ref, found)


def _is(kind: type, value: object) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, int) and abs(value) > NUMBER_MOST:
        return False  # neither Redis nor those who read the answer could do with it
    return isinstance(value, int | float if kind is float else kind)


def _hint(word: object, known: Iterable[str]) -> str:
    # Of a long one it would take long.
    return nearest(word, known) if isinstance(word, str) and len(word) <= _SHOWN else ""


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def as_json(value: object) -> bytes:
    """Return a value as JSON, in one line and as UTF-8.

    Raises:
        ValueError: it holds a number that JSON does not have.
    """
    try:
        return _plain(value).encode()
    except UnicodeEncodeError:  # half of a character, which JSON can say and UTF-8 cannot
        return _escaped(value).encode()


def echo(ref: object) -> bytes:
    """Return a ref as an answer carries it back; what JSON does not have is null."""
    if ref is None:
        return b"null"
    try:
        return as_json(ref)
    except (ValueError, RecursionError):
        return b"null"


def granted(ref: object, more: Mapping[str, object] | None = None) -> bytes:
    """Return the answer to a request that was carried out."""
    if ref is None and more is None:
        return _DONE
    tail = b"," + as_json(more)[1:] if more else b"}"
    return b'{"ref":%b,"ok":true%b\n' % (echo(ref), tail)


def refused(ref: object, code: str, text: str) -> bytes:
    """Return the answer to a request that was not carried out."""
    tail = as_json({"error": code, "message": text})[1:]
    return b'{"ref":%b,"ok":false,%b\n' % (echo(ref), tail)


def code_of(error: BaseException) -> str:
    """Return the word for an error."""
    if isinstance(error, RoomError | BadRequest):
        return error.code
    if isinstance(error, UnavailableError):
        return "unavailable"
    if isinstance(error, RefusedError):
        return "refused"
    if isinstance(error, TypeError | ValueError):
        return "bad-request"
    return "failed"


def delivery(room: str, message: Queued, oob: bool) -> bytes:
    """Return the event that a message is."""
    head = b'%b"room":%b,"id":%b' % (DELIVERY, as_json(room), as_json(message.id))
    tail = b'"producer":%b,"oob":%b}\n' % (as_json(message.producer), b"true" if oob else b"false")
    return b"%b,%b,%b" % (head, _data(message.data), tail)


def ejection(room: str, reason: str) -> bytes:
    """Return the event that somebody is no client any more."""
    return as_json({"event": "ejected", "room": room, "reason": reason}) + b"\n"


def _data(raw: bytes) -> bytes:
    """Return a message's data as members of an object: JSON as it is, other text as text."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return b'"data":null,"base64":"%b"' % base64.b64encode(raw)
    if raw and raw[0] not in _BEGINS:
        return b'"data":%b' % as_json(text)
    try:
        value = _decode(text)
    except (ValueError, RecursionError):
        return b'"data":%b' % as_json(text)
    if _is_deep(raw, value):
        return b'"data":%b' % as_json(text)
    # What others sent may have line ends in it, between its parts.
    in_lines = b"\n" in raw or b"\r" in raw
    if isinstance(value, str | int | None) and not in_lines:
        return b'"data":%b' % raw
    try:
        compact = as_json(value)
    except ValueError:  # a number too large for this language
        return b'"data":%b' % as_json(text)
    return b'"data":%b' % (compact if in_lines else raw)


def queued(message: Queued) -> dict[str, object]:
    """Return a message that waits, for an answer."""
    found: dict[str, object] = {"id": message.id}
    found |= json.loads(b"{%b}" % _data(message.data))
    return found | {"producer": message.producer, "priority": message.priority}


def figures(metrics: RoomMetrics | Metrics) -> dict[str, object]:
    """Return figures for an answer."""
    found: dict[str, Any] = metrics._asdict()
    if "top" in found:
        found["top"] = [one._asdict() for one in found["top"]]
    return found


def whole_state(state: RoomState) -> dict[str, object]:
    """Return a room's state for an answer."""
    message = None
    if state.message is not None:
        message = queued(state.message)
        del message["priority"]
    clients = {name: of._asdict() for name, of in state.clients.items()}
    return {"metrics": figures(state.metrics), "clients": clients, "message": message}
