"""Acknowledging: telling Redis what was handled, in batches, soon, and exactly once counted."""

from collections.abc import Callable, Iterator
from functools import partial

from wakeq import failpoint, keys
from wakeq.consumer.channel import Channel
from wakeq.consumer.hand import RETRY, STREAM, Hand, Member
from wakeq.errors import ConfigError
from wakeq.message import Message, Publish, pack_failed
from wakeq.scripts import Script
from wakeq.wire import TRANSIENT, Argument, Reply, ServerError

_BATCH = 1000
# Failed messages go with all their fields.
_FAILURES = 100
_BATCH_BYTES = 1024 * 1024


class Failure:
    """A message that failed, and what becomes of it.

    Args:
        message: the message.
        delay_ms: after how long it is delivered again; -1: it is a dead letter.
        items: what it is then, field, value, field, value …
    """

    __slots__ = ("delay_ms", "items", "message")

    def __init__(self, message: Message, delay_ms: int, items: list[bytes]) -> None:
        self.message = message
        self.delay_ms = delay_ms
        self.items = items


class Acknowledger:
    """Keeps what was handled until Redis has confirmed the acknowledgement.

    All scripts may be sent again after a lost reply: what was acknowledged before is then
    neither counted nor published nor moved again.

    Attributes:
        ready: the ids to acknowledge, for each source.
        unsettled: messages whose publishing or failing is not confirmed yet.
        on_confirmed: called when an acknowledgement was confirmed.
        on_refused: called with messages whose publishing the server refuses for good.
        is_sure: tells whether what is in hand is this consumer's, if it is pending.
    """

    def __init__(self, member: Member, hand: Hand) -> None:
        self.is_sure: Callable[[], bool]
        self.on_confirmed: Callable[[], None]
        self.on_refused: Callable[[list[Message], BaseException], None]
        self._member = member
        self._hand = hand
        self._acknowledge = Script("acknowledge", member.is_fenced)
        self._publish = Script("publish_and_acknowledge", member.is_fenced)
        self.ready: tuple[list[bytes], list[bytes]] = ([], [])
        self._fail = Script("fail", member.is_fenced)
        self.unsettled: set[Message] = set()
        self._joint: list[tuple[list[Message], list[Publish]]] = []
        self._discarded: tuple[list[bytes], list[bytes]] = ([], [])
        self._failures: list[Failure] = []
        # What is sent and not confirmed, by number: how to have it sent again.
        self._in_flight: dict[int, Callable[[], None]] = {}
        self._number = 0

    @property
    def has_ready(self) -> bool:
        """Tell whether there is something to send."""
        ids = self.ready[STREAM] or self.ready[RETRY] or any(self._discarded)
        return bool(ids or self._joint or self._failures)

    @property
    def is_settled(self) -> bool:
        """Tell whether everything has been sent and confirmed."""
        return not self.has_ready and not self._in_flight

    def add_ids(self, source: int, entry_ids: list[bytes]) -> None:
        """Acknowledge entries of one source."""
        self.ready[source].extend(entry_ids)

    def discard(self, source: int, entry_ids: list[bytes]) -> None:
        """Be rid of entries that are no messages (any more), and do not count."""
        self._discarded[source].extend(entry_ids)

    def add_joint(self, messages: list[Message], publishes: list[Publish]) -> None:
        """Acknowledge messages in one step with publishing others."""
        self._joint.append((messages, publishes))
        self.unsettled.update(messages)

    def add_failure(self, failure: Failure) -> None:
        """Move a message that failed to where it waits for another try, or to the dead letters."""
        self._failures.append(failure)
        self.unsettled.add(failure.message)

    def send(self, channel: Channel, position: bytes) -> None:
        """Queue all there is over a channel, which is flushed by the caller."""
        failpoint.hit("before_acknowledge")
        for source in (STREAM, RETRY):
            ids = self.ready[source]
            for start in range(0, len(ids), _BATCH):
                self._send_ids(channel, source, ids[start : start + _BATCH], position)
            if ids:
                self.ready[source].clear()
        joint, self._joint = self._joint, []
        for messages, publishes in joint:
            self._send_joint(channel, messages, publishes, position)
        for source in (STREAM, RETRY):
            self._send_discarded(channel, source)
        failures, self._failures = self._failures, []
        if failures:
            failpoint.hit("before_fail")
        for batch in _batches(failures):
            self._send_failures(channel, batch, position)

    def lost(self) -> None:
        """Take back what was sent and not confirmed: the connection broke."""
        for take_back in self._in_flight.values():
            take_back()
        self._in_flight.clear()

    def _note(self, take_back: Callable[[], None]) -> int:
        self._number += 1
        self._in_flight[self._number] = take_back
        return self._number

    def _send_ids(self, channel: Channel, source: int, ids: list[bytes], position: bytes) -> None:
        number = self._note(lambda: self.ready[source].extend(ids))
        arguments: list[Argument] = [self._member.group, position, 1 if source == RETRY else 0]
        arguments += ids
        fence_keys, token = self._member.fence
        channel.run(
            self._acknowledge,
            [self._member.sources[source], self._member.stats, *fence_keys],
            [*arguments, *token],
            partial(self._confirm_ids, number, source, ids),
        )

    def _confirm_ids(self, number: int, source: int, ids: list[bytes], reply: Reply) -> None:
        if isinstance(reply, ServerError):
            raise reply
        failpoint.hit("after_acknowledge")
        del self._in_flight[number]
        self.on_confirmed()
        drop = self._hand.messages[source].pop
        for entry_id in ids:
            drop(entry_id, None)

    def _send_joint(
        self, channel: Channel, messages: list[Message], publishes: list[Publish], position: bytes
    ) -> None:
        source = messages[0].source
        number = self._note(lambda: self._joint.append((messages, publishes)))
        arguments: list[Argument] = [self._member.group, 1 if source == RETRY else 0, position]
        arguments += [len(messages), *(message.entry_id for message in messages)]
        for publish in publishes:
            arguments += [len(publish.items), *publish.items]
        fence_keys, token = self._member.fence
        targets = [publish.stream for publish in publishes]
        channel.run(
            self._publish,
            [self._member.sources[source], self._member.stats, *targets, *fence_keys],
            [*arguments, *token],
            partial(self._confirm_joint, number, messages),
        )

    def _confirm_joint(self, number: int, messages: list[Message], reply: Reply) -> None:
        if isinstance(reply, ServerError):
            # Without its group a message is not pending: it is read and handled again, once
            # there is the group again.
            if reply.code in TRANSIENT or reply.code in ("NOGROUP", "FENCED"):
                raise reply
            del self._in_flight[number]
            self.unsettled.difference_update(messages)
            self.on_refused(messages, reply)
            return
        failpoint.hit("after_acknowledge")
        del self._in_flight[number]
        self.on_confirmed()
        self.unsettled.difference_update(messages)
        self._hand.drop(messages)

    def _send_discarded(self, channel: Channel, source: int) -> None:
        while ids := self._discarded[source][:_BATCH]:
            del self._discarded[source][:_BATCH]
            number = self._note(partial(self.discard, source, ids))
            key = self._member.sources[source]
            # In this order: what is only acknowledged would stay for ever, as nobody's.
            if source == RETRY:
                channel.ask(("XDEL", key, *ids), partial(self._confirm, -1))
            command: list[Argument] = ["XACK", key, self._member.group, *ids]
            channel.ask(command, partial(self._confirm, number))

    def _send_failures(self, channel: Channel, failures: list[Failure], position: bytes) -> None:
        member = self._member
        source = failures[0].message.source
        number = self._note(lambda: self._failures.extend(failures))
        *delayed, dead = member.failed
        letters = [dead] if any(failure.delay_ms < 0 for failure in failures) else []
        consumer = "" if self.is_sure() and not letters else member.consumer
        soonest = min((f.delay_ms for f in failures if f.delay_ms >= 0), default="")
        arguments: list[Argument] = [member.group, consumer, position, member.stream]
        arguments += [keys.DOORBELL, soonest]
        for failure in failures:
            message = failure.message
            arguments += [message.entry_id, f"{message.id}@{member.group}", failure.delay_ms]
            arguments += pack_failed(member.group, message.id, failure.items)
        fence_keys, token = member.fence
        channel.run(
            self._fail,
            [member.sources[source], member.stats, *delayed, *letters, *fence_keys],
            [*arguments, *token],
            partial(self._confirm_failures, number, [f.message for f in failures]),
        )

    def _confirm_failures(self, number: int, messages: list[Message], reply: Reply) -> None:
        if isinstance(reply, ServerError):
            if reply.code == "WRONGTYPE":
                raise ConfigError(
                    f"one of the keys {', '.join(self._member.failed)} holds something that is not"
                    " wakeq's: delete or rename it"
                )
            raise reply
        failpoint.hit("after_fail")
        del self._in_flight[number]
        self.on_confirmed()
        self.unsettled.difference_update(messages)
        self._hand.drop(messages)

    def _confirm(self, number: int, reply: Reply) -> None:
        if isinstance(reply, ServerError) and reply.code in TRANSIENT:
            raise reply
        self._in_flight.pop(number, None)


def _batches(failures: list[Failure]) -> Iterator[list[Failure]]:
    """Yield what one script moves at a time: of one source, not too many, not too big."""
    for source in (STREAM, RETRY):
        batch: list[Failure] = []
        size = 0
        for failure in failures:
            if failure.message.source != source:
                continue
            batch.append(failure)
            size += sum(map(len, failure.items))
            if len(batch) >= _FAILURES or size >= _BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch
