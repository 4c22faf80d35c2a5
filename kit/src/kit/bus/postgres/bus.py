"""The bus over PostgreSQL, behind the interface that both backends have."""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Self

from kit.bus.interface import (
    BusUnavailable,
    GroupIsActive,
    Message,
    PartitionLag,
    PartitionState,
    TopicDiffers,
    TopicPartition,
    TopicSpec,
)
from kit.bus.postgres import log as messages
from kit.bus.postgres.link import Link
from kit.bus.postgres.log import Partitions, Window
from kit.bus.postgres.subscription import LEASE_SECONDS, NEWS_CHANNEL, PostgresSubscription
from kit.db import RawConnection, advisory_key
from kit.outbox import Event

log = logging.getLogger(__name__)

MIGRATIONS = "kit.bus:migrations"

REQUEST_SECONDS = 15.0
TRIM_SECONDS = 60.0
# A burst of calls is announced as one: who reads a burst does not wait for news.
ANNOUNCE_SECONDS = 0.01
READ_MESSAGES = 2_000

_TRIM_LOCK = advisory_key("kit.bus.trim")
_TOPICS_LOCK = advisory_key("kit.bus.topics")

# A publisher that lost its connection does not know whether the server still has what it sent, waiting for a lock or for the rest to
# arrive. The server must have ended the old connection before anything is published over the new one, or that might be appended
# after what came later. A lock that one connection of the publisher holds as long as it lives sees to it.
_END_OLD_CONNECTION = """
SELECT pg_terminate_backend(pid) FROM pg_locks
WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND (classid::bigint << 32 | objid::bigint) = $1 AND objsubid = 1 AND pid <> pg_backend_pid()
"""
_ONLY_CONNECTION = "SELECT pg_advisory_lock($1)"

# To announce is to commit, which need not reach the disk.
_ANNOUNCE = f"SELECT set_config('synchronous_commit', 'off', true), pg_notify('{NEWS_CHANNEL}', $1)"

_CREATE_TOPICS = """
WITH wanted AS (SELECT * FROM unnest($1::text[], $2::integer[], $3::interval[]) AS w (name, partitions, retention)
), created AS (
    INSERT INTO topics (name, partitions, retention) SELECT * FROM wanted
    ON CONFLICT (name) DO UPDATE SET retention = excluded.retention
    RETURNING name
)
INSERT INTO partitions (topic, partition)
SELECT name, number FROM created JOIN wanted USING (name) CROSS JOIN generate_series(0, wanted.partitions - 1) AS number
ON CONFLICT DO NOTHING
"""
_TOPICS = """
SELECT t.name, t.partitions, t.retention, p.partition, p.first_offset, p.next_offset
FROM topics AS t JOIN partitions AS p ON p.topic = t.name
WHERE $1::text[] IS NULL OR t.name = ANY($1)
ORDER BY t.name, p.partition
"""
_IS_ALIVE = "abs(extract(epoch FROM clock_timestamp() - seen_at)) < $2"
_LAG = f"""
SELECT p.topic, p.partition, r.committed, p.first_offset, p.next_offset, coalesce(m.client_name, '')
FROM readings AS r
JOIN partitions AS p ON p.id = r.partition_id
LEFT JOIN members AS m ON m.id = r.member_id AND {_IS_ALIVE}
WHERE r.group_name = $1 AND (r.committed IS NOT NULL OR m.id IS NOT NULL)
ORDER BY p.topic, p.partition
"""
_GROUPS = "SELECT name FROM groups ORDER BY name"
_JOINED = f"SELECT EXISTS (SELECT FROM members WHERE group_name = $1 AND {_IS_ALIVE})"
_SET_OFFSETS = """
INSERT INTO readings (group_name, partition_id, committed) SELECT $1, * FROM unnest($2::integer[], $3::bigint[])
ON CONFLICT (group_name, partition_id)
DO UPDATE SET committed = excluded.committed, member_id = NULL, generation = readings.generation + 1
"""


