"""The relay: publishes what a service's transactions left in its outbox, in order of key, and removes it once the bus has it.

Of all relays of a database one is active: the one whose session holds an advisory lock, with which it also reads and removes. It keeps no
state. Whatever fails, and wherever it dies, the next attempt begins with what the outbox holds: what was published and not yet removed
is published again, and the consumers' inboxes absorb it. Should a relay that lost its session still be publishing when the next one
begins, then each of the two publishes the events of a key in order and none leaves one out, so that the first copies are in order too.

Order: whoever writes events of a key does so one transaction after another (under the lock of what the key names), so of two such
events the one with the lower position is visible first. A position that is not visible yet says nothing about other keys, and is not
waited for; so nothing may rely on having seen all positions up to some number, except as `_Outbox` establishes it.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from time import perf_counter

import asyncpg
from msgspec.structs import replace

from kit.bus.interface import Bus, BusUnavailable, EventTooLarge, TopicUnknown
from kit.clock import Clock
from kit.db import RawConnection, advisory_key, connect, may_retry
from kit.metrics import OUTBOX_OLDEST_AGE, RELAY_BUS_AWAY, RELAY_LEADING, RELAY_PUBLISHED, live
from kit.outbox import CHANNEL, Event
from kit.telemetry import TraceContext, is_sampled
from kit.tracing import recorder
from kit.waiting import wait_at_most

RELAY_LOCK = advisory_key("kit.bus.relay")
BATCH = 1_000
# How soon a relay takes over from one that died, and finds what nobody told it of.
STANDBY_SECONDS = 1.0
POLL_SECONDS = 0.5
# While there is little to publish at a time, batches begin this far apart: a few larger ones cost far less than many small ones.
LEAST_SECONDS_APART = 0.05
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0
MARK_SECONDS = 1.0
WHOLE_SECONDS = 30.0
VACUUM_ROWS = 50_000
# For so long a relay may be without its database before it says that it does no work.
PATIENCE_SECONDS = 10.0
LEAST_SECONDS_BETWEEN_VACUUMS = 5.0

Rows = Sequence[asyncpg.Record]

_log = logging.getLogger(__name__)

_SETTINGS = {
    # The server notices within seconds that this process's machine is gone, and frees the lock. (No effect on a Unix socket.)
    "tcp_keepalives_idle": "2",
    "tcp_keepalives_interval": "1",
    "tcp_keepalives_count": "3",
    # The outbox is empty when it is analysed and full a moment later: the only good plan is by its key.
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
}

_COLUMNS = "event_id::text, topic, key::text, type, payload, traceparent, recorded_at, position"
_POSITION = 7

# One statement, one round trip: it does not see yet what it removes. What to leave out is a set of its own, looked up by its hash; an
# array would be gone through for every row.
_EXCHANGE = f"""
WITH removed AS (DELETE FROM outbox WHERE position = ANY ($1::bigint[]))
SELECT {_COLUMNS} FROM outbox WHERE position > $2 AND position NOT IN (SELECT unnest($3::bigint[])) ORDER BY position LIMIT $4
"""

_LAST_DRAWN = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM outbox_position_seq"

# Whoever writes to the outbox holds this lock from before a position is drawn until after the commit is visible.
_WRITERS = """
SELECT coalesce(array_agg(DISTINCT virtualtransaction), '{}') FROM pg_locks
WHERE locktype = 'relation' AND relation = 'outbox'::regclass AND mode = 'RowExclusiveLock' AND pid IS DISTINCT FROM pg_backend_pid()
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


@dataclass(frozen=True, slots=True)
class RelayState:
    """What can be seen of a relay from outside. `oldest_recorded_at` is of the oldest event that it knows to wait, if any does."""

    is_leading: bool
    published: int
    oldest_recorded_at: datetime | None
    is_bus_away: bool


