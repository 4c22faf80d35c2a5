"""The transactional outbox: a fact is written in the transaction that made it true, and published afterwards.

Every writing service has one such table in its own database. An event holds ids, amounts and codes only, never personal data.
"""

import asyncio
import logging
from collections.abc import Sequence
from datetime import datetime

from msgspec import Struct
from sqlalchemy import BigInteger, Column, DateTime, Identity, LargeBinary, MetaData, Table, Text, Uuid
from sqlalchemy.ext.asyncio import AsyncEngine

from kit.db import RawConnection, may_retry, raw, reading

# What relays listen to.
CHANNEL = "outbox"
_LEAST_SECONDS_APART = 0.02

_log = logging.getLogger(__name__)

_COLUMNS = ("event_id", "topic", "key", "type", "payload", "traceparent", "recorded_at")


class Event(Struct, frozen=True, gc=False):
    """One fact to publish. `key` decides the partition and so the order; `payload` is the protobuf message named by `type`."""

    # A Struct because the relay makes one for each event, as consumers do `kit.bus.interface.Message`.

    event_id: str
    topic: str
    key: str
    type: str
    payload: bytes
    traceparent: str
    recorded_at: datetime

    def row(self) -> tuple[object, ...]:
        """Its columns, in the table's order."""
        return (self.event_id, self.topic, self.key, self.type, self.payload, self.traceparent, self.recorded_at)


def outbox_table(metadata: MetaData) -> Table:
    """Declares the outbox in a service's own metadata."""
    return Table(
        "outbox",
        metadata,
        Column("position", BigInteger, Identity(always=True), primary_key=True),
        Column("event_id", Uuid, nullable=False),
        Column("topic", Text, nullable=False),
        Column("key", Uuid, nullable=False),
        Column("type", Text, nullable=False),
        Column("payload", LargeBinary, nullable=False),
        Column("traceparent", Text, nullable=False),
        Column("recorded_at", DateTime(timezone=True), nullable=False),
    )


async def append(connection: RawConnection, events: Sequence[Event]) -> None:
    """Appends events in the caller's transaction, in order."""
    if events:
        await connection.copy_records_to_table("outbox", columns=_COLUMNS, records=[event.row() for event in events])


class Nudges:
    """Tells the relay, wherever it runs, that there are new events. Called after a commit; costs its caller nothing.

    Many calls become one `NOTIFY`, in a transaction of its own: inside the writers' it would have their commits wait for one another.
    It is a courtesy: a relay looks by itself, too.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._is_wanted = False
        self._task: asyncio.Task[None] | None = None

    def __call__(self) -> None:
        """Has the relay told soon."""
        self._is_wanted = True
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._tell())

    async def _tell(self) -> None:
        while self._is_wanted:
            self._is_wanted = False
            try:
                async with reading(self._engine) as connection:
                    # Nothing is lost with it, so it need not reach the disk.
                    await raw(connection).execute(f"SET LOCAL synchronous_commit = off; NOTIFY {CHANNEL}")
            except Exception as error:
                if not may_retry(error):
                    raise
                _log.info("the relay was not told and will look by itself", extra={"error": type(error).__name__})
            await asyncio.sleep(_LEAST_SECONDS_APART)