class PostgresBus:
    """A connection for publishing and asking, opened when it is needed; two more for each subscription."""

    def __init__(self, url: str, client_name: str) -> None:
        self._url = url
        self._client_name = client_name
        self._key = secrets.randbits(63)
        self._partitions = Partitions()
        self._link = Link(url, client_name, timeout_seconds=REQUEST_SECONDS, prepare=self._prepare)
        self._unannounced: set[str] = set()
        self._has_news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """See `kit.bus.interface.Bus`."""
        async with self._link.use("answer") as connection:
            await connection.fetchval("SELECT 1")
        self._tasks = [asyncio.create_task(self._announce()), asyncio.create_task(self._trim())]
        return self

    async def __aexit__(self, *_: object) -> None:
        """See `kit.bus.interface.Bus`."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._unannounced:
            with suppress(BusUnavailable):
                await self._announce_now()
        await self._link.close()

    async def release(self) -> str:
        """See `kit.bus.interface.Bus`."""
        async with self._link.use("ask for the release") as connection:
            version: str = await connection.fetchval("SHOW server_version")
        return version.partition(" ")[0]

    async def create_topics(self, topics: Sequence[TopicSpec]) -> None:
        """See `kit.bus.interface.Bus`."""
        async with self._link.use("create topics") as connection, connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _TOPICS_LOCK)
            present = dict(await connection.fetch("SELECT name, partitions FROM topics"))
            for topic in topics:
                if present.get(topic.name, topic.partitions) != topic.partitions:
                    raise TopicDiffers(f"{topic.name} exists with {present[topic.name]} partitions, not {topic.partitions}.")
            await connection.execute(
                _CREATE_TOPICS,
                [topic.name for topic in topics],
                [topic.partitions for topic in topics],
                [topic.retention for topic in topics],
            )

    async def topics(self, names: Collection[str] | None = None) -> Mapping[TopicSpec, Sequence[PartitionState]]:
        """See `kit.bus.interface.Bus`."""
        async with self._link.use("list topics") as connection:
            rows = await connection.fetch(_TOPICS, None if names is None else list(names))
        found: dict[TopicSpec, list[PartitionState]] = {}
        for name, partitions, retention, number, first_offset, next_offset in rows:
            state = PartitionState(TopicPartition(name, number), first_offset, next_offset)
            found.setdefault(TopicSpec(name, partitions, retention), []).append(state)
        return found

    async def publish(self, events: Sequence[Event]) -> None:
        """See `kit.bus.interface.Bus`."""
        if not events:
            return
        for task in self._tasks:
            if task.done():
                # It has a fault that trying again does not mend, and must not go unnoticed.
                task.result()
        async with self._link.use("publish") as connection:
            await messages.append(connection, self._partitions, events)
        self._unannounced.update(event.topic for event in events)
        self._has_news.set()

    @asynccontextmanager
    async def subscribe(self, group: str, topics: Sequence[str]) -> AsyncIterator[PostgresSubscription]:
        """See `kit.bus.interface.Bus`."""
        subscription = PostgresSubscription(self._url, self._client_name, self._partitions, group, topics)
        try:
            await subscription.join()
            yield subscription
        finally:
            await subscription.leave()

    async def read(self, topic: str, start: Mapping[int, int] | None = None) -> AsyncIterator[Sequence[Message]]:
        """See `kit.bus.interface.Bus`."""
        partitions = Partitions()
        link = Link(self._url, f"{self._client_name} reads all", timeout_seconds=REQUEST_SECONDS)
        try:
            async with link.use("read messages") as connection:
                await partitions.need(connection, {topic})
                rows = await connection.fetch("SELECT id, next_offset FROM partitions WHERE topic = $1", topic)
            ends = dict(rows)
            at = {number: (start or {}).get(partitions.sources[number].partition, 0) for number in ends}
            while at:
                room = max(1, READ_MESSAGES // len(at))
                async with link.use("read messages") as connection:
                    windows = [Window(number, begin, room) for number, begin in at.items()]
                    found = await messages.read(connection, partitions, windows)
                for number, run in found.items():
                    fresh = [message for message in run.messages if message.offset < ends[number]]
                    at[number] = fresh[-1].offset + 1 if fresh else max(at[number], run.held_from)
                    if at[number] >= ends[number]:
                        del at[number]
                    if fresh:
                        yield fresh
        finally:
            await link.close()

    async def lag(self, group: str) -> Sequence[PartitionLag]:
        """See `kit.bus.interface.Bus`."""
        async with self._link.use("say how far a group is") as connection:
            rows = await connection.fetch(_LAG, group, LEASE_SECONDS)
        return [PartitionLag(TopicPartition(topic, partition), *figures) for topic, partition, *figures in rows]

    async def groups(self) -> Sequence[str]:
        """See `kit.bus.interface.Bus`."""
        async with self._link.use("list groups") as connection:
            return [name for (name,) in await connection.fetch(_GROUPS)]

    async def set_offsets(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        """See `kit.bus.interface.Bus`."""
        async with self._link.use("set offsets") as connection, connection.transaction():
            await self._partitions.need(connection, {source.topic for source in offsets})
            await connection.execute("INSERT INTO groups (name) VALUES ($1) ON CONFLICT DO NOTHING", group)
            await connection.execute("SELECT FROM groups WHERE name = $1 FOR UPDATE", group)
            if await connection.fetchval(_JOINED, group, LEASE_SECONDS):
                raise GroupIsActive(f"A process of the group {group} reads now: stop it first.")
            numbers = [self._partitions.id_of(source) for source in offsets]
            await connection.execute(_SET_OFFSETS, group, numbers, list(offsets.values()))

    async def _prepare(self, connection: RawConnection) -> None:
        await connection.execute(_END_OLD_CONNECTION, self._key)
        await connection.execute(_ONLY_CONNECTION, self._key)
        await self._partitions.load(connection)

    async def _announce(self) -> None:
        """Tells the readers what there is, after the commit: it would make publishers wait for one another inside it."""
        while True:
            await self._has_news.wait()
            # Who polls finds it without being told.
            with suppress(BusUnavailable):
                await self._announce_now()
            await asyncio.sleep(ANNOUNCE_SECONDS)

    async def _announce_now(self) -> None:
        self._has_news.clear()
        topics, self._unannounced = self._unannounced, set()
        async with self._link.use("announce") as connection:
            await connection.execute(_ANNOUNCE, ",".join(sorted(topics)))

    async def _trim(self) -> None:
        """Deletes what is past its retention, in short transactions; one process at a time does."""
        while True:
            await asyncio.sleep(TRIM_SECONDS)
            with suppress(BusUnavailable):
                await self.trim()

    async def trim(self) -> None:
        """Deletes now what is past its retention, unless another process is at it.

        Raises:
            BusUnavailable: some may be left, for the next time.
        """
        async with self._link.use("list partitions") as connection:
            numbers = [number for (number,) in await connection.fetch("SELECT id FROM partitions ORDER BY id")]
        for number in numbers:
            more = True
            while more:
                async with self._link.use("trim") as connection, connection.transaction():
                    if not await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", _TRIM_LOCK):
                        return
                    more = await messages.trim(connection, number)