class Relay:
    """The relay of one database. `open_bus` makes a connection to the bus anew, each time that it is to be had.

    With `others`, `nudge` of a relay that is not the active one tells that, in whichever process it is.
    """

    def __init__(
        self,
        database_url: str,
        open_bus: Callable[[], Bus],
        clock: Clock,
        *,
        name: str = "regulars-relay",
        batch: int = BATCH,
        others: Callable[[], None] | None = None,
    ) -> None:
        self._url = database_url
        self._open_bus = open_bus
        self._clock = clock
        self._name = name
        self._batch = batch
        self._others = others
        self._news = asyncio.Event()
        self._stop = asyncio.Event()
        self._is_leading = False
        self._published = 0
        self._oldest: datetime | None = None
        self._failing_since: float | None = None
        self._fails_at_the_bus = False
        self._is_connected = False
        self._connected_at = -PATIENCE_SECONDS
        self._too_large = ""
        self._vacuuming: asyncio.Task[None] | None = None
        self._vacuum_at = 0.0

    def state(self) -> RelayState:
        """How it stands."""
        return RelayState(self._is_leading, self._published, self._oldest, self._failing_since is not None)

    def oldest_seconds(self) -> float:
        """How long the oldest event that waits has waited; 0 when none does."""
        return max(0.0, (self._clock.now() - self._oldest).total_seconds()) if self._oldest is not None else 0.0

    async def answers(self) -> str:
        """For readiness: nothing while it leads or stands by, or did a moment ago; else a word for why not."""
        now = asyncio.get_running_loop().time()
        return "" if self._is_connected or now - self._connected_at < PATIENCE_SECONDS else "no connection to the database"

    def nudge(self) -> None:
        """Says that there are new events. Costs nothing; called after each commit of a writer in this process."""
        if self._is_leading:
            self._news.set()
        elif self._others is not None:
            self._others()

    async def run(self, stop: asyncio.Event) -> None:
        """Relays until `stop` is set; the batch under way is finished. Tries for ever, whatever fails."""
        self._stop = stop
        waker = asyncio.create_task(self._wake_at_stop())
        pause = FIRST_PAUSE_SECONDS
        ends = [
            live(RELAY_LEADING).add(lambda: float(self._is_leading)),
            live(RELAY_BUS_AWAY).add(lambda: float(self._failing_since is not None and self._fails_at_the_bus)),
            # What waits is not known to one that stands by; one that cannot publish knows what it saw last.
            live(OUTBOX_OLDEST_AGE).add(lambda: self.oldest_seconds() if self._is_leading or self._failing_since is not None else 0.0),
        ]
        try:
            while not stop.is_set():
                published = self._published
                try:
                    await self._take_turn()
                except Exception as error:  # noqa: BLE001  # it keeps no state: to begin anew is as good as to be started anew
                    if self._published > published:
                        pause = FIRST_PAUSE_SECONDS
                    self._say_failing(error)
                    await wait_at_most(self._stop, pause)
                    pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
        finally:
            waker.cancel()
            for end in ends:
                end()

    async def _wake_at_stop(self) -> None:
        await self._stop.wait()
        self._news.set()

    async def _take_turn(self) -> None:
        """Waits until the lock is to be had, then leads until it is asked to stop or something fails."""
        connection = await connect(self._url, application_name=self._name, settings=_SETTINGS)
        try:
            # Asked again and again: to wait for it in the server would hold a snapshot, and nothing removed could be cleaned away.
            while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", RELAY_LOCK):
                self._is_connected = True
                self._oldest = None
                self._say_well()
                await wait_at_most(self._stop, STANDBY_SECONDS)
                if self._stop.is_set():
                    return
            self._is_connected = self._is_leading = True
            await connection.add_listener(CHANNEL, self._on_notice)
            outbox = _Outbox(connection, self._batch)
            rows = await outbox.exchange()
            self._note_oldest(rows)
            async with self._open_bus() as bus:
                _log.info("relaying", extra={"waiting": len(rows), "oldest_seconds": round(self.oldest_seconds(), 1)})
                await self._lead(outbox, bus, rows)
        finally:
            if self._is_connected:
                self._connected_at = asyncio.get_running_loop().time()
            self._is_connected = self._is_leading = False
            if vacuuming := self._vacuuming:
                vacuuming.cancel()
                await asyncio.wait([vacuuming])
            # Frees the lock at once, also when the server does not answer.
            connection.terminate()

    def _on_notice(self, *_: object) -> None:
        self._news.set()

    async def _lead(self, outbox: "_Outbox", bus: Bus, rows: Rows) -> None:
        """Publishes and removes, batch after batch. `rows` is what was read first."""
        clock = asyncio.get_running_loop().time
        done: list[int] = []
        while not self._stop.is_set():
            begun = clock()
            taken = [row[_POSITION] for row in rows]
            ahead: Rows = []
            if len(rows) == self._batch:
                ahead = await self._publish_and_read_on(outbox, bus, rows, done, taken)
                done = taken
            elif rows:
                await self._publish(bus, rows)
                done += taken
                await wait_at_most(self._stop, begun + LEAST_SECONDS_APART - clock())
            else:
                await wait_at_most(self._news, POLL_SECONDS)
            if not ahead:
                self._news.clear()
                ahead = await outbox.exchange(done)
                done = []
            rows = ahead
            self._note_oldest(rows)
            self._keep_small(outbox)
        if done:
            await outbox.exchange(done)

    async def _publish_and_read_on(self, outbox: "_Outbox", bus: Bus, rows: Rows, done: list[int], taken: list[int]) -> Rows:
        """Publishes, and meanwhile removes what was published before and reads what comes next."""
        publishing = asyncio.create_task(self._publish(bus, rows))
        try:
            ahead = await outbox.exchange(done, taken)
            await publishing
        except BaseException:
            publishing.cancel()
            await asyncio.wait([publishing])
            raise
        return ahead

    async def _publish(self, bus: Bus, rows: Rows) -> None:
        events = [Event(*row[:_POSITION]) for row in rows]
        if recorder() is None:
            await bus.publish(events)
        else:
            await _publish_recorded(bus, events)
        self._published += len(rows)
        RELAY_PUBLISHED.of().inc(len(rows))
        self._say_well()

    def _note_oldest(self, rows: Rows) -> None:
        self._oldest = rows[0]["recorded_at"] if rows else None

    def _say_failing(self, error: Exception) -> None:
        """Once in an outage; and once of each event that only a person can help through."""
        self._fails_at_the_bus = isinstance(error, BusUnavailable | EventTooLarge | TopicUnknown)
        if isinstance(error, EventTooLarge) and error.event_id != self._too_large:
            self._too_large = error.event_id
            about = {"event_id": error.event_id, "topic": error.topic, "size_bytes": error.size_bytes}
            _log.error("an event is larger than the bus takes: it and all after it wait until the bus takes larger ones", extra=about)
        if self._failing_since is not None:
            return
        self._failing_since = asyncio.get_running_loop().time()
        is_of_the_moment = isinstance(error, BusUnavailable | EventTooLarge | TopicUnknown | asyncpg.InterfaceError) or may_retry(error)
        said = {"error": type(error).__name__, "oldest_seconds": round(self.oldest_seconds(), 1)}
        _log.warning("events wait in the outbox until they can be published", extra=said, exc_info=None if is_of_the_moment else error)

    def _say_well(self) -> None:
        if self._failing_since is not None:
            seconds = round(asyncio.get_running_loop().time() - self._failing_since, 1)
            self._failing_since = None
            _log.info("events are published again", extra={"outage_seconds": seconds, "oldest_seconds": round(self.oldest_seconds(), 1)})

    def _keep_small(self, outbox: "_Outbox") -> None:
        """Has what was removed cleaned away at once: autovacuum comes once a minute, when hundreds of thousands of rows are dead."""
        now = asyncio.get_running_loop().time()
        if outbox.removed < VACUUM_ROWS or now < self._vacuum_at or (self._vacuuming is not None and not self._vacuuming.done()):
            return
        outbox.removed = 0
        self._vacuum_at = now + LEAST_SECONDS_BETWEEN_VACUUMS
        self._vacuuming = asyncio.create_task(self._vacuum())

    async def _vacuum(self) -> None:
        try:
            connection = await connect(self._url, application_name=self._name)
            try:
                # The file keeps its size: to cut it off would need a lock that writers wait for.
                await connection.execute("VACUUM (SKIP_LOCKED, TRUNCATE FALSE) outbox")
            finally:
                connection.terminate()
        except Exception as error:  # noqa: BLE001  # autovacuum comes too, only later
            _log.info("the outbox was not vacuumed", extra={"error": type(error).__name__})


