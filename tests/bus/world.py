"""What the behaviour suite works in: a bus of either backend, and the database of a service with an outbox, an inbox and effects.

An event says the how-manieth of its key it is. The effect of an event is a row that repeats it, so the rows tell what happened, how often
and in which order.
"""

import asyncio
import json
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from kit.bus.connecting import BusSettings, connect
from kit.bus.consuming import Handler, consume
from kit.bus.inbox import in_transaction, inbox_table
from kit.bus.interface import Bus, Message, TopicSpec
from kit.bus.relay import Relay
from kit.clock import Clock, SystemClock
from kit.db import create_engine, raw, reading, transaction
from kit.ids import uuid7
from kit.outbox import Event, append, outbox_table
from kit.settings import load

TYPE = "regulars.test.v1.Counted"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
AT = datetime(2026, 11, 22, 8, 30, 12, 345678, tzinfo=UTC)
ROOT = Path(__file__).parents[2]

_EFFECTS = """
CREATE TABLE effects (
    position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, consumer text NOT NULL, event_id uuid NOT NULL, key uuid NOT NULL,
    number integer NOT NULL
)
"""


class Row(NamedTuple):
    """One effect."""

    event_id: str
    key: str
    number: int


def bus_settings(url: str) -> BusSettings:
    """The settings of a bus that asks for no password."""
    return load(BusSettings, {"BUS_URL": url})


def number_of(message: Message | Event) -> int:
    """The how-manieth of its key it is."""
    return int(message.payload)


def effect(consumer: str) -> Callable[[AsyncConnection, Sequence[Message]], Awaitable[None]]:
    """What a consumer does with events in a transaction."""

    async def write(connection: AsyncConnection, messages: Sequence[Message]) -> None:
        rows = [(consumer, message.event_id, message.key, number_of(message)) for message in messages]
        await raw(connection).copy_records_to_table("effects", columns=("consumer", "event_id", "key", "number"), records=rows)

    return write


