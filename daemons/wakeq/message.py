"""Messages: what a handler gets, and what it may give back to be published."""

from collections.abc import Iterator, Mapping, Sequence

OWN_PREFIX = b"wakeq."
BODY = b"body"
KEY = b"wakeq.key"
ATTEMPT = b"wakeq.attempt"
FIRST_ID = b"wakeq.first_id"
HANDED_BACK = b"wakeq.handed_back"
# What a message that failed carries on its way, and its dead letter for good.
ERROR = b"wakeq.error"  # the last one: its type and text, in one line
FAILED_AT = b"wakeq.failed_at"  # ms, by the clock of Redis
FIRST_FAILED_AT = b"wakeq.first_failed_at"  # ms
# A dead letter alone: where the error came from, and who had the message last.
TRACEBACK = b"wakeq.traceback"
CONSUMER = b"wakeq.consumer"
HOST = b"wakeq.host"
REPAIR_ERROR = b"wakeq.repair_error"  # why it could not be repaired either
# All fields of a message that has more of them than a script can pass on, in one.
FOLDED = b"wakeq.folded"
# MessagePack (msgpack.org): what fits into a string of the shortest kind, and into 16 bits.
_SHORT, _LONG = 31, 65535
_PACKED_TIME = b"\xad"  # and 13 digits

Value = bytes | str | int | float
# Spelled out, because a dict[str, ...] is no Mapping[str | bytes, ...] to a type checker.
Fields = Mapping[str, Value] | Mapping[bytes, Value] | Mapping[str | bytes, Value]


class Message:
    """One message of a stream.

    Attributes:
        stream: the stream it was published to.
        id: the id it was first published with; it stays the same through retries.
    """

    __slots__ = (
        *("_fields", "_items", "deliveries", "entry_id"),
        *("finished", "place", "source", "started", "stream"),
    )

    def __init__(self, stream: str, source: int, entry_id: bytes, items: Sequence[bytes]) -> None:
        """Take an entry as Redis gives it: `items` is field, value, field, value …"""
        self.stream = stream
        self.place: int  # where it stands in line, in strict order alone
        self.source = source  # which of the streams that the consumer reads
        self.entry_id = entry_id  # the id in that stream
        self.deliveries = 1  # how often it was given to a consumer, as far as anybody asked
        self.started = 0.0  # when a lane began to handle it, by the monotonic clock
        self.finished = False  # the consumer is done with it, for good or ill
        self._items = unfold(items) if source else items
        self._fields: dict[bytes, bytes] | None = None

    def __repr__(self) -> str:
        return f"<Message {self.id} of {self.stream}>"

    def pairs(self) -> Iterator[tuple[bytes, bytes]]:
        """Return all fields in their order, those that are ours among them."""
        items = iter(self._items)
        return zip(items, items, strict=True)

    def own(self, name: bytes) -> bytes | None:
        """Return one of the fields that are ours (`wakeq.…`), or None."""
        items = self._items
        for index in range(0, len(items), 2):
            if items[index] == name:
                return items[index + 1]
        return None

    @property
    def id(self) -> str:
        """The id it was first published with."""
        return (self.own(FIRST_ID) or self.entry_id).decode("ascii", "replace")

    @property
    def attempt(self) -> int:
        """Which attempt this is: 1, and one more after each failure."""
        text = self.own(ATTEMPT) or b"1"
        # Anybody may write anything; int() refuses thousands of digits.
        return int(text[:9]) if text.isdigit() else 1

    def become(self, items: Sequence[bytes]) -> None:
        """Have other fields, for another attempt in the same place."""
        self._items = unfold(items)
        self._fields = None

    @property
    def key(self) -> bytes:
        """The key that messages are kept in order by, empty if there is none."""
        return self.own(KEY) or b""

    @property
    def fields(self) -> dict[bytes, bytes]:
        """All fields but those that are ours; of a name that stands twice, the last."""
        if self._fields is None:
            self._fields = {k: v for k, v in self.pairs() if not k.startswith(OWN_PREFIX)}
        return self._fields

    @property
    def body(self) -> bytes:
        """The field `body`, empty if there is none."""
        return self.fields.get(BODY, b"")

    def text(self) -> str:
        """Return the body as text.

        Raises:
            UnicodeDecodeError: it is not UTF-8.
        """
        return self.body.decode()

    def json(self) -> object:
        """Return the body as the value that its JSON means.

        Raises:
            ValueError: it is not JSON.
        """
        import json  # a handler that wants bytes does not pay for it

        return json.loads(self.body)


