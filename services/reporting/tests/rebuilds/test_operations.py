"""Rebuilding over a real bus and a real ClickHouse. A process that is killed is a rebuilder that is closed at that point."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import pytest

from kit.bus.connecting import connect
from kit.bus.interface import Bus, PartitionState, TopicSpec
from kit.clock import HeldClock, SystemClock
from kit.ids import uuid7
from kit.outbox import Event
from kit.problems import Refusal
from reporting.clickhouse import ClickHouse, FactsDamaged
from reporting.facts.columns import REBUILT
from reporting.facts.consumers import FactsHandler
from reporting.facts.operations import insert_facts
from reporting.facts.rules import Fact, unix_us
from reporting.rebuilds import operations
from reporting.rebuilds.ledger import Rights
from reporting.rebuilds.operations import MARK, Export, Rebuilder, suffix_of
from services.reporting.tests.contents import consume_all, contents, one
from services.reporting.tests.events import AT, a_history, fact, sale
from tests.bus.world import bus_settings, until


async def never(_rights: Rights) -> AsyncIterator[Sequence[Fact]]:
    """The ledger of a test that must not read it."""
    if _rights.token:
        pytest.fail("the ledger was read")
    yield []


def ledger_of(events: Sequence[Event]) -> Export:
    """A ledger that tells these events, each with a new id."""

    async def export(_rights: Rights) -> AsyncIterator[Sequence[Fact]]:
        for number in range(0, len(events), 10):
            yield [fact(event)._replace(event_id=uuid7()) for event in events[number : number + 10]]

    return export


MakeRebuilder = Callable[..., Rebuilder]


@pytest.fixture
async def make(clickhouse: ClickHouse, bus_url: str) -> AsyncIterator[MakeRebuilder]:
    """A rebuilder as a process makes it at its start; closed at the end of the test."""
    made = []

    def rebuilder(export: Export = never, *, handler: FactsHandler | None = None, alone: bool = True, **wrapped: Any) -> Rebuilder:
        storage = wrapped.get("storage") or clickhouse

        def to_bus() -> Bus:
            bus = connect(bus_settings(bus_url), client_name="test")
            return wrapped["bus"](bus) if "bus" in wrapped else bus

        made.append(
            Rebuilder(storage, handler or FactsHandler(clickhouse), to_bus, export, wrapped.get("clock") or SystemClock(), alone=alone)
        )
        return made[-1]

    yield rebuilder
    for each in made:
        await each.close()


async def rebuilt(rebuilder: Rebuilder, source: str = "") -> operations.Rebuild:
    """A rebuild from beginning to end."""
    begun = await rebuilder.start(source, "tester", "token")
    assert begun.state == operations.RUNNING
    await rebuilder.ended()
    latest = await rebuilder.latest("token")
    assert latest
    return latest


async def spoil(clickhouse: ClickHouse) -> None:
    """Facts that no event tells, and one less than there should be."""
    await clickhouse.command(
        "INSERT INTO sales (business_day, store_id, sale_id, net_minor) SELECT '2026-05-05', generateUUIDv4(), generateUUIDv4(), 1"
    )
    await clickhouse.command("TRUNCATE TABLE points_moves")


async def is_tidy(clickhouse: ClickHouse) -> bool:
    """Whether no table of a rebuild is left."""
    return not await one(
        clickhouse, f"SELECT count() FROM system.tables WHERE database = currentDatabase() AND position(name, '{MARK}') > 0"
    )


@pytest.mark.parametrize("source", ["events", "ledger"])
async def test_a_rebuild_gives_the_same_figures_from_either_source(
    clickhouse: ClickHouse, bus: Bus, make: MakeRebuilder, source: str
) -> None:
    events = a_history()
    await bus.publish(events)
    await consume_all(bus, FactsHandler(clickhouse))
    before = await contents(clickhouse)
    await spoil(clickhouse)
    assert await contents(clickhouse) != before
    done = await rebuilt(make(ledger_of(events)), source)
    assert (done.state, done.source, done.poison, done.reason) == ("done", source, 0, None)
    assert await contents(clickhouse) == before
    assert await is_tidy(clickhouse)
    # And again, over what a rebuild made.
    assert (await rebuilt(make(ledger_of(events)), source)).state == "done"
    assert await contents(clickhouse) == before


def empty_marks(part: Path) -> None:
    """What a merge leaves of a part whose last write met a full disk."""
    for marks in part.glob("data.*mrk*"):
        marks.write_bytes(b"")


async def test_facts_that_cannot_be_read_are_told_of_and_made_anew(clickhouse: ClickHouse, bus: Bus, make: MakeRebuilder) -> None:
    events = a_history()
    await bus.publish(events)
    await consume_all(bus, FactsHandler(clickhouse))
    before = await contents(clickhouse)
    paths = await clickhouse.query("SELECT path FROM system.parts WHERE database = currentDatabase() AND table = 'sales' AND active")
    empty_marks(Path(paths[0][0]))
    await clickhouse.command("SYSTEM DROP MARK CACHE")
    with pytest.raises(FactsDamaged):
        await contents(clickhouse)
    assert (await rebuilt(make(ledger_of(events)), "ledger")).state == "done"
    assert await contents(clickhouse) == before
    assert await is_tidy(clickhouse)


async def test_a_report_that_still_reads_old_facts_holds_nothing_up(clickhouse: ClickHouse, bus: Bus, make: MakeRebuilder) -> None:
    events = a_history()
    await bus.publish(events)
    await consume_all(bus, FactsHandler(clickhouse))
    asked, may_end = asyncio.Event(), asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await may_end.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n1\n")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    # A report over what another server has not yet told: it is at work for as long as the test wants.
    report = asyncio.create_task(
        clickhouse.query(
            f"SELECT count() FROM sales CROSS JOIN url('http://{host}:{port}/', 'CSV', 'x UInt8') AS elsewhere", settings={"max_threads": 4}
        )
    )
    await until(lambda: asked.is_set() or report.done(), "the report is at work")
    done = await rebuilt(make(ledger_of(events)), "ledger")
    assert (done.state, report.done()) == ("done", False)
    assert await is_tidy(clickhouse)
    may_end.set()
    assert await report == [(40,)]
    server.close()
    await server.wait_closed()


async def test_the_events_are_taken_while_the_bus_has_them_all(clickhouse: ClickHouse, bus: Bus, make: MakeRebuilder) -> None:
    events = a_history()
    await bus.publish(events)
    done = await rebuilt(make(), "")
    assert (done.source, done.events, done.expected_events) == ("events", len(events), len(events))
    assert await one(clickhouse, "SELECT count() FROM sales") == 40


class Trimmed:
    """A bus that no longer has the first events of a topic."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def __aenter__(self) -> Self:
        await self._bus.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._bus.__aexit__(None, None, None)

    async def topics(self, names: Collection[str] | None = None) -> Mapping[TopicSpec, Sequence[PartitionState]]:
        return {
            spec: [PartitionState(state.source, min(1, state.next_offset), state.next_offset) for state in states]
            for spec, states in (await self._bus.topics(names)).items()
        }


