"""A worker of a bridge: python -m wakeq.bridge.work FD.

It makes of messages what is published, and publishes it. A process of its own, so that what it
calls harms neither the reading of messages nor other workers, and so that there may be more of them
than one core can run. It ends when the daemon does, after what it has in hand.
"""

import gc
import io
import os
import select
import signal
import socket
import sys
from typing import Any

from wakeq import journal, keys
from wakeq.bridge import talk
from wakeq.bridge.maker import Maker, Outcome
from wakeq.bridge.talk import Run
from wakeq.bridge.transform import load
from wakeq.bridge.writer import Writer
from wakeq.errors import ConfigError, WakeqError
from wakeq.scripts import Script
from wakeq.sections import Bridge
from wakeq.wire import Argument

# How long a batch is remembered: a worker that is not back by then will not send it again.
_KEEP_MS = 3_600_000
# Redis forgets one who waits for an element well before the worker counts as gone (30 s), so that
# none is given to it then; and what a lost connection was given is found by looking again.
_WAIT_SECONDS = 10
# What is taken of a list at once: Redis is busy with it for a few milliseconds.
_MOST = 250
_MOST_BYTES = 1 << 20
# A batch of so many messages at most may be published in so many parts, each with a number.
_PARTS = 1000
# So long one batch may take, so that others find their share.
_BATCH_SECONDS = 0.01


class Desk:
    """What both kinds of workers have: the daemon to talk to, the settings, the maker."""

    def __init__(self, channel: talk.Talk, said: dict[str, Any]) -> None:
        self.talk = channel
        self.said = said
        self.settings = Bridge()
        for name, value in said["settings"].items():
            setattr(self.settings, name, value)
        self.log = journal.Log("bridge")
        transform = load(self.settings, f"bridge {said['bridge']}")
        skips = map(tuple, said["skips"])
        self.maker = Maker(transform, said["worker"], skips, self._tell, said["careful"])

    def keys(self, worker: str) -> list[str]:
        """Return the first keys of both scripts."""
        stream, bridge = self.settings.stream, self.said["bridge"]
        group = keys.bridge_group(bridge)
        return [
            stream,
            keys.bridge_batch(stream, bridge, worker),
            keys.stats(stream, group),
            keys.dead(stream, group),
        ]

    def writer(self, name: str) -> Writer:
        """Return what runs a script."""
        script = Script(name, ahead="bridge")
        return Writer(self.said["url"], self.settings.stream, script, self.talk.say)

    def done(self, outcome: Outcome, whole: bool = True) -> None:
        """Tell what became of a batch that is published now, or of another part of it."""
        if outcome.dead:
            self.log.warning(
                "messages became dead letters", event_id=journal.BRIDGE_DEAD,
                bridge=self.said["bridge"], stream=self.settings.stream,
                group=keys.bridge_group(self.said["bridge"]), consumer=self.said["worker"],
                count=outcome.dead, error=outcome.error,
            )  # fmt: skip
        self.talk.say(
            talk.DONE, outcome.number, (outcome.received, outcome.published, outcome.dead),
            outcome.seconds, whole,
        )  # fmt: skip

    def _tell(self, number: int, place: int) -> None:
        self.talk.say(talk.AT, number, place)