async def _publish_recorded(bus: Bus, events: Sequence[Event]) -> None:
    """Publishes; what is in a trace that is recorded goes out under a span of its own, below which its consumers' are."""
    begun = perf_counter()
    spans: list[tuple[Event, TraceContext, TraceContext]] = []
    named: list[Event] = []
    for event in events:
        above = TraceContext.parse(event.traceparent) if is_sampled(event.traceparent) else None
        if above is not None:
            at = above.child()
            spans.append((event, above, at))
            named.append(replace(event, traceparent=at.header()))
        else:
            named.append(event)
    await bus.publish(named)
    seconds, record = perf_counter() - begun, recorder()
    if record is None:
        return
    for event, above, at in spans:
        said: dict[str, str | int | bool] = {
            "messaging.operation.type": "publish",
            "messaging.destination.name": event.topic,
            "messaging.message.id": event.event_id,
            "messaging.batch.message_count": len(events),
        }
        record.record(f"publish {event.topic}", "producer", at, above.span_id, seconds, said)


class _Outbox:
    """The outbox, through the connection whose session holds the lock.

    What was removed stays in the index until it is cleaned away, which a long transaction anywhere in the database (a dump, a report)
    holds up; a read that began at the start would pass over all of it each time. So it begins at a floor below which nothing can appear
    any more: a number that was drawn last at some moment, once all who were writing at that moment have ended, and below whatever is
    visible and not yet published. From time to time an outbox that looks empty is read from the start all the same.
    """

    def __init__(self, connection: RawConnection, limit: int) -> None:
        self.removed = 0
        self._connection = connection
        self._limit = limit
        self._floor = 0
        # No row at or below it can appear any more.
        self._closed = 0
        self._mark: tuple[int, frozenset[str]] | None = None
        self._is_settled = True
        self._clock = asyncio.get_running_loop().time
        self._mark_at = 0.0
        self._whole_at = self._clock() + WHOLE_SECONDS

    async def exchange(self, published: Sequence[int] = (), in_flight: Sequence[int] = ()) -> Rows:
        """Removes the rows that were published, and reads the next ones in order, but for those in flight."""
        if published:
            self.removed += len(published)
            self._is_settled = False
        if not self._is_settled and self._clock() >= self._mark_at:
            await self._close()
        left_out = [*published, *in_flight]
        rows: Rows = await self._connection.fetch(_EXCHANGE, published, self._floor, left_out, self._limit)
        if not rows and self._floor and self._clock() >= self._whole_at and not left_out:
            self._whole_at = self._clock() + WHOLE_SECONDS
            self._floor = self._closed = 0
            self._mark = None
            rows = await self._connection.fetch(_EXCHANGE, [], 0, [], self._limit)
        # What is in flight has a lower number and is removed by it, or all begins anew.
        self._floor = max(self._floor, min(self._closed, rows[0][_POSITION] - 1) if rows else self._closed)
        return rows

    async def _close(self) -> None:
        self._mark_at = self._clock() + MARK_SECONDS
        last = await self._connection.fetchval(_LAST_DRAWN)
        writers = frozenset(await self._connection.fetchval(_WRITERS))
        if self._mark is not None and self._mark[1].isdisjoint(writers):
            self._closed, self._mark = self._mark[0], None
        if self._mark is None:
            self._mark = (last, writers)
        self._is_settled = self._closed == last
