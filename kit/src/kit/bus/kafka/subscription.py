"""A process's part of a group: what aiokafka does, and what it leaves out.

aiokafka rejoins a group in the background, while a batch is being done, and a commit would then go out in the name of the new assignment.
So a rebalance waits a little for the batch under way to be committed, and partitions of which it was not count as lost: they are read
again from their committed offset, by whoever has them then.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from aiokafka.structs import OffsetAndMetadata
from aiokafka.structs import TopicPartition as KafkaPartition

from kit.bus.interface import BusUnavailable, Message, PartitionsLost, TopicPartition
from kit.bus.kafka.client import CALL_SECONDS, end, forgotten_if_given_up, hear, unavailable_as
from kit.bus.kafka.cloud_events import messages_of

# A dead process's partitions are another's after this; brokers refuse less unless told otherwise.
_SESSION_SECONDS = 6
_HEARTBEAT_SECONDS = 1
# The others wait so long for a process that does not come to the rebalance.
_REBALANCE_SECONDS = 10
_JOIN_SECONDS = 20
# How long a rebalance waits for the batch under way. Longer, and the whole group would wait for a slow consumer.
_GRACE_SECONDS = 2
# A consumer that hears nothing for so long is replaced.
_SILENCE_SECONDS = 10
# How long a broker holds a request for news; a partition that is resumed waits for the end of the last one.
_POLL_SECONDS = 0.2
_FETCH_BYTES = 2 * 1024 * 1024

_log = logging.getLogger(__name__)


class KafkaSubscription(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """See `kit.bus.interface.Subscription`."""

    def __init__(self, options: Mapping[str, Any], group: str, topics: Sequence[str]) -> None:
        self._options = options
        self._group = group
        self._topics = tuple(topics)
        self._consumer: AIOKafkaConsumer | None = None
        # Held by a commit and by the loss of partitions, so that neither begins within the other.
        self._changing = asyncio.Lock()
        self._is_rebalancing = True
        self._rebalances = 0
        # Of the partitions read since the last rebalance: where the next fetch continues, and up to where it was committed.
        self._position: dict[TopicPartition, int] = {}
        self._committed: dict[TopicPartition, int] = {}
        # Read before the last rebalance and not committed by then: nothing of them may be committed until they are read anew.
        self._lost: set[TopicPartition] = set()
        # Everything that was read was committed, or read for nothing.
        self._is_settled = asyncio.Event()
        self._is_settled.set()
        # No rebalance waits for that.
        self._may_fetch = asyncio.Event()
        self._may_fetch.set()
        self._turn = 0
        # What comes next, taken while what was fetched last is being done.
        self._ahead: _Taken | None = None
        self._heard: tuple[int | None, ...] = ()
        self._heard_at = 0.0

    async def join(self) -> None:
        """Joins the group; returns when it knows its partitions.

        Raises:
            BusUnavailable: try again.
        """
        with unavailable_as("join"):
            await self._joined()

    async def leave(self) -> None:
        """Leaves the group at once, so that nobody waits for this process."""
        self._is_settled.set()
        await self._let_go()

    async def fetch(self, max_messages: int, wait_seconds: float) -> Mapping[TopicPartition, Sequence[Message]]:
        """See the interface."""
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_seconds):
                await self._may_fetch.wait()
        if not self._may_fetch.is_set():
            # Who gathers shall do and commit what is in hand.
            return {}
        with unavailable_as("fetch"):
            consumer = await self._joined()
            taken = self._ahead = self._ahead or self._begin_to_take(consumer, max_messages, wait_seconds)
            try:
                await taken.task
            except KafkaError:
                # What was taken will not be given again, so it is not lost with the error, which comes again.
                if not taken.messages:
                    await self._let_go()
                    raise
            fetched = taken.give(max_messages)
            if not taken.messages:
                self._ahead = self._begin_to_take(consumer, max_messages, wait_seconds) if fetched else None
            if not fetched:
                await self._expect_to_hear(consumer)
                return {}
        self._is_rebalancing = False
        self._is_settled.clear()
        for source, messages in fetched.items():
            self._committed.setdefault(source, messages[0].offset)
            self._position[source] = messages[-1].offset + 1
            self._lost.discard(source)
        return fetched

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """See the interface."""
        async with self._changing:
            kept = {source: offset for source, offset in offsets.items() if source in self.assigned() and source not in self._lost}
            if kept and self._consumer is not None:
                given = {KafkaPartition(*source): OffsetAndMetadata(offset, "") for source, offset in kept.items()}
                try:
                    async with asyncio.timeout(CALL_SECONDS):
                        with forgotten_if_given_up(self._consumer._coordinator):  # noqa: SLF001  # it shields what it does from us
                            await self._consumer.commit(given)
                except (CommitFailedError, IllegalStateError):
                    # The group went on without this process; a rebalance takes the partitions from it soon.
                    self._lost |= kept.keys()
                    kept = {}
                except (KafkaError, OSError) as error:
                    raise BusUnavailable(f"Kafka, commit: {type(error).__name__}.") from error
            self._committed |= kept
            self._note_whether_settled()
        if lost := offsets.keys() - kept.keys():
            raise PartitionsLost(lost)

    async def seek(self, source: TopicPartition, offset: int) -> None:
        """See the interface."""
        if self._consumer is not None and source in self.assigned() and source not in self._lost:
            if self._ahead is not None:
                self._ahead.drop(source)
            self._consumer.seek(KafkaPartition(*source), offset)
            self._committed.setdefault(source, offset)
            self._position[source] = offset
            self._note_whether_settled()

    def pause(self, source: TopicPartition) -> None:
        """See the interface."""
        if self._consumer is not None and source in self.assigned():
            self._consumer.pause(KafkaPartition(*source))
            if self._ahead is not None and (dropped := self._ahead.drop(source)):
                self._consumer.seek(KafkaPartition(*source), dropped[0].offset)

    def resume(self, source: TopicPartition) -> None:
        """See the interface."""
        if self._consumer is not None and source in self.assigned():
            self._consumer.resume(KafkaPartition(*source))

    def assigned(self) -> frozenset[TopicPartition]:
        """See the interface."""
        if self._consumer is None or self._is_rebalancing:
            return frozenset()
        return frozenset(TopicPartition(*source) for source in self._consumer.assignment())

    async def on_partitions_revoked(self, revoked: Iterable[KafkaPartition]) -> None:
        """Called by aiokafka before it rejoins; heartbeats go on meanwhile, so what is in hand can still be committed."""
        self._may_fetch.clear()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(_GRACE_SECONDS):
                    await self._is_settled.wait()
            async with self._changing:
                self._lose_all()
        finally:
            self._may_fetch.set()
        if revoked:
            _log.info("a rebalance of the group began", extra={"group": self._group, "uncommitted": len(self._lost)})

    async def on_partitions_assigned(self, assigned: Iterable[KafkaPartition]) -> None:
        """Called by aiokafka with the partitions of the new assignment."""
        self._is_rebalancing = False
        partitions = sorted(f"{topic}/{partition}" for topic, partition in assigned)
        _log.info("reads these partitions of the group now", extra={"group": self._group, "partitions": partitions})

    async def _joined(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            # aiokafka keeps what an assignor remembers in its class: one of its own, so that groups of a process do not mix.
            sticky = type("Sticky", (StickyPartitionAssignor,), {})
            consumer = AIOKafkaConsumer(
                **self._options,
                group_id=self._group,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                partition_assignment_strategy=(sticky,),
                session_timeout_ms=_SESSION_SECONDS * 1000,
                heartbeat_interval_ms=_HEARTBEAT_SECONDS * 1000,
                rebalance_timeout_ms=_REBALANCE_SECONDS * 1000,
                # A batch may take its time: heartbeats say that the process lives, and it keeps its partitions.
                max_poll_interval_ms=2**31 - 1,
                fetch_max_wait_ms=int(_POLL_SECONDS * 1000),
                max_partition_fetch_bytes=_FETCH_BYTES,
            )
            consumer.subscribe(self._topics, listener=self)
            try:
                async with asyncio.timeout(_JOIN_SECONDS):
                    await consumer.start()
            except BaseException:
                await end(consumer, consumer._client)  # noqa: SLF001  # it has no other name
                raise
            self._consumer = consumer
            self._heard_at = asyncio.get_running_loop().time()
        return self._consumer

    async def _let_go(self) -> None:
        consumer, self._consumer = self._consumer, None
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.task.cancel()
            await asyncio.wait([ahead.task])
        if consumer is not None:
            self._lose_all()
            await end(consumer, consumer._client)  # noqa: SLF001  # it has no other name

    def _begin_to_take(self, consumer: AIOKafkaConsumer, most: int, wait_seconds: float) -> "_Taken":
        taken = _Taken(self, most)

        async def take() -> None:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_seconds):
                    await self._take(consumer, taken, wait_seconds)

        taken.task = asyncio.create_task(take())
        taken.task.add_done_callback(hear)
        return taken

    async def _take(self, consumer: AIOKafkaConsumer, taken: "_Taken", wait_seconds: float) -> None:
        """Takes what is there of every partition, and when there is nothing, waits for the first message of any."""
        for is_awaited in (False, True):
            if is_awaited:
                if taken.messages or not wait_seconds:
                    return
                taken.add(await consumer.getmany(timeout_ms=int(wait_seconds * 1000), max_records=1))
            sources = sorted(consumer.assignment())
            self._turn += 1
            first = self._turn % len(sources) if sources else 0
            sources = sources[first:] + sources[:first]
            for behind, source in enumerate(sources):
                if share := taken.room // (len(sources) - behind) or min(taken.room, 1):
                    taken.add(await consumer.getmany(source, timeout_ms=0, max_records=share))
            for source in sources:
                # What the others left of their shares.
                if taken.room:
                    taken.add(await consumer.getmany(source, timeout_ms=0, max_records=taken.room))

    async def _expect_to_hear(self, consumer: AIOKafkaConsumer) -> None:
        """Replaces a consumer that no longer hears of its partitions.

        aiokafka waits for a broker that is away without saying so, and says nothing when a part of itself has ended.
        """
        now = asyncio.get_running_loop().time()
        heard = tuple(consumer.last_poll_timestamp(source) for source in sorted(consumer.assignment() - consumer.paused()))
        if not heard or heard != self._heard:
            self._heard, self._heard_at = heard, now
        elif now - self._heard_at > _SILENCE_SECONDS:
            await self._let_go()
            raise BusUnavailable(f"Kafka, fetch: no answer for {_SILENCE_SECONDS} seconds.")

    def _lose_all(self) -> None:
        self._lost |= {source for source, position in self._position.items() if self._committed.get(source) != position}
        self._position.clear()
        self._committed.clear()
        self._is_rebalancing = True
        self._rebalances += 1
        self._is_settled.set()

    def _note_whether_settled(self) -> None:
        if all(self._committed.get(source) == position for source, position in self._position.items()):
            self._is_settled.set()

    @property
    def rebalances(self) -> int:
        """How often partitions were lost so far."""
        return self._rebalances


class _Taken:
    """What `task` has taken and no fetch has given yet. What it took before a rebalance is delivered again, so it is forgotten then."""

    task: asyncio.Task[None]

    def __init__(self, subscription: KafkaSubscription, most: int) -> None:
        self._subscription = subscription
        self._rebalances = subscription.rebalances
        self._most = most
        self.room = most
        self.messages: dict[TopicPartition, list[Message]] = {}

    def add(self, records: Mapping[KafkaPartition, list[Any]]) -> None:
        self._forget_if_lost()
        for source, found in records.items():
            self.messages.setdefault(TopicPartition(*source), []).extend(messages_of(found))
            self.room -= len(found)

    def give(self, most: int) -> dict[TopicPartition, list[Message]]:
        """At most so many of them, of every partition its share; they are no longer here then."""
        self._forget_if_lost()
        given = {}
        for behind, source in enumerate(sources := list(self.messages)):
            if share := most // (len(sources) - behind) or min(most, 1):
                messages = self.messages.pop(source)
                given[source], left = messages[:share], messages[share:]
                most -= len(given[source])
                if left:
                    self.messages[source] = left
        return given

    def drop(self, source: TopicPartition) -> list[Message]:
        """Forgets and returns those of a partition."""
        self._forget_if_lost()
        return self.messages.pop(source, [])

    def _forget_if_lost(self) -> None:
        if self._rebalances != self._subscription.rebalances:
            self._rebalances = self._subscription.rebalances
            self.messages.clear()
            self.room = self._most
