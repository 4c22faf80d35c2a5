"""What operators and preparation ask of Kafka: topics, offsets, groups. Each question has a connection of its own."""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import (
    CommitFailedError,
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    NoError,
    NotCoordinatorForGroupError,
    TopicAlreadyExistsError,
    for_code,
)
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.structs import OffsetAndMetadata
from aiokafka.structs import TopicPartition as KafkaPartition

from kit.bus.interface import GroupIsActive, PartitionLag, PartitionState, TopicDiffers, TopicPartition, TopicSpec
from kit.bus.kafka.client import CALL_SECONDS, end, unavailable_as
from kit.bus.kafka.releases import Question, level_in, release_of

_RETENTION = "retention.ms"
_MIN_REPLICAS = "min.insync.replicas"
_LARGEST = "max.message.bytes"
# Above the largest that a service writes: a sale of two thousand lines, or all the entries of a wallet in one transaction.
_LARGEST_BYTES = 8 * 1024 * 1024
# As many copies as a cluster usually can have, of which one may be away for a while.
_REPLICAS = 3
# Of Kafka's numbers for where a setting comes from: it was given to the topic itself.
_GIVEN_TO_THE_TOPIC = 1
_MILLISECOND = timedelta(milliseconds=1)
_LONGEST = timedelta(days=36500)
_PAUSE_SECONDS = 0.05
_COORDINATOR_MOVES = (GroupCoordinatorNotAvailableError, GroupLoadInProgressError, NotCoordinatorForGroupError)


