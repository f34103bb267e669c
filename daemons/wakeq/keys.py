"""Every Redis key of wakeq, a function each.

A stream's own keys stand in the hash slot of the stream, so that one script may touch them
together on Redis Cluster. `S` is a stream, `G` a group, `C` a consumer.
"""

STREAMS = "wakeq:streams"  # SET: the streams that wakeq looks after
OWN = "wakeq:"  # what all of them begin with, and no stream of a user does
# CHANNEL: a stream's name is published when one of its messages is due before all others. A
# channel and no stream, because a script may publish from any slot of a Cluster.
DOORBELL = "wakeq:doorbell"
ROOMS = "wakeq:rooms"  # SET: the rooms that there may be; a room's own steps never touch it
BELL = "wakeq:worker:"  # CHANNEL, with a worker behind it: there is news for it in a room
_ROOM_PARTS = (
    *("state", "queue", "clients", "members", "sync"),
    *("waiting", "workers", "log", "ejected", "timeouts"),
)
BRIDGES = "wakeq:bridges"  # HASH: each bridge that has run, and where it takes from and to, JSON


def prefix(stream: str) -> str:
    """Return what the keys of a stream begin with: `wakeq:{S}`, or `wakeq:S` if S has a tag,
    or `wakeq:wakeq:S` if it begins and ends with a brace besides: else `{orders}` and `orders`,
    which are two streams, would share theirs.

    A hash tag is what Redis Cluster hashes instead of the whole key: the text between the
    first `{` and the first `}` after it, unless that is empty. A name that has a `}` but no
    tag cannot be wrapped, because the tag would end there; its own slot is then out of reach
    by name, which only matters on Cluster.
    """
    start = stream.find("{")
    if not (start >= 0 and stream.find("}", start + 1) > start + 1):
        return f"wakeq:{{{stream}}}"
    return f"wakeq:{OWN if stream[0] + stream[-1] == '{}' else ''}{stream}"


def retry(stream: str, group: str) -> str:
    """STREAM: messages for one group alone, due again; deleted with their acknowledgement."""
    return f"{prefix(stream)}:retry:{group}"


def stats(stream: str, group: str) -> str:
    """HASH: counters of a group, and the id it has been delivered up to."""
    return f"{prefix(stream)}:stats:{group}"


def alive(stream: str, group: str, consumer: str) -> str:
    """STRING, expires: a consumer lives; the value names its process."""
    return f"{prefix(stream)}:alive:{group}:{consumer}"


def delayed(stream: str) -> str:
    """ZSET: when each delayed message is due, in ms; the member is its id, `ID@G` of a retry."""
    return f"{prefix(stream)}:delayed"


def delayed_data(stream: str) -> str:
    """HASH: the delayed messages by the same ids, packed by fail.lua or schedule.lua."""
    return f"{prefix(stream)}:delayed:data"


def repairs(stream: str) -> str:
    """ZSET: due retries that wait for a repair, and when each may be handed out, in ms."""
    return f"{prefix(stream)}:delayed:repair"


def dead(stream: str, group: str) -> str:
    """STREAM: dead letters of a group."""
    return f"{prefix(stream)}:dead:{group}"


def crashes(stream: str, group: str) -> str:
    """HASH: how often a message's handler was begun, alone, and its process did not survive."""
    return f"{prefix(stream)}:crashes:{group}"


def owner(stream: str, group: str) -> str:
    """HASH: strict order: who may consume, until when, with which fencing token."""
    return f"{prefix(stream)}:owner:{group}"


def turn(stream: str, group: str) -> str:
    """STREAM, expires: strict order: rung when the owner leaves, for those that stand by."""
    return f"{prefix(stream)}:turn:{group}"


def paused(stream: str) -> str:
    """STRING: nobody handles messages of the stream now; the value says since when and why."""
    return f"{prefix(stream)}:paused"


def dedup(stream: str, key: str) -> str:
    """STRING, expires: a publish with this deduplication key was taken; the value is its id."""
    return f"{prefix(stream)}:dedup:{key}"


def worker_rooms(worker: str) -> str:
    """SET: the rooms in which a worker of several processes may have clients."""
    return f"{BELL}{worker}:rooms"


def room(name: str) -> list[str]:
    """Return the keys of a room, all in one slot, as room.lua lists them: their types stand there.

    Braces in a name would be taken for a hash tag, so they are written as in a URL.
    """
    tag = name.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")
    return [f"wakeq:room:{{{tag}}}:{part}" for part in _ROOM_PARTS]


