"""What the bus promises, whichever backend carries it: nothing lost, every effect once, those of a key in order."""

import asyncio
import re
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from random import Random

import pytest
from google.protobuf import descriptor_pb2
from sqlalchemy.ext.asyncio import AsyncConnection

from kit.bus.consuming import Handler, Poison, RetryLater, TooManyDeadLetters
from kit.bus.dead_letters import DeadLetters, NoSuchDeadLetter
from kit.bus.inbox import in_transaction
from kit.bus.interface import Message, TopicPartition, TopicUnknown, partition_of
from kit.clock import HeldClock, SystemClock
from kit.ids import uuid7
from kit.outbox import Event
from tests.bus.world import AT, TRACE, TYPE, World, effect, moment, number_of, until

HANDED_OVER_SECONDS = 20


def new_keys(count: int) -> list[str]:
    return [uuid7() for _ in range(count)]


def key_in(partition: int, partitions: int = 4) -> str:
    """A key that falls into a partition."""
    return next(key for key in iter(uuid7, "") if partition_of(key, partitions) == partition)


async def test_every_effect_happens_once_and_those_of_a_key_in_order(world: World) -> None:
    topic, group = await world.new_topic(), world.new_group()
    keys = new_keys(50)
    async with world.relaying() as relay, world.consuming(group, [topic]):
        for _ in range(20):
            await world.record(topic, keys, 3)
            relay.nudge()
        await world.until_done(group, 3000)
        await until(lambda: relay.state().oldest_recorded_at is None, "the relay has nothing left")
    await world.assert_all_once_and_in_order(group)
    assert await world.waiting() == 0, "what was published is removed"


async def test_a_message_arrives_as_it_was_recorded(world: World) -> None:
    topic, group, key = await world.new_topic(), world.new_group(), uuid7()
    # An enum value and a field that this release does not know, as a newer producer would write them.
    payload = descriptor_pb2.FieldDescriptorProto(name="tier").SerializeToString() + b"\x20\xe7\x07" + b"\xfa\xff\x3f\x03new"
    event = Event(uuid7(), topic, key, "regulars.member.v9.NeverHeardOf", payload, TRACE, AT)
    found: list[Message] = []

    async def take(messages: Sequence[Message]) -> None:
        found.extend(messages)

    await world.bus.publish([event])
    async with world.consuming(group, [topic], take):
        await until(lambda: bool(found), "the message comes")
    (message,) = found
    assert message == Message(topic, partition_of(key, 4), message.offset, event.event_id, key, event.type, payload, TRACE, AT)
    again = descriptor_pb2.FieldDescriptorProto.FromString(message.payload).SerializeToString()
    assert descriptor_pb2.FieldDescriptorProto.FromString(again) == descriptor_pb2.FieldDescriptorProto.FromString(payload)
    assert b"new" in again


async def test_the_release_of_the_servers_is_said(world: World) -> None:
    assert re.fullmatch(r"\d+\.\d+( or later)?", await world.bus.release())


async def test_an_empty_trace_and_payload_arrive_too(world: World) -> None:
    topic = await world.new_topic()
    event = Event(uuid7(), topic, uuid7(), TYPE, b"", "", AT)
    await world.bus.publish([event])
    (message,) = [message async for messages in world.bus.read(topic) for message in messages]
    assert (message.payload, message.traceparent) == (b"", "")


async def test_redelivery_has_no_second_effect_and_a_new_group_reads_from_the_start(world: World) -> None:
    topic, group = await world.new_topic(), world.new_group()
    keys = new_keys(20)
    await world.publish(topic, keys, 10)
    async with world.consuming(group, [topic]):
        await world.until_done(group, 200)
        await world.until_lag_is_none(group)

    await world.bus.set_offsets(group, {TopicPartition(topic, number): 0 for number in range(4)})
    assert sum(lag.messages for lag in await world.bus.lag(group) if lag.source.topic == topic) == 200
    delivered = 0
    handle = world.once(group)

    async def count(messages: Sequence[Message]) -> None:
        nonlocal delivered
        await handle(messages)
        delivered += len(messages)

    async with world.consuming(group, [topic], count):
        await until(lambda: delivered == 200, "all of it is delivered again")
        await world.until_lag_is_none(group)
    await world.assert_all_once_and_in_order(group)

    other = world.new_group()
    async with world.consuming(other, [topic]):
        await world.until_done(other, 200)
    await world.assert_all_once_and_in_order(other)


