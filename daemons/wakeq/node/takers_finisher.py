"""Finishing: what becomes of messages of a list once their handler is done with them.

Handled: out of hand, in one step with what the handler returned to be published. Failed: to the
error list, in one step, too. It is kept until Redis has confirmed it, and sent again after a lost
reply; the scripts do nothing with what is no longer in hand.
"""

import os
from collections.abc import Callable
from functools import partial

from wakeq import failpoint, keys
from wakeq.consumer.channel import Channel
from wakeq.consumer.lanes import Done
from wakeq.errors import Held
from wakeq.message import Message, Publish
from wakeq.node.takers_errors import entry, told
from wakeq.node.takers_hand import Hand
from wakeq.node.takers_keeper import Keeper
from wakeq.node.takers_reporter import Reporter
from wakeq.scripts import Script
from wakeq.sections import Node
from wakeq.wire import TRANSIENT, Argument, Reply, ServerError

_BATCH = 1000
_FAILURES = 100
_BATCH_BYTES = 1024 * 1024

Failure = tuple[int, bytes]


class Finisher:
    """Passes on what came of messages.

    Args:
        name: the node's.
        settings: the node's.
        hand: the messages in hand.
        keeper: says under which name they are.
        report: tells people.

    Attributes:
        error_list: the key of the error list.
        on_held: called with messages that were not begun, because they may be somebody else's.
        on_confirmed: called when Redis has confirmed something.
    """

    def __init__(
        self, name: str, settings: Node, hand: Hand, keeper: Keeper, report: Reporter
    ) -> None:
        base = name.partition(":")[0]
        self.error_list = settings.error_list or keys.errors(settings.list_, base)
        self.on_held: Callable[[list[Message]], None]
        self.on_confirmed: Callable[[], None]
        self._node = f"{os.uname().nodename}/{name}"
        self._stats = keys.stats(settings.list_, base)
        self._suspects = keys.suspects(settings.list_)
        self._hand = hand
        self._keeper = keeper
        self._report = report
        self._finish = Script("finish_taken")
        self._publish = Script("publish_taken")
        self._handled: list[int] = []
        self._failures: list[Failure] = []
        self._joint: list[tuple[list[Message], list[Publish]]] = []
        # What is sent and not confirmed, by number: how to have it sent again.
        self._in_flight: dict[int, Callable[[], None]] = {}
        self._sent = 0

    @property
    def has_ready(self) -> bool:
        """Tell whether there is something to send."""
        return bool(self._handled or self._failures or self._joint)

    @property
    def is_settled(self) -> bool:
        """Tell whether everything has been sent and confirmed."""
        return not self.has_ready and not self._in_flight

    def take(self, item: Done) -> None:
        """Take what a lane is done with."""
        messages, result = ([item], []) if isinstance(item, Message) else item
        # What timed out or is another process's by now is finished already.
        ours = [message for message in messages if not message.finished]
        if not ours:
            return
        if isinstance(result, Held):
            self.on_held(ours)
        elif isinstance(result, BaseException):
            self.fail(ours, result)
        else:
            for message in ours:
                self._hand.finish(message)
            if result:
                self._joint.append((ours, result))
            else:
                self._handled += [message.place for message in ours]
                self._report.handled += len(ours)

    def fail(self, messages: list[Message], error: BaseException) -> None:
        """Have failed messages put into the error list."""
        for message in messages:
            self._hand.finish(message)
            self._report.message_failed(message, error, self.error_list)
            now = self._keeper.now_seconds
            what = entry(message.body, told(error), now, self._node, message.deliveries)
            self._failures.append((message.place, what))

    def send(self, channel: Channel) -> None:
        """Queue all there is over a channel, which is flushed by the caller."""
        failpoint.hit("before_finish")
        handled, self._handled = self._handled, []
        for start in range(0, len(handled), _BATCH):
            self._send(channel, handled[start : start + _BATCH], [])
        batch: list[Failure] = []
        failures, self._failures = self._failures, []
        for failure in failures:
            batch.append(failure)
            if len(batch) >= _FAILURES or sum(len(e) for _, e in batch) >= _BATCH_BYTES:
                self._send(channel, [], batch)
                batch = []
        if batch:
            self._send(channel, [], batch)
        joint, self._joint = self._joint, []
        for messages, publishes in joint:
            self._send_joint(channel, messages, publishes)

    def lost(self) -> None:
        """Have everything sent again whose reply will not come."""
        for redo in self._in_flight.values():
            redo()
        self._in_flight.clear()

    def disown(self) -> None:
        """Forget everything, because it is other processes' now."""
        self._in_flight.clear()
        self._handled.clear()
        self._failures.clear()
        self._joint.clear()

    def _note(self, redo: Callable[[], None]) -> int:
        self._sent += 1
        self._in_flight[self._sent] = redo
        return self._sent

    def _send(self, channel: Channel, handled: list[int], failures: list[Failure]) -> None:
        def redo() -> None:
            self._handled += handled
            self._failures += failures

        sent = self._note(redo)
        arguments: list[Argument] = [len(handled), *handled]
        for number, what in failures:
            arguments += [number, what]
        names: list[Argument] = [self._keeper.taken, self.error_list, self._stats, self._suspects]
        numbers = handled + [number for number, _ in failures]
        channel.run(self._finish, names, arguments, partial(self._confirm, sent, numbers))

    def _confirm(self, sent: int, numbers: list[int], reply: Reply) -> None:
        if isinstance(reply, ServerError):
            raise reply
        failpoint.hit("after_finish")
        del self._in_flight[sent]
        self._hand.drop(numbers)
        self.on_confirmed()

    def _send_joint(
        self, channel: Channel, messages: list[Message], publishes: list[Publish]
    ) -> None:
        sent = self._note(lambda: self._joint.append((messages, publishes)))
        arguments: list[Argument] = [len(messages), *(message.place for message in messages)]
        for publish in publishes:
            arguments += [len(publish.items), *publish.items]
        names: list[Argument] = [self._keeper.taken, self._stats, self._suspects]
        names += [publish.stream for publish in publishes]
        channel.run(self._publish, names, arguments, partial(self._confirm_joint, sent, messages))

    def _confirm_joint(self, sent: int, messages: list[Message], reply: Reply) -> None:
        if isinstance(reply, ServerError):
            if reply.code in TRANSIENT:
                raise reply
            # A stream that is none, or in another slot of a Cluster.
            del self._in_flight[sent]
            self.fail(messages, reply)
            return
        self._report.handled += len(messages)
        self._confirm(sent, [message.place for message in messages], 0)
