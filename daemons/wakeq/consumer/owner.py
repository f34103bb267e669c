"""Owning a group: strict order, where one consumer at a time handles its messages.

The owner has a lease in Redis (`own.lua`) with a fencing token, and each of its scripts is run
only under that token (`fence.lua`). So whoever was paused or cut off for longer than the lease
can neither read nor acknowledge any more, whatever it believes. What it cannot be kept from by
Redis, beginning a message that it has in hand, the `Gate` does, by a clock of this machine that
also runs while it is suspended.

Others of the group stand by. They take over at once when the owner leaves, and when its lease
is over after it died: all that anybody has pending becomes theirs, and comes before what is new.
"""

import os
from collections.abc import Callable
from functools import partial
from time import monotonic

from wakeq import failpoint
from wakeq.config import Consumer
from wakeq.consumer import process
from wakeq.consumer.channel import Channel
from wakeq.consumer.gate import Gate
from wakeq.consumer.hand import Member
from wakeq.consumer.link import FORGOTTEN
from wakeq.consumer.order import Everybody
from wakeq.consumer.reporter import Reporter
from wakeq.errors import BusyError
from wakeq.message import ATTEMPT, FIRST_ID, Message, carry
from wakeq.scripts import Script
from wakeq.selector import Selector
from wakeq.wire import Argument, Reply, ServerError

# Who stands by looks at least this often whether the owner still lives.
_STAND_BY_SECONDS = 5.0
_UNBLOCK_SECONDS = 0.1
_PAGE = 1000
_FIRST = b"0-0"
NEVER = float("inf")