async def test_the_ledger_is_taken_where_events_are_trimmed(clickhouse: ClickHouse, bus: Bus, make: MakeRebuilder) -> None:
    events = a_history()
    await bus.publish(events)
    rebuilder = make(ledger_of(events), bus=Trimmed)
    with pytest.raises(Refusal) as refused:
        await rebuilder.start("events", "tester", "token")
    assert (refused.value.status, refused.value.code) == (422, "events_trimmed")
    assert (await rebuilt(rebuilder, "")).source == "ledger"
    assert await one(clickhouse, "SELECT count() FROM sales") == 40


async def test_the_ledger_is_taken_where_the_bus_is_another_than_the_facts_came_over(
    clickhouse: ClickHouse, bus: Bus, make: MakeRebuilder
) -> None:
    """From PostgreSQL to Kafka, or a bus that was lost and made anew: it begins at its first event, and has few of them."""
    events = a_history()
    await insert_facts(clickhouse, [fact(event) for event in events])
    before = await contents(clickhouse)
    assert (await rebuilt(make(ledger_of(events)))).source == "ledger"
    await bus.publish(events[-10:])
    assert (await rebuilt(make(ledger_of(events)))).source == "ledger"
    assert await contents(clickhouse) == before
    await bus.publish(events[:-10])
    assert (await rebuilt(make())).source == "events"


