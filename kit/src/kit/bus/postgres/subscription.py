"""One process's part of a group.

A process is a row of `members` that its heartbeat renews; who does not for `LEASE_SECONDS` of the server's clock is struck out by the
others, and so loses its partitions. At each heartbeat a process works out who should have what (`sharing.py`), under a lock of the
group. It takes only what nobody has. What it should give up it gives up when it asks for more messages and all that it was given is
committed, or after `GRACE_SECONDS` in the middle of a batch. Only who has a partition, at the generation at which it was taken, can read
or commit it.
"""

import asyncio
import logging
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from kit.bus.interface import BusUnavailable, Message, PartitionsLost, TopicPartition
from kit.bus.postgres.link import Link
from kit.bus.postgres.log import COLUMNS, ROWS, Partitions, runs
from kit.bus.postgres.sharing import Claim, share_out
from kit.db import RawConnection

log = logging.getLogger(__name__)

LEASE_SECONDS = 5.0
HEARTBEAT_SECONDS = 1.0
GRACE_SECONDS = 3.0
# News are heard of at once; this is how late they come when nothing is heard.
POLL_SECONDS = 0.5
REQUEST_SECONDS = 15.0

NEWS_CHANNEL = "bus_news"
GROUP_CHANNEL = "bus_groups"

_JOIN = "INSERT INTO groups (name) VALUES ($1) ON CONFLICT DO NOTHING"
_LOCK_GROUP = "SELECT FROM groups WHERE name = $1 FOR UPDATE"
# A date from the future was given before the clock was set back: it counts from now, or a process that is dead would seem alive for
# as long as the clock went back.
_SET_BACK = "UPDATE members SET seen_at = clock_timestamp() WHERE group_name = $1 AND seen_at > clock_timestamp()"
_STRIKE_OUT = "DELETE FROM members WHERE group_name = $1 AND seen_at < clock_timestamp() - make_interval(secs => $2)"
_RENEW = """
INSERT INTO members (id, group_name, client_name, topics, joined_at, seen_at)
VALUES ($2, $1, $3, $4, clock_timestamp(), clock_timestamp())
ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at
RETURNING xmax = 0
"""
_MEMBERS = "SELECT id, topics FROM members WHERE group_name = $1 ORDER BY joined_at, id"
_READINGS = """
SELECT p.id, p.topic, r.member_id, r.generation, r.committed
FROM partitions AS p
LEFT JOIN readings AS r ON r.partition_id = p.id AND r.group_name = $1
WHERE p.topic = ANY ($2)
ORDER BY p.id
"""
_TAKE = """
INSERT INTO readings (group_name, partition_id, member_id, generation)
SELECT $1, id, $2, 1 FROM unnest($3::integer[]) AS id
ON CONFLICT (group_name, partition_id) DO UPDATE SET member_id = excluded.member_id, generation = readings.generation + 1
RETURNING partition_id, generation, committed
"""
_GIVE_UP = "UPDATE readings SET member_id = NULL WHERE group_name = $1 AND member_id = $2 AND partition_id = ANY ($3)"
_LEAVE = "DELETE FROM members WHERE id = $1"
_TELL_GROUP = f"SELECT pg_notify('{GROUP_CHANNEL}', $1)"

_FETCH = f"""
SELECT {COLUMNS}
FROM unnest($3::integer[], $4::bigint[], $5::bigint[], $6::bigint[]) AS w (id, generation, begin, room)
JOIN readings AS r ON r.group_name = $1 AND r.partition_id = w.id AND r.member_id = $2 AND r.generation = w.generation
{ROWS}
"""
_COMMIT = """
UPDATE readings AS r SET committed = w.next
FROM unnest($3::integer[], $4::bigint[], $5::bigint[]) AS w (id, generation, next)
WHERE r.group_name = $1 AND r.partition_id = w.id AND r.member_id = $2 AND r.generation = w.generation
RETURNING r.partition_id
"""