class Owner(Everybody):
    """Becomes the owner of the group, and stays it.

    Args:
        member: who the consumer is; is given the fence.
        settings: the consumer's.
        process: what describes this process.
        gate: the lane's.
        report: tells people.
    """

    def __init__(
        self, member: Member, settings: Consumer, process: str, gate: Gate, report: Reporter
    ) -> None:
        super().__init__()
        self.is_owner = self.stands_by = False
        self.next_at = 0.0
        # The next attempts of messages that held the line before, by source and id.
        self._held: dict[bytes, int] = {}
        self._member = member
        self._lease = settings.lease
        self._waits = settings.standby == "wait"
        self._process = process
        self._gate = gate
        self._report = report
        self.token = b""
        self._asking = False
        self._has_ended = False
        self._watched: int | None = None
        # What others have pending is being taken over; has been.
        self._is_taking = self._has_all = False
        self._own = Script("own")
        self._take_over = Script("take_over", fenced=True)
        self._hold = Script("hold", fenced=True)

    def attach(self, selector: Selector, unblock: Callable[[], None]) -> None:
        """Have the end of an owner on this machine noticed at once.

        Args:
            selector: where to wait for it.
            unblock: ends a read that blocks.
        """
        self._selector = selector
        self._unblock = unblock

    def restart(self) -> None:
        """Ask anew, over a new connection."""
        self.is_owner = self.stands_by = self._asking = self._is_taking = False
        self.next_at = 0.0
        self._watch(None)

    def tick(self, now: float, channel: Channel) -> None:
        """Ask for the lease, or for more of it, if it is time, over a flushed channel."""
        if now < self.next_at:
            return
        if not self._asking:
            self._ask(channel)
            channel.flush()
        elif self._has_ended:
            # Again until it works: the server may get the read that is to be ended after it.
            self.next_at = now + _UNBLOCK_SECONDS
            self._unblock()

    def record(self, channel: Channel, messages: list[Message]) -> None:
        """Have the attempts of messages that hold the line survive this process."""
        held = " ".join(f"{_name(m).decode()}={m.attempt}" for m in messages)
        self._run(channel, self._hold, [self._member.owner, self._member.stats],
                  [held, len(messages)], lambda _reply: None)  # fmt: skip

    def _ask(self, channel: Channel, dead: bytes = b"") -> None:
        failpoint.hit("before_own")
        self._asking, self.stands_by = True, False
        self.next_at = NEVER
        renew_at = monotonic() + self._lease / 3
        member = self._member
        patience = int((_STAND_BY_SECONDS + self._lease) * 1000)
        arguments: list[Argument] = [self._process, member.consumer, int(self._lease * 1000)]
        arguments += [self.token, dead, patience]
        take = partial(self._take, channel, self._gate.clock() + self._lease, renew_at)
        channel.run(self._own, [member.owner, member.turn], arguments, take)

    def _take(self, channel: Channel, until: float, renew_at: float, reply: Reply) -> None:
        if isinstance(reply, ServerError):
            raise reply
        self._asking = self._has_ended = False
        token = reply[0]
        if self.token and token != self.token:
            raise BusyError(
                f"group {self._member.group} has another owner since: this consumer was paused or"
                " cut off for longer than lease"
            )
        if not token:
            self._stand_by(channel, *reply[1:])
            return
        self._watch(None)
        self._gate.until = until
        self.next_at = renew_at
        if reply[2]:
            # Who knows what happened meanwhile? So all is done as if this were a new owner.
            self._has_all = False
            self.on_forgotten()
            if self.is_owner:
                raise ServerError(FORGOTTEN)
        if not self.token:
            self.token = token
            self._member.fence = ([self._member.owner], [token])
            for item in reply[1].split():
                name, _, attempt = item.partition(b"=")
                self._held[name] = int(attempt)
        if self._has_all:
            self._begin()
        elif not self._is_taking:
            self._is_taking = True
            failpoint.hit("after_own")
            self._take_page(channel, 0, _FIRST, 0)

    def _stand_by(
        self, channel: Channel, owner: bytes, consumer: bytes, left: int, last: bytes
    ) -> None:
        """Wait for the owner to leave, or to die."""
        if process.is_dead(owner.decode()):
            self._ask(channel, dead=owner)
            channel.flush()
            return
        name = consumer.decode(errors="replace")
        if not self._waits:
            raise BusyError(
                f"consumer {name} owns group {self._member.group}: in strict order one consumer"
                ' at a time handles messages, and standby = "exit"'
            )
        self._asking = self.stands_by = True
        self._report.standing_by(name)
        self._watch(owner.decode())

        def again(reply: Reply) -> None:
            if isinstance(reply, ServerError) and reply.code != "UNBLOCKED":
                raise reply
            self._asking = False
            self.next_at = 0.0

        block = max(1, min(left, int(_STAND_BY_SECONDS * 1000)))
        command = ("XREAD", "COUNT", 1, "BLOCK", block, "STREAMS", self._member.turn, last)
        channel.ask(command, again, block / 1000)
        channel.flush()

    def _watch(self, owner: str | None) -> None:
        """Watch the process that owns the group, if it is on this machine; or none any more."""
        if self._watched is not None:
            self._selector.unregister(self._watched)
            os.close(self._watched)
        self._watched = process.watch(owner) if owner else None
        if self._watched is not None:
            self._selector.register(self._watched, self._note_end)

    def _note_end(self) -> None:
        self._watch(None)
        self._has_ended = True
        self.next_at = 0.0

    def _take_page(self, channel: Channel, source: int, start: bytes, total: int) -> None:
        """Take over what others have pending, a page at a time."""

        def go_on(reply: Reply) -> None:
            failpoint.hit("after_take_over")
            following, left = reply
            count = total + (left if start == _FIRST else 0)
            if following != _FIRST:
                self._take_page(channel, source, following, count)
            elif source + 1 < len(self._member.sources):
                self._take_page(channel, source + 1, _FIRST, count)
            else:
                self._is_taking, self._has_all = False, True
                self._report.took_over(count)
                self._begin()

        member = self._member
        self._run(channel, self._take_over, [member.sources[source]],
                  [member.group, member.consumer, _PAGE, start], go_on)  # fmt: skip
        channel.flush()

    def _run(
        self,
        channel: Channel,
        script: Script,
        keys: list[Argument],
        arguments: list[Argument],
        on_reply: Callable[[Reply], None],
    ) -> None:
        """Queue the run of a fenced script."""

        def check(reply: Reply) -> None:
            if isinstance(reply, ServerError):
                raise reply
            on_reply(reply)

        fence_keys, token = self._member.fence
        channel.run(script, [*keys, *fence_keys], [*arguments, *token], check)

    def _begin(self) -> None:
        if not self.is_owner:
            self.is_owner = True
            self.on_owner()

    def recall(self, messages: list[Message]) -> None:
        """Have messages that held the line before go on with the attempt that they were at."""
        for message in messages:
            attempt = self._held.pop(_name(message), 0)
            if attempt:
                message.become(
                    carry(message, [(ATTEMPT, b"%d" % attempt), (FIRST_ID, message.id.encode())])
                )


def _name(message: Message) -> bytes:
    return b"%d:%s" % (message.source, message.entry_id)
