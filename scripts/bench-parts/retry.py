"""What moving a failed message costs Redis, beside a plain acknowledgement."""

import statistics

from bench import BODY, Bench

from wakeq import keys
from wakeq.message import Message, carry
from wakeq.scripts import Script

MESSAGES = 20_000
ROUNDS = 5
STREAM = GROUP = "load"


def cost(bench: Bench, name: str) -> float:
    """Return µs of the server's processor for each message, a script for each, in pipelines."""
    bench.fill(MESSAGES)
    bench.redis.xgroup_create(STREAM, GROUP, "0")
    reply = bench.redis.xreadgroup(GROUP, "c", {STREAM: ">"}, count=MESSAGES)
    names: list[str] = [STREAM, keys.stats(STREAM, GROUP)]
    if name == "fail":
        names += [keys.delayed(STREAM), keys.delayed_data(STREAM), keys.dead(STREAM, GROUP)]
    sha = bench.redis.script_load(Script(name).text)
    pipe = bench.redis.pipeline(transaction=False)
    for _, entries in reply:
        for entry_id, _ in entries:
            pipe.evalsha(sha, len(names), *names, *arguments(name, entry_id))
    before = processor_seconds(bench)
    assert len(pipe.execute()) == MESSAGES
    took = processor_seconds(bench) - before
    assert bench.redis.xpending(STREAM, GROUP)["pending"] == 0
    return took / MESSAGES * 1e6


def processor_seconds(bench: Bench) -> float:
    """Return how much time of the processor the server has had."""
    cpu = bench.redis.info("cpu")
    return float(cpu["used_cpu_user"] + cpu["used_cpu_sys"])


def arguments(name: str, entry_id: bytes) -> list[bytes | str | int]:
    """Return what a consumer passes for one message."""
    if name == "acknowledge":
        return [GROUP, entry_id, 0, entry_id]
    message = Message(STREAM, 0, entry_id, [b"body", BODY])
    own = [(b"wakeq.attempt", b"2"), (b"wakeq.first_id", entry_id), (b"wakeq.error", b"ValueError")]
    items = carry(message, own)
    # Backoff: due at different times, most not before all others.
    delay_ms = 1000 + hash(entry_id) % 10_000
    head = [GROUP, "c", 0, entry_id, STREAM, keys.DOORBELL, entry_id, entry_id, delay_ms]
    return [*head, len(items), *items]


def measure(bench: Bench) -> None:
    """Measure both in turns."""
    plain, failed = [], []
    for _ in range(ROUNDS):
        plain.append(cost(bench, "acknowledge"))
        failed.append(cost(bench, "fail"))
    ratio = statistics.median(f / p for f, p in zip(failed, plain, strict=True))
    bench.row("Redis acknowledges a message in", f"{statistics.median(plain):.1f} µs")
    bench.row(
        "Redis moves a failed message to the delayed ones in",
        f"{statistics.median(failed):.1f} µs, {ratio:.2f} times as long",
    )
