"""The yardsticks: what a plain good loop moves over the same servers, with nothing of ours.

Kafka: a producer sends batches and waits for each (acks=all); a consumer in another process takes batches and commits each.
PostgreSQL: a producer inserts batches into one table; workers in another process take batches out with `SKIP LOCKED`.
The effect of both is to count in memory.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import asyncpg
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from benchmarks.events.content import Sales
from benchmarks.events.worker import Signals
from kit.bus.interface import partition_of
from kit.outbox import Event


async def create_kafka_topic(bootstrap: str, topic: str, partitions: int) -> None:
    """A new topic, without replicas."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(topic, partitions, 1)])
    await admin.close()


async def kafka_producer(signals: Signals, *, bootstrap: str, topic: str, partitions: int, events: int, batch: int) -> dict[str, Any]:
    """Sends the events, `batch` at a time."""
    batches = [[(event, partition_of(event.key, partitions)) for event in some] for some in Sales().batches(events, batch)]
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", linger_ms=2, max_batch_size=2**20)
    await producer.start()
    await producer.partitions_for(topic)
    await signals.ready()
    began = time.monotonic()
    for some in batches:
        sent = [
            await producer.send(topic, event.payload, key=event.key.encode(), partition=number, headers=[("id", event.event_id.encode())])
            for event, number in some
        ]
        await asyncio.gather(*sent)
    ended = time.monotonic()
    await producer.stop()
    return {"began": began, "ended": ended}


async def kafka_consumer(signals: Signals, *, bootstrap: str, topic: str, events: int, batch: int) -> dict[str, Any]:
    """Counts until all are there, and commits each batch."""
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=bootstrap, group_id=topic, enable_auto_commit=False, auto_offset_reset="earliest", max_poll_records=batch
    )
    await consumer.start()
    while not consumer.assignment():  # noqa: ASYNC110 - the client tells nobody
        await asyncio.sleep(0.01)
    note_offsets = consumer.commit
    await signals.ready()
    counted = 0
    while counted < events:
        for messages in (await consumer.getmany(timeout_ms=1000, max_records=batch)).values():
            counted += len(messages)
        await note_offsets()
    ended = time.monotonic()
    await consumer.stop()
    return {"ended": ended}


QUEUE = """
CREATE TABLE queue (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, event_id uuid NOT NULL, topic text NOT NULL, key uuid NOT NULL, type text NOT NULL,
  payload bytea NOT NULL, recorded_at timestamptz NOT NULL
)
"""
INSERT = """
INSERT INTO queue (event_id, topic, key, type, payload, recorded_at)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::uuid[], $4::text[], $5::bytea[], $6::timestamptz[])
"""
# As an array, the inner statement runs once; as a set, the planner may join it with the table, which was seen to take seconds a batch.
TAKE = """
DELETE FROM queue WHERE id = ANY (ARRAY(SELECT id FROM queue ORDER BY id FOR UPDATE SKIP LOCKED LIMIT $1))
RETURNING event_id, topic, key, type, payload, recorded_at
"""


async def queue_producer(signals: Signals, *, url: str, events: int, batch: int) -> dict[str, Any]:
    """Inserts the events, `batch` a transaction."""
    batches = [_columns(some) for some in Sales().batches(events, batch)]
    connection = await asyncpg.connect(url)
    insert = await connection.prepare(INSERT)
    await signals.ready()
    began = time.monotonic()
    for columns in batches:
        await insert.fetch(*columns)
    ended = time.monotonic()
    await connection.close()
    return {"began": began, "ended": ended}


async def queue_consumer(signals: Signals, *, url: str, events: int, batch: int, workers: int) -> dict[str, Any]:
    """Takes until all are out; a worker that finds nothing asks again at once after the shortest pause."""
    counted = 0
    # The plan is made while the table is empty: the only good one is by the key.
    by_key = {"enable_seqscan": "off", "enable_bitmapscan": "off"}
    connections = [await asyncpg.connect(url, server_settings=by_key) for _ in range(workers)]
    takes = [await connection.prepare(TAKE) for connection in connections]
    await signals.ready()

    async def take(statement: "asyncpg.prepared_stmt.PreparedStatement[Any]") -> None:
        nonlocal counted
        while counted < events:
            taken = len(await statement.fetch(batch))
            counted += taken
            if not taken:
                await asyncio.sleep(0.002)

    await asyncio.gather(*(take(statement) for statement in takes))
    ended = time.monotonic()
    for connection in connections:
        await connection.close()
    return {"ended": ended}


def _columns(events: Sequence[Event]) -> tuple[list[object], ...]:
    rows = [(event.event_id, event.topic, event.key, event.type, event.payload, event.recorded_at) for event in events]
    return tuple(list(column) for column in zip(*rows, strict=True))
