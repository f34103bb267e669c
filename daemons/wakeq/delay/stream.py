"""One stream, as wakeq-delay knows it."""

from wakeq import keys


class Stream:
    """A stream whose delayed messages are looked after.

    Attributes:
        name: its name.
        delayed: how many messages were delayed, when it was looked at last.
        looked: when that was, by the monotonic clock.
        registered: whether it is in the registry, or that was tried since that was read last.
        sweeping: whether stored messages that are in no set are being dropped.
    """

    __slots__ = (
        *("data", "delayed", "looked", "name", "promoting", "registered", "repairs", "sweeping"),
        "waiting",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.delayed = 0
        self.looked = 0.0
        self.registered = False
        self.sweeping = False
        self.waiting = keys.delayed(name)
        self.data = keys.delayed_data(name)
        self.repairs = keys.repairs(name)
        self.promoting = (name, self.waiting, self.data, self.repairs)  # the keys of deliver.lua
