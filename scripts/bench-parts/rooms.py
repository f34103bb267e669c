"""Rounds of rooms over the Python API, all clients in one process; many rooms; an idle client."""

import asyncio
import statistics
import threading
import time

from bench import Bench, wait_for

from wakeq import AsyncFanoutWorker, FanoutClient, FanoutTerms, FanoutWorker, RoomMessage

ROUNDS = {1: 8000, 10: 4000, 100: 1000}
REPEATS = 3
ROOMS = 10_000
OPERATIONS = 1000


class Counter:
    """A handler that counts, and says when it was called for the last time."""

    def __init__(self, total: int) -> None:
        self._left = total
        self._lock = threading.Lock()
        self.done = threading.Event()

    def __call__(self, _: RoomMessage) -> None:
        with self._lock:
            self._left -= 1
            if not self._left:
                self.done.set()


def fill(bench: Bench, room: str, count: int) -> None:
    """Have messages wait in a room."""
    with FanoutClient(bench.url) as rooms:
        for _ in range(count):
            rooms.send(room, b"x" * 100)


def rounds(bench: Bench, clients: int) -> float:
    """Return rounds per second of a room with so many clients, from a backlog."""
    bench.redis.flushall()
    count = ROUNDS[clients]
    handler = Counter(count * clients)
    with FanoutClient(bench.url) as rooms, FanoutWorker(handler, bench.url) as worker:
        rooms.subscribe("load", "holds it up", "nobody")
        rooms.send("load", "first")
        for number in range(clients):
            worker.subscribe("load", f"{number:032}")
        fill(bench, "load", count)
        start = time.monotonic()
        rooms.unsubscribe("load", "holds it up")
        if not handler.done.wait(120):
            raise SystemExit("bench: rounds do not end: something is wrong, no figures")
        return count / (time.monotonic() - start)


async def async_rounds(bench: Bench, clients: int) -> float:
    """Return rounds per second with handlers for asyncio."""
    bench.redis.flushall()
    count = ROUNDS[clients] // 2
    left, done = count * clients, asyncio.Event()

    async def handle(_: RoomMessage) -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set()

    with FanoutClient(bench.url) as rooms:
        async with AsyncFanoutWorker(handle, bench.url) as worker:
            rooms.subscribe("load", "holds it up", "nobody")
            rooms.send("load", "first")
            for number in range(clients):
                await worker.subscribe("load", f"{number:032}")
            fill(bench, "load", count)
            start = time.monotonic()
            rooms.unsubscribe("load", "holds it up")
            await asyncio.wait_for(done.wait(), 120)
            return count / (time.monotonic() - start)


def operations(rooms: FanoutClient, room: str) -> float:
    """Return the median time of a send and its acknowledgement, in µs."""
    times = []
    rooms.subscribe(room, "client", "worker")
    for _ in range(OPERATIONS):
        start = time.perf_counter()
        rooms.ack(room, "client", rooms.send(room, b"x" * 100))
        times.append(time.perf_counter() - start)
    rooms.unsubscribe(room, "client")
    return statistics.median(times) * 1e6


def among_many(bench: Bench) -> tuple[float, float]:
    """Return the time of a send and its acknowledgement, alone and among many rooms."""
    bench.redis.flushall()
    with FanoutClient(bench.url) as rooms:
        alone = operations(rooms, "room")
        for number in range(ROOMS):
            rooms.send(f"room-{number}", b"x" * 100)
        start = time.perf_counter()
        metrics = rooms.metrics(top=10)
        bench.row(f"metrics of {metrics.rooms:,} rooms", f"{time.perf_counter() - start:.2f} s")
        return alone, operations(rooms, "room")


def idle(bench: Bench) -> float:
    """Return how many requests an idle client costs in a ping interval."""
    bench.redis.flushall()
    seconds, interval = 4.0, 0.5

    def scripts() -> int:
        found = bench.redis.info("commandstats")
        return sum(found.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha"))

    with FanoutWorker(Counter(1), bench.url, FanoutTerms(timeout=3 * interval)) as worker:
        worker.subscribe("idle", "client")
        time.sleep(interval)  # until it has found out that there is nothing
        before, start = scripts(), time.monotonic()
        wait_for(lambda: time.monotonic() - start > seconds)
        return (scripts() - before) / ((time.monotonic() - start) / interval)


def measure(bench: Bench) -> None:
    """Measure rooms."""
    for clients in ROUNDS:
        rate = statistics.median(rounds(bench, clients) for _ in range(REPEATS))
        bench.row(
            f"rounds of a room with {clients} client{'s' * (clients > 1)}",
            f"{rate:,.0f}/s, {rate * clients:,.0f} acknowledgements/s",
        )
        rate = asyncio.run(async_rounds(bench, clients))
        bench.row("  the same with asyncio", f"{rate:,.0f}/s")
    alone, among = among_many(bench)
    bench.row("send and acknowledge, in one room", f"{alone:.0f} µs")
    bench.row(f"the same beside {ROOMS:,} rooms with a backlog", f"{among:.0f} µs")
    bench.row("requests of an idle client in a ping interval", f"{idle(bench):.2f}")
