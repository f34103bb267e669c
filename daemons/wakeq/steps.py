"""Carrying out what generators say, for blocking code and for asyncio, so that both decide alike.

A generator yields what is to be sent and gets what came of it, or the error that took its place; or
it yields a number of seconds to wait, a float, and gets nothing.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator
from typing import Any


def follow(steps: Generator[Any, Any, Any], carry_out: Callable[[Any], Any]) -> Any:
    """Do what a generator yields, and return what it returns.

    Args:
        steps: the generator.
        carry_out: sends what it yields, and returns what came of that.
    """
    outcome: Any = None
    while True:
        try:
            step = steps.send(outcome)
        except StopIteration as stop:
            return stop.value
        if isinstance(step, float):
            time.sleep(step)
            outcome = None
        else:
            outcome = carry_out(step)


async def follow_async(
    steps: Generator[Any, Any, Any], carry_out: Callable[[Any], Awaitable[Any]]
) -> Any:
    """Do what a generator yields, for asyncio; see `follow`."""
    outcome: Any = None
    while True:
        try:
            step = steps.send(outcome)
        except StopIteration as stop:
            return stop.value
        if isinstance(step, float):
            await asyncio.sleep(step)
            outcome = None
        else:
            outcome = await carry_out(step)
