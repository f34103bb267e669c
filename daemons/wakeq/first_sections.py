"""The settings that a consumer needs; `sections` has all others, and loads with them."""

from __future__ import annotations

from wakeq.backoff import Growth
from wakeq.settings import Section, choice, command, duration, growth, integer, text

# Tables of wakeq.toml, which are no settings of its top level.
TABLE_NAMES = ("consumer", "wakeup", "delay", "trim", "leader", "node", "bridge", "fanout")


class Place(Section):
    """Where the files are: from options and the environment only."""

    config_dir = text("where wakeq.toml and consumers/ are", "/etc/wakeq", "DIR")
    runtime_dir = text("where consumer/NAME.sock are", "/run/wakeq", "DIR")


class Common(Section):
    """What every daemon and the command need: the top level of wakeq.toml."""

    redis_url = text(
        "the Redis server: redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://",
        "redis://127.0.0.1:6379/0",
        "URL",
    )
    start_timeout = duration(
        "how long to try to reach Redis at the start before giving up with exit code 69", 60.0
    )
    log_level = choice("the least level that is logged", "info", "debug", "info", "warning")


class Consumer(Section):
    """A consumer: consumers/NAME.toml, with defaults for all in [consumer] of wakeq.toml."""

    stream = text("the stream to read (default: NAME)", "")
    group = text("the consumer group (default: NAME)", "")
    start = choice("where a new group begins: 0, the oldest message, or $, the next one", "0",
                   "0", "$")  # fmt: skip
    handler = text("what to call for each message: package.module:callable or /a/file.py:callable",
                   "")  # fmt: skip
    exec_ = command("what to run for each message instead: a program with its arguments")
    python = text("run the handler with this interpreter, of the application's own environment",
                  "", "FILE")  # fmt: skip
    concurrency = integer("how many messages are handled at once", 1, low=1, high=1000)
    prefetch = integer("at most this many messages in hand for each of them", 1000,
                       low=1, high=10000)  # fmt: skip
    order = choice("none; key: messages with the same wakeq.key one after another; strict: all"
                   " messages, by one consumer of the group at a time", "none",
                   "none", "key", "strict")  # fmt: skip
    standby = choice("strict order, another consumer is at it: wait for it to leave, or exit",
                     "wait", "wait", "exit")  # fmt: skip
    lease = duration("strict order, after a crash another consumer takes over after this long",
                     10.0, low=1.0)  # fmt: skip
    timeout = duration("a message that takes longer has failed (0: no limit)", 0.0,
                       low=0.001, off=True)  # fmt: skip
    max_attempts = integer("a message that failed so often is a dead letter (0: never)", 10,
                           low=0, high=1_000_000)  # fmt: skip
    max_crashes = integer("so is a message whose handler ended the whole process so often", 3,
                          low=1, high=1000)  # fmt: skip
    backoff = growth("how long to wait at most before another try, each time a random part of it",
                     Growth(1.0, 2.0, 600.0))  # fmt: skip
    idle_timeout = duration("exit when nothing came for this long", 30.0, low=2.5)
    drain_timeout = duration("at a stop, how long to wait for messages being handled", 60.0)
    claim_after = duration("take over messages of a consumer that is gone after this long", 60.0,
                           low=1.0)  # fmt: skip
    scale_lag = integer("wake one more instance for each so many unread messages", 1000,
                        low=1, high=1_000_000_000)  # fmt: skip
