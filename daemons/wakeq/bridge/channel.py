"""One channel that a bridge takes messages from, or a pattern of names of channels."""

from wakeq import keys
from wakeq.bridge.subscription import Subscription
from wakeq.sections import Bridge


class Channel:
    """A channel, and how this instance stands to it.

    Args:
        name: the channel, or the pattern.
        bridge: the bridge's name.
        kinds: what stands before SUBSCRIBE: nothing, P for a pattern, S for a shard's channel.
        db: the database in which the bridge keeps its books.

    Attributes:
        name, raw: the channel, or the pattern.
        lease, instances: keys, see bridge_hold.lua.
        mark_line: the channel by which marks come.
        line: what the channels begin with that living processes listen to.
        subscription: the connection by which its messages come.
        probe: a channel that is subscribed right after it: whether Redis has carried that out is
            asked by it, because the reply stands behind all that waits in memory.
        held: this instance holds it, in the eyes of Redis, when last asked.
        holder: the instance that does.
        asked: it was asked to be subscribed, and not to be unsubscribed since.
        awaited: how many replies to that are still to come.
        owes_mark: a mark is to be sent as soon as it is subscribed.
        marks: how many of our marks are out that have not been met yet.
    """

    def __init__(self, name: str, bridge: str, kinds: tuple[str, ...], db: int = 0) -> None:
        self.name = name
        self.lease = keys.bridge_lease(name, bridge)
        self.instances = keys.bridge_instances(name, bridge)
        self.line = keys.bridge_line(name, bridge, db, "")
        self.mark_line = keys.bridge_marks(name, bridge, db)
        self.subscription: Subscription | None = None
        self.held = False
        self.holder = ""
        self.asked = False
        self.awaited = 0
        self.owes_mark = False
        self.marks = 0
        self.probe = ""
        self._kinds = kinds
        self._probes = 0
        self.raw = name.encode()

    @property
    def is_ours(self) -> bool:
        """Whether its messages are taken, from the last one that was met on."""
        return self.subscription is not None and self.raw in self.subscription.ours

    @property
    def is_coming(self) -> bool:
        """Whether its messages are taken, or will be from a mark on that is on its way."""
        return self.is_ours or self.marks > 0

    @property
    def confirmed(self) -> bool:
        """Whether it is subscribed."""
        return self.asked and not self.awaited

    def subscribe(self, process: str) -> None:
        """Have its messages come to a process."""
        assert self.subscription is not None
        self.asked = True
        self._ask("")
        self._probes += 1  # one that was left may be there still
        self.probe = f"{self.line}{process}:{self._probes}"
        self.subscription.ask("SUBSCRIBE", self.probe)

    def unsubscribe(self) -> None:
        """Have no more of its messages come; all that have come until then are taken still."""
        if self.asked:
            assert self.subscription is not None
            self.asked = False
            self._ask("UN")
            self.subscription.ask("UNSUBSCRIBE", self.probe)

    def forget(self) -> None:
        """Forget the connection, which is lost; what came before is taken still."""
        self.subscription = None
        self.asked = self.held = self.owes_mark = False
        self.awaited = self.marks = 0
        self.holder = ""

    def _ask(self, un: str) -> None:
        assert self.subscription is not None
        for kind in self._kinds:
            self.subscription.ask(kind + un + "SUBSCRIBE", self.name)
            self.awaited += 1


def channels(settings: Bridge, bridge: str, db: int = 0) -> list[Channel]:
    """Return the channels that a bridge's settings name; none if its source is a list."""
    if settings.channel:
        return [Channel(settings.channel, bridge, ("",), db)]
    if settings.pattern:
        return [Channel(settings.pattern, bridge, ("P",), db)]
    # Both ways: whoever publishes chooses, and each message comes by one of them.
    return [Channel(name, bridge, ("S", ""), db) for name in settings.shard_channels]


def describe(settings: Bridge) -> str:
    """Return in words where a bridge takes messages from."""
    if settings.channel:
        return f"channel {settings.channel}"
    if settings.pattern:
        return f"channels {settings.pattern}"
    if settings.list_:
        return f"list {settings.list_}"
    return f"channels {settings.shard_channels[0]} to {settings.shard_channels[-1]}"
