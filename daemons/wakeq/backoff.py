"""Waiting times between tries: exponential, capped, with full jitter.

Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015 (full jitter).
"""


class Backoff:
    """Counts tries and says how long to wait before the next one.

    Args:
        base: the longest wait after the first failure, in seconds.
        cap: the longest wait at all, in seconds.
    """

    def __init__(self, base: float = 0.1, cap: float = 5.0) -> None:
        self.base = base
        self.cap = cap
        self.tries = 0

    def next(self) -> float:
        """Return how many seconds to wait after one more failure."""
        import random  # only a failure pays for it

        longest = min(self.cap, self.base * 2.0 ** min(self.tries, 30))
        self.tries += 1
        return random.uniform(0, longest)

    def reset(self) -> None:
        """Begin anew, after a success."""
        self.tries = 0