class Publish:
    """A message to be published.

    A handler returns one, or a list of them, to have them published in one step with the
    acknowledgement of the message that it handled: both happen, or neither.
    """

    __slots__ = ("items", "stream")

    def __init__(
        self,
        stream: str,
        body: object = None,
        *,
        fields: Fields | None = None,
        key: str | bytes | None = None,
    ) -> None:
        """Describe a message.

        Args:
            stream: where it goes.
            body: bytes or text as they are, anything else as JSON; None for no body.
            fields: further fields; names may not begin with `wakeq.`.
            key: messages with the same key are handled in order (`order = "key"`).

        Raises:
            ValueError: there is nothing in it, or a field name is one of ours.
            TypeError: the body is nothing that JSON can say.
        """
        self.stream = stream
        self.items = encode(body, fields, key)


# What a delivery says of itself is said anew by the next one.
_OF_ONE_DELIVERY = (ATTEMPT, FIRST_ID, ERROR, FAILED_AT, TRACEBACK, CONSUMER, HOST, REPAIR_ERROR,
                    HANDED_BACK, FOLDED)  # fmt: skip
# Lua passes no more than 8000 arguments on; some are for what a script adds.
_MOST_ITEMS = 7000


def carry(
    message: Message,
    own: Sequence[tuple[bytes, bytes]],
    changes: Mapping[bytes, bytes] | None = None,
) -> list[bytes]:
    """Return the items of a message to be moved elsewhere: what is ours first, then its fields.

    Args:
        message: the message.
        own: what this move says, fields of ours.
        changes: fields to have other values.
    """
    changed = changes or {}
    items = [part for pair in own for part in pair]
    kept: list[bytes] = []
    fields: list[bytes] = []
    for name, value in message.pairs():
        if name == FIRST_FAILED_AT:
            items += (name, value)  # looked for by fail.lua, so never folded
        elif name.startswith(OWN_PREFIX):
            if name not in _OF_ONE_DELIVERY:
                kept += (name, value)
        elif name not in changed:
            fields += (name, value)
    for name, value in changed.items():
        fields += (name, value)
    rest = kept + fields
    return items + (fold(rest) if len(items) + len(rest) > _MOST_ITEMS else rest)


def fold(fields: Sequence[bytes]) -> list[bytes]:
    """Return fields as one field: each name and value behind its length (4 bytes, big-endian)."""
    parts = [part for field in fields for part in (len(field).to_bytes(4, "big"), field)]
    return [FOLDED, b"".join(parts)]


def unfold(items: Sequence[bytes]) -> Sequence[bytes]:
    """Return the items of an entry, those that were folded among them.

    What somebody else has put into that field stays as it is.
    """
    if len(items) < 2 or items[-2] != FOLDED:
        return items
    blob, at = items[-1], 0
    whole = list(items[:-2])
    while at < len(blob):
        size = int.from_bytes(blob[at : at + 4], "big")
        whole.append(blob[at + 4 : at + 4 + size])
        at += 4 + size
    return whole if at == len(blob) and len(whole) % 2 == 0 else items


def pack_failed(group: str, first_id: str, items: Sequence[bytes]) -> tuple[bytes, bytes, bytes]:
    """Return a message that failed as fail.lua keeps it, {group, first id, field, value ...}.

    It is in three parts (MessagePack), between which the time goes: as FAILED_AT and, at the first
    failure, as FIRST_FAILED_AT; if it is not that, the second part is empty.

    Args:
        group: which group it failed for.
        first_id: the id it was first published with.
        items: field, value, field, value …, what is ours first.
    """
    middle = _pack(FIRST_FAILED_AT) + _PACKED_TIME
    for name in items[::2]:
        if name == FIRST_FAILED_AT:
            middle = b""
        if not middle or not name.startswith(OWN_PREFIX):
            break
    count = 4 + len(items) + (2 if middle else 0)
    size = b"\xdc" + count.to_bytes(2, "big")
    if count > _LONG:
        size = b"\xdd" + count.to_bytes(4, "big")
    head = (size, _pack(group.encode()), _pack(first_id.encode()), _pack(FAILED_AT), _PACKED_TIME)
    return b"".join(head), middle, b"".join(map(_pack, items))


def _pack(part: bytes) -> bytes:
    size = len(part)
    if size <= _SHORT:
        return bytes((0xA0 | size,)) + part
    if size > _LONG:
        return b"\xdb" + size.to_bytes(4, "big") + part
    return b"\xda" + size.to_bytes(2, "big") + part


def encode(
    body: object = None,
    fields: Fields | None = None,
    key: str | bytes | None = None,
) -> list[bytes]:
    """Return the fields of an entry in Redis's order: field, value, field, value …"""
    items: list[bytes] = []
    if body is not None:
        items += (BODY, _bytes(body))
    for name, value in (fields or {}).items():
        raw = _bytes(name)
        if raw.startswith(OWN_PREFIX):
            raise ValueError(f"a field must not begin with 'wakeq.': {name!r}")
        items += (raw, _bytes(value))
    if key is not None:
        items += (KEY, _bytes(key))
    if not items:
        raise ValueError("a message must have a body or a field")
    return items


def _bytes(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    import json

    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
