"""Publishing in order: one batch of a partition under way at a time, tried until it is in."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError

from kit.bus.interface import EventTooLarge, TopicPartition
from kit.bus.kafka.client import CALL_SECONDS, end, unavailable_as
from kit.bus.kafka.cloud_events import headers
from kit.outbox import Event

# Of a request for one partition; brokers take 1 MiB unless told otherwise. An event that is larger goes alone.
_BATCH_BYTES = 900_000


class Publisher:
    """Publishes events, each call after the one before.

    The producer is idempotent and never gives a batch up, so that a batch that was sent twice is written once, and where it belongs. A
    call that takes too long ends, its batches do not: the next call waits for them, and only then sends.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        self._producer: AIOKafkaProducer | None = None
        self._one_at_a_time = asyncio.Lock()
        self._under_way: list[asyncio.Task[None]] = []
        self._ids: tuple[str, ...] = ()

    async def publish(self, events: Mapping[TopicPartition, Sequence[Event]]) -> None:
        """Returns when all of them are durable.

        Raises:
            EventTooLarge: it is not there; of the others it is not known.
            BusUnavailable: not known which are; the same again, before any other of these partitions.
        """
        ids = tuple(event.event_id for part in events.values() for event in part)
        with unavailable_as("publish"):
            async with asyncio.timeout(CALL_SECONDS), self._one_at_a_time:
                # What an earlier call left under way is most often what this one was asked to repeat.
                is_repeated = bool(self._under_way) and ids == self._ids
                await self._all_in()
                if not is_repeated:
                    producer = await self._started()
                    self._ids = ids
                    self._under_way = [asyncio.create_task(_send(producer, to, part)) for to, part in events.items()]
                    await self._all_in()

    async def close(self) -> None:
        """Lets go, also of what is under way."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        self._under_way = []
        await self._let_go()

    async def _all_in(self) -> None:
        if not self._under_way:
            return
        # Unlike `gather` it cancels nothing when it is cancelled.
        await asyncio.wait(self._under_way)
        failures = [error for task in self._under_way if (error := task.exception()) is not None]
        self._under_way = []
        if failures:
            # The numbers by which the broker knows a repeated batch may no longer fit. Nothing is under way: a new producer begins anew.
            await self._let_go()
            raise failures[0]

    async def _started(self) -> AIOKafkaProducer:
        if self._producer is None:
            producer = AIOKafkaProducer(**self._options, acks="all", enable_idempotence=True, max_batch_size=_BATCH_BYTES)
            try:
                await producer.start()
            except BaseException:
                await end(producer, producer.client)
                raise
            self._producer = producer
        return self._producer

    async def _let_go(self) -> None:
        producer, self._producer = self._producer, None
        if producer is None:
            return
        await end(producer, producer.client)


async def _send(producer: AIOKafkaProducer, to: TopicPartition, events: Sequence[Event]) -> None:
    """Send the events of one partition, batch after batch."""
    batch, within = producer.create_batch(), list[Event]()
    for event in events:
        record = {"timestamp": None, "key": event.key.encode(), "value": event.payload, "headers": headers(event)}
        if batch.append(**record) is None:
            await _deliver(producer, batch, to, within)
            batch, within = producer.create_batch(), []
            batch.append(**record)
        within.append(event)
    await _deliver(producer, batch, to, within)


async def _deliver(producer: AIOKafkaProducer, batch: Any, to: TopicPartition, events: Sequence[Event]) -> None:  # noqa: ANN401  # aiokafka has no types
    batch.close()
    delivered = await producer.send_batch(batch, to.topic, partition=to.partition)
    try:
        await delivered
    except MessageSizeTooLargeError:
        largest = max(events, key=lambda event: len(event.payload))
        raise EventTooLarge(largest.event_id, largest.topic, len(largest.payload)) from None
