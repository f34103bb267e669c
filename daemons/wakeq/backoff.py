"""Waiting times between tries: exponential, capped, with full jitter.

Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015 (full jitter).
"""


class Growth:
    """How the longest wait grows from try to try.

    Args:
        base: the longest wait after the first failure, in seconds.
        factor: by how much each further failure multiplies it.
        cap: the longest wait at all, in seconds.
    """

    def __init__(self, base: float, factor: float, cap: float) -> None:
        self.base = base
        self.factor = factor
        self.cap = cap

    def __str__(self) -> str:
        return f"base={self.base:g}s,factor={self.factor:g},cap={self.cap:g}s"

    def longest(self, tries: int) -> float:
        """Return the longest wait after so many failures (1 or more), in seconds."""
        try:
            return min(self.cap, self.base * self.factor ** (tries - 1))
        except OverflowError:
            return self.cap

    def wait(self, tries: int) -> float:
        """Return how many seconds to wait after so many failures (1 or more)."""
        import random  # only a failure pays for it

        return random.uniform(0, self.longest(tries))


class Backoff:
    """Counts tries and says how long to wait before the next one.

    Args:
        base: the longest wait after the first failure, in seconds.
        cap: the longest wait at all, in seconds.
    """

    def __init__(self, base: float = 0.1, cap: float = 5.0) -> None:
        self.tries = 0
        self._growth = Growth(base, 2.0, cap)

    def next(self) -> float:
        """Return how many seconds to wait after one more failure."""
        self.tries += 1
        return self._growth.wait(self.tries)

    def reset(self) -> None:
        """Begin anew, after a success."""
        self.tries = 0
