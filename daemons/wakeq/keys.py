"""Every Redis key of wakeq, a function each.

A stream's own keys stand in the hash slot of the stream, so that one script may touch them
together on Redis Cluster. `S` is a stream, `G` a group, `C` a consumer.
"""

STREAMS = "wakeq:streams"  # SET: the streams that wakeq looks after
OWN = "wakeq:"  # what all of them begin with, and no stream of a user does
# CHANNEL: a stream's name is published when one of its messages is due before all others. A
# channel and no stream, because a script may publish from any slot of a Cluster.
DOORBELL = "wakeq:doorbell"


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


def lease(name: str) -> str:
    """HASH, expires: an election: who leads, until when, with which fencing token."""
    return f"wakeq:lease:{name}"


def vacancy(name: str) -> str:
    """CHANNEL: the leader of this name has resigned, for those that stand for election."""
    return f"wakeq:vacancy:{name}"
