"""The process of a node that consumes its list: python -m wakeq.node.takers NAME [OPTION]...

The node starts it, asks it for its figures over the descriptor that it was given as a lease, and
stops it. See `takers_taker` for what it does.
"""

import signal

from wakeq import journal, service
from wakeq.consumer import interpreter
from wakeq.consumer.handler import load
from wakeq.consumer.wakesocket import WakeSocket
from wakeq.errors import ConfigError
from wakeq.node.consuming import consumer_settings
from wakeq.node.takers_taker import Taker
from wakeq.sections import Node
from wakeq.service import Program, Service

PROGRAM = Program("wakeq-node", "", Node, "NAME")


def main() -> None:
    """Take messages until stopped."""
    wake = WakeSocket.adopt()
    service.run(PROGRAM, lambda process: _take(process, wake))


def _take(process: Service, wake: WakeSocket) -> int:
    # The node decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    node = process.config.node(process.name)
    if not node.list_:
        raise ConfigError(f"node {process.name}: has no list to take messages of")
    interpreter.switch(node.python, wake, "wakeq.node.takers")
    journal.open_log()
    settings = consumer_settings(node)
    settings.stream = node.list_  # what programs find in WAKEQ_STREAM
    handler = load(settings, process.name, "node")
    interpreter.calm_garbage_collection()
    return Taker(process, node, handler, wake).run()


if __name__ == "__main__":
    main()
