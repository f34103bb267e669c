"""The handler of the demo's consumer "sizes": keeps how large each package is.

It is loaded when a message arrives, called with what there is, and gone when nothing came for
a while. What it knows is in its database, so the next process goes on where this one ended.
"""

import sqlite3
import time
from contextlib import closing

from wakeq import Message, Publish, batch

FIELDS = (b"package", b"version", b"section", b"priority", b"kib")


@batch(500)  # up to so many messages at once, in one transaction; without it: handle(message)
def handle(messages: list[Message]) -> list[Publish]:
    """Store the packages, and pass on those that every machine needs."""
    now = time.time()
    rows = [
        (message.id, now, *(message.fields[name].decode() for name in FIELDS))
        for message in messages
    ]
    with closing(sqlite3.connect("sizes.db")) as database, database:
        database.execute(
            "CREATE TABLE IF NOT EXISTS packages"
            " (message, called, package PRIMARY KEY, version, section, priority, kib INTEGER)"
        )
        # After a crash a message may come twice: the second time it changes nothing.
        database.executemany("INSERT OR REPLACE INTO packages VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    # Published in one step with the acknowledgement of these messages: both happen, or neither.
    return [
        Publish("verify", fields={name: message.fields[name] for name in FIELDS[:2]})
        for message in messages
        if message.fields[b"priority"] == b"required"
    ]