async def test_what_was_published_twice_has_its_effect_once(world: World) -> None:
    """As a relay does that died before it removed what it had published."""
    topic, group = await world.new_topic(), world.new_group()
    events = await world.publish(topic, new_keys(10), 5)
    await world.bus.publish(events)
    await world.bus.publish(events[10:])
    async with world.consuming(group, [topic]):
        await world.until_done(group, 50)
        await world.until_lag_is_none(group)
    await world.assert_all_once_and_in_order(group)


@pytest.mark.parametrize("step", ["fetched", "written", "handled", "committed"])
async def test_a_consumer_that_dies_between_two_steps_loses_and_doubles_nothing(world: World, step: str) -> None:
    topic, group = await world.new_topic(), world.new_group()
    await world.publish(topic, new_keys(20), 10)
    async with world.worker("consume", group=group, topic=topic, die_after=step, times=2, max_messages=40) as worker:
        assert await worker.until_dead() == -9
    async with world.consuming(group, [topic]):
        await world.until_done(group, 200)
        await world.until_lag_is_none(group)
    await world.assert_all_once_and_in_order(group)


@pytest.mark.parametrize("step", ["locked", "read", "published", "removed"])
async def test_a_relay_that_dies_between_two_steps_loses_and_doubles_nothing(world: World, step: str) -> None:
    topic, group = await world.new_topic(), world.new_group()
    await world.record(topic, new_keys(20), 10)
    async with world.worker("relay", die_after=step, times=2, batch=40) as worker:
        assert await worker.until_dead() == -9
    async with world.relaying(), world.consuming(group, [topic]):
        await world.until_done(group, 200)
        await world.until_lag_is_none(group)
    await world.assert_all_once_and_in_order(group)
    published = [message async for messages in world.bus.read(topic) for message in messages]
    assert len(published) >= 200
    assert await world.waiting() == 0


async def test_poison_becomes_a_dead_letter_and_the_rest_goes_on(world: World, caplog: pytest.LogCaptureFixture) -> None:
    topic, group = await world.new_topic(), world.new_group()
    events = await world.publish(topic, new_keys(10), 10)
    bad = events[37]
    async with world.consuming(group, [topic], refusing(world, group, {bad.event_id})):
        await world.until_done(group, 99)
        await world.until_lag_is_none(group)
    await world.assert_all_once_and_in_order(group, but=frozenset([bad.event_id]))
    letters = DeadLetters(world.bus, group, SystemClock())
    await letters.refresh()
    (letter,) = letters.open()
    assert (letter.message().payload, letter.key, letter.traceparent, letter.code) == (bad.payload, bad.key, TRACE, "not_understood")
    (said,) = [record for record in caplog.records if record.message == "an event became a dead letter"]
    assert vars(said)["event_id"] == bad.event_id


async def test_a_consumer_that_dies_after_a_dead_letter_lays_down_no_second_one(world: World) -> None:
    topic, group, key = await world.new_topic(), world.new_group(), uuid7()
    events = await world.publish(topic, [key], 5)
    async with world.worker("consume", group=group, topic=topic, die_after="lettered", poison=[2]) as worker:
        assert await worker.until_dead() == -9
    async with world.consuming(group, [topic], refusing(world, group, {events[2].event_id})):
        await world.until_done(group, 4)
        await world.until_lag_is_none(group)
    await world.assert_all_once_and_in_order(group, but=frozenset([events[2].event_id]))
    letters = DeadLetters(world.bus, group, SystemClock())
    laid_down = [message async for messages in world.bus.read(letters.source.topic) for message in messages]
    assert [message.key for message in laid_down] == [events[2].event_id]