class Administration:
    """Asks the brokers at `options`; every method raises `BusUnavailable` when they do not answer."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options

    async def partition_counts(self) -> dict[str, int]:
        """Every topic that is not Kafka's own, with how many partitions it has."""
        async with self._admin("list topics") as admin:
            return _counts(await admin.describe_topics())

    async def release(self) -> str:
        """See `kit.bus.interface.Bus`."""
        async with self._admin("ask for the release") as admin:
            brokers = [broker["node_id"] for broker in (await admin.describe_cluster())["brokers"]]
            try:
                # On a connection of the broker's own each, by the only way that the client has to ask a certain one.
                answers = [await admin._client.send(number, Question()) for number in brokers]  # noqa: SLF001
            except NotImplementedError:
                return ""
        return release_of(min((level_in(answer) for answer in answers), default=0))

    async def create_topics(self, topics: Sequence[TopicSpec]) -> None:
        """See `kit.bus.interface.Bus`."""
        async with self._admin("create topics") as admin:
            there = _counts(await admin.describe_topics())
            for topic in topics:
                if there.get(topic.name, topic.partitions) != topic.partitions:
                    raise TopicDiffers(f"{topic.name} has {there[topic.name]} partitions, not {topic.partitions}.")
            missing = [topic for topic in topics if topic.name not in there]
            if missing:
                await self._create(admin, missing)
            await self._keep_for(admin, {topic.name: topic.retention for topic in topics if topic.name in there})

    async def states(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, PartitionState]:
        """What the partitions hold."""
        asked = [KafkaPartition(*source) for source in partitions]
        if not asked:
            return {}
        async with self._consumer("read offsets") as consumer:
            # The client would learn of one topic after the other, and pause a tenth of a second before each.
            await consumer._client.set_topics({source.topic for source in asked})  # noqa: SLF001  # no other way that does not fetch
            first = await consumer.beginning_offsets(asked)
            following = await consumer.end_offsets(asked)
        return {
            TopicPartition(*source): PartitionState(TopicPartition(*source), first[source], following[source])
            for source in asked
            if source in first and source in following
        }

    async def topics(self, names: Collection[str] | None = None) -> dict[TopicSpec, Sequence[PartitionState]]:
        """See `kit.bus.interface.Bus`."""
        async with self._admin("describe topics") as admin:
            # All of them in any case: to ask for one that is missing makes it, where brokers create topics by themselves.
            counts = {name: count for name, count in _counts(await admin.describe_topics()).items() if names is None or name in names}
            settings = await _topic_settings(admin, counts)
        states = await self.states(TopicPartition(name, number) for name, count in counts.items() for number in range(count))
        return {
            TopicSpec(name, count, _as_retention(settings[name][_RETENTION][0])): [
                states[source] for number in range(count) if (source := TopicPartition(name, number)) in states
            ]
            for name, count in sorted(counts.items())
        }

    async def lag(self, group: str) -> list[PartitionLag]:
        """See `kit.bus.interface.Bus`."""
        async with self._admin("describe the group") as admin:
            committed = await _patiently(_committed, admin, group)
            owners = await _owners(admin, group)
            counts = _counts(await admin.describe_topics())
        known = sorted(source for source in committed.keys() | owners.keys() if source.partition < counts.get(source.topic, 0))
        states = await self.states(known)
        return [
            PartitionLag(
                source,
                committed.get(source),
                states[source].first_offset,
                states[source].next_offset,
                owners.get(source, ""),
            )
            for source in known
            if source in states
        ]

    async def groups(self) -> list[str]:
        """See `kit.bus.interface.Bus`."""
        async with self._admin("list groups") as admin:
            return sorted(str(name) for name, *_ in await _patiently(admin.list_consumer_groups))

    async def set_offsets(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        """See `kit.bus.interface.Bus`."""
        given = {KafkaPartition(*source): OffsetAndMetadata(offset, "") for source, offset in offsets.items()}
        async with self._consumer("set offsets", group_id=group) as consumer:
            consumer.assign(list(given))
            try:
                await consumer.commit(given)
            except CommitFailedError:
                # A commit in nobody's name is refused while the group has members.
                raise GroupIsActive(f"A process of the group {group} reads now: stop it first.") from None

    @asynccontextmanager
    async def _admin(self, doing: str) -> AsyncIterator[Any]:
        with unavailable_as(doing):
            admin = AIOKafkaAdminClient(**self._options)
            try:
                async with asyncio.timeout(CALL_SECONDS):
                    await admin.start()
                    yield admin
            finally:
                await admin.close()

    @asynccontextmanager
    async def _consumer(self, doing: str, **more: Any) -> AsyncIterator[Any]:  # noqa: ANN401  # settings of aiokafka
        with unavailable_as(doing):
            consumer = AIOKafkaConsumer(**self._options, enable_auto_commit=False, **more)
            try:
                async with asyncio.timeout(CALL_SECONDS):
                    await consumer.start()
                    yield consumer
            finally:
                await end(consumer, consumer._client)  # noqa: SLF001  # it has no other name

    async def _create(self, admin: Any, topics: Sequence[TopicSpec]) -> None:  # noqa: ANN401  # aiokafka has no types
        brokers = [broker["node_id"] for broker in (await admin.describe_cluster())["brokers"]]
        replicas = min(_REPLICAS, len(brokers))
        wanted = [
            NewTopic(
                topic.name,
                topic.partitions,
                replicas,
                topic_configs={
                    "cleanup.policy": "delete",
                    _RETENTION: str(topic.retention // _MILLISECOND),
                    _LARGEST: str(_LARGEST_BYTES),
                    # What was acknowledged is on as many brokers, so that one may be lost.
                    _MIN_REPLICAS: str(max(1, replicas - 1)),
                },
            )
            for topic in topics
        ]
        response = await admin.create_topics(wanted)
        for name, code, *_ in response.topic_errors:
            error = for_code(code)
            # Another process may create the same at the same time.
            if error not in (NoError, TopicAlreadyExistsError):
                raise error(name)
        # A broker learns of a topic a moment after it was created.
        while {topic.name for topic in topics} - _counts(await admin.describe_topics()).keys():  # noqa: ASYNC110  # nothing tells
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _keep_for(self, admin: Any, retentions: Mapping[str, timedelta]) -> None:  # noqa: ANN401  # aiokafka has no types
        """Bring the retention of topics to what is said, and nothing else of them."""
        settings = await _topic_settings(admin, retentions)
        changed = []
        for name, retention in retentions.items():
            if settings[name][_RETENTION][0] != str(retention // _MILLISECOND):
                # The request replaces everything that was given to the topic.
                given = {setting: value for setting, (value, source) in settings[name].items() if source == _GIVEN_TO_THE_TOPIC}
                given[_RETENTION] = str(retention // _MILLISECOND)
                changed.append(ConfigResource(ConfigResourceType.TOPIC, name, given))
        if changed:
            for response in await admin.alter_configs(changed):
                for code, _, _, name in response.resources:
                    if code:
                        raise for_code(code)(name)


def _counts(described: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    return {topic["topic"]: len(topic["partitions"]) for topic in described if not topic["is_internal"] and not topic["error_code"]}


async def _topic_settings(admin: Any, names: Iterable[str]) -> dict[str, dict[str, tuple[str, int]]]:  # noqa: ANN401  # aiokafka has no types
    """Of each topic its settings, each with its value and where it comes from."""
    asked = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    found: dict[str, dict[str, tuple[str, int]]] = {}
    if not asked:
        return found
    for response in await admin.describe_configs(asked):
        for code, _, _, name, entries in response.resources:
            if code:
                raise for_code(code)(name)
            found[name] = {setting: (value, source) for setting, value, _, source, *_ in entries}
    return found


async def _committed(admin: Any, group: str) -> dict[TopicPartition, int]:  # noqa: ANN401  # aiokafka has no types
    """Up to where the group has read.

    The client's own question overlooks the fault of an answer as a whole: after a restart, while the coordinator loads what was committed,
    nothing was.
    """
    answer = await admin._send_request(OffsetFetchRequest(group, None), await admin.find_coordinator(group))  # noqa: SLF001
    for code in (answer.error_code, *(code for _, partitions in answer.topics for *_, code in partitions)):
        if code:
            raise for_code(code)(group)
    return {
        TopicPartition(topic, number): offset for topic, partitions in answer.topics for number, offset, *_ in partitions if offset >= 0
    }


async def _described(admin: Any, group: str) -> Any:  # noqa: ANN401  # aiokafka has no types
    """The group and its members; also this answer may say that the coordinator does not know yet."""
    described = await admin.describe_consumer_groups([group])
    for response in described:
        for code, *_ in response.groups:
            if for_code(code) in _COORDINATOR_MOVES:
                raise for_code(code)(group)
    return described


async def _owners(admin: Any, group: str) -> dict[TopicPartition, str]:  # noqa: ANN401  # aiokafka has no types
    """Which process reads a partition of the group now, by its client's name."""
    owners: dict[TopicPartition, str] = {}
    for response in await _patiently(_described, admin, group):
        for _, _, _, _, _, members, *_ in response.groups:
            for _, *rest in members:
                client, assignment = rest[-4], rest[-1]
                if assignment:
                    for source in ConsumerProtocolMemberAssignment.decode(assignment).partitions():
                        owners[TopicPartition(*source)] = client
    return owners


async def _patiently(ask: Any, *arguments: Any) -> Any:  # noqa: ANN401  # methods of aiokafka
    """What a group's coordinator answers, once there is one: at first, and after a restart, there is not."""
    while True:
        try:
            return await ask(*arguments)
        except _COORDINATOR_MOVES:
            await asyncio.sleep(_PAUSE_SECONDS)


def _as_retention(milliseconds: str) -> timedelta:
    return min(int(milliseconds) * _MILLISECOND, _LONGEST) if int(milliseconds) >= 0 else _LONGEST
