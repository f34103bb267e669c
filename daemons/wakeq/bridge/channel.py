"""One channel that a bridge takes messages from, or a pattern of names of channels."""

from wakeq import keys
from wakeq.bridge.subscription import Subscription
from wakeq.config import Bridge


class Channel:
    """A channel, and how this instance stands to it.

    Args:
        name: the channel, or the pattern.
        bridge: the bridge's name.
        kinds: what stands before SUBSCRIBE: nothing, P for a pattern, S for a shard's channel.

    Attributes:
        name, raw: the channel, or the pattern.
        lease, instances: keys, see bridge_hold.lua; marks come by the channel `lease`.
        line: what the channels begin with that living processes listen to.
        subscription: the connection by which its messages come.
        held: this instance holds it, in the eyes of Redis, when last asked.
        holder: the instance that does.
        asked: it was asked to be subscribed, and not to be unsubscribed since.
        awaited: how many replies to that are still to come.
    """

    def __init__(self, name: str, bridge: str, kinds: tuple[str, ...]) -> None:
        self.name = name
        self.lease = keys.bridge_lease(name, bridge)
        self.instances = keys.bridge_instances(name, bridge)
        self.line = keys.bridge_line(name, bridge, "")
        self.subscription: Subscription | None = None
        self.held = False
        self.holder = ""
        self.asked = False
        self.awaited = 0
        self._kinds = kinds
        self.raw = name.encode()

    @property
    def is_ours(self) -> bool:
        """Whether its messages are taken, from the last one that was met on."""
        return self.subscription is not None and self.raw in self.subscription.ours

    @property
    def confirmed(self) -> bool:
        """Whether it is subscribed."""
        return self.asked and not self.awaited

    def subscribe(self) -> None:
        """Have its messages come."""
        assert self.subscription is not None
        self.asked = True
        self._ask("")

    def unsubscribe(self) -> None:
        """Have no more of its messages come; all that have come until then are taken still."""
        if self.asked:
            self.asked = False
            self._ask("UN")

    def forget(self) -> None:
        """Forget the connection, which is lost; what came before is taken still."""
        self.subscription = None
        self.asked = self.held = False
        self.awaited = 0
        self.holder = ""

    def _ask(self, un: str) -> None:
        assert self.subscription is not None
        for kind in self._kinds:
            self.subscription.ask(kind + un + "SUBSCRIBE", self.name)
            self.awaited += 1


def channels(settings: Bridge, bridge: str) -> list[Channel]:
    """Return the channels that a bridge's settings name; none if its source is a list."""
    if settings.channel:
        return [Channel(settings.channel, bridge, ("",))]
    if settings.pattern:
        return [Channel(settings.pattern, bridge, ("P",))]
    # Both ways: whoever publishes chooses, and each message comes by one of them.
    return [Channel(name, bridge, ("S", "")) for name in settings.shard_channels]


def describe(settings: Bridge) -> str:
    """Return in words where a bridge takes messages from."""
    if settings.channel:
        return f"channel {settings.channel}"
    if settings.pattern:
        return f"channels {settings.pattern}"
    if settings.list_:
        return f"list {settings.list_}"
    return f"channels {settings.shard_channels[0]} to {settings.shard_channels[-1]}"
