"""What is particular to the bus over PostgreSQL; what both backends do is in the behaviour suite."""

import asyncio
import random
import signal
import sys
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from urllib.parse import parse_qs, urlsplit, urlunsplit

import asyncpg
import pytest

from kit.bus.interface import BusUnavailable, Message, PartitionsLost, Subscription, TopicPartition, TopicSpec
from kit.bus.postgres import MIGRATIONS, PostgresBus
from kit.bus.postgres import subscription as subscriptions
from kit.bus.postgres.link import Link
from kit.db import RawConnection, migrate
from kit.ids import uuid7
from kit.outbox import Event
from regulars_cli.up.postgres import EmbeddedPostgres
from tests.bus.world import moment
from tests.farewell import hear_farewell

TOPIC = "member.sale.v1"
PARTITIONS = 4
EVERY = frozenset(TopicPartition(TOPIC, number) for number in range(PARTITIONS))
AT = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
# A process on the other end of the test, which lives until it is killed.
OTHER_PROCESS = """
import asyncio, sys
from kit.bus.postgres import PostgresBus

async def run():
    async with PostgresBus(sys.argv[1], "other") as bus, bus.subscribe("readers", ["member.sale.v1"]) as subscription:
        batch = await subscription.fetch(1000, 30)
        print(sum(map(len, batch.values())), flush=True)
        await asyncio.Event().wait()

asyncio.run(run())
"""


@pytest.fixture(scope="module")
def prepared(make_database: Callable[..., str]) -> str:
    url = make_database()

    async def prepare() -> None:
        await migrate(url, MIGRATIONS)
        async with PostgresBus(url, "test") as bus:
            await bus.create_topics([TopicSpec(TOPIC, PARTITIONS, timedelta(days=30))])

    asyncio.run(prepare())
    return url


@pytest.fixture
def url(prepared: str, make_database: Callable[..., str]) -> str:
    return make_database(prepared)


@pytest.fixture
async def bus(url: str) -> AsyncIterator[PostgresBus]:
    async with PostgresBus(url, "test") as made:
        yield made


@pytest.fixture
async def sql(url: str) -> AsyncIterator[RawConnection]:
    connection = await asyncpg.connect(url)
    yield connection
    await connection.close()


