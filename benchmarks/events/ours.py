"""Ours: a relay that publishes what was committed to an outbox, and a consumer whose effect is in PostgreSQL exactly once."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import asyncpg
from sqlalchemy import BigInteger, Column, MetaData, Table, Uuid
from sqlalchemy.ext.asyncio import AsyncConnection

from benchmarks.events.worker import Signals
from kit import outbox
from kit.bus.connecting import BusSettings, connect
from kit.bus.consuming import consume
from kit.bus.inbox import in_transaction, inbox_table
from kit.bus.interface import Message
from kit.bus.relay import Relay
from kit.clock import SystemClock
from kit.db import create_engine, raw
from kit.outbox import Event
from kit.settings import load

GROUP = "bench"
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


async def consumer(signals: Signals, *, url: str, topic: str, events: int) -> dict[str, Any]:
    """Consumes until so many events took effect."""
    engine = create_engine(url, 2)
    stop = asyncio.Event()
    counted = 0
    ended = 0.0
    handle = in_transaction(engine, GROUP, _count)

    async def counting(messages: Sequence[Message]) -> None:
        nonlocal counted, ended
        await handle(messages)
        counted += len(messages)
        if counted >= events:
            ended = time.monotonic()
            stop.set()

    async with connect(load(BusSettings), client_name="bench-consumer") as bus:
        consuming = asyncio.create_task(consume(bus, GROUP, [topic], counting, stop=stop, clock=SystemClock(), together=True))
        await signals.ready()
        await consuming
    await engine.dispose()
    return {"ended": ended}


async def _count(connection: AsyncConnection, messages: Sequence[Message]) -> None:
    keys = Counter(message.key for message in messages)
    await raw(connection).execute(_EFFECT, list(keys), list(keys.values()))
