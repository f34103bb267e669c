"""What wakeq-wakeup knows of consumers and groups, and what a look at Redis tells of them.

Plain state, changed by the waker; of a group also by the prober and the watcher, each its own
part. There are thousands of these objects, hence the slots.
"""

from typing import Any

from wakeq import keys
from wakeq.config import Consumer
from wakeq.loop import Timer

# The states of a sleeper.
ASLEEP = "asleep"
QUEUED = "queued"  # to be woken, waits for others to have started
STARTING = "starting"  # connected, has not answered yet
AWAKE = "awake"
RESTING = "resting"  # was just connected to; left alone for a second
BACKING_OFF = "backing off"  # was woken in vain; left alone for longer and longer
LEFT = "left"  # cannot be connected to; left alone until something changes

UP = frozenset((QUEUED, STARTING, AWAKE))

ID = tuple[int, int]


def parse_id(text: bytes) -> ID:
    """Return an entry's id as two numbers, which compare as ids do."""
    milliseconds, _, sequence = text.partition(b"-")
    return int(milliseconds), int(sequence)


def format_id(entry_id: ID) -> bytes:
    """Return an id as Redis writes it."""
    return b"%d-%d" % entry_id


class Look:
    """What lua/backlog.lua says of one group at one moment.

    Attributes:
        error: what Redis says against the look, empty if nothing.
        missing: the group must be made before anything can be waited for.
        delivered, retried: up to where the stream and the retry stream were delivered.
        unread: whether there is anything after that.
        lag: about how many are unread.
        pending: how many are pending, whoever has them.
        others: how many consumers live that are not of this host's sockets.
        claimable: seconds until what a consumer that is gone has pending may be claimed;
            0: now, None: there is nothing.
        paused: the stream is paused, there is nothing to do; `retried` is the last id there is.
        own: for each sleeper that was asked for, how many it has pending and whether its
            alive key is there.
    """

    __slots__ = (
        *("claimable", "delivered", "error", "lag", "missing", "others", "own", "paused"),
        *("pending", "retried", "unread"),
    )

    def __init__(self, answer: list[Any], sleepers: "list[Sleeper]") -> None:
        self.error: str = answer[0].decode(errors="replace")
        if self.error:
            return
        self.missing = not answer[1]
        self.delivered = parse_id(answer[1] or b"0-0")
        self.retried = parse_id(answer[2])
        self.unread: bool = bool(answer[3])
        self.lag: int = answer[4]
        self.pending: int = answer[5]
        self.others: int = answer[6]
        self.claimable = answer[7] / 1000 if answer[7] >= 0 else None
        self.paused: bool = bool(answer[8])
        own = iter(answer[9:])
        self.own: dict[Sleeper, tuple[int, bool]] = {
            sleeper: (pending, bool(alive))
            for sleeper, pending, alive in zip(sleepers, own, own, strict=True)
        }

    @property
    def work(self) -> bool:
        """Whether any consumer of the group would find something to do now."""
        return self.unread or self.claimable == 0

    def own_pending(self, sleeper: "Sleeper") -> int:
        """Return how many entries a sleeper has pending."""
        return self.own.get(sleeper, (0, False))[0]

    def mark(self, sleeper: "Sleeper") -> "Mark":
        """Return what must have changed after a sleeper has been awake and done something."""
        return (self.delivered, self.retried, self.pending, self.own_pending(sleeper))


Mark = tuple[ID, ID, int, int]


class Sleeper:
    """One consumer of this host: a socket, through which it can be woken.

    Attributes:
        name: the instance, `orders` or `orders:2`; a discovered one has its socket's path.
        consumer: its name in the group, HOST/NAME; empty for a discovered one.
        state: one of the constants above; only the waker changes it.
        mark: what it was woken for, None if that is not known.
        woken_at, slept_at: when it was connected to and when that ended, monotonic; 0: never.
        rest: how many seconds it was left alone the last time that it was woken in vain.
        refused: how often in a row nobody listened.
    """

    __slots__ = (
        *("consumer", "group", "judged", "mark", "name", "path", "refused", "rest", "slept_at"),
        *("state", "timer", "woken_at"),
    )

    def __init__(self, name: str, path: str, consumer: bytes) -> None:
        self.name = name
        self.path = path
        self.consumer = consumer
        self.group: Group
        self.state = ASLEEP
        self.judged = True  # what it did when it was awake last has been looked at
        self.mark: Mark | None = None
        self.woken_at = self.slept_at = self.rest = 0.0
        self.refused = 0
        self.timer: Timer | None = None

    @property
    def discovered(self) -> bool:
        """Whether it has no configuration: its group's name is its socket's path."""
        return not self.consumer

    @property
    def order(self) -> tuple[str, int]:
        """Return what the sleepers of a group are sorted by: the first is woken first."""
        base, _, number = self.name.partition(":")
        return (base, int(number) if number.isdigit() else 0)


class Group:
    """One consumer group: a stream and the sleepers of this host that read it.

    Attributes:
        start, claim_after, scale_lag: as in the configuration.
        is_strict: one consumer at a time handles its messages; who comes to own the group has
            at once what one that is gone had pending.
        stands_by: strict order: one consumer of each host is to be awake, not of all hosts.
        keys: those that lua/backlog.lua takes; the first two are the streams.
        looking: a look is under way or about to be sent; `again`: one more is needed after it.
        hinted: the next look is for a hint of the watcher.
        in_vain_at: when a look for a hint found nobody to wake, monotonic; 0: the last one did.
        paused: the last look found the stream paused.
        timer: the next look that is due by time.
        home: the shard that watches it, once it was watched.
        error: the last error that was logged.
    """

    __slots__ = (
        *("again", "claim_after", "error", "hinted", "home", "in_vain_at", "is_strict", "keys"),
        *("looking", "name", "paused", "scale_lag", "sleepers", "stands_by", "start", "stream"),
        "timer",
    )

    def __init__(self, settings: Consumer) -> None:
        self.stream = settings.stream
        self.name = settings.group
        self.configure(settings)
        self.keys = [
            self.stream.encode(),
            keys.retry(self.stream, self.name).encode(),
            keys.alive(self.stream, self.name, "").encode(),
            keys.paused(self.stream).encode(),
        ]
        self.sleepers: list[Sleeper] = []
        self.looking = self.again = self.hinted = self.paused = False
        self.in_vain_at = 0.0
        self.timer: Timer | None = None
        self.home: Any = None
        self.error = ""

    def configure(self, settings: Consumer) -> None:
        """Take over what may differ between its consumers: the one that came last decides."""
        self.start = settings.start
        self.is_strict = settings.order == "strict"
        self.stands_by = settings.standby == "wait"
        self.claim_after = 0.0 if self.is_strict else settings.claim_after
        self.scale_lag = settings.scale_lag

    def wants_more(self, look: Look) -> bool:
        """Tell whether one more consumer is to be woken for what there is to do."""
        up = sum(sleeper.state in UP for sleeper in self.sleepers)
        if self.is_strict:
            if up or (look.others and not self.stands_by):
                return False
            # Who stands by is of use as long as the others have something in hand.
            return look.work or (look.others > 0 and look.pending > 0)
        up += look.others
        return look.lag > up * self.scale_lag if up else look.work

    def any(self, states: frozenset[str]) -> bool:
        """Tell whether any of its sleepers is in one of these states."""
        return any(sleeper.state in states for sleeper in self.sleepers)