@pytest.fixture
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriptions, "LEASE_SECONDS", 0.8)
    monkeypatch.setattr(subscriptions, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(subscriptions, "GRACE_SECONDS", 0.3)


def event(key: str = "", number: int = 0) -> Event:
    return Event(uuid7(), TOPIC, key or uuid7(), "regulars.member.v1.SaleRecorded", str(number).encode(), "", AT)


def count(batch: Mapping[TopicPartition, Sequence[Message]]) -> int:
    return sum(map(len, batch.values()))


def following(batch: Mapping[TopicPartition, Sequence[Message]]) -> dict[TopicPartition, int]:
    """The offsets that commit a batch."""
    return {source: messages[-1].offset + 1 for source, messages in batch.items()}


async def take(subscription: Subscription, wanted: int, *, at_once: int = 1000) -> list[Message]:
    """Fetches and commits until there are `wanted` messages."""
    found: list[Message] = []
    while len(found) < wanted:
        batch = await subscription.fetch(at_once, 10)
        assert batch, f"{len(found)} of {wanted} came"
        found += [message for messages in batch.values() for message in messages]
        await subscription.commit(following(batch))
    return found


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while True:
            met = condition()
            if met if isinstance(met, bool) else await met:
                return
            await moment(0.02)


async def until_published(bus: PostgresBus, events: Sequence[Event]) -> None:
    """As a relay does: the same again until it is in."""
    async with asyncio.timeout(60):
        while True:
            try:
                await bus.publish(events)
            except BusUnavailable:
                await moment(0.02)
            else:
                return


def payloads(messages: Iterable[Message]) -> list[int]:
    return [int(message.payload) for message in messages]


async def test_no_offset_is_skipped_while_many_publish_at_once(url: str) -> None:
    draw = random.Random(20260301)
    sizes = [[draw.choice((1, 3, 40, 700)) for _ in range(12)] for _ in range(6)]
    wanted = sum(map(sum, sizes))
    keys = [uuid7() for _ in range(7)]

    async def publish(place: int) -> None:
        # Each publisher's keys are its own, as a service's are.
        async with PostgresBus(url, f"publisher {place}") as publisher:
            number = 0
            for size in sizes[place]:
                await publisher.publish([event(f"{keys[(number + i) % 7]}{place}", number + i) for i in range(size)])
                number += size

    async with PostgresBus(url, "reader") as reader, reader.subscribe("readers", [TOPIC]) as subscription:
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(take(subscription, wanted, at_once=97))
            for place in range(len(sizes)):
                tasks.create_task(publish(place))
        assert not await subscription.fetch(1, 0)
    found = reading.result()
    assert len({message.event_id for message in found}) == wanted == len(found)
    by_partition, by_key = defaultdict(list), defaultdict(list)
    for message in found:
        by_partition[message.partition].append(message.offset)
        by_key[message.key].append(int(message.payload))
    assert all(offsets == list(range(len(offsets))) for offsets in by_partition.values())
    assert all(numbers == sorted(numbers) for numbers in by_key.values())


async def test_what_is_not_yet_committed_keeps_later_offsets_from_being_seen(bus: PostgresBus, url: str) -> None:
    """Two publishers draw offsets of one partition in the order in which they commit."""
    blocker = await asyncpg.connect(url)
    key = uuid7()
    async with bus.subscribe("readers", [TOPIC]) as subscription:
        async with blocker.transaction():
            await blocker.execute("UPDATE partitions SET next_offset = next_offset WHERE topic = $1", TOPIC)
            waiting = asyncio.create_task(bus.publish([event(key, 1)]))
            await until(lambda: _is_waiting(url))
            assert not await subscription.fetch(10, 0)
        await waiting
        assert payloads(await take(subscription, 1)) == [1]
    await blocker.close()


async def _is_waiting(url: str) -> bool:
    connection = await asyncpg.connect(url)
    try:
        return bool(
            await connection.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
        )
    finally:
        await connection.close()


async def test_a_publisher_that_gave_up_waiting_is_not_heard_later(url: str, sql: RawConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the server still held of the first attempt must not come after what was published since."""
    monkeypatch.setattr("kit.bus.postgres.bus.REQUEST_SECONDS", 0.5)
    key = uuid7()
    async with PostgresBus(url, "test") as bus:
        first, second = [event(key, 1)], [event(key, 2)]
        async with sql.transaction():
            await sql.execute("SELECT FROM partitions WHERE topic = $1 FOR UPDATE", TOPIC)
            with pytest.raises(BusUnavailable):
                await bus.publish(first)
        await until_published(bus, first)
        await until_published(bus, second)
        found = [message async for batch in bus.read(TOPIC) for message in batch]
    assert sorted(payloads(found)) == payloads(found)
    assert {message.event_id for message in found} == {first[0].event_id, second[0].event_id}


async def test_the_partitions_of_a_killed_process_move_within_seconds(bus: PostgresBus, url: str) -> None:
    await bus.publish([event(number=number) for number in range(100)])
    other = await asyncio.create_subprocess_exec(sys.executable, "-c", OTHER_PROCESS, url, stdout=asyncio.subprocess.PIPE)
    try:
        assert other.stdout
        assert int(await other.stdout.readline()) > 0
        async with bus.subscribe("readers", [TOPIC]) as subscription:
            await until(lambda: len(subscription.assigned()) == PARTITIONS // 2)
            other.send_signal(signal.SIGKILL)
            await other.wait()
            async with asyncio.timeout(2 * subscriptions.LEASE_SECONDS):
                # It had committed nothing: everything is delivered again.
                assert sorted(payloads(await take(subscription, 100))) == list(range(100))
            assert subscription.assigned() == EVERY
    finally:
        if other.returncode is None:
            other.kill()
            await other.wait()


@pytest.mark.usefixtures("short_leases")
async def test_a_stale_owner_can_neither_commit_nor_read(bus: PostgresBus, url: str) -> None:
    await bus.publish([event(number=number) for number in range(100)])
    async with PostgresBus(url, "stale") as stale_bus, stale_bus.subscribe("readers", [TOPIC]) as stale:
        batch = await stale.fetch(1000, 10)
        assert count(batch) == 100
        # As a process that the system let stand still for long.
        await _stop_heart(stale)
        async with bus.subscribe("readers", [TOPIC]) as subscription:
            await until(lambda: subscription.assigned() == EVERY)
            found = await take(subscription, 60, at_once=60)
            with pytest.raises(PartitionsLost) as caught:
                await stale.commit(following(batch))
            assert caught.value.lost == EVERY
            assert sum(lag.messages for lag in await bus.lag("readers")) == 100 - len(found)
            assert stale.assigned() == frozenset()


async def _stop_heart(subscription: Subscription) -> None:
    heart = subscription._heart  # type: ignore[attr-defined]
    heart.cancel()
    await asyncio.gather(heart, return_exceptions=True)


@pytest.mark.usefixtures("short_leases")
async def test_an_owner_that_was_struck_out_and_came_back_cannot_commit_what_it_read_before(bus: PostgresBus, sql: RawConnection) -> None:
    """It is the same process, and has the partition again; another may have read it in between."""
    await bus.publish([event("one")])
    async with bus.subscribe("readers", [TOPIC]) as subscription:
        batch = await subscription.fetch(10, 10)
        async with sql.transaction():
            await sql.execute("SELECT FROM groups FOR UPDATE")
            await sql.execute("DELETE FROM members")
            await sql.execute("UPDATE readings SET generation = generation + 1")
        with pytest.raises(PartitionsLost):
            await subscription.commit(following(batch))
        await until(lambda: subscription.assigned() == EVERY)
        assert count(await subscription.fetch(10, 10)) == 1


async def test_a_partition_is_handed_over_between_batches_and_nothing_is_delivered_twice(
    bus: PostgresBus, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "GRACE_SECONDS", 60.0)
    await bus.publish([event(number=number) for number in range(100)])
    found: list[Message] = []

    async def fetch(subscription: Subscription, at_most: int) -> dict[TopicPartition, int]:
        batch = await subscription.fetch(at_most, 0)
        found.extend(message for messages in batch.values() for message in messages)
        return following(batch)

    async with bus.subscribe("readers", [TOPIC]) as first, PostgresBus(url, "second") as second_bus:
        gathered = await fetch(first, 10)
        async with second_bus.subscribe("readers", [TOPIC]) as second:
            await until(lambda: _should_give_up(first) == PARTITIONS // 2)
            # A batch that is gathered by several calls is one.
            for _ in range(3):
                gathered |= await fetch(first, 10)
            assert first.assigned() == EVERY
            await first.commit(gathered)
            await first.commit(await fetch(first, 10))
            await until(lambda: len(second.assigned()) == PARTITIONS // 2)
            assert first.assigned() == EVERY - second.assigned()
            for each in (first, second):
                while offsets := await fetch(each, 1000):
                    await each.commit(offsets)
    assert sorted(payloads(found)) == list(range(100))


def _should_give_up(subscription: Subscription) -> int:
    return sum(held.give_up_by is not None for held in subscription._held.values())  # type: ignore[attr-defined]


@pytest.mark.usefixtures("short_leases")
async def test_who_takes_too_long_over_a_batch_loses_what_others_should_have(bus: PostgresBus, url: str) -> None:
    await bus.publish([event(number=number) for number in range(100)])
    async with bus.subscribe("readers", [TOPIC]) as slow, PostgresBus(url, "second") as second_bus:
        batch = await slow.fetch(1000, 10)
        async with second_bus.subscribe("readers", [TOPIC]) as second:
            await until(lambda: len(second.assigned()) == PARTITIONS // 2)
            with pytest.raises(PartitionsLost) as caught:
                await slow.commit(following(batch))
            assert caught.value.lost == second.assigned()
            assert {lag.source for lag in await bus.lag("readers") if not lag.messages} == slow.assigned()


async def test_who_leaves_lets_the_others_have_its_partitions_at_once(bus: PostgresBus, url: str) -> None:
    async with AsyncExitStack() as stack:
        other_bus = await stack.enter_async_context(PostgresBus(url, "other"))
        async with bus.subscribe("readers", [TOPIC]):
            other = await stack.enter_async_context(other_bus.subscribe("readers", [TOPIC]))
        async with asyncio.timeout(subscriptions.HEARTBEAT_SECONDS):
            await until(lambda: other.assigned() == EVERY)


@pytest.mark.usefixtures("short_leases")
async def test_a_clock_set_back_keeps_no_dead_process_alive(bus: PostgresBus, sql: RawConnection, url: str) -> None:
    async with PostgresBus(url, "dead") as dead_bus, dead_bus.subscribe("readers", [TOPIC]) as dead:
        await _stop_heart(dead)
        await sql.execute("UPDATE members SET seen_at = seen_at + interval '1 year'")
        async with bus.subscribe("readers", [TOPIC]) as subscription:
            await until(lambda: subscription.assigned() == EVERY)


async def test_what_has_passed_its_retention_goes_and_the_rest_can_be_read(bus: PostgresBus, sql: RawConnection) -> None:
    key = uuid7()
    for number in range(4):
        await bus.publish([event(key, number)])
    # The clock was set back after the first: what is behind it is younger than it seems to be.
    await sql.execute("UPDATE batches SET published_at = published_at - interval '31 days' WHERE first_offset <> 2")
    await bus.trim()
    states = [state for found in (await bus.topics()).values() for state in found]
    assert {(state.first_offset, state.next_offset) for state in states} == {(0, 0), (2, 4)}
    async with bus.subscribe("readers", [TOPIC]) as subscription:
        assert payloads(await take(subscription, 2)) == [2, 3]
    assert payloads([message async for batch in bus.read(TOPIC) for message in batch]) == [2, 3]


async def test_what_a_living_process_has_yet_to_read_outlives_its_retention(bus: PostgresBus, sql: RawConnection) -> None:
    key = uuid7()
    async with bus.subscribe("readers", [TOPIC]) as subscription:
        for number in range(2):
            await bus.publish([event(key, number)])
        await sql.execute("UPDATE batches SET published_at = published_at - interval '31 days'")
        await bus.trim()
        assert payloads(await take(subscription, 2)) == [0, 1]
        await bus.trim()
        assert [message async for batch in bus.read(TOPIC) for message in batch] == []
        await bus.publish([event(key, 2)])
        assert payloads(await take(subscription, 1)) == [2]


async def test_news_that_nobody_announces_are_found_by_polling(bus: PostgresBus, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def silence(_: object) -> None:
        return

    async with bus.subscribe("readers", [TOPIC]) as subscription, PostgresBus(url, "mute") as mute:
        monkeypatch.setattr(PostgresBus, "_announce_now", silence)
        waiting = asyncio.create_task(subscription.fetch(10, 10))
        await asyncio.sleep(0)
        await mute.publish([event()])
        async with asyncio.timeout(4 * subscriptions.POLL_SECONDS):
            assert count(await waiting) == 1


async def test_news_are_heard_again_after_every_connection_was_lost(bus: PostgresBus, sql: RawConnection) -> None:
    async with bus.subscribe("readers", [TOPIC]) as subscription:
        before = await sql.fetch("SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
        await sql.execute("SELECT pg_terminate_backend(pid) FROM unnest($1::integer[]) AS pid", [pid for (pid,) in before])
        await until_published(bus, [event(number=1)])

        async def heard() -> bool:
            with suppress(BusUnavailable):
                return count(await subscription.fetch(10, 1)) == 1
            return False

        await until(heard)
        assert await sql.fetchval("SELECT count(*) FROM pg_stat_activity WHERE pid = ANY ($1::integer[])", [pid for (pid,) in before]) == 0


async def test_a_log_restored_from_before_is_read_on_from_its_end(bus: PostgresBus, sql: RawConnection) -> None:
    key = uuid7()
    async with bus.subscribe("readers", [TOPIC]) as subscription:
        for number in range(3):
            await bus.publish([event(key, number)])
        assert payloads(await take(subscription, 3)) == [0, 1, 2]
        async with sql.transaction():
            await sql.execute("DELETE FROM batches WHERE first_offset > 0")
            await sql.execute("UPDATE partitions SET next_offset = 1 WHERE next_offset = 3")
            await sql.execute("UPDATE readings SET committed = 1 WHERE committed = 3")
        assert not await subscription.fetch(10, 0)
        await bus.publish([event(key, 7)])
        assert payloads(await take(subscription, 1)) == [7]


async def test_an_operator_can_read_the_log(bus: PostgresBus, sql: RawConnection) -> None:
    sent = [event(number=number) for number in range(3)]
    await bus.publish(sent)
    found = await sql.fetch("SELECT event_id, topic, key, type, payload, traceparent, recorded_at FROM messages")
    assert sorted(tuple(row) for row in found) == sorted(each.row() for each in sent)


async def test_a_process_that_stops_in_the_middle_of_a_heartbeat_does_not_hold_up_its_group(bus: PostgresBus, url: str) -> None:
    async with PostgresBus(url, "stopped") as stopped_bus, stopped_bus.subscribe("readers", [TOPIC]) as stopped:
        await _stop_heart(stopped)
        async with stopped._beats.use("stand still") as connection:
            await connection.execute("BEGIN")
            await connection.execute("SELECT FROM groups FOR UPDATE")
            async with bus.subscribe("readers", [TOPIC]) as subscription:
                await until(lambda: subscription.assigned() == EVERY)


async def test_a_process_has_one_connection_and_two_for_each_subscription(bus: PostgresBus, sql: RawConnection) -> None:
    async with bus.subscribe("readers", [TOPIC]) as subscription, bus.subscribe("others", [TOPIC]) as other:
        await bus.publish([event() for _ in range(10)])
        for each in (subscription, other):
            await take(each, 10)
        await bus.lag("readers")
        opened = await sql.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = $1",
            "client backend",
        )
        assert opened == 1 + 2 * 2


def _reachable(folder: str) -> Path:
    path = Path(folder)
    path.chmod(0o711)
    return path


async def test_a_restarted_server_loses_nothing_and_doubles_no_effect() -> None:
    with tempfile.TemporaryDirectory(prefix="regulars-test-", ignore_cleanup_errors=True) as folder:
        server = EmbeddedPostgres(_reachable(folder) / "data")
        await asyncio.to_thread(server.start)
        try:
            url = server.url("bus")
            connection = await asyncpg.connect(server.url())
            await connection.execute("CREATE DATABASE bus")
            await connection.close()
            await migrate(url, MIGRATIONS)
            await _publish_and_read_over_restarts(server, url)
        finally:
            await asyncio.to_thread(server.stop)


async def _publish_and_read_over_restarts(server: EmbeddedPostgres, url: str) -> None:
    calls, keys = 150, [uuid7() for _ in range(8)]
    effects: dict[str, Message] = {}
    restarted = asyncio.Event()
    async with PostgresBus(url, "test") as bus, PostgresBus(url, "reader") as reader:
        await bus.create_topics([TopicSpec(TOPIC, PARTITIONS, timedelta(days=30))])

        async def publish() -> None:
            for number in range(calls):
                if number == calls * 2 // 3:
                    await restarted.wait()
                await until_published(bus, [event(key, number) for key in keys])

        async def consume() -> None:
            async with reader.subscribe("readers", [TOPIC]) as subscription:
                while len(effects) < calls * len(keys):
                    try:
                        batch = await subscription.fetch(50, 1)
                        for messages in batch.values():
                            for message in messages:
                                effects.setdefault(message.event_id, message)
                        await subscription.commit(following(batch))
                    except (BusUnavailable, PartitionsLost):
                        await moment(0.02)

        async with asyncio.timeout(90), asyncio.TaskGroup() as tasks:
            tasks.create_task(publish())
            tasks.create_task(consume())
            await until(lambda: len(effects) > 100)
            await asyncio.to_thread(server.stop)
            await asyncio.to_thread(server.start)
            restarted.set()
    by_key = defaultdict(list)
    for message in effects.values():
        by_key[message.key].append(int(message.payload))
    assert {key: list(range(calls)) for key in keys} == by_key


@asynccontextmanager
async def cuttable(url: str) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """The same database through a line that hands nothing on, and closes nothing, while the event is not set."""
    whole = asyncio.Event()
    whole.set()
    parts = urlsplit(url)
    socket_folder = parse_qs(parts.query).get("host", [""])[0]

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                await whole.wait()
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await whole.wait()
        if socket_folder:
            up_reader, up_writer = await asyncio.open_unix_connection(f"{socket_folder}/.s.PGSQL.5432")
        else:
            up_reader, up_writer = await asyncio.open_connection(parts.hostname, parts.port or 5432)
        await asyncio.gather(pump(reader, up_writer), pump(up_reader, writer))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    user = f"{parts.username or 'postgres'}{f':{parts.password}' if parts.password else ''}"
    try:
        yield urlunsplit(("postgresql", f"{user}@127.0.0.1:{port}", parts.path, "sslmode=disable", "")), whole
    finally:
        whole.set()
        server.close()


@pytest.mark.usefixtures("short_leases")
async def test_a_cut_line_is_noticed_and_mends_itself(url: str, bus: PostgresBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kit.bus.postgres.bus.REQUEST_SECONDS", 0.5)
    monkeypatch.setattr(subscriptions, "REQUEST_SECONDS", 0.5)
    monkeypatch.setattr("kit.db.CONNECT_SECONDS", 0.5)
    key = uuid7()
    async with AsyncExitStack() as stack:
        through, whole = await stack.enter_async_context(cuttable(url))
        far = await stack.enter_async_context(PostgresBus(through, "far"))
        far_reader = await stack.enter_async_context(far.subscribe("readers", [TOPIC]))
        await far.publish([event(key, 1)])
        batch = await far_reader.fetch(10, 10)
        whole.clear()
        second = [event(key, 2)]
        for attempt in (far.publish(second), far_reader.commit(following(batch)), far_reader.fetch(10, 1)):
            with pytest.raises(BusUnavailable):
                await attempt
        async with bus.subscribe("readers", [TOPIC]) as near_reader:
            await until(lambda: near_reader.assigned() == EVERY)
            assert payloads(await take(near_reader, 1)) == [1]
            whole.set()
            await until_published(far, second)
            await until_published(far, [event(key, 3)])
            found = payloads([message async for messages in bus.read(TOPIC) for message in messages])
            assert found in ([1, 2, 3], [1, 2, 2, 3])
            with pytest.raises(PartitionsLost):
                await far_reader.commit(following(batch))


async def test_a_session_that_ends_as_it_is_prepared_is_one_that_is_away(url: str) -> None:
    """The server's word may find the driver between two statements, which then takes it for a fault of its own."""
    prepared = 0

    async def prepare(_: RawConnection) -> None:
        nonlocal prepared
        prepared += 1
        if prepared == 1:
            raise asyncpg.InternalClientError("cannot switch to state 11; another operation (2) is in progress")

    link = Link(url, "test", timeout_seconds=5, prepare=prepare)
    with pytest.raises(BusUnavailable):
        async with link.use("test"):
            pass
    async with link.use("test") as connection:
        assert await connection.fetchval("SELECT 1") == 1
    await link.close()


async def test_a_session_that_ends_before_its_connection_does_is_one_that_is_away(url: str) -> None:
    """The farewell is read and the end of the stream is not: the driver refuses the next statement, and then the rollback."""
    link = Link(url, "test", timeout_seconds=5)

    async def write() -> None:
        async with link.use("test") as connection, connection.transaction():
            hear_farewell(connection)
            await connection.copy_to_table("nowhere", source=BytesIO(b""))

    with pytest.raises(BusUnavailable):
        await write()
    async with link.use("test") as connection:
        assert await connection.fetchval("SELECT 1") == 1
    await link.close()