async def test_old_facts_are_served_and_new_ones_taken_meanwhile(clickhouse: ClickHouse, bus: Bus, make: MakeRebuilder) -> None:
    events = a_history()
    await bus.publish(events)
    handler = FactsHandler(clickhouse)
    await consume_all(bus, handler)
    before = await contents(clickhouse)
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_rights: Rights) -> AsyncIterator[Sequence[Fact]]:
        yield [fact(event) for event in events[:20]]
        reached.set()
        await go_on.wait()
        yield [fact(event) for event in events[20:]]

    rebuilder = make(slow, handler=handler)
    await rebuilder.start("ledger", "tester", "token")
    await reached.wait()
    assert await contents(clickhouse) == before
    # A sale of meanwhile, which the ledger's pages have not: it is shown at once, and after the tables changed places.
    await bus.publish([sale(day="2026-11-22", net_minor=77)[1]])
    await consume_all(bus, handler)
    assert await one(clickhouse, "SELECT count() FROM sales WHERE net_minor = 77") == 1
    go_on.set()
    await rebuilder.ended()
    assert (
        await one(clickhouse, "SELECT count() FROM sales"),
        await one(clickhouse, "SELECT count() FROM sales WHERE net_minor = 77"),
    ) == (41, 1)


async def test_two_at_once_are_refused(bus: Bus, make: MakeRebuilder) -> None:
    await bus.publish(a_history())
    rebuilder = make()
    attempts = await asyncio.gather(*(rebuilder.start("", "tester", "token") for _ in range(3)), return_exceptions=True)
    refused = [attempt for attempt in attempts if isinstance(attempt, Refusal)]
    assert [(refusal.status, refusal.code) for refusal in refused] == [(409, "rebuild_running")] * 2
    await rebuilder.ended()
    assert (await rebuilt(rebuilder)).state == "done"


async def test_two_processes_at_once_are_refused(bus: Bus, make: MakeRebuilder) -> None:
    await bus.publish(a_history())
    hold = asyncio.Event()

    async def held(_rights: Rights) -> AsyncIterator[Sequence[Fact]]:
        await hold.wait()
        yield []

    one_process, another = make(held, alone=False), make(alone=False)
    await one_process.start("ledger", "tester", "token")
    with pytest.raises(Refusal, match="rebuild_running"):
        await another.start("", "tester", "token")
    running = await another.latest("token")
    assert running
    assert running.state == "running"
    hold.set()
    await one_process.ended()
    assert (await rebuilt(another)).state == "done"


async def test_a_rebuild_that_was_cut_off_left_the_facts_and_begins_again(clickhouse: ClickHouse, bus: Bus, make: MakeRebuilder) -> None:
    events = a_history()
    await bus.publish(events)
    await consume_all(bus, FactsHandler(clickhouse))
    before = await contents(clickhouse)
    reached = asyncio.Event()

    async def endless(_rights: Rights) -> AsyncIterator[Sequence[Fact]]:
        yield [fact(event) for event in events[:20]]
        reached.set()
        await asyncio.Event().wait()

    killed = make(endless)
    await killed.start("ledger", "tester", "token")
    await reached.wait()
    await killed.close()
    assert not await is_tidy(clickhouse)
    restarted = make()
    await restarted.recover()
    assert await contents(clickhouse) == before
    assert await is_tidy(clickhouse)
    latest = await restarted.latest("token")
    assert latest
    assert latest.state == "cut_off"
    assert (await rebuilt(restarted)).state == "done"
    assert await contents(clickhouse) == before