def lease(name: str, source: str = "") -> str:
    """HASH, expires: an election: who leads, until when, with which fencing token.

    That of a node stands in the slot of its stream or list, which is the source.
    """
    return f"{prefix(source) if source else OWN[:-1]}:lease:{name}"


def vacancy(name: str, source: str = "") -> str:
    """CHANNEL: the leader of this name has resigned, for those that stand for election."""
    return f"{prefix(source) if source else OWN[:-1]}:vacancy:{name}"


def emission(source: str, node: str) -> str:
    """HASH: what the leaders of a node have emitted: how often, and for which time last, in us."""
    return f"{prefix(source)}:emission:{node}"


def node_process(source: str, node: str, process: str) -> str:
    """HASH, expires: what one process of a node, `HOST/PID`, says of itself."""
    return f"{prefix(source)}:node:{node}:{process}"


def node_processes(source: str, node: str) -> str:
    """ZSET, expires: the processes of a node, and until when each is believed to live, in ms."""
    return f"{prefix(source)}:nodes:{node}"


def bridge_group(bridge: str) -> str:
    """Return the group under which a bridge's counters and dead letters stand.

    Not the bridge's name alone: a group of consumers of the same stream may have that.
    """
    return f"bridge/{bridge}"


def bridge_lease(channel: str, bridge: str) -> str:
    """HASH, expires: a bridge: which instance takes the messages of a channel, until when."""
    return f"{prefix(channel)}:bridge:{bridge}"


def bridge_marks(channel: str, bridge: str, db: int) -> str:
    """CHANNEL: a mark between the messages of one instance of a bridge and those of the next.

    All databases of a Redis have the same channels: bridges of one name in two of them must not
    take each other's marks for their own.
    """
    return f"{prefix(channel)}:bridge:{bridge}:marks:db{db}"


def bridge_line(channel: str, bridge: str, db: int, process: str) -> str:
    """CHANNEL: a process of a bridge is subscribed to it for as long as it can hear."""
    return f"{prefix(channel)}:bridge:{bridge}:line:db{db}:{process}"


def bridge_instances(channel: str, bridge: str) -> str:
    """ZSET, expires: a bridge: the instances that would take a channel, and until when, in ms."""
    return f"{prefix(channel)}:bridge:{bridge}:instances"


def bridge_batch(stream: str, bridge: str, worker: str) -> str:
    """STRING, expires: a bridge: the number of the last batch that a worker has published."""
    return f"{prefix(stream)}:bridge:{bridge}:batch:{worker}"


def bridge_taken(source: str, bridge: str, worker: str) -> str:
    """LIST: a bridge: what a worker has taken from a list and not published yet."""
    return f"{prefix(source)}:bridge:{bridge}:taken:{worker}"


def bridge_takers(source: str, bridge: str) -> str:
    """SET: a bridge: the workers that may have taken something from a list."""
    return f"{prefix(source)}:bridge:{bridge}:takers"


def enlisted(ids: str) -> str:
    """ZSET: until when each of the workers lives that stand in a list of ids, in ms."""
    return f"{prefix(ids)}:enlisted"


ALONE = "alone"  # beside the numbers in `taken`: the one that the taker has begun alone
GIVEN_UP = "~"  # before one in `takers` who was taken for dead


def takers(source: str) -> str:
    """ZSET: who takes messages of a list, and until when each is believed to live, in ms.

    If it was given up: when to look whether something it had asked for has come to it since.
    """
    return f"{prefix(source)}:takers"


def taken(source: str, taker: str) -> str:
    """HASH: what a taker has in hand: messages of the list by number, in order of their taking."""
    return f"{prefix(source)}:taken:{taker}"


def taking(source: str, taker: str) -> str:
    """LIST: where a message goes that a taker has waited for, on its way to what is in hand."""
    return f"{prefix(source)}:taking:{taker}"


def suspects(source: str) -> str:
    """HASH, expires: messages of a list that were in hand when their taker died, by their hash.

    How often they were, and how often alone.
    """
    return f"{prefix(source)}:suspects"


def errors(source: str, node: str) -> str:
    """LIST: messages of a list that failed, as JSON, the newest at the left end."""
    return f"{prefix(source)}:errors:{node}"
