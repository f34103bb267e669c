"""How dead letters look: a line each, everything of one, or JSON."""

from typing import Any

from wakeq import message
from wakeq.cli import times
from wakeq.cli.letters import Letter, Letters
from wakeq.cli.screen import as_json, colours, paint, print_json, readable, table

_HEADER = ("ID", "MESSAGE", "FAILED", "ATTEMPTS", "ERROR", "BODY")
_RIGHT = (3,)
# What is shown under names of its own.
_TOLD = {
    *(message.FIRST_ID, message.ATTEMPT, message.ERROR, message.TRACEBACK, message.CONSUMER),
    *(message.HOST, message.FAILED_AT, message.FIRST_FAILED_AT, message.REPAIR_ERROR),
}


class Printer:
    """Prints a line for each letter.

    Args:
        letters: whose they are.
        json: print JSON.
    """

    def __init__(self, letters: Letters, json: bool) -> None:
        self._letters = letters
        self._json = json
        self._headed = False

    def take(self, some: list[Letter]) -> None:
        """Print some, below those before."""
        if self._json:
            for letter in some:
                print_json(_as_json(self._letters, letter))
            return
        on = colours()
        for index, cells in enumerate(table([_HEADER, *map(_row, some)], _RIGHT)):
            if index or not self._headed:
                print(paint("  ".join(cells).rstrip(), "" if index else "bold", on))
        self._headed = True


def _row(letter: Letter) -> tuple[str, ...]:
    return (
        letter.id,
        readable(letter.message_id.encode(), 40),
        times.local(letter.failed_at_seconds),
        str(letter.attempts),
        readable(letter.items.get(message.ERROR, b""), 50),
        readable(_short_body(letter), 50),
    )


def _short_body(letter: Letter) -> bytes:
    """Return the body, or what stands for it in a message that has none."""
    fields = letter.fields
    if message.BODY in fields:
        return fields[message.BODY]
    return b" ".join(field + b"=" + value for field, value in fields.items())


def show(letters: Letters, letter: Letter, json: bool) -> None:
    """Print everything of one letter."""
    if json:
        print_json(_as_json(letters, letter))
        return
    on = colours()
    print(paint(letter.id, "bold", on))
    failed = times.local(letter.failed_at_seconds)
    if letter.attempts > 1:
        failed += f", first {times.local(letter.first_failed_at_seconds)}"
    lines = [
        ("message", letter.message_id),
        ("stream", letters.stream),
        ("group", letters.group),
        ("failed", failed),
        ("attempts", str(letter.attempts)),
        ("consumer", letter.own(message.CONSUMER)),
        ("host", letter.own(message.HOST)),
        ("error", letter.own(message.ERROR)),
        ("repair error", letter.own(message.REPAIR_ERROR)),
    ]
    others = {k: v for k, v in letter.items.items() if k not in _TOLD}
    shown = [(label, readable(text.encode(), 4096)) for label, text in lines if text]
    shown += [(readable(k, 40), readable(v, len(v))) for k, v in others.items()]
    width = max(len(label) for label, _ in shown)
    for label, text in shown:
        print(f"  {label.ljust(width)}  {text}")
    for line in letter.own(message.TRACEBACK).splitlines():
        print(paint(f"  {readable(line.encode(), 4096)}", "dim", on))


def _as_json(letters: Letters, letter: Letter) -> dict[str, Any]:
    own = {k: v for k, v in letter.items.items() if k.startswith(message.OWN_PREFIX)}
    return {
        "id": letter.id,
        "message_id": letter.message_id,
        "stream": letters.stream,
        "group": letters.group,
        "failed_at": times.iso(letter.failed_at_seconds),
        "first_failed_at": times.iso(letter.first_failed_at_seconds),
        "attempts": letter.attempts,
        "error": letter.own(message.ERROR),
        "repair_error": letter.own(message.REPAIR_ERROR),
        "traceback": letter.own(message.TRACEBACK),
        "consumer": letter.own(message.CONSUMER),
        "host": letter.own(message.HOST),
        "own_fields": _json_fields({k: v for k, v in own.items() if k not in _TOLD}),
        "fields": _json_fields(letter.fields),
    }


def _json_fields(fields: dict[bytes, bytes]) -> dict[str, Any]:
    return {k.decode(errors="backslashreplace"): as_json(v) for k, v in fields.items()}
