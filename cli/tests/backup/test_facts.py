"""Backups of the facts, by ClickHouse's own engine behind HTTP and over a real bus: lost, restored, caught up, and right."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.resources import files
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from kit.bus.connecting import connect
from kit.bus.consuming import Handler, Poison, consume
from kit.bus.dead_letters import DeadLetters
from kit.bus.interface import Bus, Message
from kit.bus.postgres import MIGRATIONS, PostgresBus
from kit.bus.topics import all_specs, load_topics
from kit.clock import HeldClock, SystemClock
from kit.db import migrate as migrate_postgres
from kit.ids import uuid7
from kit.metrics import BACKUP_LAST_SUCCESS
from kit.outbox import Event
from regulars_cli.backup import CannotBackUp
from regulars_cli.backup.archive import Backup, Part, write_json
from regulars_cli.backup.facts import FORMAT, FactsBackup, prunable_facts, read_facts
from regulars_cli.backup.facts_restoring import choose, restore_facts
from regulars_cli.backup.facts_taking import GROUP, partitions, place_of, take_facts_backup
from regulars_cli.backup.following import Watched, _look
from regulars_cli.backup.stores import Bucket, Folder, Store, Stored, address_for_others
from regulars_cli.clickhouse import ClickHouse as Asked
from regulars_cli.clickhouse import Refused
from regulars_cli.doctor.backups import check_backups
from regulars_cli.doctor.findings import Finding
from regulars_cli.doctor.surroundings import Surroundings
from regulars_cli.main import main
from reporting.clickhouse import ClickHouse, migrate, open_clickhouse
from reporting.facts.consumers import GROUP as CONSUMERS
from reporting.facts.consumers import TOPICS, FactsHandler
from reporting.facts.operations import insert_facts
from reporting.facts.rules import Fact
from reporting.rebuilds.ledger import Rights
from reporting.rebuilds.operations import Rebuilder
from reporting.settings import StorageSettings
from services.reporting.tests.contents import Contents, consume_all, contents
from services.reporting.tests.events import a_history, fact, sale
from tests.bus.world import bus_settings, until

ROOT = Path(__file__).parents[3]
DISK = "backups"
CLOCK = HeldClock(datetime(2026, 11, 22, 14, 15, tzinfo=UTC))
MakeDatabase = Callable[..., str]


@contextmanager
def clickhouse_server(folder: Path, configuration: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process with an engine of its own, and its URL; with a migrated database `reports`."""
    command = [sys.executable, "-m", "cli.tests.doctor.clickhouse_server", str(folder), str(configuration)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            assert process.stdout.readline() == "migrated\n"
            yield process, url
        finally:
            process.send_signal(signal.SIGTERM)


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that is handed out, with a folder of the test's own."""
    disk, file = tmp_path_factory.mktemp("disk"), tmp_path_factory.mktemp("settings") / "backups.xml"
    file.write_text((ROOT / "deploy" / "backup" / "clickhouse.xml").read_text("utf-8").replace("/backups/", f"{disk}/"), "utf-8")
    return file


@pytest.fixture(scope="module")
def server_url(configuration: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with clickhouse_server(tmp_path_factory.mktemp("clickhouse"), configuration) as (_, url):
        yield url


@pytest.fixture(scope="module")
def bus_template(make_database: MakeDatabase) -> str:
    url = make_database()
    asyncio.run(migrate_postgres(url, MIGRATIONS))
    asyncio.run(with_topics(url))
    return url


async def with_topics(url: str) -> None:
    async with connect(bus_settings(url), client_name="test") as bus:
        await bus.create_topics(all_specs(load_topics((files("regulars") / "topics.yaml").read_text("utf-8"))))


@pytest.fixture
def bus_url(make_database: MakeDatabase, bus_template: str) -> str:
    return make_database(bus_template)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[ClickHouse]:
    settings = StorageSettings(clickhouse_url=url, clickhouse_password_file="", data_dir="", readers=2, log_level="INFO")
    async with open_clickhouse(settings) as clickhouse:
        yield clickhouse


@asynccontextmanager
async def asking(url: str) -> AsyncIterator[Asked]:
    async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
        yield Asked(http, url, "")


@dataclass(frozen=True)
class Reports:
    """A database of the test's own, empty and migrated, a bus, and where notes of backups go."""

    server: str
    url: str
    bus_url: str
    store: Store

    def opened(self) -> Any:
        return opened(self.url)

    def bus(self) -> Bus:
        return connect(bus_settings(self.bus_url), client_name="test")

    async def publish(self, events: Sequence[Event]) -> None:
        async with self.bus() as bus:
            await bus.publish(events)

    async def catch_up(self, handler: Handler | None = None) -> None:
        async with self.opened() as clickhouse, self.bus() as bus:
            await consume_all(bus, handler or FactsHandler(clickhouse))

    async def contents(self) -> Contents:
        async with self.opened() as clickhouse:
            return await contents(clickhouse)

    async def told(self, events: Sequence[Event]) -> Contents:
        """The facts of these events, put where they belong at once."""
        database = await new_database(self.server)
        async with opened(f"{self.server}/{database}") as clickhouse:
            await insert_facts(clickhouse, [fact(event) for event in events])
            return await contents(clickhouse)

    async def back_up(self, asked: Callable[[Asked], Any] = lambda asked: asked, clock: HeldClock = CLOCK) -> FactsBackup:
        clock.advance(timedelta(seconds=1))
        async with asking(self.url) as clickhouse, self.bus() as bus:
            return await take_facts_backup(asked(clickhouse), bus, self.store, "" if isinstance(self.store, Bucket) else DISK, clock)

    async def restore(self, asked: Callable[[Asked], Any] = lambda asked: asked, identity: str | None = None) -> str:
        """The name of the database that was set aside."""
        CLOCK.advance(timedelta(seconds=1))
        async with asking(self.url) as clickhouse, self.bus() as bus:
            return (await restore_facts(asked(clickhouse), bus, self.store, choose(self.store, identity), CLOCK)).aside


async def new_database(server: str, *, migrated: bool = True) -> str:
    name = f"test_{uuid7().replace('-', '')}"
    async with opened(server) as clickhouse:
        await clickhouse.command(f"CREATE DATABASE {name} ENGINE = Atomic")
    if migrated:
        async with opened(f"{server}/{name}") as clickhouse:
            await migrate(clickhouse)
    return name


@pytest.fixture
async def reports(server_url: str, bus_url: str, tmp_path: Path) -> Reports:
    return Reports(server_url, f"{server_url}/{await new_database(server_url)}", bus_url, Folder(tmp_path / "notes"))


class Between:
    """The server, as asked by a command in whose way something comes just before, or just after, a statement that begins so."""

    def __init__(self, asked: "Asked | Between", begin: str, act: Callable[[], Awaitable[None]], *, after: bool = False) -> None:
        self._asked = asked
        self._begin = begin
        self._act = act
        self._after = after
        self._is_dead = False
        self.database: str = asked.database

    async def __call__(self, statement: str, *, anywhere: bool = False) -> list[list[str]]:
        is_meant = self._is_dead or statement.startswith(self._begin)
        if is_meant and not self._after:
            await self._do()
        answer = await self._asked(statement, anywhere=anywhere)
        if is_meant and self._after:
            await self._do()
        return answer

    async def _do(self) -> None:
        """Who is dead stays so."""
        try:
            await self._act()
        except KeyboardInterrupt:
            self._is_dead, self._after = True, False
            raise


def at(time: int, act: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """Acts that time alone, counted from 1."""
    times = count(1)

    async def perhaps() -> None:
        if next(times) == time:
            await act()

    return perhaps


async def die() -> None:
    raise KeyboardInterrupt


def command(*arguments: str) -> Awaitable[int]:
    """Runs `regulars`, which has a loop of its own."""
    return asyncio.to_thread(main, arguments)


@pytest.fixture(params=["postgresql", "kafka"])
def any_bus_url(request: pytest.FixtureRequest) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("bus_url"))
    url = f"kafka://{request.getfixturevalue('kafka_bootstrap')}"
    asyncio.run(with_topics(url))
    return url


@pytest.mark.timeout(300)
async def test_lost_facts_come_back_and_catch_up_with_what_was_sold_before_during_and_after_the_backup(
    any_bus_url: str,
    configuration: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    notes, events = tmp_path / "notes", a_history(200)
    monkeypatch.setenv("BUS_URL", any_bus_url)
    monkeypatch.setenv("BACKUP_TO", str(notes))
    with clickhouse_server(tmp_path / "lost", configuration) as (process, url):
        monkeypatch.setenv("CLICKHOUSE_URL", f"{url}/reports")
        lost, backed_up, stop = Reports(url, f"{url}/reports", any_bus_url, Folder(notes)), asyncio.Event(), asyncio.Event()

        async def sell() -> None:
            while not backed_up.is_set():
                more = a_history(10)
                await lost.publish(more)
                events.extend(more)

        await lost.publish(events)
        await lost.catch_up()
        async with lost.opened() as clickhouse, lost.bus() as bus:
            consuming = asyncio.create_task(
                consume(bus, CONSUMERS, TOPICS, FactsHandler(clickhouse), stop=stop, clock=SystemClock(), together=True, max_messages=50)
            )
            selling = asyncio.create_task(sell())
            assert await command("backup", "facts", "--disk", DISK) == 0
            backed_up.set()
            await selling
            # It dies in the midst of an insert, perhaps.
            await lost.publish(more := a_history(100))
            process.kill()
            stop.set()
            await consuming
    events += more
    (backup,) = read_facts(Folder(notes)).backups
    # Much of it came while it was taken.
    assert sum(each.end - each.offset for each in backup.positions) > 0
    assert f"{backup.id} is whole on the disk backups of ClickHouse" in capsys.readouterr().out

    with clickhouse_server(tmp_path / "new", configuration) as (_, url):
        monkeypatch.setenv("CLICKHOUSE_URL", f"{url}/reports")
        found = replace(lost, server=url, url=f"{url}/reports")
        # Nobody looked: an empty one is consumed into, and shows what came since.
        await found.catch_up()
        wanted = await found.told(events)
        assert await found.contents() != wanted
        assert await command("restore-facts") == 0
        said = capsys.readouterr().out
        assert "reports_before_" in said
        assert "Next: `python -m reporting migrate`" in said
        await found.catch_up()
        assert await found.contents() == wanted


async def test_what_is_consumed_while_a_backup_is_taken_comes_again(reports: Reports) -> None:
    """The server has written all of it, and the command does not know yet."""
    events, later = a_history(20), a_history(5)
    await reports.publish(events)
    await reports.catch_up()

    async def go_on() -> None:
        await is_written(reports)
        await reports.publish(later)
        await reports.catch_up()

    await reports.back_up(partial(Between, begin="BACKUP", act=go_on, after=True))
    await reports.restore()
    assert await reports.contents() == await reports.told(events)
    await reports.catch_up()
    assert await reports.contents() == await reports.told([*events, *later])


async def is_written(reports: Reports) -> None:
    """Returns when no backup or restore goes on in the server."""
    async with asking(reports.url) as clickhouse:

        async def is_done() -> bool:
            return await clickhouse(
                "SELECT count() FROM system.backups WHERE status IN ('CREATING_BACKUP', 'RESTORING')", anywhere=True
            ) == [["0"]]

        await until(is_done, "the server has written it")


def test_the_group_and_its_topics_are_those_of_the_consumers() -> None:
    read = {topic.name for topic in load_topics((files("regulars") / "topics.yaml").read_text("utf-8")) if GROUP in topic.consumers}
    assert (GROUP, read) == (CONSUMERS, set(TOPICS))


@pytest.mark.timeout(180)
async def test_a_bucket_holds_facts_that_come_back_and_keys_are_told_to_nobody(
    reports: Reports,
    object_server: Mapping[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    place = f"s3://backups/facts-{uuid7()}"
    for name, value in {**object_server, "BUS_URL": reports.bus_url, "CLICKHOUSE_URL": reports.url, "BACKUP_TO": place}.items():
        monkeypatch.setenv(name, value)
    store = Bucket("backups", place.rpartition("/")[2], object_server)
    events = a_history(20)
    await reports.publish(events)
    await reports.catch_up()
    assert await command("backup", "facts") == 0
    (backup,) = read_facts(store).backups
    assert (backup.disk, backup.size) == ("", sum(each.size for each in store.list("facts-data/")))
    later = a_history(7)
    await reports.publish(later)
    await reports.catch_up()
    async with reports.opened() as clickhouse:
        await clickhouse.command(f"DROP DATABASE {reports.url.rpartition('/')[2]} SYNC")
    assert await command("restore-facts") == 0
    assert f"{len(later)} events on the bus came since" in capsys.readouterr().out
    await reports.catch_up()
    assert await reports.contents() == await reports.told([*events, *later])

    assert await command("backup", "verify") == 0
    assert "are good, 0 are not, 0 were not verified" in capsys.readouterr().out
    assert await command("backup", "list") == 1
    assert f"{backup.id}  {backup.size / 1e6:,.1f} MB, facts of reports, in {place}" in capsys.readouterr().out
    assert await command("backup", "list", "--json") == 1
    (document,) = json.loads(capsys.readouterr().out)
    assert (document["kind"], document["bytes"], document["disk"]) == ("clickhouse", backup.size, None)
    assert document["taken_at"] == backup.started_at.isoformat()
    store.delete(next(each.name for each in store.list("facts-data/") if each.name.endswith(".bin")))
    assert await command("backup", "verify") == 1
    assert "objects of" in (said := capsys.readouterr().out)
    assert f"instead of {backup.files:,} of {backup.size:,}" in said
    # A restore of that fails, and leaves what there is.
    before = await reports.contents()
    assert await command("restore-facts") == 1
    assert await reports.contents() == before

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-and-secret")
    assert await command("backup", "facts") == 1
    everything = capsys.readouterr()
    assert "ClickHouse refuses" in everything.err
    for secret in ("wrong-and-secret", object_server["AWS_SECRET_ACCESS_KEY"]):
        assert secret not in everything.out + everything.err + caplog.text + backup.__repr__()


async def test_a_restore_may_be_done_again_and_removes_no_facts(reports: Reports) -> None:
    events = a_history(20)
    await reports.publish(events)
    await reports.catch_up()
    backup = await reports.back_up()
    later = a_history(3)
    await reports.publish(later)
    await reports.catch_up()
    there = await reports.contents()
    then = await reports.told(events)
    for _ in range(2):
        aside = await reports.restore()
        assert await reports.contents() == then
        await reports.catch_up()
        assert await reports.contents() == there
        async with opened(f"{reports.server}/{aside}") as clickhouse:
            assert await contents(clickhouse) == there
    # An older one, though there is a newer.
    await reports.back_up()
    await reports.restore(identity=backup.id)
    assert await reports.contents() == then
    with pytest.raises(CannotBackUp, match=r"^There is no yesterday in"):
        await reports.restore(identity="yesterday")


async def test_a_backup_that_was_cut_off_before_its_note_is_none_and_is_cleared_away(
    reports: Reports, object_server: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_server.items():
        monkeypatch.setenv(name, value)
    bucket = replace(reports, store=Bucket("backups", f"facts-{uuid7()}", object_server))
    await bucket.publish(a_history(20))
    await bucket.catch_up()
    whole = await bucket.back_up()
    clock = HeldClock(CLOCK.now())
    with pytest.raises(KeyboardInterrupt):
        await bucket.back_up(lambda asked: Between(asked, "SELECT status", die), clock)
    # The server goes on with it.
    await is_written(bucket)
    assert [each.id for each in read_facts(bucket.store).backups] == [whole.id]
    assert choose(bucket.store, None) == whole
    assert prunable_facts(bucket.store, read_facts(bucket.store), 7, clock.now()) == ([], [])
    old, objects = prunable_facts(bucket.store, read_facts(bucket.store), 1, clock.now() + timedelta(days=3))
    assert old == []
    assert objects
    assert not any(whole.id in each.name for each in objects)
    # The newest stay; the note of one that goes is the first to go.
    await bucket.back_up(clock=HeldClock(clock.now() + timedelta(days=3)))
    old, objects = prunable_facts(bucket.store, read_facts(bucket.store), 1, clock.now())
    assert old == [whole]
    assert objects[0].name == f"facts/{whole.id}.json"
    assert {each.name.split("/")[1].removesuffix(".json") for each in objects} == {whole.id}


async def test_a_restore_that_dies_leaves_what_is_right_when_it_has_caught_up(reports: Reports) -> None:
    events = a_history(20)
    await reports.publish(events)
    await reports.catch_up()
    await reports.back_up()
    later = a_history(5)
    await reports.publish(later)
    await reports.catch_up()
    wanted = await reports.contents()
    for begin in ("RESTORE", "SELECT status", "SELECT count() FROM system.databases", "RENAME"):
        with pytest.raises(KeyboardInterrupt):
            await reports.restore(partial(Between, begin=begin, act=die))
        assert await reports.contents() == wanted
        await reports.catch_up()
        assert await reports.contents() == wanted
    # In the midst of the change of places there are no facts, until it is done again.
    database = reports.url.rpartition("/")[2]
    with pytest.raises(KeyboardInterrupt):
        await reports.restore(partial(Between, begin="RENAME", act=die, after=True))
    assert database not in await databases(reports)
    # After it offsets are where they must be already.
    with pytest.raises(KeyboardInterrupt):
        await reports.restore(partial(Between, begin=f"RENAME DATABASE `{database}_restoring", act=die, after=True))
    await reports.catch_up()
    assert await reports.contents() == wanted
    # Also where somebody consumed until the change of places: what that was went aside.
    await reports.publish(more := a_history(5))
    dying = partial(Between, begin=f"RENAME DATABASE `{database}_restoring", act=die, after=True)
    with pytest.raises(KeyboardInterrupt):
        await reports.restore(lambda asked: Between(dying(asked), "RENAME", at(1, reports.catch_up)))
    await reports.catch_up()
    assert await reports.contents() == await reports.told([*events, *later, *more])


async def test_a_change_of_places_that_is_refused_is_taken_back(reports: Reports) -> None:
    await reports.publish(a_history(5))
    await reports.catch_up()
    await reports.back_up()
    await reports.publish(a_history(5))
    await reports.catch_up()
    there, before = await reports.contents(), await databases(reports)

    async def refuse() -> None:
        raise Refused("500", "497")

    database = reports.url.rpartition("/")[2]
    takes_place = partial(Between, begin=f"RENAME DATABASE `{database}_restoring", act=refuse)
    with pytest.raises(Refused):
        await reports.restore(takes_place)
    assert await databases(reports) == before
    await reports.catch_up()
    assert await reports.contents() == there

    # Nor can what was restored be dropped: what was there before comes back all the same.
    with pytest.raises(
        CannotBackUp, match=r"^ClickHouse refuses \(500, code 497\): .* The database `?\w+_restoring_\w+`? is left over: drop it\.$"
    ):
        await reports.restore(lambda asked: Between(takes_place(asked), "DROP", refuse))
    (left,) = await databases(reports) - before
    assert left.startswith(f"{database}_restoring_")
    await reports.catch_up()
    assert await reports.contents() == there

    # Nothing can be put back: it is said where it is.
    with pytest.raises(CannotBackUp, match=rf"The facts of before are in the database {database}_before_\w+, and there is no {database}"):
        await reports.restore(lambda asked: Between(takes_place(asked), f"RENAME DATABASE `{database}_before", refuse))
    (aside,) = await databases(reports) - before - {left}
    async with opened(f"{reports.server}/{aside}") as clickhouse:
        assert await contents(clickhouse) == there
    await reports.restore()
    await reports.catch_up()
    assert await reports.contents() == there

    # Nor can it be asked.
    async def vanish() -> None:
        raise httpx.ConnectError("gone")

    with pytest.raises(
        CannotBackUp, match=rf"the facts of before are in {database} or in {database}_before_\w+; drop {database}_restoring_\w+"
    ):
        await reports.restore(
            lambda asked: Between(Between(takes_place(asked), "DROP", vanish), "SELECT count() FROM system.d", at(2, vanish))
        )
    assert await reports.contents() == there


async def test_an_answer_that_is_lost_gives_nothing_up(reports: Reports, monkeypatch: pytest.MonkeyPatch) -> None:
    await reports.publish(a_history(5))
    await reports.catch_up()

    async def vanish() -> None:
        raise httpx.ConnectError("gone")

    async def stand_between() -> None:
        raise Refused("502", "")

    await reports.back_up(lambda asked: Between(Between(asked, "SELECT status", at(1, stand_between)), "SELECT status", at(2, vanish)))
    await reports.restore(lambda asked: Between(asked, "SELECT status", at(1, vanish)))
    there, before = await reports.contents(), await databases(reports)

    # For good: what goes on in the server is ended before its database is dropped.
    monkeypatch.setattr("regulars_cli.backup.facts_taking._PATIENCE_SECONDS", -1.0)
    with pytest.raises(httpx.ConnectError):
        await reports.restore(partial(Between, begin="SELECT status", act=vanish))
    await is_written(reports)
    assert await databases(reports) == before
    assert await reports.contents() == there


async def test_a_rebuild_that_is_under_way_fails_and_leaves_what_was_restored(reports: Reports) -> None:
    events = a_history(20)
    await reports.publish(events)
    await reports.catch_up()
    await reports.back_up()
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def ledger(_rights: Rights) -> AsyncIterator[Sequence[Fact]]:
        yield [fact(events[0])]
        reached.set()
        await go_on.wait()
        yield [fact(event) for event in events]

    async with reports.opened() as clickhouse:
        rebuilder = Rebuilder(clickhouse, FactsHandler(clickhouse), reports.bus, ledger, SystemClock(), alone=False)
        await rebuilder.start("ledger", "test", "token")
        await reached.wait()
        await reports.restore()
        go_on.set()
        await rebuilder.ended()
        assert (latest := await rebuilder.latest("token"))
        assert latest.state == "failed"
    assert await reports.contents() == await reports.told(events)


async def databases(reports: Reports) -> set[str]:
    async with asking(reports.url) as clickhouse:
        return {name for (name,) in await clickhouse("SELECT name FROM system.databases", anywhere=True)}


async def test_facts_that_are_consumed_are_not_restored_over(reports: Reports) -> None:
    events = a_history(20)
    await reports.publish(events)
    await reports.catch_up()
    await reports.back_up()
    await reports.publish(later := a_history(5))
    stop = asyncio.Event()

    async def consuming() -> "asyncio.Task[None]":
        """A consumer that reads until it is stopped."""
        task = asyncio.create_task(run())

        async def reads() -> bool:
            async with reports.bus() as bus:
                return any(lag.owner for lag in await bus.lag(GROUP))

        await until(reads, "it reads")
        return task

    async def run() -> None:
        async with reports.opened() as clickhouse, reports.bus() as bus:
            await consume(bus, GROUP, TOPICS, FactsHandler(clickhouse), stop=stop, clock=SystemClock(), together=True)

    task = await consuming()
    with pytest.raises(CannotBackUp, match="stop every `reporting consume`"):
        await reports.restore()
    stop.set()
    await task

    # It was started too early, and ended: what it took in went aside with the facts of before.
    await reports.restore(lambda asked: Between(asked, "RENAME", at(1, reports.catch_up)))
    await reports.catch_up()
    assert await reports.contents() == (wanted := await reports.told([*events, *later]))

    # It was started too early, and goes on: the restore says that it must be done again, and has what was there back.
    stop.clear()
    tasks, before = [], await databases(reports)

    async def start() -> None:
        tasks.append(await consuming())

    with pytest.raises(CannotBackUp, match="restore again"):
        await reports.restore(lambda asked: Between(asked, "RENAME", at(1, start)))
    assert await databases(reports) == before
    assert await reports.contents() == wanted
    stop.set()
    await asyncio.gather(*tasks)
    await reports.restore()
    await reports.catch_up()
    assert await reports.contents() == wanted


async def execute(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def test_what_the_bus_no_longer_retains_is_not_left_out(reports: Reports) -> None:
    await reports.publish(a_history(20))
    await reports.catch_up()
    await reports.back_up()
    await execute(reports.bus_url, "UPDATE batches SET published_at = now() - interval '40 days'")
    async with PostgresBus(reports.bus_url, "test") as bus:
        await bus.trim()
        assert all(state.first_offset == state.next_offset for state in (await partitions(bus)).values())
    # All that was trimmed is in the backup.
    await reports.restore()
    await reports.publish(a_history(20))
    await execute(reports.bus_url, "UPDATE batches SET published_at = now() - interval '40 days'")
    async with PostgresBus(reports.bus_url, "test") as bus:
        await bus.trim()
    there = await reports.contents()
    with pytest.raises(CannotBackUp, match=r"no longer retains .* `regulars reporting rebuild --from-ledger`"):
        await reports.restore()
    assert await reports.contents() == there


@pytest.mark.parametrize("published", [0, 20, 80])
async def test_a_bus_that_was_made_anew_is_not_taken_for_the_one_that_was(
    reports: Reports, make_database: MakeDatabase, bus_template: str, published: int
) -> None:
    """Also where it holds as many events by now."""
    await reports.publish(a_history(20))
    await reports.catch_up()
    await reports.back_up()
    there = await reports.contents()
    other = replace(reports, bus_url=make_database(bus_template))
    if published:
        await other.publish(a_history(published))
    with pytest.raises(CannotBackUp, match=r"not the bus .* `regulars reporting rebuild --from-ledger`"):
        await other.restore()
    assert await reports.contents() == there


async def test_a_bus_that_was_made_anew_is_told_also_where_the_last_events_were_not_retained(
    reports: Reports, make_database: MakeDatabase, bus_template: str
) -> None:
    await reports.publish(events := a_history(5))
    await reports.catch_up()
    await execute(reports.bus_url, "UPDATE batches SET published_at = now() - interval '40 days'")
    async with PostgresBus(reports.bus_url, "test") as bus:
        await bus.trim()
    backup = await reports.back_up()
    assert not any(each.last_event_id for each in backup.positions)
    other = replace(reports, bus_url=make_database(bus_template))
    # It has as many by now in each.
    await other.publish([*events, *a_history(5)])
    with pytest.raises(CannotBackUp, match="not the bus"):
        await other.restore()
    await reports.restore()


async def test_a_bus_that_was_put_back_is_not_taken_for_the_one_that_was(reports: Reports, make_database: MakeDatabase) -> None:
    """The backup may hold facts that it, or the ledger, no longer has."""
    await reports.publish(a_history(20))
    await reports.catch_up()
    before = make_database(reports.bus_url)
    await reports.publish(lost := a_history(5))
    await reports.catch_up()
    await reports.back_up()
    back = replace(reports, bus_url=before)
    with pytest.raises(CannotBackUp, match="not the bus"):
        await back.restore()
    # As many others came since.
    await back.publish([*lost, *a_history(30)][::-1])
    with pytest.raises(CannotBackUp, match="not the bus"):
        await back.restore()


async def rebuild_is(reports: Reports, state: str, identity: str) -> None:
    async with reports.opened() as clickhouse:
        await clickhouse.command(
            "INSERT INTO rebuilds (rebuild_id, source, state, started_at, changed_at, offsets, version)"
            " SELECT {id:UUID}, 'events', {state:String}, now64(6), now64(6), '[]', toUnixTimestamp64Micro(now64(6))",
            {"id": identity, "state": state},
        )


async def test_tables_that_change_places_are_not_backed_up(reports: Reports) -> None:
    await reports.publish(a_history(20))
    await reports.catch_up()
    rebuild = uuid7()
    for state in ("running", "waiting", "swapping"):
        await rebuild_is(reports, state, rebuild)
        with pytest.raises(CannotBackUp, match="A rebuild is under way"):
            await reports.back_up()
    await rebuild_is(reports, "done", rebuild)
    await reports.back_up()

    async def another() -> None:
        """From beginning to end."""
        await rebuild_is(reports, "done", uuid7())

    async def begins() -> None:
        await rebuild_is(reports, "running", uuid7())

    async def release() -> None:
        async with reports.opened() as clickhouse:
            await clickhouse.command("INSERT INTO migrations (name) VALUES ('9999_later')")

    for act in (another, release, begins):
        with pytest.raises(CannotBackUp, match=r"meanwhile: take another backup|A rebuild is under way"):
            await reports.back_up(partial(Between, begin="BACKUP", act=act, after=True))
    assert len(read_facts(reports.store).backups) == 1


async def test_dead_letters_that_were_replayed_since_are_replayed_again(reports: Reports) -> None:
    events = a_history(20)
    unlucky = next(event for event in events if event.type.endswith("SaleRecorded"))
    await reports.publish(events)

    async with reports.opened() as clickhouse:

        async def of_an_older_release(messages: Sequence[Message]) -> None:
            if any(message.event_id == unlucky.event_id for message in messages):
                raise Poison(unlucky.event_id, "not_a_fact")
            await FactsHandler(clickhouse)(messages)

        await reports.catch_up(of_an_older_release)
    await reports.back_up()
    without = await reports.contents()
    async with reports.bus() as bus:
        letters = DeadLetters(bus, GROUP, SystemClock())
        await letters.refresh()
        await letters.replay(unlucky.event_id, by="test", reason="a newer release")
    wanted = await reports.told(events)
    for _ in range(2):
        # At first here, then after the restore.
        assert await reports.contents() == without

        async def is_replayed() -> bool:
            return await reports.contents() == wanted

        async with reports.opened() as clickhouse, reports.bus() as bus:
            stop = asyncio.Event()
            task = asyncio.create_task(consume(bus, GROUP, TOPICS, FactsHandler(clickhouse), stop=stop, clock=SystemClock(), together=True))
            await until(is_replayed, "the dead letter has become a fact")
            stop.set()
            await task
        await reports.restore()


async def test_an_empty_server_is_not_backed_up_in_the_place_of_what_was(reports: Reports) -> None:
    # Of a new installation there is nothing, and that can be backed up.
    await reports.back_up()
    await reports.publish(a_history(20))
    await reports.catch_up()
    await reports.back_up()
    empty = replace(reports, url=f"{reports.server}/{await new_database(reports.server)}")
    with pytest.raises(CannotBackUp, match="There are no facts, though events were taken in before"):
        await empty.back_up()
    bare = replace(reports, url=f"{reports.server}/{await new_database(reports.server, migrated=False)}")
    with pytest.raises(Refused, match="code 60"):
        await bare.back_up()


async def test_what_cannot_be_done_is_said_in_a_sentence(
    reports: Reports, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("BUS_URL", reports.bus_url)
    monkeypatch.setenv("BACKUP_TO", str(tmp_path / "notes"))

    async def said(*arguments: str) -> str:
        assert await command(*arguments) == 1
        return capsys.readouterr().err

    monkeypatch.delenv("CLICKHOUSE_URL", raising=False)
    assert "`regulars reporting rebuild` makes its folder anew" in await said("backup", "facts", "--var", str(tmp_path))
    monkeypatch.setenv("CLICKHOUSE_URL", "http://someone:hunter2@127.0.0.1:9/reporting")
    assert "ClickHouse does not answer" in (said_away := await said("backup", "facts", "--disk", DISK))
    assert "hunter2" not in said_away
    monkeypatch.setenv("CLICKHOUSE_URL", reports.url)
    assert "a disk of its own, which --disk names" in await said("backup", "facts")
    assert "not set up for backups to that disk" in await said("backup", "facts", "--disk", "nowhere")
    assert "There is no backup of the facts" in await said("restore-facts")
    monkeypatch.setenv("CLICKHOUSE_URL", f"{reports.server}/nowhere")
    assert "there is no such database" in await said("backup", "facts", "--disk", DISK)
    monkeypatch.setenv("CLICKHOUSE_URL", reports.url)
    monkeypatch.setenv("BUS_URL", "postgresql://nobody@127.0.0.1:9/bus")
    assert "PostgreSQL could not answer" in await said("backup", "facts", "--disk", DISK)


async def test_on_a_disk_of_the_server_only_the_note_can_be_cleared_away(
    reports: Reports, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("BACKUP_TO", str(tmp_path / "notes"))
    first = await reports.back_up()
    second = await reports.back_up()
    assert await command("backup", "verify") == 0
    assert "0 are not, 2 were not verified" in capsys.readouterr().out
    assert await command("backup", "prune", "--keep", "1") == 0
    said = capsys.readouterr().out
    assert "1 backups of facts and all in all 1 objects" in said
    assert f"only you can remove facts-data/{first.id}." in said
    assert read_facts(reports.store).backups == [second]


def test_a_note_of_a_newer_release_is_left_to_that(tmp_path: Path) -> None:
    store, now = Folder(tmp_path), CLOCK.now()
    note = FactsBackup(
        format=FORMAT + 1,
        id="20261122T141500Z",
        started_at=now,
        ended_at=now,
        release="9",
        server_version="99.1",
        database="reporting",
        migration="9999_later",
        disk="backups",
        files=1,
        size=1,
        positions=[],
    )
    write_json(store, f"facts/{note.id}.json", note)
    with pytest.raises(CannotBackUp, match="written by a newer release"):
        choose(store, None)


def test_a_server_is_told_where_the_bucket_is_and_no_more_than_it_needs(tmp_path: Path) -> None:
    given = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "it's\\secret"}
    url = "https://objects.example:9000/backups/a%20chain"
    assert address_for_others("s3://backups/a chain", {**given, "AWS_ENDPOINT_URL": "https://objects.example:9000/"}) == [
        url,
        "id",
        "it's\\secret",
    ]
    regions = {"eu-central-1": "https://s3.eu-central-1.amazonaws.com", "cn-north-1": "https://s3.cn-north-1.amazonaws.com.cn"}
    for region, host in regions.items():
        # Without keys the server has a role of its own.
        assert address_for_others("s3://backups", {"AWS_REGION": region}) == [f"{host}/backups"]
    with pytest.raises(CannotBackUp, match="AWS_SESSION_TOKEN"):
        address_for_others("s3://backups", {**given, "AWS_SESSION_TOKEN": "token"})
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**given, "AWS_ENDPOINT_URL": "http://127.0.0.1:9000"}.items():
            patch.setenv(name, value)
        bucket = Bucket("backups", "shop", dict(os.environ))
        said = place_of(bucket, "20261122T141500Z", "")
    assert said == r"S3('http://127.0.0.1:9000/backups/shop/facts-data/20261122T141500Z', 'id', 'it\'s\\secret')"
    assert place_of(Folder(tmp_path), "20261122T141500Z", "back'ups") == r"Disk('back\'ups', 'facts-data/20261122T141500Z')"


async def test_the_age_of_the_newest_is_told_where_there_is_one(reports: Reports) -> None:
    def told() -> dict[str, float]:
        return {s.labels["kind"]: s.value for family in BACKUP_LAST_SUCCESS.collector.collect() for s in family.samples}

    async def look(*, wanted: bool = False) -> None:
        """Once."""
        loop, stopping = asyncio.get_running_loop(), asyncio.Event()

        class Last(Folder):
            def list(self, prefix: str) -> list[Stored]:
                loop.call_soon_threadsafe(stopping.set)
                return super().list(prefix)

        await _look(Last(Path(reports.store.place)), Watched(CLOCK), stopping, facts_wanted=wanted)

    BACKUP_LAST_SUCCESS.forget()
    await look()
    assert told() == {}
    await reports.back_up()
    newest = await reports.back_up()
    await look()
    assert told() == {"clickhouse": newest.ended_at.timestamp()}
    for note in reports.store.list("facts/"):
        reports.store.delete(note.name)
    # None is there though some are wanted: whatever looks at the age sees it.
    await look(wanted=True)
    assert told() == {"clickhouse": 0}
    await look()
    assert told() == {}


def spoil(store: Store, identity: str) -> None:
    store.put(f"facts/{identity}.json", [b"garbage"])


async def findings(reports: Reports, **settings: str) -> dict[str, Finding]:
    """What `regulars doctor` says of backups."""
    around = Surroundings(settings, None, "", {}, reports.store.place, Path(), SystemClock())
    return {each.subject: each for each in await check_backups(around)}


async def test_that_there_is_none_though_some_are_wanted_is_said(reports: Reports) -> None:
    assert "clickhouse" not in await findings(reports)
    missing = (await findings(reports, BACKUP_FACTS="1"))["clickhouse"]
    assert missing.status == "warning"
    assert missing.sentence.startswith("There is no backup of the facts in ")


async def test_a_damaged_note_is_a_fault_of_its_own(
    reports: Reports, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Base backups are listed, proven, cleared away and watched as ever."""
    monkeypatch.setenv("BACKUP_TO", reports.store.place)
    now = SystemClock().now()
    first, second = await reports.back_up(), await reports.back_up()
    spoil(reports.store, second.id)
    base = Backup(
        format=1,
        id="20261101T000000Z",
        system_identifier="1",
        started_at=now,
        ended_at=now,
        timeline=1,
        start_lsn="0/1000000",
        end_lsn="0/1000000",
        segment_bytes=16 * 1024 * 1024,
        server_version="18",
        release="1",
        parts=[Part("base/20261101T000000Z/base.tar.zst", 1, "")],
    )
    write_json(reports.store, f"base/{base.id}/backup.json", base)

    assert await command("backup", "list") == 1
    said = capsys.readouterr()
    assert f"{base.id}  " in said.out
    assert f"{first.id}  " in said.out
    damaged = f"facts/{second.id}.json is not what this release writes"
    assert damaged in said.err
    assert await command("backup", "verify", first.id) == 0
    capsys.readouterr()
    assert await command("backup", "verify") == 1
    said_of_all = capsys.readouterr().out
    assert damaged in said_of_all
    assert "1 base backups and their WAL and 1 backups of facts are good, 2 are not" in said_of_all
    assert await command("backup", "prune", "--keep", "1", "--dry-run") == 1
    said = capsys.readouterr()
    assert "0 base backups, 0 backups of facts and all in all 0 objects" in said.out
    assert damaged in said.err

    found = await findings(reports)
    assert found["postgres"].status == "ok"
    assert found["clickhouse"].status == "warning"
    assert damaged in found["clickhouse"].sentence

    watched, stopping = Watched(SystemClock()), asyncio.Event()
    looking = asyncio.create_task(_look(reports.store, watched, stopping, facts_wanted=True))

    async def knows() -> bool:
        return watched.could_be_lost_seconds() < 3600

    await until(knows, "the base backup is known")
    stopping.set()
    await looking

    # Of two backups the newest is restored: which one, where it is damaged, is for somebody to say.
    with pytest.raises(CannotBackUp, match=rf"{second.id}.json is not what .* `--backup` names another one"):
        choose(reports.store, None)
    assert choose(reports.store, first.id) == first
    await reports.back_up()


async def test_far_fewer_facts_than_there_were_are_not_backed_up(
    reports: Reports, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    await reports.publish(a_history(20))
    await reports.catch_up()
    whole = await reports.back_up()
    assert whole.rows["sales"] == 20
    # It was lost and made anew, and one sale came in.
    made_anew = replace(reports, url=f"{reports.server}/{await new_database(reports.server)}")
    _, sold = sale(member="", day="2026-11-22", lines=[("A100", "1", 10_00)])
    await made_anew.publish([sold])
    await made_anew.catch_up()
    monkeypatch.setenv("BUS_URL", made_anew.bus_url)
    monkeypatch.setenv("CLICKHOUSE_URL", made_anew.url)
    monkeypatch.setenv("BACKUP_TO", reports.store.place)
    assert await command("backup", "facts", "--disk", DISK) == 1
    assert f"There are 1 rows of sales, and {whole.id} has 20: was the server lost?" in capsys.readouterr().err
    assert choose(reports.store, None) == whole
    await made_anew.restore()
    await made_anew.catch_up()
    assert (await made_anew.back_up()).rows["sales"] == 21

    fewer = replace(reports, url=f"{reports.server}/{await new_database(reports.server)}")
    await fewer.publish([sale(member="", day="2026-11-23", lines=[("A100", "1", 10_00)])[1]])
    await fewer.catch_up()
    monkeypatch.setenv("CLICKHOUSE_URL", fewer.url)
    assert await command("backup", "facts", "--disk", DISK, "--although-fewer") == 0
    assert choose(reports.store, None).rows["sales"] == 1
