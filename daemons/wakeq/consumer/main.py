"""wakeq-consumer: the executable."""
# ruff: noqa: E402  (see the first lines)

import gc

# Nothing of what is loaded here is garbage; to look for some takes a twentieth of the start.
gc.disable()

import os

from wakeq import service
from wakeq.config import Consumer as Settings
from wakeq.consumer import interpreter
from wakeq.consumer.consumer import Consumer
from wakeq.consumer.handler import load
from wakeq.consumer.wakesocket import WakeSocket
from wakeq.service import RUN, Program, Service

gc.freeze()
gc.enable()

PROGRAM = Program(
    "wakeq-consumer",
    "Handle the messages of one stream for one group; started by its socket, exits when idle.",
    Settings,
    "NAME",
)


def main() -> None:
    """Run wakeq-consumer NAME."""
    # First of all, before anything that may fail: a connection that is left in the queue of
    # the socket would have systemd start us again at once.
    wake = WakeSocket.adopt()
    service.run(PROGRAM, lambda process: _handle(process, wake))


def _handle(process: Service, wake: WakeSocket) -> int | None:
    settings = process.config.consumer(process.name)
    interpreter.switch(settings.python, wake)
    handler = load(settings, process.name)
    name = f"{os.uname().nodename}/{process.name}"
    consumer = Consumer(process, settings, handler, wake, name)
    interpreter.calm_garbage_collection()
    code = consumer.run()
    # A stop that came during the drain counts for more than the reload that began it.
    if consumer.reload_wanted and process.stop == RUN:
        interpreter.restart(wake)
    return code


if __name__ == "__main__":
    main()
