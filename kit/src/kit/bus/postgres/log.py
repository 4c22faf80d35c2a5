"""The messages of the log: rows of up to 512 messages of a partition, whose offsets leave no gap."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

import asyncpg
import msgspec

from kit.bus.interface import Message, TopicPartition, TopicUnknown, partition_of
from kit.db import RawConnection
from kit.outbox import Event

# As the table has it: a row that holds an offset begins less than this before it.
MESSAGES_PER_ROW = 512
TRIMMED_ROWS = 100

# Of each message: event_id, key, type, payload, traceparent, recorded_at.
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[tuple[str, str, str, bytes, str, datetime]]).decode

# Executed for several rows in one transaction. The update holds the partition's row until the commit, so offsets become visible in
# their order and a reader can skip none; the partitions come sorted, so two publishers never wait for each other in a circle. A
# partition that is not there leaves NULL where a number must be, and nothing is published.
_APPEND = """
WITH drawn AS (
    UPDATE partitions SET next_offset = next_offset + $2 WHERE id = $1 RETURNING next_offset
)
INSERT INTO batches (partition_id, first_offset, next_offset, published_at, messages)
SELECT $1, (SELECT next_offset FROM drawn) - $2, (SELECT next_offset FROM drawn), clock_timestamp(), $3
"""

# What was trimmed is skipped, whatever was asked for.
ROWS = f"""
JOIN partitions AS p ON p.id = w.id
LEFT JOIN LATERAL (
    SELECT * FROM batches
    WHERE partition_id = w.id
        AND first_offset > greatest(w.begin, p.first_offset) - {MESSAGES_PER_ROW}
        AND first_offset < greatest(w.begin, p.first_offset) + w.room
        AND next_offset > greatest(w.begin, p.first_offset)
    ORDER BY first_offset
) AS b ON true
"""
COLUMNS = "w.id, p.first_offset AS held_from, p.next_offset AS held_to, b.first_offset, b.messages"
_READ = f"SELECT {COLUMNS} FROM unnest($1::integer[], $2::bigint[], $3::bigint[]) AS w (id, begin, room) {ROWS}"

# The oldest rows as far as all of them are older than the retention: a clock that was set back leaves younger dates before older ones.
# What a process that lives has yet to read stays. In one transaction, so a reader sees both the rows and where they begin, or neither.
_TRIM = """
WITH oldest AS (
    SELECT first_offset, next_offset, published_at >= clock_timestamp() - (
        SELECT t.retention FROM partitions AS p JOIN topics AS t ON t.name = p.topic WHERE p.id = $1
    ) AS retained
    FROM batches
    WHERE partition_id = $1
    ORDER BY first_offset
    LIMIT $2
), unread AS (
    SELECT min(coalesce(r.committed, 0)) AS begin
    FROM readings AS r
    JOIN members AS m ON m.id = r.member_id
    WHERE r.partition_id = $1 AND m.seen_at > clock_timestamp() - interval '1 day'
), gone AS (
    DELETE FROM batches
    WHERE partition_id = $1
        AND first_offset < coalesce(
            (SELECT min(first_offset) FROM oldest, unread WHERE retained OR next_offset > unread.begin),
            (SELECT max(next_offset) FROM oldest)
        )
    RETURNING next_offset
)
UPDATE partitions SET first_offset = (SELECT max(next_offset) FROM gone) WHERE id = $1 AND EXISTS (SELECT FROM gone)
"""


class Window(NamedTuple):
    """What to read of a partition: at most the messages of `room` offsets from `begin`, and the rest of the row they end in."""

    partition_id: int
    begin: int
    room: int


class Run(NamedTuple):
    """What was read of a partition that holds the offsets from `held_from` up to before `held_to`: `messages`, without a gap."""

    held_from: int
    held_to: int
    messages: list[Message]


class Partitions:
    """The topics of the log: known since they were asked for last. Topics are never deleted."""

    def __init__(self) -> None:
        self.ids: dict[str, list[int]] = {}
        self.sources: dict[int, TopicPartition] = {}

    async def load(self, connection: RawConnection) -> None:
        """Asks for all of them."""
        rows = await connection.fetch("SELECT id, topic, partition FROM partitions ORDER BY topic, partition")
        self.ids = {}
        for number, topic, partition in rows:
            self.ids.setdefault(topic, []).append(number)
            self.sources[number] = TopicPartition(topic, partition)

    async def need(self, connection: RawConnection, topics: set[str]) -> None:
        """Sees to it that these are known.

        Raises:
            TopicUnknown: one was not created.
        """
        if topics - self.ids.keys():
            await self.load(connection)
        for topic in sorted(topics - self.ids.keys()):
            raise TopicUnknown(f"There is no topic {topic}.")

    def id_of(self, source: TopicPartition) -> int:
        """The number under which the log knows a partition."""
        return self.ids[source.topic][source.partition]


async def append(connection: RawConnection, partitions: Partitions, events: Sequence[Event]) -> None:
    """Publishes events in one transaction: all or none of them."""
    await partitions.need(connection, {event.topic for event in events})
    spread: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        ids = partitions.ids[event.topic]
        spread[ids[partition_of(event.key, len(ids))]].append(event)
    await connection.executemany(_APPEND, list(_rows(spread)))


def _rows(spread: Mapping[int, list[Event]]) -> Iterator[tuple[object, ...]]:
    for number in sorted(spread):
        mine = spread[number]
        for begin in range(0, len(mine), MESSAGES_PER_ROW):
            part = mine[begin : begin + MESSAGES_PER_ROW]
            fields = [(event.event_id, event.key, event.type, event.payload, event.traceparent, event.recorded_at) for event in part]
            yield number, len(part), _encode(fields).decode()


async def read(connection: RawConnection, partitions: Partitions, windows: Sequence[Window]) -> dict[int, Run]:
    """What the windows hold, by the number of the partition."""
    rows = await connection.fetch(_READ, *zip(*windows, strict=True))
    return runs(rows, partitions, {window.partition_id: window.begin for window in windows})


def runs(rows: Sequence[asyncpg.Record], partitions: Partitions, begins: Mapping[int, int]) -> dict[int, Run]:
    """The rows of `COLUMNS` as messages; those of a row that come before what was asked for are left out."""
    found: dict[int, Run] = {}
    for number, held_from, held_to, first, text in rows:
        run = found.get(number)
        if run is None:
            run = found[number] = Run(held_from, held_to, [])
        if first is None:
            continue
        topic, partition = partitions.sources[number]
        asked = max(first, begins[number])
        messages = _decode(text)[asked - first :]
        run.messages.extend([Message(topic, partition, offset, *fields) for offset, fields in enumerate(messages, asked)])
    return found


async def trim(connection: RawConnection, partition_id: int) -> bool:
    """Deletes some of what is older than the topic's retention; whether there may be more."""
    deleted = await connection.execute(_TRIM, partition_id, TRIMMED_ROWS)
    return deleted != "UPDATE 0"
