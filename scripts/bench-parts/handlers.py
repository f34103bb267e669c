"""The handlers of the consumers that are measured; they tell what they saw in the folder OUT."""

import atexit
import os
import time

from wakeq.message import Message  # has been loaded anyway, so this costs the start nothing

imported = time.monotonic()
# How many messages noop() will see, if that was said.
TOTAL = int(os.environ.get("TOTAL", "0"))
OUT = os.environ["OUT"]
seen: list[float] = []
count = 0
first = last = 0.0


def noop(message: Message) -> None:
    """Count, and take the time of the first message and of the last."""
    global count, first, last
    count += 1
    if count == 1:
        first = time.monotonic()
    elif count == TOTAL:
        last = time.monotonic()


async def async_noop(message: Message) -> None:
    """Do the same in a coroutine."""
    noop(message)


def stamp(message: Message) -> None:
    """Keep how many ms ago the message was published; its body says when."""
    seen.append((time.monotonic() - float(message.body)) * 1000)


def stamp_at_once(message: Message) -> None:
    """Write the times of a cold start: published, activated, imported, called."""
    now = time.monotonic()
    with open(OUT + "/cold", "a", encoding="utf-8") as file:
        file.write(f"{message.text()} {os.environ['ACTIVATED']} {imported} {now}\n")


@atexit.register
def tell() -> None:
    """Write what was seen."""
    with open(OUT + "/told", "w", encoding="utf-8") as file:
        file.write(repr((count, first, last, seen)))
