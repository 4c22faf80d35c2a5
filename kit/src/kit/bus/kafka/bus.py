"""`KafkaBus`: see `kit.bus.interface.Bus` for what its methods promise."""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Self

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition as KafkaPartition

from kit.bus.connecting import BusSettings
from kit.bus.interface import (
    BusUnavailable,
    Message,
    PartitionLag,
    PartitionState,
    TopicPartition,
    TopicSpec,
    TopicUnknown,
    partition_of,
)
from kit.bus.kafka.administration import Administration
from kit.bus.kafka.client import CALL_SECONDS, client_options, end, unavailable_as
from kit.bus.kafka.cloud_events import messages_of
from kit.bus.kafka.publishing import Publisher
from kit.bus.kafka.subscription import KafkaSubscription
from kit.outbox import Event

_READ_BYTES = 1024 * 1024


class KafkaBus:
    """The bus over the brokers that `settings` name. `client_name` is how they call us."""

    def __init__(self, settings: BusSettings, client_name: str) -> None:
        self._options = client_options(settings, client_name)
        self._administration = Administration(self._options)
        self._publisher = Publisher(self._options)
        self._partitions: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        self._partitions = await self._administration.partition_counts()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._publisher.close()

    async def release(self) -> str:
        return await self._administration.release()

    async def create_topics(self, topics: Sequence[TopicSpec]) -> None:
        await self._administration.create_topics(topics)

    async def topics(self, names: Collection[str] | None = None) -> Mapping[TopicSpec, Sequence[PartitionState]]:
        return await self._administration.topics(names)

    async def publish(self, events: Sequence[Event]) -> None:
        await self._know({event.topic for event in events})
        parts: dict[TopicPartition, list[Event]] = {}
        for event in events:
            to = TopicPartition(event.topic, partition_of(event.key, self._partitions[event.topic]))
            parts.setdefault(to, []).append(event)
        if parts:
            await self._publisher.publish(parts)

    @asynccontextmanager
    async def subscribe(self, group: str, topics: Sequence[str]) -> AsyncIterator[KafkaSubscription]:
        await self._know(topics)
        subscription = KafkaSubscription(self._options, group, topics)
        await subscription.join()
        try:
            yield subscription
        finally:
            await subscription.leave()

    async def read(self, topic: str, start: Mapping[int, int] | None = None) -> AsyncIterator[Sequence[Message]]:
        await self._know([topic])
        sources = [TopicPartition(topic, number) for number in range(self._partitions[topic])]
        states = await self._administration.states(sources)
        begin = {source: max((start or {}).get(source.partition, 0), state.first_offset) for source, state in states.items()}
        left = {source for source in sources if begin[source] < states[source].next_offset}
        if not left:
            return
        with unavailable_as("read"):
            consumer = AIOKafkaConsumer(
                **self._options,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                max_partition_fetch_bytes=_READ_BYTES,
            )
            try:
                async with asyncio.timeout(CALL_SECONDS):
                    await consumer.start()
                consumer.assign([KafkaPartition(*source) for source in left])
                for source in left:
                    consumer.seek(KafkaPartition(*source), begin[source])
                while left:
                    fetched = await consumer.getmany(timeout_ms=CALL_SECONDS * 1000)
                    if not fetched:
                        raise BusUnavailable(f"Kafka, read: no answer for {CALL_SECONDS} seconds.")
                    for partition, records in fetched.items():
                        source, limit = TopicPartition(*partition), states[TopicPartition(*partition)].next_offset
                        if source in left:
                            if found := [record for record in records if record.offset < limit]:
                                yield messages_of(found)
                            if records[-1].offset + 1 >= limit:
                                left.discard(source)
                                consumer.pause(partition)
            finally:
                await end(consumer, consumer._client)  # noqa: SLF001  # it has no other name

    async def lag(self, group: str) -> Sequence[PartitionLag]:
        return await self._administration.lag(group)

    async def groups(self) -> Sequence[str]:
        return await self._administration.groups()

    async def set_offsets(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        await self._administration.set_offsets(group, offsets)

    async def _know(self, topics: Iterable[str]) -> None:
        """Find out how many partitions the topics have.

        Raises:
            TopicUnknown: one of them was never created.
        """
        wanted = set(topics)
        if wanted - self._partitions.keys():
            self._partitions = await self._administration.partition_counts()
        if unknown := wanted - self._partitions.keys():
            raise TopicUnknown(f"No such topic: {', '.join(sorted(unknown))}.")
