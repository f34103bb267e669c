"""Measures wakeq, beside what is bare, in one run, on a server of its own.

    scripts/bench                      everything, about four minutes
    scripts/bench throughput cold ...  some of it, by the names in TARGETS
    sudo scripts/bench booted          cold starts under a real systemd, eight minutes
    scripts/bench --json ...           the table once more, at the end, as one JSON object

Figures of a shared or small machine move by a quarter from run to run; ratios move less,
because what is compared is measured in turns. Loads are bounded and end by themselves.
"""

import importlib
import json
import os
import platform
import sys

import redis
from bench import bench_in_folder

# Each is a module beside this one, whose measure(bench) adds rows to the table; the first line of
# its docstring is printed above them.
TARGETS = (
    "throughput",
    "latency",
    "startup",
    "cold",
    "sleepers",
    "memory",
    "delay",
    "trim",
    "strict",
    "retry",
    "bridge",
    "node",
    "lists",
    "rooms",
    "gateway",
)
# By their name alone, because they take longer and need root.
ON_REQUEST = ("booted",)


def machine(server_version: str) -> str:
    """Return what the figures depend on, in a line."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        model = next((line for line in file if line.startswith("model name")), "?: ?")
    return (
        f"{model.partition(':')[2].strip()}, {os.cpu_count()} cores,"
        f" Linux {platform.release()}, Python {platform.python_version()},"
        f" redis-py {redis.__version__}, Redis {server_version}, load {os.getloadavg()[0]:.1f}"
    )


def main() -> None:
    """Measure the targets named on the command line, or all."""
    names = [name for name in sys.argv[1:] if name != "--json"] or TARGETS
    known = TARGETS + ON_REQUEST
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"bench: there is no {unknown[0]!r}, only {', '.join(known)}")
    with bench_in_folder() as bench:
        print(machine(bench.redis.info("server")["redis_version"]))
        for name in names:
            target = importlib.import_module(name)
            print(f"{name}: {target.__doc__.splitlines()[0]}")
            target.measure(bench)
        if "--json" in sys.argv:
            print(json.dumps(dict(bench.rows)))


if __name__ == "__main__":
    main()
