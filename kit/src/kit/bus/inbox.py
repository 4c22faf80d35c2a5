"""The inbox: the ids of what took effect, written in the transaction of the effect, so that what is delivered again does nothing.

    consume(bus, "group", topics, in_transaction(engine, "group", effect), …)

Two processes that were given the same messages, as when a partition moves in mid-batch, wait for each other at the ids: the second finds
what the first committed, or does what the first did not.

Nearly every batch is all new. So its ids are first written as if it were, which costs half of looking for each; a batch that holds a known
one after all fails at it, having done nothing, and is gone through again with care.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

from asyncpg import UniqueViolationError
from sqlalchemy import Column, DateTime, Index, MetaData, Table, Text, Uuid, func
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from kit.bus.consuming import Handler, RetryLater
from kit.bus.interface import Message
from kit.db import RawConnection, may_retry, raw, reading, transaction

Effect = Callable[[AsyncConnection, Sequence[Message]], Awaitable[None]]

# Kafka drops whole segments, closed after a week at most: a message may be read again for that long after its retention has passed.
_MARGIN = timedelta(days=8)
_TRIM_ROWS = 5_000
_TRIM_EVERY_SECONDS = 600

_log = logging.getLogger(__name__)

# In the order of the ids, so that two processes with the same messages wait for each other and never in a circle.
_KEEP_ALL = """
INSERT INTO inbox (consumer, event_id, topic)
SELECT $1, event_id, topic FROM unnest($2::uuid[], $3::text[]) AS n (event_id, topic) ORDER BY event_id
"""
_KEEP_NEW = """
INSERT INTO inbox (consumer, event_id, topic)
SELECT $1, event_id, topic FROM unnest($2::uuid[], $3::text[]) AS n (event_id, topic) ORDER BY event_id
ON CONFLICT DO NOTHING RETURNING event_id::text
"""

_TRIM = """
DELETE FROM inbox
WHERE ctid = ANY (ARRAY(SELECT ctid FROM inbox WHERE handled_at < now() - $1::interval ORDER BY handled_at LIMIT $2))
"""


def inbox_table(metadata: MetaData) -> Table:
    """Declares the inbox in a service's own metadata."""
    return Table(
        "inbox",
        metadata,
        Column("consumer", Text, primary_key=True),
        Column("event_id", Uuid, primary_key=True),
        Column("topic", Text, nullable=False),
        Column("handled_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
        Index("inbox_by_time", "handled_at"),
    )


def in_transaction(engine: AsyncEngine, consumer: str, effect: Effect) -> Handler:
    """A handler that has the effect of every event exactly once.

    `effect` is called in a transaction with the messages that never took effect, in their order, and writes through its connection
    only. What it raises undoes all of it: `Poison` and `RetryLater` mean what they mean to every handler. A database that is away, a
    deadlock and the like are `RetryLater`.
    """

    async def handle(messages: Sequence[Message]) -> None:
        try:
            try:
                async with transaction(engine) as connection:
                    await _keep_all(raw(connection), consumer, messages)
                    await effect(connection, messages)
            except _SomeAreKnown:
                async with transaction(engine) as connection:
                    new = await _keep_new(raw(connection), consumer, messages)
                    if new:
                        await effect(connection, new)
        except RetryLater:
            raise
        except Exception as error:
            # After a lost connection the commit may have happened: then the ids are there.
            if may_retry(error):
                raise RetryLater("database_unavailable") from error
            raise

    return handle


class _SomeAreKnown(Exception):
    """Some of the messages took effect before, or one is there twice."""


async def _keep_all(connection: RawConnection, consumer: str, messages: Sequence[Message]) -> None:
    """Notes the ids in the caller's transaction, which nothing more can be done in when it raises _SomeAreKnown."""
    try:
        await connection.execute(_KEEP_ALL, consumer, [m.event_id for m in messages], [m.topic for m in messages])
    except UniqueViolationError:
        raise _SomeAreKnown from None


async def _keep_new(connection: RawConnection, consumer: str, messages: Sequence[Message]) -> list[Message]:
    """Notes the ids in the caller's transaction and returns the messages that had not taken effect, each once, in their order."""
    kept = await connection.fetch(_KEEP_NEW, consumer, [m.event_id for m in messages], [m.topic for m in messages])
    if len(kept) == len(messages):
        return list(messages)
    new = {row[0] for row in kept}
    first = {message.event_id: message for message in reversed(messages) if message.event_id in new}
    return [message for message in messages if first.get(message.event_id) is message]


async def trim(engine: AsyncEngine, retention: timedelta) -> int:
    """Removes the ids that no bus can deliver again, of topics kept for at most `retention`. Returns how many."""
    removed = 0
    while True:
        async with reading(engine) as connection:
            done = await raw(connection).execute(_TRIM, retention + _MARGIN, _TRIM_ROWS)
        count = int(done.removeprefix("DELETE "))
        removed += count
        if count < _TRIM_ROWS:
            return removed


async def keep_trimmed(engine: AsyncEngine, retention: timedelta, *, every_seconds: float = _TRIM_EVERY_SECONDS) -> None:
    """Runs for as long as the consumer: trims now and then. A failure of the moment is logged, and it is tried again the next time."""
    while True:
        try:
            await trim(engine, retention)
        except Exception as error:
            if not may_retry(error):
                raise
            _log.warning("inbox could not be trimmed", extra={"error": type(error).__name__})
        await asyncio.sleep(every_seconds)
