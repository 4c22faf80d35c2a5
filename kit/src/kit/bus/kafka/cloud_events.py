"""An event as a Kafka record: the CloudEvents binding in binary mode.

The key orders it, the value is the payload as it is, and the headers say what it is: `ce_id` is the event's id, `ce_type` its message's
name, `ce_source` the service that owns the topic, `ce_time` when it was recorded, `traceparent` what it is a part of.
"""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any
from uuid import UUID, uuid5

from kit.bus.interface import Message
from kit.outbox import Event

# An id as we write them. To have `UUID` look at it takes as long as all the rest of a message.
_is_canonical = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch
# Of the ids of records that bring none.
_PLACES = UUID("0d3a52f0-2f3c-5b0e-9a57-6f1f1f0a7c11")


def headers(event: Event) -> list[tuple[str, bytes]]:
    """The headers of an event's record."""
    found = [
        *_headers_of_all(event.topic, event.type),
        ("ce_id", event.event_id.encode()),
        ("ce_time", event.recorded_at.astimezone(UTC).isoformat().encode()),
    ]
    if event.traceparent:
        found.append(("traceparent", event.traceparent.encode()))
    return found


@lru_cache(1_000)
def _headers_of_all(topic: str, kind: str) -> tuple[tuple[str, bytes], ...]:
    """What every event of this type in the topic says."""
    source = f"/regulars/{topic.partition('.')[0]}"
    return (
        ("ce_specversion", b"1.0"),
        ("ce_type", kind.encode()),
        ("ce_source", source.encode()),
        ("content-type", b"application/protobuf"),
    )


def messages_of(records: Iterable[Any]) -> list[Message]:
    """The records, as aiokafka gives them, as messages."""
    return [_message(record) for record in records]


def _message(record: Any) -> Message:  # noqa: ANN401  # aiokafka's record, which has no types
    said = dict(record.headers)
    return Message(
        record.topic,
        record.partition,
        record.offset,
        _event_id(said.get("ce_id", b""), record),
        (record.key or b"").decode("utf-8", "replace"),
        said.get("ce_type", b"").decode("utf-8", "replace"),
        record.value or b"",
        said.get("traceparent", b"").decode("utf-8", "replace"),
        _recorded_at(said.get("ce_time", b""), record.timestamp),
    )


def _event_id(said: bytes, record: Any) -> str:  # noqa: ANN401  # aiokafka's record, which has no types
    if _is_canonical(said):
        return said.decode()
    try:
        return str(UUID(said.decode()))
    except ValueError:
        # Written by someone else: its place names it, so that it is not taken for another of the kind.
        return str(uuid5(_PLACES, f"{record.topic}/{record.partition}/{record.offset}"))


def _recorded_at(said: bytes, timestamp_ms: int) -> datetime:
    try:
        return datetime.fromisoformat(said.decode())
    except ValueError:
        # Written by someone else: when Kafka says that it was written.
        return datetime.fromtimestamp(timestamp_ms / 1000, UTC)
