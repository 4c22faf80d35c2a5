"""Rebuilding: all facts are made anew in tables beside the present ones, which reports read until the new ones take their place.

What happens meanwhile is consumed into the present tables as ever. When the new ones have nearly caught up with the bus, consuming is
held, the rest is read, and the tables change places. A process that dies before that leaves the present facts as they are, and one that
dies while they change places does the rest when it starts again: a table that has changed its place carries the rebuild's id.

Over a server, another process finishes what it takes to be dead, and that may only have stood still. So the new tables carry the id of
their rebuild in their names, and whoever has one change places first gives it a name of its own: a process that comes back finds nothing
of the name that it knew, and can neither change a table back nor put facts into those of a later rebuild.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import TypeVar

import msgspec
from clickhouse_connect.driver.exceptions import ClickHouseError

from kit.bus.interface import Bus, BusUnavailable, TopicPartition
from kit.clock import Clock
from kit.ids import uuid7
from kit.problems import Refusal
from reporting.clickhouse import ClickHouse, ClickHouseUnavailable
from reporting.facts.columns import REBUILT
from reporting.facts.consumers import SALES_TOPIC, TOPICS, FactsHandler, fact_of
from reporting.facts.operations import insert_blocks
from reporting.facts.rules import EventInvalid, Fact, blocks_of, instant, invalid_among, unix_us
from reporting.rebuilds.ledger import LedgerUnavailable, Rights

log = logging.getLogger(__name__)

T = TypeVar("T")

EVENTS = "events"
LEDGER = "ledger"

RUNNING = "running"
# It needs newer rights to go on reading the ledger.
WAITING = "waiting"
SWAPPING = "swapping"
DONE = "done"
FAILED = "failed"
CUT_OFF = "cut_off"
UNDER_WAY = frozenset({RUNNING, WAITING, SWAPPING})

MARK = "_rebuild_"
BATCH_EVENTS = 20_000
# So little is read while consuming is held.
NEARLY = 5_000
SAVE_SECONDS = 2.0
PAUSE_SECONDS = 1.0
# A process that has not noted progress for so long is taken to be dead.
DEAD_SECONDS = 30

Offsets = dict[TopicPartition, int]
Export = Callable[[Rights], AsyncIterator[Sequence[Fact]]]


class Rebuild(msgspec.Struct, kw_only=True):
    """How a rebuild stands. `events` were made into facts or found to be none (`poison`); `expected_events` is None when not known."""

    id: str
    source: str
    state: str
    started_by: str
    started_at: datetime
    changed_at: datetime
    events: int = 0
    expected_events: int | None = None
    poison: int = 0
    # Why it failed.
    reason: str | None = None


class _Job:
    """A rebuild under way in this process."""

    def __init__(self, rebuild: Rebuild, rights: Rights, offsets: Offsets, version: int = 0) -> None:
        self.rebuild = rebuild
        self.rights = rights
        # The next offset of each partition that is not in the new facts.
        self.offsets = offsets
        self.version = version
        self.saving = asyncio.Lock()


class NewTablesGone(Exception):
    """The new tables are not there: another process took this one for dead, and cut the rebuild off."""


class EventsTrimmed(Exception):
    """The bus no longer retains all events, and without the older ones facts would be lost."""


class Rebuilder:
    """Runs one rebuild at a time. `alone`: no other process has this ClickHouse."""

    def __init__(
        self, clickhouse: ClickHouse, handler: FactsHandler, connect: Callable[[], Bus], export: Export, clock: Clock, *, alone: bool
    ) -> None:
        self._clickhouse = clickhouse
        self._handler = handler
        self._connect = connect
        self._export = export
        self._clock = clock
        self._alone = alone
        # Held while it is decided whether a rebuild begins.
        self._deciding = asyncio.Lock()
        self._job: _Job | None = None
        self._task: asyncio.Task[None] | None = None

    async def recover(self) -> None:
        """Called at the start of a process: what a dead one left is done, if the tables were changing places, or undone."""
        async with self._deciding:
            await self._recover()

    async def start(self, source: str, started_by: str, token: str) -> Rebuild:
        """Begins a rebuild from `source`; empty: from the events, if the bus has them all, as far as can be seen.

        Raises:
            Refusal: 409 one is under way; 422 `events_trimmed`; 503 the bus is away.
        """
        async with self._deciding:
            latest = await self._recover()
            if self._job is not None or (latest is not None and latest.rebuild.state in UNDER_WAY):
                raise _running()
            now = self._clock.now()
            rebuild = Rebuild(id=uuid7(), source="", state=RUNNING, started_by=started_by, started_at=now, changed_at=now)
            job = _Job(rebuild, Rights(token), {})
            rebuild.source, rebuild.expected_events, job.offsets = await self._chosen(source)
            await self._save(job)
            if not self._alone and await self._clickhouse.query(_OTHERS, {"id": rebuild.id, "seconds": DEAD_SECONDS}):
                rebuild.reason = "rebuild_running"
                await self._save(job, FAILED)
                raise _running()
            self._begin(job, self._run(job))
            return self._said(job)

    async def latest(self, token: str) -> Rebuild | None:
        """How the newest rebuild stands; who asks lends it the rights to go on."""
        if self._job is not None:
            self._job.rights.renew(token)
            return self._said(self._job)
        async with self._deciding:
            latest = await self._recover()
        return latest.rebuild if latest else None

    async def ended(self) -> None:
        """Returns when none is under way in this process."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def close(self) -> None:
        """Ends what is under way, as the death of the process would."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _recover(self) -> _Job | None:
        """The latest rebuild, after what is to be done about a dead process."""
        if self._job is not None:
            return self._job
        latest = await self._latest()
        if latest is not None and self._is_dead(latest.rebuild):
            if latest.rebuild.state == SWAPPING:
                self._begin(latest, self._finish(latest))
            else:
                await self._cut_off(latest)
        return latest

    def _said(self, job: _Job) -> Rebuild:
        if job.rebuild.state in {RUNNING, WAITING}:
            job.rebuild.state = WAITING if job.rights.are_awaited else RUNNING
        return job.rebuild

    def _begin(self, job: _Job, work: Coroutine[None, None, None]) -> None:
        self._job = job

        async def run() -> None:
            saving = asyncio.create_task(self._keep_saving(job))
            try:
                await work
            finally:
                saving.cancel()
                await asyncio.wait([saving])
                self._job = None

        self._task = asyncio.create_task(run())

    async def _chosen(self, source: str) -> tuple[str, int | None, Offsets]:
        """The source, about how many events it has, and where each topic that is read begins."""
        try:
            async with self._connect() as bus:
                first, following = await _offsets_of(bus)
        except BusUnavailable:
            raise Refusal("bus_unavailable", 503, "Events cannot be read", "The bus does not answer: try again.") from None
        is_whole = not any(first.values())
        if source == EVENTS and not is_whole:
            detail = "The bus no longer retains the oldest events: rebuild from the ledger."
            raise Refusal("events_trimmed", 422, "Events are no longer there", detail)
        if source == EVENTS or (is_whole and not source and await self._holds_all_sales(first, following)):
            return EVENTS, sum(following.values()), first
        # What is published after this is read from the bus; what was before it is in the ledger.
        return LEDGER, None, following

    async def _holds_all_sales(self, first: Offsets, following: Offsets) -> bool:
        """Whether there are events for all sales and returns in the facts: a bus may be another one than they came over, or made anew."""
        ((facts,),) = await self._clickhouse.query("SELECT (SELECT count() FROM sales) + (SELECT count() FROM returns)")
        events = sum(following[source] - first[source] for source in following if source.topic == SALES_TOPIC)
        return events >= int(facts)

    async def _run(self, job: _Job) -> None:
        about = {"rebuild_id": job.rebuild.id, "source": job.rebuild.source}
        log.info("rebuild began", extra=about)
        try:
            await self._fill_and_swap(job)
        except (ClickHouseUnavailable, ClickHouseError, BusUnavailable, LedgerUnavailable, NewTablesGone, EventsTrimmed, Refusal) as error:
            job.rebuild.reason = _reason(error)
            log.exception("rebuild failed", extra=about | {"reason": job.rebuild.reason})
        except Exception:
            job.rebuild.reason = "internal_error"
            log.exception("rebuild failed", extra=about)
        if job.rebuild.state == SWAPPING:
            await self._finish(job)
            return
        with suppress(ClickHouseUnavailable, ClickHouseError):
            await self._drop_new_tables(job.rebuild.id)
        await self._save_until_done(job, FAILED)

    async def _fill_and_swap(self, job: _Job) -> None:
        """Returns, or fails, in the state SWAPPING when there is no way but forward."""
        # None is under way: what there is was left behind.
        await self._drop_new_tables()
        suffix = suffix_of(job.rebuild.id)
        for table in REBUILT:
            await self._clickhouse.command(f"CREATE TABLE {table}{suffix} AS {table} COMMENT '{job.rebuild.id}'")
        async with self._connect() as bus:
            if job.rebuild.source == LEDGER:
                await self._insert(job, self._export(job.rights), suffix=suffix)
            else:
                await self._read_on(job, bus, job.offsets, suffix=suffix)
                if any((await _offsets_of(bus))[0].values()):
                    raise EventsTrimmed
            while await self._read_on(job, bus, job.offsets, suffix=suffix) > NEARLY:
                pass
            async with self._handler.held():
                await self._read_on(job, bus, job.offsets, suffix=suffix)
                await self._save(job, SWAPPING)
                await self._change_places(job.rebuild.id)

    async def _finish(self, job: _Job) -> None:
        """From SWAPPING to DONE, however often it takes."""
        while job.rebuild.state == SWAPPING:
            try:
                await self._change_places(job.rebuild.id)
                async with self._connect() as bus:
                    # Another process may have put facts of these into the tables of before.
                    await self._read_on(job, bus, dict(job.offsets), suffix="")
                await self._drop_new_tables(job.rebuild.id)
            except NewTablesGone as error:
                job.rebuild.reason = _reason(error)
                await self._save_until_done(job, FAILED)
                return
            except (ClickHouseUnavailable, ClickHouseError, BusUnavailable) as error:
                log.warning("the end of a rebuild is tried again", extra={"rebuild_id": job.rebuild.id, "reason": _reason(error)})
                await asyncio.sleep(PAUSE_SECONDS)
            else:
                job.rebuild.reason = None
                await self._save_until_done(job, DONE)
        seconds = (job.rebuild.changed_at - job.rebuild.started_at).total_seconds()
        log.info("rebuild done", extra={"rebuild_id": job.rebuild.id, "events": job.rebuild.events, "seconds": round(seconds, 1)})

    async def _change_places(self, rebuild_id: str) -> None:
        """Has each new table take its place, unless it has. Raises NewTablesGone."""
        own = f"{suffix_of(rebuild_id)}_{secrets.token_hex(8)}"
        for table in REBUILT:
            while (comments := await self._comments(table))[table] != rebuild_id:
                new = [name for name, comment in comments.items() if comment == rebuild_id]
                if not new:
                    raise NewTablesGone(table)
                # From here on nobody else knows it by a name. If another process did until now, it may be the old table already.
                await self._clickhouse.command(f"RENAME TABLE {new[0]} TO {table}{own}")
                if (await self._comments(table)).get(table + own) == rebuild_id:
                    await self._clickhouse.command(f"EXCHANGE TABLES {table} AND {table}{own}")

    async def _comments(self, table: str) -> dict[str, str]:
        """The comments of a table and of those that are to take its place, or had it before."""
        return {row[0]: row[1] for row in await self._clickhouse.query(_COMMENTS, {"table": table, "new": table + MARK})}

    async def _drop_new_tables(self, rebuild_id: str = "") -> None:
        """Drops what a rebuild, or any, has beside the facts."""
        suffix = suffix_of(rebuild_id) if rebuild_id else MARK
        for table in REBUILT:
            for name in await self._comments(table):
                if name.startswith(table + suffix):
                    # SYNC would wait for each report that still reads it, and hold inserts up meanwhile. Its disk is free minutes later.
                    await self._clickhouse.command(f"DROP TABLE IF EXISTS {name} SETTINGS max_table_size_to_drop = 0")

    async def _cut_off(self, job: _Job) -> None:
        await self._drop_new_tables(job.rebuild.id)
        await self._save(job, CUT_OFF)
        log.warning("a rebuild was cut off; it left the facts as they were", extra={"rebuild_id": job.rebuild.id})

    async def _read_on(self, job: _Job, bus: Bus, offsets: Offsets, *, suffix: str) -> int:
        """Makes facts of what the bus has from the offsets on, and moves them behind it; returns of how many events."""
        before = job.rebuild.events
        for topic in TOPICS:
            start = {source.partition: offset for source, offset in offsets.items() if source.topic == topic}
            await self._insert(job, _facts_from(bus, topic, start, offsets), suffix=suffix)
        return job.rebuild.events - before

    async def _insert(self, job: _Job, facts: AsyncIterator[Sequence[Fact]], *, suffix: str) -> None:
        """Reading, making rows and inserting each go on while the next one works."""
        async for events, poison, blocks in _ahead(_made(_ahead(_in_batches(facts)))):
            await insert_blocks(self._clickhouse, blocks, suffix=suffix)
            job.rebuild.events += events
            job.rebuild.poison += poison

    async def _keep_saving(self, job: _Job) -> None:
        while True:
            await asyncio.sleep(SAVE_SECONDS)
            with suppress(ClickHouseUnavailable, ClickHouseError):
                await self._save(job)

    async def _save_until_done(self, job: _Job, state: str) -> None:
        while True:
            try:
                await self._save(job, state)
            except (ClickHouseUnavailable, ClickHouseError):
                await asyncio.sleep(PAUSE_SECONDS)
            else:
                return

    async def _save(self, job: _Job, state: str | None = None) -> None:
        """Notes how the job stands; it comes into a new state once that is noted."""
        # One after the other: what is noted beside a change of state would have the older state as the newer one.
        async with job.saving:
            await self._save_alone(job, state)

    async def _save_alone(self, job: _Job, state: str | None) -> None:
        rebuild = self._said(job)
        rebuild.changed_at = self._clock.now()
        job.version += 1
        await self._clickhouse.command(
            _SAVE,
            {
                "id": rebuild.id,
                "source": rebuild.source,
                "state": state or rebuild.state,
                "by": rebuild.started_by,
                "started": unix_us(rebuild.started_at),
                "changed": unix_us(rebuild.changed_at),
                "events": rebuild.events,
                "expected": rebuild.expected_events or 0,
                "poison": rebuild.poison,
                "reason": rebuild.reason or "",
                "offsets": msgspec.json.encode([(*source, offset) for source, offset in job.offsets.items()]).decode(),
                "version": job.version,
            },
        )
        rebuild.state = state or rebuild.state

    async def _latest(self) -> _Job | None:
        rows = await self._clickhouse.query(_LATEST)
        if not rows:
            return None
        identity, source, state, started_by, started_at, changed_at, events, expected, poison, reason, offsets, version = rows[0]
        rebuild = Rebuild(
            id=identity,
            source=source,
            state=state,
            started_by=started_by,
            started_at=instant(started_at),
            changed_at=instant(changed_at),
            events=events,
            expected_events=expected or None,
            poison=poison,
            reason=reason or None,
        )
        read = {TopicPartition(topic, partition): offset for topic, partition, offset in msgspec.json.decode(offsets)}
        return _Job(rebuild, Rights(""), read, version)

    def _is_dead(self, rebuild: Rebuild) -> bool:
        """Whether the rebuild was under way in a process that is no more."""
        if rebuild.state not in UNDER_WAY:
            return False
        return self._alone or abs((self._clock.now() - rebuild.changed_at).total_seconds()) > DEAD_SECONDS


_SAVE = """
INSERT INTO rebuilds (
    rebuild_id, source, state, started_by, started_at, changed_at, events, expected_events, poison, reason, offsets, version
) SELECT
    {id:UUID}, {source:String}, {state:String}, {by:String}, fromUnixTimestamp64Micro({started:Int64}, 'UTC'),
    fromUnixTimestamp64Micro({changed:Int64}, 'UTC'), {events:UInt64}, {expected:UInt64}, {poison:UInt64}, {reason:String},
    {offsets:String}, {version:UInt64}