@pytest.mark.parametrize("exchanged", [0, 1, len(REBUILT) - 1])
async def test_a_rebuild_killed_while_tables_change_places_is_finished(
    clickhouse: ClickHouse, bus: Bus, make: MakeRebuilder, monkeypatch: pytest.MonkeyPatch, exchanged: int
) -> None:
    await bus.publish(a_history())
    await consume_all(bus, FactsHandler(clickhouse))
    before = await contents(clickhouse)
    await spoil(clickhouse)
    command, there, done = clickhouse.command, asyncio.Event(), 0

    async def stop_there(statement: str, parameters: Mapping[str, object] | None = None) -> None:
        nonlocal done
        if (statement.startswith(("EXCHANGE", "DROP")) and parameters is None and not statement.startswith("DROP")) or done > exchanged:
            done += 1
            if done > exchanged:
                there.set()
                await asyncio.Event().wait()
        await command(statement, parameters)

    monkeypatch.setattr(clickhouse, "command", stop_there)
    killed = make()
    await killed.start("events", "tester", "token")
    await there.wait()
    monkeypatch.undo()
    await killed.close()
    restarted = make()
    await restarted.recover()
    await restarted.ended()
    assert await contents(clickhouse) == before
    assert await is_tidy(clickhouse)
    latest = await restarted.latest("token")
    assert latest
    assert latest.state == "done"


@pytest.mark.parametrize("state, becomes", [("running", "cut_off"), ("swapping", "done")])
async def test_what_another_process_left_is_settled_once_that_is_taken_for_dead(
    clickhouse: ClickHouse, bus: Bus, make: MakeRebuilder, state: str, becomes: str
) -> None:
    await bus.publish(a_history())
    await consume_all(bus, FactsHandler(clickhouse))
    before = await contents(clickhouse)
    clock, identity = HeldClock(AT), uuid7()
    for table in REBUILT:
        name = table + suffix_of(identity)
        await clickhouse.command(f"CREATE TABLE {name} AS {table} COMMENT '{identity}'")
        await clickhouse.command(f"INSERT INTO {name} SELECT * FROM {table}")
    columns = "rebuild_id, source, state, started_at, changed_at, offsets, version"
    at = f"fromUnixTimestamp64Micro({unix_us(AT)})"
    await clickhouse.command(f"INSERT INTO rebuilds ({columns}) SELECT '{identity}', 'events', '{state}', {at}, {at}, '[]', 1")
    other = make(alone=False, clock=clock)
    await other.recover()
    latest = await other.latest("token")
    assert latest
    assert latest.state == state
    with pytest.raises(Refusal, match="rebuild_running"):
        await other.start("", "tester", "token")
    clock.advance(timedelta(minutes=1))
    await other.latest("token")
    await other.ended()
    latest = await other.latest("token")
    assert latest
    assert latest.state == becomes
    assert await contents(clickhouse) == before
    assert await is_tidy(clickhouse)


class Noted:
    """Keeps what is noted of rebuilds, in the order of their versions."""

    def __init__(self, clickhouse: ClickHouse) -> None:
        self._clickhouse = clickhouse
        self.states: dict[object, str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._clickhouse, name)

    async def command(self, statement: str, parameters: Mapping[str, object] | None = None) -> None:
        if parameters and "version" in parameters:
            self.states[parameters["version"]] = str(parameters["state"])
        await self._clickhouse.command(statement, parameters)


async def test_progress_is_never_noted_over_a_newer_state(
    clickhouse: ClickHouse, bus: Bus, make: MakeRebuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else a process that dies while tables change places would be taken for one that had not begun to.
    monkeypatch.setattr(operations, "SAVE_SECONDS", 0)
    await bus.publish(a_history())
    noted = Noted(clickhouse)
    assert (await rebuilt(make(storage=noted))).state == "done"
    states = [noted.states[version] for version in range(1, len(noted.states) + 1)]
    assert states[0] == "running"
    assert states == sorted(states, key=("running", "swapping", "done").index)


class Stalled:
    """Has a process stand still just before the `number`-th of its statements that begin so. It stands there until `go_on`."""

    def __init__(self, clickhouse: ClickHouse, begin: str, number: int) -> None:
        self._clickhouse = clickhouse
        self._begin = begin
        self._left = number
        self.there, self.go_on = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._clickhouse, name)

    async def command(self, statement: str, parameters: Mapping[str, object] | None = None) -> None:
        await self._stand_still(statement)
        await self._clickhouse.command(statement, parameters)

    async def insert(self, table: str, columns: Iterable[str], block: bytes) -> None:
        await self._stand_still(f"insert {table}")
        await self._clickhouse.insert(table, columns, block)

    async def _stand_still(self, statement: str) -> None:
        self._left -= statement.lstrip().startswith(self._begin)
        if self._left == 0:
            self.there.set()
            await self.go_on.wait()


LATER = timedelta(minutes=1)


