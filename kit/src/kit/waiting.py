"""Waiting for something, but not for ever."""

import asyncio
from contextlib import suppress


async def wait_at_most(event: asyncio.Event, seconds: float) -> None:
    """Returns as soon as the event is set, or after so many seconds; at once when they are none."""
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
