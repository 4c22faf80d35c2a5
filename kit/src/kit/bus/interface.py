"""What every backend of the bus does, in the terms of Kafka: topics of partitions, numbered messages, groups of consumers, offsets.

Delivery is at least once and in order within a partition, also after the death of any process at any line; who wants an effect
exactly once keeps the ids of what took effect beside it (`kit.bus.inbox`) or writes facts that replace themselves.
"""

from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple, Protocol, Self
from zlib import crc32

from msgspec import Struct

from kit.outbox import Event


class TopicPartition(NamedTuple):
    """One partition of a topic: the unit of order, and of what a consumer is given to read."""

    topic: str
    partition: int


class Message(Struct, frozen=True, gc=False):
    """An event as it was read. `offset` numbers the messages of a partition, upwards; numbers may be missing."""

    # A Struct because every consumer makes one for each event: a frozen dataclass takes nine times as long.

    topic: str
    partition: int
    offset: int
    event_id: str
    key: str
    type: str
    payload: bytes
    traceparent: str
    recorded_at: datetime

    @property
    def source(self) -> TopicPartition:
        """The partition that it was read from."""
        return TopicPartition(self.topic, self.partition)


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """What a topic must be. `retention`: how long a message may be read again; at least that, not exactly."""

    name: str
    partitions: int
    retention: timedelta


@dataclass(frozen=True, slots=True)
class PartitionState:
    """What a partition holds: offsets from `first_offset` on, the next message gets `next_offset`."""

    source: TopicPartition
    first_offset: int
    next_offset: int


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """How far a group is behind in one partition: it has yet to do `next_offset - committed` messages.

    `committed` is None where the group never committed; it then begins at the first offset there is. `owner` names the process that
    reads the partition now, where the backend knows it.
    """

    source: TopicPartition
    committed: int | None
    first_offset: int
    next_offset: int
    owner: str = ""

    @property
    def messages(self) -> int:
        """How many messages are still to be done."""
        begun = self.first_offset if self.committed is None else max(self.committed, self.first_offset)
        return max(0, self.next_offset - begun)


class BusUnavailable(Exception):
    """The bus does not answer: what was asked may be asked again. The text names the backend and what failed, no value."""


class EventTooLarge(Exception):
    """The bus does not take an event of this size, and never will as it is set up. The text names the event and no value of it."""

    def __init__(self, event_id: str, topic: str, size_bytes: int) -> None:
        super().__init__(f"{event_id} of {topic} has {size_bytes} bytes, more than the bus takes.")
        self.event_id = event_id
        self.topic = topic
        self.size_bytes = size_bytes


class PartitionsLost(Exception):
    """Another process of the group reads these partitions now. What was not committed of them will be, or was, delivered to it."""

    def __init__(self, lost: Iterable[TopicPartition]) -> None:
        self.lost = frozenset(lost)
        super().__init__(
            f"Read by another process of the group now: {', '.join(f'{topic}/{number}' for topic, number in sorted(self.lost))}."
        )


class TopicUnknown(Exception):
    """No such topic was created."""


class TopicDiffers(Exception):
    """A topic exists with another number of partitions; to change it would move keys to other partitions and break their order."""


def partition_of(key: str, partitions: int) -> int:
    """The partition of a key, on every backend."""
    return crc32(key.encode()) % partitions


class Subscription(Protocol):
    """One process's part of a group. Its heartbeats go on by themselves while a batch is being done.

    Used by one task, but for a commit, which may go on while the task fetches and does the next batch.
    """

    async def fetch(self, max_messages: int, wait_seconds: float) -> Mapping[TopicPartition, Sequence[Message]]:
        """The next messages of the partitions that are this process's now and not paused; empty when none came within `wait_seconds`.

        A partition continues where the last fetch ended, and a partition that was just given to this process at its committed offset.
        Partitions share `max_messages` so that none starves.

        Raises:
            BusUnavailable: nothing was skipped; fetch again.
        """

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Notes the next offset to read of each partition.

        Raises:
            PartitionsLost: these are another process's; all others were committed.
            BusUnavailable: not known whether it was noted; commit again.
        """

    async def seek(self, source: TopicPartition, offset: int) -> None:
        """The next fetch of the partition continues at `offset`; nothing is committed. No effect on one that was lost."""

    def pause(self, source: TopicPartition) -> None:
        """Fetches leave the partition out until `resume`; it stays this process's. Ends when the partition is lost."""

    def resume(self, source: TopicPartition) -> None:
        """Ends a pause."""

    def assigned(self) -> frozenset[TopicPartition]:
        """The partitions that this process has, as far as it knows."""


class Bus(Protocol):
    """A connection to the bus; made by `kit.bus.connecting.connect`. `async with bus:` starts and closes it."""

    async def __aenter__(self) -> Self:
        """Connects.

        Raises:
            BusUnavailable: it does not answer.
        """

    async def __aexit__(self, *_: object) -> None:
        """Lets everything go."""

    async def release(self) -> str:
        """The release of the servers that carry it, of several the oldest, such as `4.1`; empty where they do not say."""

    async def create_topics(self, topics: Sequence[TopicSpec]) -> None:
        """Creates those that are missing, and brings the retention of the others to what is said here.

        Raises:
            TopicDiffers: one exists with another number of partitions; nothing was changed.
        """

    async def topics(self, names: Collection[str] | None = None) -> Mapping[TopicSpec, Sequence[PartitionState]]:
        """Those topics of `names` that there are, with the state of their partitions; without names every one.

        A bus may be shared with other systems, whose topics may be many: whoever knows which it means says so.
        """

    async def publish(self, events: Sequence[Event]) -> None:
        """Returns when every event is durable, those of a key in the order given.

        After an error it is not known which are; publish the same again, in the same order, before any other event of these keys. An
        event may then be there twice, but never after a later one that was published once it had succeeded.

        Raises:
            TopicUnknown: nothing was published.
            EventTooLarge: the bus must be set up to take larger ones before this one is published, and those after it.
            BusUnavailable: try again.
        """

    def subscribe(self, group: str, topics: Sequence[str]) -> AbstractAsyncContextManager[Subscription]:
        """Joins the group, which shares the topics' partitions among its processes; leaves it at the end of the block.

        Raises, when the block is entered:
            TopicUnknown: one of the topics was not created.
            BusUnavailable: try again.
        """

    def read(self, topic: str, start: Mapping[int, int] | None = None) -> AsyncIterator[Sequence[Message]]:
        """Everything retained in a topic up to now, without a group: each partition in order, from `start` where given.

        It comes in batches, each of one partition and never empty, and ends at the offsets that were next when it began.
        """

    async def lag(self, group: str) -> Sequence[PartitionLag]:
        """How far a group is behind, for every partition it ever committed or reads now."""

    async def groups(self) -> Sequence[str]:
        """The groups that ever committed or read."""

    async def set_offsets(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        """Sets where a group continues, while none of its processes reads.

        Raises:
            GroupIsActive: one does.
        """


class GroupIsActive(Exception):
    """A process of the group reads now: stop it first."""
