"""Which instance of a bridge takes the messages of a channel, and how none is lost or doubled.

Redis gives what is published to everybody who is subscribed, and to nobody else, and keeps nothing.
So of all instances of a bridge, on one host or many, one at a time is to take the messages of each
channel.

Who decides who that is: Redis, in one script (`bridge_hold.lua`). Each instance asks three times in
each lease, and when it is told that a channel was left. A channel is free if nobody holds it, if
the lease of who does is over, or if the connection of who does is gone, which Redis knows. Channels
are spread: of n channels, an instance among m holds n/m at most, rounded up, and offers to the
others what it has beyond that.

What decides whose a message is: the marks among the messages. Each instance is subscribed to a
channel of marks, over the same connection as to the channel itself. Who has got hold of a channel
subscribes to it first, and when Redis has done so, which it is asked because the reply may stand
behind much else, sends a mark (`bridge_begin.lua`). Redis puts the mark into the line of
everybody's messages at the same place. Before it, they are those of the one before; from there on
they are those of who has sent it; the others' are dropped. So:

- Handing over (a stop, a channel too many): the next one subscribes, then comes the mark, then the
  old one unsubscribes. What is published meanwhile comes to both; the mark says whose each is.
- The holder is stopped for long, so that its lease runs out: another one begins. The old one, when
  it goes on, still publishes all that came before the mark, which nobody else has, and nothing
  after it. A fencing token, which would refuse all that it publishes then, would lose the former.
- The holder crashes: what was in its memory, or is published until another one has begun, is lost.
  Pub/sub has no other way. Another instance asks within a third of a lease and finds nobody
  listening; after a cut of the network, which Redis does not see, the lease must run out.
- The holder loses its connection: the same, for the time until it is connected again.
- Redis forgets the leases (it was restarted): all connections are new then, and whoever asks first
  holds the channel. Two cannot both take messages: who has begun last is the one.
- A replica is promoted, and the old master is still there, cut off: an instance may be subscribed
  at either. What is published to the old one comes to the instance there, and to nobody else.
- Marks are sent in the order in which the channel was held: the script refuses one of an instance
  that does not hold it any more.

On Cluster, all instances subscribe at the server that has the slot of the channel, so that there is
one order of its messages and marks.
"""

from collections.abc import Callable
from functools import partial
from math import ceil

from wakeq.bridge.channel import Channel
from wakeq.bridge.link import Link, Request
from wakeq.bridge.subscription import Subscription
from wakeq.scripts import Script
from wakeq.wire import Argument


