"""What is particular to the relay, whichever bus it publishes on."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta

import asyncpg
import pytest

from kit.bus import relay as relays
from kit.bus.connecting import connect
from kit.bus.interface import Bus, EventTooLarge, TopicSpec
from kit.bus.postgres import PostgresBus
from kit.bus.relay import _SETTINGS, _Outbox
from kit.clock import HeldClock
from kit.db import connect as connect_database
from kit.db import raw, transaction
from kit.ids import uuid7
from kit.outbox import Event, Nudges, append
from tests.bus.world import AT, World, bus_settings, moment, until

pytestmark = pytest.mark.parametrize("bus_url", ["postgres"], indirect=True)


async def published(world: World, topic: str) -> list[str]:
    """The ids of what was published, in order within a key."""
    return [message.event_id async for messages in world.bus.read(topic) for message in messages]


async def test_an_event_that_becomes_visible_late_is_published_before_later_ones_of_its_key(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays, "MARK_SECONDS", 0.0)
    # It must not need the look at the whole.
    monkeypatch.setattr(relays, "WHOLE_SECONDS", 3600.0)
    topic = await world.new_topic(1)
    slow, quick = uuid7(), [uuid7() for _ in range(20)]
    writer = await asyncpg.connect(world.database_url)
    async with world.relaying() as relay:
        late: list[Event] = []
        for _ in range(3):
            writing = writer.transaction()
            await writing.start()
            late += world.new_events(topic, [slow])
            await append(writer, late[-1:])
            for _ in range(5):
                already = relay.state().published
                await world.record(topic, quick)
                relay.nudge()
                await until(lambda already=already: relay.state().published == already + 20, "the others are not held up")  # type: ignore[misc]
            await writing.commit()
            late += await world.record(topic, [slow])
            relay.nudge()
            await until(lambda number=late: relay.state().published % 100 == len(number) % 100, "the late one too")  # type: ignore[misc]
    await writer.close()
    ids = await published(world, topic)
    assert len(ids) == len(set(ids)) == 306
    assert [event_id for event_id in ids if event_id in {event.event_id for event in late}] == [event.event_id for event in late]


async def test_what_can_no_longer_appear_is_not_looked_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relays, "MARK_SECONDS", 0.0)
    topic = await world.new_topic(1)
    reader = await connect_database(world.database_url, application_name="test", settings=_SETTINGS)
    writer = await asyncpg.connect(world.database_url)
    outbox = _Outbox(reader, 100)

    async def pass_on() -> int:
        rows = await outbox.exchange()
        while rows:
            rows = await outbox.exchange([row["position"] for row in rows])
        await outbox.exchange()
        return outbox._floor

    await world.record(topic, [uuid7()], 10)
    assert await pass_on() == 10
    writing = writer.transaction()
    await writing.start()
    await append(writer, world.new_events(topic, [uuid7()]))
    await world.record(topic, [uuid7()], 9)
    assert await pass_on() == 10, "number 11 was drawn and is not visible"
    assert await pass_on() == 10
    await writing.commit()
    assert await pass_on() == 20
    await reader.close()
    await writer.close()


async def test_the_outbox_stays_small_however_much_passes_through(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relays, "VACUUM_ROWS", 1000)
    monkeypatch.setattr(relays, "LEAST_SECONDS_BETWEEN_VACUUMS", 0.0)
    topic = await world.new_topic()
    keys = [uuid7() for _ in range(100)]
    sizes: list[int] = []
    async with world.relaying() as relay:
        for number in range(1, 21):
            await world.record(topic, keys, 20)
            relay.nudge()
            await until(lambda number=number: relay.state().published == number * 2000, "all are published")  # type: ignore[misc]
            async with transaction(world.engine) as connection:
                sizes.append(await raw(connection).fetchval("SELECT pg_total_relation_size('outbox')"))
    assert sizes[-1] < 5 * sizes[0], sizes


async def test_it_is_told_of_news_by_writers_of_its_process_and_of_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relays, "POLL_SECONDS", 3600.0)
    topic = await world.new_topic()
    nudge = Nudges(world.engine)
    async with world.relaying() as relay:
        await until(lambda: relay.state().is_leading, "it leads")
        async with world.relaying(others=nudge) as standby:
            ways: list[Callable[[], None]] = [relay.nudge, nudge, standby.nudge]
            for number, tell in enumerate(ways, start=1):
                await world.record(topic, [uuid7()])
                tell()
                await until(lambda number=number: relay.state().published == number, "it is published", seconds=10)  # type: ignore[misc]
            assert not standby.state().is_leading
        await moment(0.05)


async def test_while_the_bus_is_away_events_wait_and_it_says_so_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    topic = await world.new_topic()
    clock = HeldClock(AT + timedelta(minutes=5))
    caplog.set_level("INFO")
    is_away, attempts = True, 0

    def open_bus() -> Bus:
        nonlocal attempts
        attempts += 1
        return connect(bus_settings("postgresql://postgres@127.0.0.1:1/bus"), client_name="test") if is_away else world.connect()

    await world.record(topic, [uuid7()], 5)
    async with world.relaying(open_bus=open_bus, clock=clock) as relay:
        await until(lambda: attempts > 3, "it tries again")
        assert relay.state().is_bus_away
        assert relay.oldest_seconds() == pytest.approx(300, abs=1)
        is_away = False
        await until(lambda: relay.state().published == 5, "it goes on")
        assert not relay.state().is_bus_away
        await until(lambda: relay.oldest_seconds() == 0, "nothing waits")
    (away,) = [record for record in caplog.records if record.message == "events wait in the outbox until they can be published"]
    assert vars(away)["oldest_seconds"] == pytest.approx(300, abs=1)
    assert vars(away)["error"] == "BusUnavailable"
    assert [record.message for record in caplog.records].count("events are published again") == 1


async def test_events_of_a_topic_that_is_not_there_yet_wait_for_it(world: World, caplog: pytest.LogCaptureFixture) -> None:
    missing, there = f"test.{uuid7()}.v1", await world.new_topic()
    async with world.relaying() as relay:
        await world.record(missing, [uuid7()])
        await world.record(there, [uuid7()])
        await until(lambda: relay.state().is_bus_away, "it is said")
        await world.bus.create_topics([TopicSpec(missing, 1, timedelta(days=1))])
        await until(lambda: relay.state().published == 2, "both are published")
    assert [record.message for record in caplog.records].count("events wait in the outbox until they can be published") == 1


async def test_an_event_larger_than_the_bus_takes_is_named_and_waits_until_it_does(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    topic = await world.new_topic()
    await world.record(topic, [uuid7()], 3)
    publish, attempts, is_small = PostgresBus.publish, 0, True

    async def publish_small(self: PostgresBus, events: Sequence[Event]) -> None:
        nonlocal attempts
        attempts += 1
        if is_small:
            raise EventTooLarge(events[1].event_id, events[1].topic, 9_000_000)
        await publish(self, events)

    monkeypatch.setattr(PostgresBus, "publish", publish_small)
    async with world.relaying() as relay:
        await until(lambda: attempts > 2, "it tries again")
        is_small = False
        await until(lambda: relay.state().published == 3, "all are published")
    (said,) = [vars(record) for record in caplog.records if record.levelname == "ERROR"]
    assert said["message"].startswith("an event is larger than the bus takes")
    assert (said["event_id"], said["topic"], said["size_bytes"]) == (next(iter(world.recorded.values()))[1], topic, 9_000_000)


async def test_many_writers_at_once_keep_the_order_of_their_keys(world: World) -> None:
    """As the wallet's writers do: who writes of a key holds its lock until the commit."""
    topic = await world.new_topic()
    keys = [uuid7() for _ in range(8)]
    locks = {key: asyncio.Lock() for key in keys}

    async def write(mine: Sequence[str]) -> None:
        for number in range(40):
            key = mine[number % len(mine)]
            async with locks[key], transaction(world.engine) as connection:
                await append(raw(connection), world.new_events(topic, [key], 3))

    async with world.relaying(batch=20) as relay:
        await asyncio.gather(*(write(keys[start:] + keys[:start]) for start in range(6)))
        relay.nudge()
        await until(lambda: relay.state().published == 720, "all are published")
    found: dict[str, list[str]] = {key: [] for key in keys}
    async for messages in world.bus.read(topic):
        for message in messages:
            found[message.key].append(message.event_id)
    assert found == {key: world.recorded[key] for key in keys}