async def test_a_replayed_dead_letter_has_its_effect_once_and_who_did_it_is_kept(world: World) -> None:
    topic, group = await world.new_topic(), world.new_group()
    events = await world.publish(topic, new_keys(5), 2)
    refused = {events[3].event_id, events[4].event_id}
    letters = DeadLetters(world.bus, group, HeldClock(AT))
    async with world.consuming(group, [topic], refusing(world, group, refused)):
        await world.until_done(group, 8)
        await world.until_lag_is_none(group)
        # One was mended, one is given up, and one that was never a letter is refused.
        refused.remove(events[3].event_id)
        await letters.replay(events[3].event_id, by="kim", reason="the code is in the catalogue now")
        await letters.discard(events[4].event_id, by="lee", reason="a test till")
        with pytest.raises(NoSuchDeadLetter):
            await letters.replay(events[5].event_id, by="kim", reason="none")
        await world.until_done(group, 9)
        await world.until_lag_is_none(group)
    await world.assert_all_once_and_in_order_but_late(group, late=events[3].event_id, never=events[4].event_id)
    assert letters.open() == []
    told = {
        event_id: [(status, decision.by, decision.reason, decision.at) for status, decision in known.decisions]
        for event_id, known in letters.all().items()
    }
    assert told == {
        events[3].event_id: [("replayed", "kim", "the code is in the catalogue now", AT)],
        events[4].event_id: [("discarded", "lee", "a test till", AT)],
    }