"""
_LATEST = """
SELECT
    toString(rebuild_id), source, state, started_by, toUnixTimestamp64Micro(started_at), toUnixTimestamp64Micro(changed_at), events,
    expected_events, poison, reason, offsets, version
FROM rebuilds ORDER BY started_at DESC, rebuild_id DESC LIMIT 1
"""
_COMMENTS = """
SELECT name, comment FROM system.tables
WHERE database = currentDatabase() AND (name = {table:String} OR startsWith(name, {new:String}))
"""
# Begun by another process at the same moment.
_OTHERS = f"""
SELECT rebuild_id FROM rebuilds
WHERE rebuild_id != {{id:UUID}} AND state IN {tuple(sorted(UNDER_WAY))} AND changed_at > now64(6) - {{seconds:UInt32}}
"""


def suffix_of(rebuild_id: str) -> str:
    """What the names of a rebuild's new tables end in, or begin their end with."""
    return MARK + rebuild_id.replace("-", "")


def _running() -> Refusal:
    detail = "Wait until it is done: GET /v1/reports/rebuilds/current says how far it is."
    return Refusal("rebuild_running", 409, "A rebuild is under way", detail)


def _reason(error: Exception) -> str:
    match error:
        case Refusal():
            return error.code
        case BusUnavailable():
            return "bus_unavailable"
        case LedgerUnavailable():
            return "member_unavailable"
        case NewTablesGone():
            return "cut_off"
        case EventsTrimmed():
            return "events_trimmed"
        case ClickHouseUnavailable():
            return "clickhouse_unavailable"
        case _:
            return "insert_failed"