@pytest.mark.parametrize("begin", ["RENAME", "EXCHANGE", "DROP"])
@pytest.mark.parametrize("number", [1, len(REBUILT)])
async def test_a_process_that_stood_still_changes_no_table_back_that_another_changed(
    clickhouse: ClickHouse, bus: Bus, make: MakeRebuilder, begin: str, number: int
) -> None:
    await bus.publish(a_history())
    await consume_all(bus, FactsHandler(clickhouse))
    before = await contents(clickhouse)
    await spoil(clickhouse)
    stalled = Stalled(clickhouse, begin, number)
    first = make(alone=False, storage=stalled)
    await first.start("events", "tester", "token")
    await stalled.there.wait()
    seen_by_another = HeldClock(SystemClock().now() + LATER)
    second, third = (make(alone=False, clock=seen_by_another) for _ in range(2))
    # Both find it at the same moment.
    await asyncio.gather(second.recover(), third.recover())
    await asyncio.gather(second.ended(), third.ended())
    stalled.go_on.set()
    await first.ended()
    assert await contents(clickhouse) == before
    assert await is_tidy(clickhouse)
    latest = await second.latest("token")
    assert latest
    assert latest.state == "done"


@pytest.mark.parametrize("begin", ["CREATE", "insert", "INSERT INTO rebuilds", "RENAME"])
async def test_a_process_that_was_cut_off_meddles_with_no_later_rebuild(
    clickhouse: ClickHouse, bus: Bus, make: MakeRebuilder, begin: str
) -> None:
    await bus.publish(a_history())
    await consume_all(bus, FactsHandler(clickhouse))
    before = await contents(clickhouse)
    # The first one of its notes is made before it begins.
    stalled = Stalled(clickhouse, begin, 2 if begin == "INSERT INTO rebuilds" else 1)
    first = make(alone=False, storage=stalled)
    await first.start("events", "tester", "token")
    await stalled.there.wait()
    second = make(alone=False, clock=HeldClock(SystemClock().now() + LATER))
    await second.recover()
    await second.ended()
    assert (await rebuilt(second, "events")).state == "done"
    stalled.go_on.set()
    await first.ended()
    assert await contents(clickhouse) == before
    assert await is_tidy(clickhouse)


async def test_a_rebuild_that_fails_says_why_and_leaves_the_facts(clickhouse: ClickHouse, bus: Bus, make: MakeRebuilder) -> None:
    await bus.publish(a_history())
    await consume_all(bus, FactsHandler(clickhouse))
    before = await contents(clickhouse)

    async def refused(_rights: Rights) -> AsyncIterator[Sequence[Fact]]:
        yield []
        raise Refusal("forbidden", 403, "Not allowed", "This needs a key with the role admin.")

    failed = await rebuilt(make(refused), "ledger")
    assert (failed.state, failed.reason) == ("failed", "forbidden")
    assert await contents(clickhouse) == before
    assert await is_tidy(clickhouse)


async def test_poison_is_counted_and_left_out(clickhouse: ClickHouse, bus: Bus, make: MakeRebuilder) -> None:
    events = a_history()
    garbage = [Event(uuid7(), each.topic, each.key, each.type, b"\xff\xff", "", each.recorded_at) for each in events[::20]]
    await bus.publish([*events[:30], *garbage, *events[30:]])
    done = await rebuilt(make())
    assert (done.state, done.poison, done.events) == ("done", len(garbage), len(events) + len(garbage))
    assert await one(clickhouse, "SELECT count() FROM sales") == 40


async def test_an_expired_token_is_waited_for(clickhouse: ClickHouse, make: MakeRebuilder) -> None:
    async def needs_newer(rights: Rights) -> AsyncIterator[Sequence[Fact]]:
        await rights.after("first")
        assert rights.token == "second"
        yield [fact(sale()[1])]

    rebuilder = make(needs_newer)
    await rebuilder.start("ledger", "tester", "first")

    async def is_waiting() -> bool:
        latest = await rebuilder.latest("first")
        return latest is not None and latest.state == "waiting"

    await until(is_waiting, "it waits for a newer token")
    await rebuilder.latest("second")
    await rebuilder.ended()
    assert await one(clickhouse, "SELECT count() FROM sales") == 1
