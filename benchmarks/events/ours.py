"""Ours: a relay that publishes what was committed to an outbox, and a consumer whose effect is in PostgreSQL exactly once."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import asyncpg
from msgspec.structs import replace
from sqlalchemy import BigInteger, Column, MetaData, Table, Uuid
from sqlalchemy.ext.asyncio import AsyncConnection

from benchmarks.events.content import Sales
from benchmarks.events.worker import Signals
from kit import outbox
from kit.bus.connecting import BusSettings, connect
from kit.bus.consuming import consume
from kit.bus.inbox import in_transaction, inbox_table, keep_trimmed
from kit.bus.interface import Message
from kit.bus.relay import Relay
from kit.clock import SystemClock
from kit.db import create_engine, raw
from kit.outbox import Event
from kit.settings import load

GROUP = "bench"
# Events before each measurement, so that everyone is connected and has joined.
WARM_UP = 500
# For so much longer than a topic's retention an inbox keeps ids.
INBOX_MARGIN = timedelta(days=8)
_EFFECT = """
INSERT INTO counts (key, events) SELECT key, events FROM unnest($1::uuid[], $2::bigint[]) AS n (key, events) ORDER BY key
ON CONFLICT (key) DO UPDATE SET events = counts.events + excluded.events
"""


async def create_tables(url: str) -> None:
    """An outbox, an inbox, and the consumer's effect: how many events each key had."""
    metadata = MetaData()
    outbox.outbox_table(metadata)
    inbox_table(metadata)
    Table("counts", metadata, Column("key", Uuid, primary_key=True), Column("events", BigInteger, nullable=False))
    engine = create_engine(url, 1)
    async with engine.connect() as connection:
        await connection.run_sync(metadata.create_all)
    await engine.dispose()


async def fill_outbox(url: str, events: Sequence[Event]) -> float:
    """Commits the events to the outbox in one transaction; returns when."""
    connection = await asyncpg.connect(url)
    async with connection.transaction():
        await outbox.append(connection, events)
    committed = time.monotonic()
    await connection.close()
    return committed


async def effects(url: str) -> int:
    """How many events took effect."""
    connection = await asyncpg.connect(url)
    counted: int = await connection.fetchval("SELECT coalesce(sum(events), 0)::bigint FROM counts")
    await connection.close()
    return counted


async def relay(signals: Signals, *, url: str) -> dict[str, Any]:
    """Relays until it is told to stop."""
    settings = load(BusSettings)
    running = Relay(url, lambda: connect(settings, client_name="bench-relay"), SystemClock())
    stop = asyncio.Event()
    await signals.ready()
    relaying = asyncio.create_task(running.run(stop))
    await signals.stopped()
    stop.set()
    await relaying
    return {"published": running.state().published}


async def writer(signals: Signals, *, url: str, topic: str, rate: int, seconds: int) -> dict[str, Any]:
    """Commits `rate` events a second to the outbox, a fiftieth of a second's at a time, each with the time of its writing."""
    clock = SystemClock()
    sales = list(Sales().events(rate * seconds, topic=topic))
    connection = await asyncpg.connect(url)
    await signals.ready()
    now = asyncio.get_running_loop().time
    begun, written = now(), 0
    while written < len(sales):
        due = min(len(sales), int((now() - begun) * rate))
        if due > written:
            recorded_at = clock.now()
            async with connection.transaction():
                await outbox.append(connection, [replace(event, recorded_at=recorded_at) for event in sales[written:due]])
            # As a service's writer does: told after the commit.
            await connection.execute(f"NOTIFY {outbox.CHANNEL}")
            written = due
        await asyncio.sleep(0.02)
    seconds_taken = now() - begun
    await connection.close()
    return {"rate": written / seconds_taken}


async def consumer(signals: Signals, *, url: str, topic: str, events: int, keep_seconds: int = 0) -> dict[str, Any]:
    """Consumes until so many events took effect. With `keep_seconds`, the inbox is trimmed to that, and delays are taken."""
    engine, clock = create_engine(url, 3), SystemClock()
    stop = asyncio.Event()
    counted = 0
    ended = 0.0
    delays: list[float] = []
    handle = in_transaction(engine, GROUP, _count)

    async def counting(messages: Sequence[Message]) -> None:
        nonlocal counted, ended
        await handle(messages)
        counted += len(messages)
        if keep_seconds:
            now = clock.now()
            delays.extend((now - message.recorded_at).total_seconds() for message in messages)
        if counted >= events:
            ended = time.monotonic()
            stop.set()

    async with connect(load(BusSettings), client_name="bench-consumer") as bus:
        consuming = asyncio.create_task(consume(bus, GROUP, [topic], counting, stop=stop, clock=clock, together=True))
        await signals.ready()
        if keep_seconds:
            trimming = asyncio.create_task(keep_trimmed(engine, timedelta(seconds=keep_seconds) - INBOX_MARGIN, every_seconds=1))
            await consuming
            trimming.cancel()
            await asyncio.wait([trimming])
        await consuming
    await engine.dispose()
    return {"ended": ended, "delays": percentiles(delays[WARM_UP:]) if keep_seconds else {}}


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The median, the 99th percentile and the largest."""
    ordered = sorted(values)
    return {"p50": ordered[len(ordered) // 2], "p99": ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)], "max": ordered[-1]}


async def _count(connection: AsyncConnection, messages: Sequence[Message]) -> None:
    keys = Counter(message.key for message in messages)
    await raw(connection).execute(_EFFECT, list(keys), list(keys.values()))