@dataclass(slots=True)
class _Held:
    """A partition that is this process's. `position` is the offset to deliver next, `noted` the one that a successor would begin at.

    What was read already waits in `ahead`.
    """

    id: int
    source: TopicPartition
    generation: int
    position: int
    noted: int
    ahead: list[Message] = field(default_factory=list)
    has_more: bool = True
    paused: bool = False
    served: int = 0
    give_up_by: float | None = None

    @property
    def is_wanted(self) -> bool:
        """Whether messages of it may be delivered now."""
        return not self.paused and self.give_up_by is None

    def go_to(self, offset: int) -> None:
        self.position = offset
        self.ahead = []
        self.has_more = True


class PostgresSubscription:
    """Made by `PostgresBus.subscribe`; `join`, then use, then `leave`."""

    def __init__(self, url: str, client_name: str, partitions: Partitions, group: str, topics: Sequence[str]) -> None:
        self._group = group
        self._topics = sorted(set(topics))
        self._client_name = client_name
        self._partitions = partitions
        self._id = uuid.uuid4()
        # An offset that a power cut takes back is one that is delivered again.
        self._link = Link(url, f"{client_name} reads", timeout_seconds=REQUEST_SECONDS, durable=False)
        self._beats = Link(url, f"{client_name} beats", timeout_seconds=LEASE_SECONDS / 2, prepare=self._listen)
        self._held: dict[TopicPartition, _Held] = {}
        self._news = asyncio.Event()
        self._beat_now = asyncio.Event()
        self._renewed = 0.0
        self._turn = 0
        self._heart: asyncio.Task[None] | None = None

    async def join(self) -> None:
        """Becomes one of the group, with what is free of its share.

        Raises:
            TopicUnknown: one of the topics was not created.
            BusUnavailable: try again.
        """
        async with self._beats.use("join the group") as connection:
            await self._partitions.need(connection, set(self._topics))
            await connection.execute(_JOIN, self._group)
        await self._beat()
        self._heart = asyncio.create_task(self._keep_beating(), name=f"heartbeat of {self._group}")

    async def leave(self) -> None:
        """Lets the others have its partitions now."""
        if self._heart is not None:
            self._heart.cancel()
            await asyncio.gather(self._heart, return_exceptions=True)
        self._held.clear()
        # If the server does not hear it, the lease ends by itself.
        with suppress(BusUnavailable):
            async with self._beats.use("leave the group") as connection, connection.transaction():
                await connection.execute(_LOCK_GROUP, self._group)
                await connection.execute(_LEAVE, self._id)
                await connection.execute(_TELL_GROUP, self._group)
        await self._beats.close()
        await self._link.close()

    async def fetch(self, max_messages: int, wait_seconds: float) -> Mapping[TopicPartition, Sequence[Message]]:
        """See `kit.bus.interface.Subscription`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_seconds
        while True:
            if self._heart is None or self._heart.done():
                raise self._why_stopped()
            self._news.clear()
            await self._hand_over()
            if loop.time() - self._renewed > LEASE_SECONDS:
                # Perhaps no longer this process's: what waits is read again, if it still is.
                for held in self._held.values():
                    held.go_to(held.position)
            if 2 * sum(len(held.ahead) for held in self._held.values() if held.is_wanted) < max_messages:
                await self._read_ahead(max_messages)
            taken = self._take(max_messages)
            remaining = deadline - loop.time()
            if taken or remaining <= 0:
                return taken
            with suppress(TimeoutError):
                async with asyncio.timeout(min(remaining, POLL_SECONDS)):
                    await self._news.wait()

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """See `kit.bus.interface.Subscription`."""
        held = {source: self._held[source] for source in offsets if source in self._held}
        noted: set[int] = set()
        if held:
            async with self._link.use("note the offsets") as connection:
                rows = await connection.fetch(
                    _COMMIT,
                    self._group,
                    self._id,
                    [mine.id for mine in held.values()],
                    [mine.generation for mine in held.values()],
                    [offsets[source] for source in held],
                )
            noted = {number for (number,) in rows}
            for source, mine in held.items():
                if mine.id in noted:
                    mine.noted = offsets[source]
        lost = [source for source in offsets if source not in held or held[source].id not in noted]
        if lost:
            self._forget(held[source] for source in lost if source in held)
            raise PartitionsLost(lost)

    async def seek(self, source: TopicPartition, offset: int) -> None:
        """See `kit.bus.interface.Subscription`."""
        if held := self._held.get(source):
            held.go_to(offset)

    def pause(self, source: TopicPartition) -> None:
        """See `kit.bus.interface.Subscription`."""
        if held := self._held.get(source):
            held.paused = True

    def resume(self, source: TopicPartition) -> None:
        """See `kit.bus.interface.Subscription`."""
        if held := self._held.get(source):
            held.paused = False
            self._news.set()

    def assigned(self) -> frozenset[TopicPartition]:
        """See `kit.bus.interface.Subscription`."""
        return frozenset(self._held)

    def _why_stopped(self) -> BaseException:
        if self._heart is None or self._heart.cancelled():
            return RuntimeError("The subscription was left, or not joined.")
        return self._heart.exception() or RuntimeError("The heartbeat ended.")

    def _forget(self, lost: Iterable[_Held]) -> None:
        """Drops what another process has, and looks at once what is this one's instead."""
        for held in list(lost):
            if self._held.get(held.source) is held:
                del self._held[held.source]
        self._beat_now.set()

    async def _hand_over(self) -> None:
        """Gives up what others should have and nothing is under way of."""
        leaving = [held for held in self._held.values() if held.give_up_by is not None and held.position <= held.noted]
        if not leaving:
            return
        for held in leaving:
            del self._held[held.source]
        async with self._link.use("give up partitions") as connection, connection.transaction():
            await connection.execute(_GIVE_UP, self._group, self._id, [held.id for held in leaving])
            await connection.execute(_TELL_GROUP, self._group)

    async def _read_ahead(self, max_messages: int) -> None:
        """Reads on where messages are known to be as far as one fetch goes; the others, which may have some by now, get their part."""
        reading = [held for held in self._held.values() if held.is_wanted and not held.ahead]
        if not reading:
            return
        room = max(1, max_messages // (sum(held.has_more for held in reading) or len(reading)))
        begins = [held.position for held in reading]
        async with self._link.use("read messages") as connection:
            rows = await connection.fetch(
                _FETCH,
                self._group,
                self._id,
                [held.id for held in reading],
                [held.generation for held in reading],
                begins,
                [room] * len(reading),
            )
        found = runs(rows, self._partitions, {held.id: begin for held, begin in zip(reading, begins, strict=True)})
        for held, begin in zip(reading, begins, strict=True):
            run = found.get(held.id)
            if run is None:
                self._forget([held])
                continue
            if held.position < run.held_from:
                if held.position:
                    log.warning("messages passed their retention unread", extra={"group": self._group, "topic": held.source.topic})
                held.position = held.noted = run.held_from
            if begin > run.held_to:
                log.warning("the bus has fewer messages than were read: it was restored", extra={"group": self._group})
                held.go_to(run.held_to)
                continue
            held.ahead = run.messages
            end = run.messages[-1].offset + 1 if run.messages else max(begin, run.held_from)
            held.has_more = end < run.held_to

    def _take(self, max_messages: int) -> dict[TopicPartition, Sequence[Message]]:
        """Of what was read ahead, the same number from each partition, or more where others have less; who waited longest first."""
        ready = sorted((held for held in self._held.values() if held.ahead and held.is_wanted), key=lambda held: held.served)
        ready = sorted(ready[:max_messages], key=lambda held: len(held.ahead))
        taken: dict[TopicPartition, Sequence[Message]] = {}
        room = max_messages
        self._turn += 1
        for place, held in enumerate(ready):
            count = min(len(held.ahead), room // (len(ready) - place))
            taken[held.source], held.ahead = held.ahead[:count], held.ahead[count:]
            held.position = taken[held.source][-1].offset + 1
            held.served = self._turn
            room -= count
        return taken

    async def _listen(self, connection: RawConnection) -> None:
        mine = set(self._topics)

        def on_news(_connection: object, _pid: object, _channel: object, payload: object) -> None:
            if not mine.isdisjoint(str(payload).split(",")):
                self._news.set()

        def on_group(_connection: object, _pid: object, _channel: object, payload: object) -> None:
            if payload == self._group:
                self._beat_now.set()

        await connection.add_listener(NEWS_CHANNEL, on_news)
        await connection.add_listener(GROUP_CHANNEL, on_group)

    async def _keep_beating(self) -> None:
        answers = True
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    await self._beat_now.wait()
            self._beat_now.clear()
            try:
                await self._beat()
            except BusUnavailable:
                if answers:
                    log.warning("heartbeats do not arrive", extra={"group": self._group}, exc_info=True)
                answers = False
                # A message about the group must not make this spin while the server is away.
                await asyncio.sleep(HEARTBEAT_SECONDS / 5)
                self._beat_now.set()
            else:
                if not answers:
                    log.info("heartbeats arrive again", extra={"group": self._group})
                answers = True

    async def _beat(self) -> None:
        """Renews the lease, takes what is free of this process's share, and notes what it should give up."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        async with self._beats.use("renew the lease") as connection, connection.transaction():
            await connection.execute(_LOCK_GROUP, self._group)
            await connection.execute(_SET_BACK, self._group)
            is_new = await connection.fetchval(_RENEW, self._group, self._id, self._client_name, self._topics)
            struck_out = await connection.execute(_STRIKE_OUT, self._group, LEASE_SECONDS)
            members = [(str(member), frozenset(topics)) for member, topics in await connection.fetch(_MEMBERS, self._group)]
            overdue = [held.id for held in self._held.values() if held.give_up_by is not None and held.give_up_by <= begun]
            if overdue:
                await connection.execute(_GIVE_UP, self._group, self._id, overdue)
            everything = sorted({topic for _, topics in members for topic in topics})
            rows = await connection.fetch(_READINGS, self._group, everything)
            claims = {number: Claim(topic, str(owner) if owner else None) for number, topic, owner, _, _ in rows}
            me = str(self._id)
            shares = share_out(members, claims)
            mine = {number: (generation, committed) for number, _, owner, generation, committed in rows if owner == self._id}
            free = [number for number, owner in shares.items() if owner == me and claims[number].owner is None]
            if free:
                taken = await connection.fetch(_TAKE, self._group, self._id, free)
                mine |= {number: (generation, committed) for number, generation, committed in taken}
            if is_new or overdue or struck_out != "DELETE 0":
                await connection.execute(_TELL_GROUP, self._group)
            if any(number not in self._partitions.sources for number in mine):
                await self._partitions.load(connection)
        self._renewed = begun
        self._now_has(mine, {number for number in mine if shares.get(number) != me}, loop.time() + GRACE_SECONDS)

    def _now_has(self, mine: Mapping[int, tuple[int, int | None]], leaving: set[int], give_up_by: float) -> None:
        before = self._held
        self._held = {}
        for number, (generation, committed) in mine.items():
            source = self._partitions.sources[number]
            held = before.get(source)
            if held is None or held.generation != generation:
                held = _Held(number, source, generation, committed or 0, committed or 0)
                self._news.set()
            if number not in leaving:
                held.give_up_by = None
            elif held.give_up_by is None:
                held.give_up_by = give_up_by
                self._news.set()
            self._held[source] = held
