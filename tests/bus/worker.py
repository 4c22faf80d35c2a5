"""A relay or a consumer as a process of its own, which can be told after which step to die, as if by SIGKILL: because it is.

    python -m tests.bus.worker '{"role": "consume", "bus_url": …, "database_url": …, "die_after": "handled", …}'

Steps of a relay: `locked`, `read`, `published`, `removed`. Of a consumer: `fetched`, `written` (the effect, not yet committed), `handled`
(the effect and the ids are committed), `lettered` (a dead letter is durable), `committed` (the offsets are).
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

import uvloop
from sqlalchemy.ext.asyncio import AsyncConnection

from kit.bus import relay as relays
from kit.bus.connecting import connect
from kit.bus.consuming import Poison, consume
from kit.bus.inbox import in_transaction
from kit.bus.interface import Message, TopicPartition
from kit.clock import SystemClock
from kit.db import create_engine
from kit.outbox import Event
from kit.telemetry import configure_logging
from tests.bus.world import bus_settings, effect, number_of


class Death:
    """Kills the process after a step, the `times`th time that it is reached."""

    def __init__(self, after: str, times: int) -> None:
        self._after = after
        self._times = times

    def reached(self, step: str) -> None:
        """Says that a step was done."""
        if step == self._after:
            self._times -= 1
            if self._times == 0:
                os.kill(os.getpid(), signal.SIGKILL)


class MortalBus:
    """A bus whose user may die in between."""

    def __init__(self, inner: Any, death: Death) -> None:
        self._inner = inner
        self._death = death

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._inner.__aexit__(*error)

    async def publish(self, events: Sequence[Event]) -> None:
        await self._inner.publish(events)
        self._death.reached("lettered" if events[0].topic.startswith("dead-letters.") else "published")

    @asynccontextmanager
    async def subscribe(self, group: str, topics: Sequence[str]) -> Any:
        async with self._inner.subscribe(group, topics) as subscription:
            yield MortalSubscription(subscription, self._death)


class MortalSubscription:
    """A subscription whose user may die in between."""

    def __init__(self, inner: Any, death: Death) -> None:
        self._inner = inner
        self._death = death

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def fetch(self, max_messages: int, wait_seconds: float) -> Mapping[TopicPartition, Sequence[Message]]:
        fetched: Mapping[TopicPartition, Sequence[Message]] = await self._inner.fetch(max_messages, wait_seconds)
        if fetched:
            self._death.reached("fetched")
        return fetched

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        note = self._inner.commit
        await note(offsets)
        self._death.reached("committed")


async def relay(given: dict[str, Any], death: Death) -> None:
    """Relays until it dies."""
    exchange = relays._Outbox.exchange

    async def mortal_exchange(self: Any, published: Sequence[int] = (), in_flight: Sequence[int] = ()) -> Any:
        if not published:
            death.reached("locked")
        rows = await exchange(self, published, in_flight)
        if published:
            death.reached("removed")
        if rows:
            death.reached("read")
        return rows

    relays._Outbox.exchange = mortal_exchange  # type: ignore[method-assign]

    def open_bus() -> Any:
        return MortalBus(connect(bus_settings(given["bus_url"]), client_name="worker"), death)

    await relays.Relay(given["database_url"], open_bus, SystemClock(), batch=given.get("batch", 500)).run(asyncio.Event())


async def consume_for_ever(given: dict[str, Any], death: Death) -> None:
    """Consumes until it dies."""
    engine = create_engine(given["database_url"], 2)
    write = effect(given["group"])
    poison = set(given.get("poison", ()))

    async def mortal_write(connection: AsyncConnection, messages: Sequence[Message]) -> None:
        for message in messages:
            if number_of(message) in poison:
                raise Poison(message.event_id, "not_understood")
        await write(connection, messages)
        death.reached("written")

    handle = in_transaction(engine, given["group"], mortal_write)

    async def mortal_handle(messages: Sequence[Message]) -> None:
        await handle(messages)
        death.reached("handled")

    async with connect(bus_settings(given["bus_url"]), client_name="worker") as bus:
        await consume(
            MortalBus(bus, death),
            given["group"],
            [given["topic"]],
            mortal_handle,
            stop=asyncio.Event(),
            clock=SystemClock(),
            max_messages=given.get("max_messages", 1000),
        )


def main() -> None:
    given = json.loads(sys.argv[1])
    configure_logging("worker")
    death = Death(given.get("die_after", ""), given.get("times", 1))
    uvloop.run((relay if given["role"] == "relay" else consume_for_ever)(given, death))


if __name__ == "__main__":
    main()