class Relay:
    """Publishes what the daemon gives it."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        retry = keys.retry(desk.settings.stream, keys.bridge_group(desk.said["bridge"]))
        self._keys = [*desk.keys(f"{desk.said['process']}/{desk.said['worker']}"), retry]
        self._writer = desk.writer("bridge_publish")
        self._under_way: tuple[Outcome, bool] | None = None

    def run(self) -> None:
        """Publish until the daemon has nothing more."""
        channel = self._desk.talk
        self._writer.connect()
        channel.say(talk.MORE)
        while True:
            if self._under_way is not None and self._writer.fileno() < 0:
                self._finish()  # it could not be sent; nothing would tell of that
                continue
            poll = select.poll()
            poll.register(channel.fileno(), select.POLLIN)
            if self._under_way is not None:
                poll.register(self._writer.fileno(), select.POLLIN)
            ready = dict(poll.poll())
            if self._under_way is not None and channel.fileno() not in ready:
                self._finish()
                continue
            heard = channel.hear()
            if heard is None:
                self._finish()
                return
            for _, number, runs, entry in heard:
                self._publish(number, runs, entry)

    def _publish(self, number: int, runs: list[Run], entry: bytes) -> None:
        """Publish a batch; the next one is made while Redis is at it."""
        count = sum(len(bodies) for _, bodies in runs)
        first = part = 0
        while first < count:
            outcome = self._desk.maker.make(number, runs, first)
            first += outcome.received
            self._finish()
            head: list[Argument] = [number * _PARTS + part, _KEEP_MS, outcome.received, entry]
            self._writer.start(list(self._keys), [*head, *outcome.arguments])
            self._under_way = (outcome, first >= count)
            part += 1
        self._desk.talk.say(talk.MORE)

    def _finish(self) -> None:
        if self._under_way is not None:
            self._writer.finish()
            (outcome, whole), self._under_way = self._under_way, None
            self._desk.done(outcome, whole)


class Mover:
    """Takes elements of a list and publishes them."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        source, bridge = desk.settings.list_, desk.said["bridge"]
        worker = desk.said["worker"]
        self._taken = keys.bridge_taken(source, bridge, worker)
        takers = keys.bridge_takers(source, bridge)
        self._source, self._end = source, desk.settings.list_end.upper()
        self._keys = [*desk.keys(worker), source, self._taken, takers]
        self._writer = desk.writer("bridge_move")
        self._most = 1

    def run(self) -> None:
        """Move elements until the daemon wants no more."""
        self._writer.connect()
        outcome: Outcome | None = None
        while True:
            ends = self._ends()
            number, bodies = self._move(outcome, 0 if ends else self._most)
            if outcome is not None:
                self._desk.done(outcome)
            if ends:
                return
            outcome = None
            if bodies:
                outcome = self._desk.maker.make(number, [(self._source.encode(), bodies)])
                self._pace(outcome)
            else:
                self._wait()

    def _move(self, outcome: Outcome | None, most: int) -> tuple[int, list[bytes]]:
        """Publish what became of a batch, and return the next one."""
        done = outcome or Outcome(0)
        arguments = [done.number or "", _KEEP_MS, done.received, self._desk.said["worker"]]
        arguments += [self._end, most, _MOST_BYTES, *done.arguments]
        self._writer.start(list(self._keys), arguments)
        number, *bodies = self._writer.finish()
        return int(number), bodies

    def _pace(self, outcome: Outcome) -> None:
        """Take as many as are done in a short time."""
        each = outcome.seconds / outcome.received
        self._most = max(1, min(_MOST, 2 * self._most, int(_BATCH_SECONDS / max(each, 1e-6))))

    def _ends(self) -> bool:
        """Tell whether the daemon is gone, or wants no more: it says nothing else."""
        poll = select.poll()
        poll.register(self._desk.talk.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def _wait(self) -> None:
        """Wait for an element, which is taken then."""
        try:
            command = ("BLMOVE", self._source, self._taken, self._end, "RIGHT", _WAIT_SECONDS)
            self._writer.block(*command)
            poll = select.poll()
            poll.register(self._desk.talk.fileno(), select.POLLIN)
            poll.register(self._writer.fileno(), select.POLLIN)
            while self._desk.talk.fileno() not in dict(poll.poll()):
                if self._writer.finish_blocking():
                    return
            # It may be blocked for ever, and is of no use then.
            self._writer.close()
        except WakeqError:
            pass  # whatever it was, the next request says so
        self._writer.connect()


def main() -> int:
    """Work for the daemon until it hangs up."""
    # A terminal's Ctrl+C is for the daemon.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(end.fileno(), False)
    journal.open_log()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What a callable prints is in the journal at once.
        sys.stdout.reconfigure(line_buffering=True)
    channel = talk.Talk(end)
    try:
        heard: list[Any] | None = []
        while not heard:
            heard = channel.hear()
            if heard is None:
                return 0
        said = heard[0][1]
        journal.set_level(said["log_level"])
        try:
            desk = Desk(channel, said)
        except ConfigError as error:
            channel.say(talk.BAD, str(error))
            return error.exit_code
        channel.say(talk.READY)
        # What is loaded stays; messages are freed by their reference counts.
        gc.freeze()
        gc.set_threshold(10_000)
        (Mover(desk) if desk.settings.list_ else Relay(desk)).run()
    except (BrokenPipeError, ConnectionResetError):
        return 1  # the daemon is gone
    return 0


if __name__ == "__main__":
    sys.exit(main())