class Holder:
    """Holds channels: as many as are this instance's share.

    Args:
        link: asks Redis.
        channels: all channels of the bridge.
        instance: the name of the instance, and its process as nobody else describes itself.
        lease: seconds.
        subscribe: makes the subscription for a key.

    Attributes:
        on_hint: called when a channel may have become free.
        on_subscribed: called when a mark may be sent.
        subscriptions: all connections, also those that are lost and have messages left.
    """

    def __init__(
        self,
        link: Link,
        channels: list[Channel],
        instance: tuple[str, str],
        lease: float,
        subscribe: Callable[[str], Subscription],
    ) -> None:
        self.on_hint: Callable[[], None]
        self.on_subscribed: Callable[[], None]
        self.channels = channels
        self.subscriptions: list[Subscription] = []
        self._link = link
        self._name, self._process = instance
        self._lease_ms = int(lease * 1000)
        self._subscribe = subscribe
        self._instances = 1
        self._hold, self._begin = Script("bridge_hold"), Script("bridge_begin")
        self._leave = Script("bridge_leave")
        self._of_mark = {channel.mark_line.encode(): channel for channel in channels}
        self._of_name = {channel.name.encode(): channel for channel in channels}

    @property
    def taken(self) -> int:
        """How many channels' messages are this instance's, from its last mark on."""
        return sum(channel.is_coming for channel in self.channels)

    @property
    def has_any(self) -> bool:
        """Whether this instance is the one that has messages of a channel come."""
        return any(channel.held or channel.is_coming for channel in self.channels)

    @property
    def settled(self) -> bool:
        """Whether each channel has an instance that takes its messages, as far as known."""
        return all(c.is_coming or c.holder not in ("", self._name) for c in self.channels)

    def connect(self) -> None:
        """Hear of marks from now on."""
        by_node: dict[bytes, Subscription] = {}
        for channel in self.channels:
            node = b""
            if self._link.cluster:
                node = self._link.node(self._link.connection(channel.lease))
            if node not in by_node:
                by_node[node] = subscription = self._subscribe(channel.lease)
                subscription.on_mark = partial(self._mark, subscription)
                subscription.on_reply = partial(self._confirm, subscription)
                self.subscriptions.append(subscription)
            channel.subscription = by_node[node]
        for subscription in by_node.values():
            of_it = [c for c in self.channels if c.subscription is subscription]
            subscription.subscribe_marks([c.mark_line for c in of_it])
            subscription.ask("SUBSCRIBE", *(c.line + self._process for c in of_it))

    def disconnect(self) -> bool:
        """Drop all connections; tell whether one had messages that may be missing from now on."""
        was_ours = self.has_any
        for channel in self.channels:
            channel.forget()
        for subscription in self.subscriptions:
            subscription.close()
        self.discard()
        return was_ours

    def discard(self) -> None:
        """Forget connections that are lost and have no messages left."""
        current = {channel.subscription for channel in self.channels}
        for subscription in list(self.subscriptions):
            if subscription.empty and subscription not in current:
                self.subscriptions.remove(subscription)
                subscription.forget()

    def ask(self) -> None:
        """Ask for channels, and keep those that this instance holds.

        Raises:
            WakeqError: Redis cannot be asked.
        """
        share = ceil(len(self.channels) / self._instances)
        held = sum(channel.held for channel in self.channels)
        requests = []
        for channel in self.channels:
            wants = int(channel.held or held < share)
            names: list[Argument] = [channel.lease, channel.instances]
            arguments: list[Argument] = [self._name, self._process, self._lease_ms, wants]
            arguments.append(channel.line)
            requests.append(Request(self._hold, names, arguments))
        replies = self._link.run(requests)
        self._instances = max(reply[2] for reply in replies)
        for channel, (holds, holder, _, taken) in zip(self.channels, replies, strict=True):
            channel.holder = holder.decode(errors="replace")
            self._held(channel, bool(holds), bool(taken))
        if ceil(len(self.channels) / self._instances) > share:
            self.ask()  # others have left
        else:
            self._offer()

    def begin(self) -> bool:
        """Send the marks that are due; tell whether some cannot be sent yet.

        Raises:
            WakeqError: Redis cannot be asked.
        """
        due = [channel for channel in self.channels if channel.owes_mark]
        requests = []
        for channel in due:
            names: list[Argument] = [channel.lease]
            arguments: list[Argument] = [self._process, channel.probe, int(channel.confirmed)]
            arguments.append(channel.mark_line)
            requests.append(Request(self._begin, names, arguments))
        for channel, began in zip(due, self._link.run(requests), strict=True):
            if began >= 0:
                channel.owes_mark = False
                channel.marks += began
            if began == 0:
                self._held(channel, False, False)
        return any(channel.owes_mark for channel in due)

    def leave(self) -> bool:
        """Offer all channels to the others; tell whether there are any.

        Raises:
            WakeqError: Redis cannot be asked.
        """
        return max(self._leave_all([*self.channels], stops=1), default=0) > 0

    def taken_over(self) -> bool:
        """Tell whether others have begun to take the messages of all channels.

        Raises:
            WakeqError: Redis cannot be asked.
        """
        for channel in self.channels:
            begun = self._link.call(channel.lease, "HGET", channel.lease, "begun")
            if channel.asked and begun != b"1":
                return False
        return True

    def unsubscribe(self) -> None:
        """Take nothing more that is published from now on."""
        for channel in self.channels:
            channel.held = channel.owes_mark = False
            channel.unsubscribe()

    @property
    def unsubscribed(self) -> bool:
        """Whether all that was published before `unsubscribe` has been met."""
        return all(not channel.awaited or channel.subscription is None for channel in self.channels)

    @property
    def is_missing(self) -> bool:
        """Whether something that was published before `unsubscribe` may not have come yet."""
        return any(channel.asked or channel.awaited for channel in self.channels)

    # -- what comes ------------------------------------------------------------------------

    def _held(self, channel: Channel, holds: bool, taken: bool) -> None:
        channel.held = holds
        channel.owes_mark = holds and (channel.owes_mark or taken or not channel.is_coming)
        if holds and not channel.asked:
            channel.subscribe(self._process)
        elif not holds and channel.asked and not channel.is_coming:
            channel.unsubscribe()

    def _confirm(self, subscription: Subscription, reply: list[object]) -> None:
        """Take the reply to a subscription: its kind, the channel, a count."""
        channel = self._of_name.get(reply[1]) if isinstance(reply[1], bytes) else None
        if channel is None or channel.subscription is not subscription or not channel.awaited:
            return
        channel.awaited -= 1
        if channel.confirmed and channel.owes_mark:
            self.on_subscribed()

    def _mark(self, subscription: Subscription, name: bytes, mark: bytes) -> None:
        """Take a mark; of a connection that is lost by now, it is about what came before."""
        channel = self._of_mark[name]
        if mark == self._process.encode():
            subscription.ours.add(channel.raw)
            if channel.subscription is subscription:
                channel.marks = max(0, channel.marks - 1)
        elif mark:
            subscription.ours.discard(channel.raw)
        # Whose it is now, Redis knows: this may have been long ago.
        if mark != self._process.encode():
            self.on_hint()

    def _offer(self) -> None:
        """Offer what is beyond this instance's share."""
        share = ceil(len(self.channels) / self._instances)
        ours = [channel for channel in self.channels if channel.held and channel.is_coming]
        self._leave_all(ours[share:], stops=0)

    def _leave_all(self, channels: list[Channel], stops: int) -> list[int]:
        requests = []
        for channel in channels:
            channel.held = channel.owes_mark = False
            names: list[Argument] = [channel.lease, channel.instances]
            arguments: list[Argument] = [self._name, self._process, stops, channel.mark_line]
            requests.append(Request(self._leave, names, arguments))
        return self._link.run(requests)
