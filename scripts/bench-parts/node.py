"""wakeq-node: how soon the next one emits after a stop and after kill -9, and what one needs."""

import os
import statistics
import subprocess
import time

from bench import HANDLERS, Bench, cpu_seconds, end, megabytes, wait_for

from wakeq import keys

NODES = 50
STOPS = 20
KILLS = 3
LEASE = 10.0
INTERVAL_MS = 100
SECONDS = 60.0
LEASE_KEY, EMISSION = keys.lease("load", "load"), keys.emission("load", "load")


def start(bench: Bench, *options: str) -> "subprocess.Popen[bytes]":
    """Start a node on the stream `load`."""
    command = bench.command("wakeq-node", "load", f"--lease={LEASE}s", *options)
    return subprocess.Popen(command, env=bench.environment())


def wait_candidates(bench: Bench, count: int) -> None:
    """Wait until so many hear of a vacancy."""
    channel = keys.vacancy("load", "load")
    wait_for(lambda: dict(bench.redis.pubsub_numsub(channel))[channel.encode()] == count, 120)


def leader(bench: Bench) -> int:
    """Return the process that leads."""
    return int(bench.redis.hget(LEASE_KEY, "who").rpartition(b"/")[2])


def emitted_after(bench: Bench, token: bytes) -> float:
    """Wait for the first emission with a higher token; return when it was (seconds since 1970)."""
    bench.redis.xtrim("load", maxlen=0)

    def found() -> float:
        for entry_id, fields in bench.redis.xrange("load"):
            if int(fields[b"wakeq.token"]) > int(token) + 1:
                return int(entry_id.partition(b"-")[0]) / 1000
        return 0.0

    wait_for(found)
    return found()


def measure_changes(bench: Bench, nodes: "dict[int, subprocess.Popen[bytes]]") -> None:
    """Measure how long nothing is emitted when the leader is stopped or killed."""
    stops, kills = [], []
    options = (f"--interval={INTERVAL_MS}ms",)
    for number in range(STOPS + KILLS):
        pid, token = leader(bench), bench.redis.hget(LEASE_KEY, "token")
        is_kill = number >= STOPS
        began = time.time()
        (nodes[pid].kill if is_kill else nodes[pid].terminate)()
        gap = emitted_after(bench, token) - began
        (kills if is_kill else stops).append(gap)
        nodes.pop(pid).wait()
        new = start(bench, *options)
        nodes[new.pid] = new
        wait_candidates(bench, NODES - 1)
    bench.row(
        f"{NODES} nodes, the leader is stopped: until the next emission",
        f"median {statistics.median(stops) * 1000:.0f} ms, {max(stops) * 1000:.0f} ms at most"
        f" (interval {INTERVAL_MS} ms)",
    )
    bench.row(
        f"  kill -9, nothing in the stream, lease {LEASE:.0f} s",
        ", ".join(f"{gap:.2f} s" for gap in kills),
    )


def inside(bench: Bench) -> int:
    """Return how many commands were carried out, those of scripts among them."""
    stats = bench.redis.info("commandstats")
    return sum(each["calls"] for name, each in stats.items() if name != "cmdstat_info")


def rate(bench: Bench) -> float:
    """Return how many commands the server carries out in a second, those of scripts among them."""
    before = inside(bench)
    time.sleep(SECONDS)
    return (inside(bench) - before) / SECONDS


def measure_rest(bench: Bench) -> None:
    """Measure what a follower asks of Redis when nothing comes, its memory and its CPU time."""
    bench.redis.flushall()
    bench.redis.hset(LEASE_KEY, mapping={"holder": "", "token": "1"})
    first = start(bench, "--interval=1h")
    wait_for(lambda: bench.redis.hget(EMISSION, "seq"))
    alone = rate(bench)
    follower = start(bench, "--interval=1h", f"--handler={HANDLERS}:noop")
    process = keys.node_process("load", "load", f"{os.uname().nodename}/{follower.pid}")
    wait_for(lambda: bench.redis.exists(process))
    wait_for(lambda: bench.redis.xinfo_groups("load")[0]["pending"] == 0)
    time.sleep(5)  # the figures of the start are written
    with open(f"/proc/{follower.pid}/task/{follower.pid}/children", encoding="ascii") as file:
        (child,) = map(int, file.read().split())
    cpu = cpu_seconds(follower.pid) + cpu_seconds(child)
    both = rate(bench)
    cpu = cpu_seconds(follower.pid) + cpu_seconds(child) - cpu
    own = [megabytes(pid, "RssAnon") for pid in (follower.pid, child)]
    bench.row("a follower at rest: commands, those of scripts included", f"{both - alone:.2f}/s")
    bench.row(
        "  memory of its own, CPU",
        f"{own[0]:.0f} MB, its consuming process {own[1]:.0f} MB; {cpu / SECONDS:.2%}",
    )
    end(follower)
    end(first)


def measure(bench: Bench) -> None:
    """Measure changes of the leader among many, and one at rest."""
    measure_rest(bench)
    bench.redis.flushall()
    bench.redis.hset(LEASE_KEY, mapping={"holder": "", "token": "1"})
    nodes = {}
    for _ in range(NODES):
        node = start(bench, f"--interval={INTERVAL_MS}ms")
        nodes[node.pid] = node
    try:
        wait_candidates(bench, NODES - 1)
        measure_changes(bench, nodes)
    finally:
        for node in nodes.values():
            node.terminate()
        for node in nodes.values():
            node.wait(timeout=60)
