"""The process of a node that consumes its stream: python -m wakeq.node.consuming NAME [OPTION]...

It is a consumer in all but its name, its life and its settings: the node starts it, asks it for
its figures over the descriptor that it was given as a lease, and stops it.
"""

import os
import signal

from wakeq import service
from wakeq.config import Consumer as Settings
from wakeq.consumer import interpreter
from wakeq.consumer.consumer import Consumer
from wakeq.consumer.handler import load
from wakeq.consumer.wakesocket import WakeSocket
from wakeq.errors import BusyError
from wakeq.sections import Node
from wakeq.service import Program, Service

PROGRAM = Program("wakeq-node", "", Node, "NAME")
# Processes of one node on one host, more than anybody has.
_MOST_NAMES = 1000
# Longer than a consumer's, which sleeps anyway when nothing comes.
_BLOCK_SECONDS = 10.0
# In hand for all workers together, if they are fast.
_PREFETCH = 1000


def main() -> None:
    """Consume until stopped."""
    wake = WakeSocket.adopt()
    service.run(PROGRAM, lambda process: _consume(process, wake))


def _consume(process: Service, wake: WakeSocket) -> int | None:
    # The node decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    node = process.config.node(process.name)
    interpreter.switch(node.python if node.handler else "", wake, "wakeq.node.consuming")
    settings = consumer_settings(node)
    handler = load(settings, process.name, "node")
    interpreter.calm_garbage_collection()
    number = 1
    while True:
        # The first name that is free: that of a process that has ended is, with what it had.
        name = f"{os.uname().nodename}/node/{process.name}" + (f"/{number}" * (number > 1))
        consumer = Consumer(process, settings, handler, wake, name)
        consumer.block_seconds = _BLOCK_SECONDS
        try:
            return consumer.run()
        except BusyError:
            if consumer.report.is_ready or number == _MOST_NAMES:
                raise
            consumer.link.close()
            number += 1


def consumer_settings(node: Node) -> Settings:
    """Return the settings of a consumer that does as a node says."""
    settings = Settings()
    for key in (
        "stream", "group", "handler", "exec", "python", "timeout",
        "max_attempts", "max_crashes", "backoff", "drain_timeout", "claim_after",
    ):  # fmt: skip
        name = settings.table[key].name
        setattr(settings, name, getattr(node, name))
    settings.concurrency = node.workers
    settings.prefetch = max(2, _PREFETCH // node.workers)
    return settings


if __name__ == "__main__":
    main()