async def _offsets_of(bus: Bus) -> tuple[Offsets, Offsets]:
    """The first and the next offset of each partition of the topics that facts are made of."""
    states = [state for states in (await bus.topics(TOPICS)).values() for state in states]
    return {state.source: state.first_offset for state in states}, {state.source: state.next_offset for state in states}


async def _facts_from(bus: Bus, topic: str, start: Mapping[int, int], reached: Offsets) -> AsyncIterator[Sequence[Fact]]:
    """What the topic holds; `reached` is moved behind what was given."""
    async for messages in bus.read(topic, start):
        reached[messages[-1].source] = messages[-1].offset + 1
        yield [fact_of(message) for message in messages]


async def _in_batches(parts: AsyncIterator[Sequence[Fact]]) -> AsyncIterator[Sequence[Fact]]:
    batch: list[Fact] = []
    async for part in parts:
        batch += part
        if len(batch) >= BATCH_EVENTS:
            yield batch
            batch = []
    if batch:
        yield batch


async def _made(batches: AsyncIterator[Sequence[Fact]]) -> AsyncIterator[tuple[int, int, Mapping[str, bytes]]]:
    async for facts in batches:
        yield len(facts), *await asyncio.to_thread(_blocks_of_valid, facts)


def _blocks_of_valid(facts: Sequence[Fact]) -> tuple[int, Mapping[str, bytes]]:
    try:
        return 0, blocks_of(facts)
    except EventInvalid:
        invalid = invalid_among(facts)
        without = {id(fact) for fact in invalid}
        return len(invalid), blocks_of([fact for fact in facts if id(fact) not in without])


async def _ahead(items: AsyncIterator[T]) -> AsyncIterator[T]:
    """The same, fetched one ahead of what was taken."""
    following = asyncio.ensure_future(anext(items))
    try:
        while True:
            try:
                item = await following
            except StopAsyncIteration:
                return
            following = asyncio.ensure_future(anext(items))
            yield item
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError, StopAsyncIteration, Exception):
            await following
