"""The transactional outbox: a fact is written in the transaction that made it true, and published afterwards.

Every writing service has one such table in its own database. An event holds ids, amounts and codes only, never personal data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import BigInteger, Column, DateTime, Identity, LargeBinary, MetaData, Table, Text, Uuid

from kit.db import RawConnection

_COLUMNS = ("event_id", "topic", "key", "type", "payload", "traceparent", "recorded_at")


@dataclass(frozen=True, slots=True)
class Event:
    """One fact to publish. `key` decides the partition and so the order; `payload` is the protobuf message named by `type`."""

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