async def until(condition: Callable[[], bool | Awaitable[bool]], what: str, seconds: float = 60) -> None:
    """Returns as soon as the condition holds; fails, naming `what` was waited for, when it does not within `seconds`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        met = condition()
        if met if isinstance(met, bool) else await met:
            return
        assert loop.time() < deadline, f"{what}: not within {seconds} seconds"
        await moment(0.02)


async def moment(seconds: float) -> None:
    """Lets time pass: for what is about time itself, and between two looks at what does not tell."""
    passed = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, passed.set)
    await passed.wait()


@dataclass
class World:
    """One test's part: topics and groups named as no other's, and a service's database of its own."""

    bus_url: str
    database_url: str
    engine: AsyncEngine
    bus: Bus
    # Of each key, the ids of its events in the order in which they became true.
    recorded: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def connect(self, name: str = "test") -> Bus:
        """A connection to the bus, not yet open."""
        return connect(bus_settings(self.bus_url), client_name=name)

    async def new_topic(self, partitions: int = 4) -> str:
        """Makes a topic."""
        name = f"test.t{uuid7().replace('-', '')}.v1"
        await self.bus.create_topics([TopicSpec(name, partitions, timedelta(days=30))])
        return name

    def new_group(self) -> str:
        """The name of a group that nobody has."""
        return f"group-{uuid7()}"

    def new_events(self, topic: str, keys: Sequence[str], each: int = 1) -> list[Event]:
        """The next events of every key, in turn. They count as recorded."""
        events: list[Event] = []
        for _ in range(each):
            for key in keys:
                mine = self.recorded[key]
                events.append(Event(uuid7(), topic, key, TYPE, str(len(mine)).encode(), TRACE, AT))
                mine.append(events[-1].event_id)
        return events

    async def record(self, topic: str, keys: Sequence[str], each: int = 1) -> list[Event]:
        """Has events become true: they are in the outbox."""
        events = self.new_events(topic, keys, each)
        async with transaction(self.engine) as connection:
            await append(raw(connection), events)
        return events

    async def publish(self, topic: str, keys: Sequence[str], each: int = 1) -> list[Event]:
        """Publishes events without an outbox."""
        events = self.new_events(topic, keys, each)
        await self.bus.publish(events)
        return events

    async def waiting(self) -> int:
        """How many events are in the outbox."""
        async with reading(self.engine) as connection:
            return int(await raw(connection).fetchval("SELECT count(*) FROM outbox"))

    async def effects(self, consumer: str) -> list[Row]:
        """What a consumer did, in order."""
        async with reading(self.engine) as connection:
            rows = await raw(connection).fetch(
                "SELECT event_id::text, key::text, number FROM effects WHERE consumer = $1 ORDER BY position", consumer
            )
        return [Row(*row) for row in rows]

    async def until_done(self, consumer: str, events: int, seconds: float = 60) -> None:
        """Returns when a consumer has had the effects of so many events."""
        done = 0

        async def is_done() -> bool:
            nonlocal done
            async with reading(self.engine) as connection:
                done = await raw(connection).fetchval("SELECT count(DISTINCT event_id) FROM effects WHERE consumer = $1", consumer)
            return bool(done >= events)

        try:
            await until(is_done, f"{events} effects", seconds)
        except AssertionError as error:
            behind = {lag.source: lag.messages for lag in await self.bus.lag(consumer)}
            raise AssertionError(f"{error}, but {done}; {await self.waiting()} wait in the outbox, on the bus {behind}") from None

    async def assert_all_once_and_in_order(self, consumer: str, *, but: frozenset[str] = frozenset()) -> None:
        """Every event that was recorded, but those named, had its effect once, those of a key in order."""
        done: dict[str, list[str]] = defaultdict(list)
        for row in await self.effects(consumer):
            done[row.key].append(row.event_id)
        wanted = {key: [event_id for event_id in ids if event_id not in but] for key, ids in self.recorded.items()}
        assert dict(done) == {key: ids for key, ids in wanted.items() if ids}

    async def assert_all_once_and_in_order_but_late(self, consumer: str, *, late: str, never: str) -> None:
        """The same, but for one event that had its effect after all others of its key, and one that never had any."""
        for ids in self.recorded.values():
            if late in ids:
                ids.remove(late)
                ids.append(late)
        await self.assert_all_once_and_in_order(consumer, but=frozenset([never]))

    async def until_lag_is_none(self, group: str) -> None:
        """Returns when the group has committed all there is."""

        async def is_none() -> bool:
            lag = await self.bus.lag(group)
            return bool(lag) and all(partition.messages == 0 for partition in lag)

        await until(is_none, f"{group} has nothing left to do")

    def once(self, consumer: str) -> Handler:
        """The handler whose effects are written once."""
        return in_transaction(self.engine, consumer, effect(consumer))

    @asynccontextmanager
    async def consuming(
        self, group: str, topics: Sequence[str], handler: Handler | None = None, *, clock: Clock | None = None, **options: Any
    ) -> AsyncIterator["asyncio.Task[None]"]:
        """A consumer for the block, on a connection of its own. What ended it is raised at the end of the block."""
        stop = asyncio.Event()
        async with self.connect(f"consumer-{uuid7()[-4:]}") as bus:
            task = asyncio.create_task(
                consume(bus, group, topics, handler or self.once(group), stop=stop, clock=clock or SystemClock(), **options)
            )
            try:
                yield task
            finally:
                stop.set()
                await asyncio.wait([task])
        task.result()

    @asynccontextmanager
    async def relaying(self, *, clock: Clock | None = None, **options: Any) -> AsyncIterator[Relay]:
        """A relay for the block."""
        stop = asyncio.Event()
        relay = Relay(self.database_url, options.pop("open_bus", self.connect), clock or SystemClock(), **options)
        task = asyncio.create_task(relay.run(stop))
        try:
            yield relay
        finally:
            stop.set()
            await task

    @asynccontextmanager
    async def worker(self, role: str, **settings: Any) -> AsyncIterator["Worker"]:
        """A process of its own for the block: `relay` or `consume` (`tests/bus/worker.py`)."""
        given = {"role": role, "bus_url": self.bus_url, "database_url": self.database_url, **settings}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.bus.worker", json.dumps(given)), cwd=ROOT, stderr=asyncio.subprocess.PIPE
        )
        made = Worker(process, [])
        listening = asyncio.create_task(made.listen())
        try:
            yield made
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await listening


@dataclass
class Worker:
    """A process that the test can kill."""

    process: asyncio.subprocess.Process
    lines: list[dict[str, Any]]

    async def listen(self) -> None:
        """Takes in what it logs until it ends."""
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.lines.append(json.loads(line) if line.startswith(b"{") else {"message": line.decode()})
        await self.process.wait()

    def has_said(self, message: str) -> bool:
        """Whether it logged this."""
        return any(line["message"] == message for line in self.lines)

    async def until_it_says(self, message: str) -> None:
        """Returns when it has logged this."""
        await until(lambda: self.has_said(message) or self.process.returncode is not None, f"it says: {message}")
        assert self.has_said(message), f"it ended without saying so: {self.lines}"

    async def until_dead(self) -> int:
        """Its exit code, once it has ended."""
        await until(lambda: self.process.returncode is not None, "it ends")
        return self.process.returncode or 0


async def make_service(url: str) -> None:
    """Makes a service's tables in an empty database."""
    engine = create_engine(url, 1)
    metadata = MetaData()
    outbox_table(metadata)
    inbox_table(metadata)
    async with engine.connect() as connection:
        await connection.run_sync(metadata.create_all)
        await raw(connection).execute(_EFFECTS)
    await engine.dispose()