async def test_a_replayed_event_that_is_still_poison_is_a_dead_letter_again(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    topic, group = await world.new_topic(), world.new_group()
    (event,) = await world.publish(topic, new_keys(1))
    letters = DeadLetters(world.bus, group, SystemClock())
    async with world.consuming(group, [topic], refusing(world, group, {event.event_id})):
        await until_open(letters, 1)
        await letters.replay(event.event_id, by="kim", reason="perhaps now")
        await until_open(letters, 1)
        await world.until_lag_is_none(group)
    assert [status for status, _ in letters.all()[event.event_id].decisions] == ["replayed"]
    (said,) = [record for record in caplog.records if record.msg == "a dead letter was replayed"]
    assert vars(said)["is_open_again"] is True
    assert await world.effects(group) == []


async def test_past_the_cap_the_consumer_stops_and_says_so_each_time(world: World, caplog: pytest.LogCaptureFixture) -> None:
    topic, group, key = await world.new_topic(), world.new_group(), uuid7()
    events = await world.publish(topic, [key], 6)
    refused = {event.event_id for event in events[:4]}
    handle = refusing(world, group, refused)
    for _ in range(2):
        caplog.clear()
        with pytest.raises(TooManyDeadLetters):
            async with world.consuming(group, [topic], handle, max_dead_letters=3) as task:
                await asyncio.wait([task], timeout=60)
        assert "too many dead letters are open: the consumer stops" in [record.message for record in caplog.records]
    assert await world.effects(group) == [], "nothing after the one that was too many was passed over"

    letters = DeadLetters(world.bus, group, SystemClock())
    await letters.refresh()
    assert [letter.event_id for letter in letters.open()] == [event.event_id for event in events[:3]]
    await letters.discard(events[0].event_id, by="kim", reason="a test till")
    async with world.consuming(group, [topic], handle, max_dead_letters=3):
        await world.until_done(group, 2)
    await world.assert_all_once_and_in_order(group, but=frozenset(refused))


async def test_retry_later_holds_up_its_partition_alone_and_keeps_its_order(world: World) -> None:
    topic, group = await world.new_topic(2), world.new_group()
    held, free = key_in(0, 2), key_in(1, 2)
    is_closed, tries = True, 0
    handle = world.once(group)

    async def sometimes(messages: Sequence[Message]) -> None:
        nonlocal tries
        if is_closed and any(message.key == held and number_of(message) >= 3 for message in messages):
            tries += 1
            raise RetryLater("shop_closed")
        await handle(messages)

    await world.publish(topic, [held, free], 5)
    async with world.consuming(group, [topic], sometimes, max_messages=4):
        await until(lambda: tries >= 2, "it is tried again")
        await world.publish(topic, [held, free], 5)

        async def the_free_are_done() -> bool:
            return [row.number for row in await world.effects(group) if row.key == free] == list(range(10))

        await until(the_free_are_done, "the other partition goes on")
        assert all(row.number < 3 for row in await world.effects(group) if row.key == held)
        is_closed = False
        await world.until_done(group, 20)
        await world.until_lag_is_none(group)
    await world.assert_all_once_and_in_order(group)


async def test_retry_later_of_partitions_together_keeps_the_order_of_all(world: World) -> None:
    topic, group = await world.new_topic(), world.new_group()
    handle = world.once(group)
    tries = 0

    async def at_the_third(messages: Sequence[Message]) -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise RetryLater("not_yet")
        await handle(messages)

    await world.publish(topic, new_keys(20), 10)
    async with world.consuming(group, [topic], at_the_third, together=True, gather_seconds=0.2):
        await world.until_done(group, 200)
        await world.until_lag_is_none(group)
    await world.assert_all_once_and_in_order(group)


async def test_a_database_that_was_away_is_tried_again_in_order(world: World) -> None:
    topic, group = await world.new_topic(), world.new_group()
    failures = 0

    async def unlucky(connection: AsyncConnection, messages: Sequence[Message]) -> None:
        nonlocal failures
        await effect(group)(connection, messages)
        if failures < 3:
            failures += 1
            raise ConnectionResetError

    await world.publish(topic, new_keys(10), 10)
    async with world.consuming(group, [topic], in_transaction(world.engine, group, unlucky)):
        await world.until_done(group, 100)
    await world.assert_all_once_and_in_order(group)


async def test_anything_else_ends_the_consumer_and_nothing_is_lost(world: World) -> None:
    topic, group = await world.new_topic(), world.new_group()
    events = await world.publish(topic, new_keys(10), 10)
    handle = world.once(group)

    async def broken(messages: Sequence[Message]) -> None:
        if any(message.event_id == events[50].event_id for message in messages):
            raise ZeroDivisionError
        await handle(messages)

    with pytest.raises(ZeroDivisionError):
        async with world.consuming(group, [topic], broken, max_messages=10) as task:
            await asyncio.wait([task], timeout=60)
    async with world.consuming(group, [topic]):
        await world.until_done(group, 100)
        await world.until_lag_is_none(group)
    await world.assert_all_once_and_in_order(group)


async def test_processes_that_come_and_go_in_mid_batch_lose_and_double_nothing(world: World) -> None:
    topic, group = await world.new_topic(), world.new_group()
    keys = new_keys(30)
    inside, go_on = asyncio.Event(), asyncio.Event()
    handle = world.once(group)

    async def held_up(messages: Sequence[Message]) -> None:
        inside.set()
        await go_on.wait()
        await handle(messages)

    await world.publish(topic, keys, 10)
    async with world.consuming(group, [topic], held_up, max_messages=100):
        await inside.wait()
        # A second process joins while the first is in a batch of what that one is about to get, and has its part.
        async with world.consuming(group, [topic]):
            await until_shared(world, group, 2)
            go_on.set()
            await world.publish(topic, keys, 10)
            await world.until_done(group, 600)
        # It left; the first has everything again.
        await world.publish(topic, keys, 10)
        await world.until_done(group, 900)
        await world.until_lag_is_none(group)
    await world.assert_all_once_and_in_order(group)


@pytest.mark.parametrize("step", ["written", "handled"])
async def test_a_process_that_dies_in_mid_batch_beside_another_loses_and_doubles_nothing(world: World, step: str) -> None:
    topic, group = await world.new_topic(), world.new_group()
    keys = new_keys(30)
    async with world.consuming(group, [topic], max_messages=50):
        async with world.worker("consume", group=group, topic=topic, max_messages=50, die_after=step, times=3) as worker:
            await until_shared(world, group, 2)
            for _ in range(5):
                await world.publish(topic, keys, 4)
            assert await worker.until_dead() == -9
        await world.publish(topic, keys, 10)
        await world.until_done(group, 900)
        await world.until_lag_is_none(group)
    await world.assert_all_once_and_in_order(group)


async def test_a_slow_consumer_keeps_its_partitions(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Its heartbeats go on while it is busy for longer than a dead one would be waited for."""
    topic, group = await world.new_topic(), world.new_group()
    slow, quick = Counted(world.once(group)), Counted(world.once(group))

    async def slowly(messages: Sequence[Message]) -> None:
        if not slow.delivered:
            # What the test is about is time itself.
            await moment(HANDED_OVER_SECONDS)
        await slow(messages)

    async with world.consuming(group, [topic], slowly), world.consuming(group, [topic], quick):
        await until_shared(world, group, 2)
        await world.publish(topic, new_keys(40), 5)
        await world.until_done(group, 200)
        await world.until_lag_is_none(group)
    assert set(slow.delivered.values()) == set(quick.delivered.values()) == {1}
    assert not slow.delivered.keys() & quick.delivered.keys(), "nothing was given to the other as well"
    assert "partitions were given to another process" not in [record.message for record in caplog.records]
    await world.assert_all_once_and_in_order(group)


async def test_of_two_relays_one_is_active_and_the_other_takes_over_within_seconds(world: World) -> None:
    topic, group = await world.new_topic(), world.new_group()
    keys = new_keys(20)
    async with world.worker("relay") as first, world.worker("relay") as second, world.consuming(group, [topic]):
        await until(lambda: first.has_said("relaying") or second.has_said("relaying"), "one leads")
        leader, other = (first, second) if first.has_said("relaying") else (second, first)
        await world.record(topic, keys, 5)
        await world.until_done(group, 100)
        assert not other.has_said("relaying")
        leader.process.kill()
        await world.record(topic, keys, 5)
        begun = asyncio.get_running_loop().time()
        await other.until_it_says("relaying")
        assert asyncio.get_running_loop().time() - begun < 10
        await world.until_done(group, 200)
    await world.assert_all_once_and_in_order(group)


async def test_clocks_that_jump_change_nothing(world: World) -> None:
    topic, group = await world.new_topic(), world.new_group()
    keys = new_keys(10)
    clock = HeldClock(datetime(2026, 11, 22, tzinfo=UTC))
    refused: set[str] = set()
    tries: dict[str, int] = defaultdict(int)
    handle = refusing(world, group, refused)

    async def at_the_second(messages: Sequence[Message]) -> None:
        tries[messages[0].event_id] += 1
        if tries[messages[0].event_id] == 1:
            raise RetryLater("not_yet")
        await handle(messages)

    async with world.relaying(clock=clock) as relay, world.consuming(group, [topic], at_the_second, clock=clock):
        for jump in (timedelta(days=400), timedelta(days=-800), timedelta(0), timedelta(days=400)):
            done = len(await world.effects(group))
            await world.record(topic, keys, 3)
            clock.advance(jump)
            assert relay.oldest_seconds() >= 0
            await world.until_done(group, done + 30)
        (poisoned,) = world.new_events(topic, keys[:1])
        refused.add(poisoned.event_id)
        await world.bus.publish([poisoned])
        await until_open(DeadLetters(world.bus, group, clock), 1)
        await world.until_lag_is_none(group)
    await world.assert_all_once_and_in_order(group, but=frozenset(refused))


async def test_of_a_bus_that_others_use_too_only_what_is_meant_is_looked_at(world: World) -> None:
    topic, other = await world.new_topic(), await world.new_topic()
    await world.publish(topic, new_keys(4), 2)
    [(spec, states)] = (await world.bus.topics({topic, "missing"})).items()
    assert spec.name == topic
    assert sum(state.next_offset for state in states) == 8
    everything = await world.bus.topics()
    assert everything[spec] == states
    assert other in {found.name for found in everything}
    assert await world.bus.topics([]) == {}


async def test_whatever_is_paused_sought_and_asked_for_each_partition_goes_on_where_it_was(world: World) -> None:
    """Also with what a backend has read ahead by then."""
    random, topic, group = Random(20261122), await world.new_topic(), world.new_group()
    await world.publish(topic, new_keys(60), 25)
    sources = [TopicPartition(topic, number) for number in range(4)]
    [states] = (await world.bus.topics({topic})).values()
    ends = {state.source: state.next_offset for state in states}
    following, paused = dict.fromkeys(sources, 0), set[TopicPartition]()
    fetches = 0
    async with world.bus.subscribe(group, [topic]) as subscription:
        while following != ends:
            most = random.choice((1, 7, 100, 400))
            fetched = await subscription.fetch(most, 0.05)
            fetches += 1
            assert sum(map(len, fetched.values())) <= most
            for source, messages in fetched.items():
                assert source not in paused
                assert messages, "a partition that has nothing is left out"
                assert [message.offset for message in messages] == list(range(following[source], following[source] + len(messages)))
                following[source] += len(messages)
            source = random.choice(sources)
            match random.choice(("pause", "resume", "resume", "go back", "commit")):
                case "pause":
                    subscription.pause(source)
                    paused.add(source)
                case "resume":
                    subscription.resume(source)
                    paused.discard(source)
                case "go back" if fetches < 200:
                    following[source] = random.randint(0, following[source])
                    await subscription.seek(source, following[source])
                case "commit" if source in subscription.assigned():
                    await subscription.commit({source: following[source]})
            if fetches >= 200:
                for each in paused:
                    subscription.resume(each)
                paused.clear()
    assert fetches > 10


async def test_an_unknown_topic_is_refused_whole(world: World) -> None:
    topic = await world.new_topic()
    events = world.new_events(topic, new_keys(3))
    with pytest.raises(TopicUnknown):
        await world.bus.publish([*events, Event(uuid7(), f"{topic}.unknown", uuid7(), TYPE, b"", "", AT)])
    assert [messages async for messages in world.bus.read(topic)] == []


async def test_a_consumer_that_was_told_to_stop_finishes_its_batch(world: World) -> None:
    topic, group = await world.new_topic(1), world.new_group()
    inside, go_on = asyncio.Event(), asyncio.Event()
    handle = world.once(group)

    async def held_up(messages: Sequence[Message]) -> None:
        inside.set()
        await go_on.wait()
        await handle(messages)

    await world.publish(topic, new_keys(5))
    async with world.consuming(group, [topic], held_up):
        await inside.wait()
        asyncio.get_running_loop().call_soon(go_on.set)
    await world.assert_all_once_and_in_order(group)
    assert [lag.messages for lag in await world.bus.lag(group) if lag.source.topic == topic] == [0]


def refusing(world: World, group: str, refused: set[str]) -> Handler:
    """A handler to which the events of these ids are poison."""

    async def pick(connection: AsyncConnection, messages: Sequence[Message]) -> None:
        for message in messages:
            if message.event_id in refused:
                raise Poison(message.event_id, "not_understood")
        await effect(group)(connection, messages)

    return in_transaction(world.engine, group, pick)


class Counted:
    """A handler that counts how often each event was delivered to it."""

    def __init__(self, handle: Handler) -> None:
        self._handle = handle
        self.delivered: dict[str, int] = defaultdict(int)

    async def __call__(self, messages: Sequence[Message]) -> None:
        for message in messages:
            self.delivered[message.event_id] += 1
        await self._handle(messages)


async def until_open(letters: DeadLetters, count: int) -> None:
    """Returns when so many letters are open."""
    # As the consumer does, which may not have begun yet.
    await letters.bus.create_topics([letters.spec()])

    async def are_open() -> bool:
        await letters.refresh()
        return len(letters.open()) == count

    await until(are_open, f"{count} dead letters")


async def until_shared(world: World, group: str, processes: int) -> None:
    """Returns when so many processes share the partitions of a group."""

    async def is_shared() -> bool:
        return len({lag.owner for lag in await world.bus.lag(group)} - {""}) == processes

    await until(is_shared, f"{processes} processes share the partitions")
