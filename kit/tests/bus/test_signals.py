"""A relay and a consumer say how they stand, and a trace that is recorded goes through both."""

from collections.abc import Iterator, Sequence
from datetime import timedelta

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from kit import metrics, tracing
from kit.bus import consuming
from kit.bus import relay as relays
from kit.bus.connecting import connect
from kit.bus.consuming import Poison, RetryLater
from kit.bus.interface import Bus, Message
from kit.clock import HeldClock
from kit.ids import uuid7
from tests.bus.world import AT, TRACE, World, bus_settings, number_of, until

pytestmark = pytest.mark.parametrize("bus_url", ["postgres"], indirect=True)

OF_CONSUMERS = (
    metrics.CONSUMER_LAG, metrics.CONSUMER_MESSAGES, metrics.CONSUMER_BATCH_SIZE, metrics.CONSUMER_BATCH_DURATION, metrics.CONSUMER_DELAY,
    metrics.DEAD_LETTERS_OPEN, metrics.CONSUMER_BUS_AWAY,
)  # fmt: skip


@pytest.fixture(autouse=True)
def few_groups() -> None:
    """A process has a few groups; these tests have made many."""
    for metric in OF_CONSUMERS:
        metric.forget()
    metrics.GROUP.forget()
    metrics.TOPIC.forget()


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    """Where this process's spans go."""
    kept = InMemorySpanExporter()
    tracing.use(tracing.Recorder("member", "relay", tracing.Sampling(), SimpleSpanProcessor(kept)))
    yield kept
    tracing.use(None)


def value(metric: metrics.AnyMetric, *labels: str, suffix: str = "") -> float:
    """What stands there now; 0 for no series."""
    named = dict(zip((label.name for label in metric.labels), labels, strict=True))
    (family,) = metric.collector.collect()
    return sum(s.value for s in family.samples if s.labels == named and s.name == metric.name + suffix)


def ids(span: ReadableSpan) -> tuple[str, str, str]:
    """Trace, span and parent."""
    assert span.context is not None
    assert span.parent is not None
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}", f"{span.parent.span_id:016x}"


async def test_a_relay_says_whether_it_leads_what_it_published_and_what_waits(world: World) -> None:
    topic, before = await world.new_topic(), value(metrics.RELAY_PUBLISHED)
    clock = HeldClock(AT + timedelta(minutes=5))
    is_away = True

    def open_bus() -> Bus:
        return connect(bus_settings("postgresql://postgres@127.0.0.1:1/bus"), client_name="test") if is_away else world.connect()

    await world.record(topic, [uuid7()], 5)
    async with world.relaying(open_bus=open_bus, clock=clock) as relay:
        await until(lambda: value(metrics.RELAY_BUS_AWAY) == 1, "it says that the bus is away")
        # Also between two attempts, when it does not lead.
        for _ in range(5):
            assert value(metrics.OUTBOX_OLDEST_AGE) == pytest.approx(300, abs=1)
        assert await relay.answers() == ""
        is_away = False
        await until(lambda: value(metrics.RELAY_PUBLISHED) == before + 5, "it publishes")
        await until(lambda: value(metrics.OUTBOX_OLDEST_AGE) == 0, "nothing waits")
        assert (value(metrics.RELAY_LEADING), value(metrics.RELAY_BUS_AWAY)) == (1, 0)
        async with world.relaying() as standby:
            await until(lambda: standby._is_connected, "another stands by")
            assert await standby.answers() == ""
            assert value(metrics.RELAY_LEADING) == 1
    assert value(metrics.RELAY_LEADING) == 0


async def test_a_relay_without_its_database_says_so_after_a_while(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relays, "PATIENCE_SECONDS", 0.0)
    relay = relays.Relay("postgresql://nobody@127.0.0.1:1/nowhere", world.connect, HeldClock(AT))
    assert await relay.answers() == "no connection to the database"


async def test_a_consumer_says_what_became_of_messages_and_how_late_they_were(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consuming, "LAG_SECONDS", 0.02)
    topic, group = await world.new_topic(1), world.new_group()
    handled, failed = world.once(group), 0

    async def handle(messages: Sequence[Message]) -> None:
        nonlocal failed
        if poison := [message for message in messages if number_of(message) == 3]:
            raise Poison(poison[0].event_id, "not_a_fact")
        if not failed:
            failed += 1
            raise RetryLater("away")
        await handled(messages)

    async with world.consuming(group, [topic], handle, clock=HeldClock(AT + timedelta(seconds=4))):
        assert [value(metrics.CONSUMER_MESSAGES, group, topic, outcome) for outcome in metrics.DONE.listed] == [0, 0, 0]
        await until(lambda: value(metrics.CONSUMER_BUS_AWAY, group) == 0, "the bus answers")
        await world.publish(topic, [uuid7()], 10)
        await world.until_done(group, 9)
        await until(lambda: value(metrics.DEAD_LETTERS_OPEN, group) == 1, "the letter is seen")
        await until(lambda: value(metrics.CONSUMER_LAG, group, topic) == 0, "nothing is left")
    assert value(metrics.CONSUMER_MESSAGES, group, topic, "done") == 9
    assert value(metrics.CONSUMER_MESSAGES, group, topic, "dead_letter") == 1
    assert value(metrics.CONSUMER_MESSAGES, group, topic, "retried") >= 1
    assert (value(metrics.CONSUMER_DELAY, group, suffix="_count"), value(metrics.CONSUMER_DELAY, group, suffix="_sum")) == (9, 36)
    assert value(metrics.CONSUMER_BATCH_SIZE, group, suffix="_count") == value(metrics.CONSUMER_BATCH_DURATION, group, suffix="_count") >= 2


async def test_a_groups_lag_is_what_it_has_yet_to_do(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consuming, "LAG_SECONDS", 0.02)
    topic, group = await world.new_topic(), world.new_group()
    is_away = True
    handled = world.once(group)

    async def handle(messages: Sequence[Message]) -> None:
        if is_away:
            raise RetryLater("away")
        await handled(messages)

    await world.publish(topic, [uuid7(), uuid7()], 10)
    async with world.consuming(group, [topic], handle):
        await until(lambda: value(metrics.CONSUMER_LAG, group, topic) == 20, "the lag is seen")
        is_away = False
        await until(lambda: value(metrics.CONSUMER_LAG, group, topic) == 0, "it is worked off")
    await world.assert_all_once_and_in_order(group)


async def test_a_recorded_trace_goes_through_the_relay_and_the_consumer(world: World, exporter: InMemorySpanExporter) -> None:
    topic, group = await world.new_topic(), world.new_group()
    (event,) = await world.record(topic, [uuid7()])
    async with world.relaying(), world.consuming(group, [topic]):
        await world.until_done(group, 1)
        await until(lambda: len(exporter.get_finished_spans()) == 2, "both spans are there")
    by_kind = {span.kind.name: span for span in exporter.get_finished_spans()}
    published, processed = by_kind["PRODUCER"], by_kind["CONSUMER"]
    _, trace_id, span_id, _ = TRACE.split("-")
    assert ids(published)[::2] == (trace_id, span_id)
    assert ids(processed)[::2] == (trace_id, ids(published)[1])
    assert (published.name, processed.name) == (f"publish {topic}", f"process {topic}")
    said = dict(processed.attributes or {})
    assert (said["messaging.consumer.group.name"], said["messaging.message.id"]) == (group, event.event_id)


async def test_traces_that_are_not_recorded_leave_no_spans_on_the_way(
    world: World, exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.bus.world.TRACE", f"{TRACE[:-2]}00")
    topic, group = await world.new_topic(), world.new_group()
    await world.record(topic, [uuid7()], 3)
    async with world.relaying(), world.consuming(group, [topic]):
        await world.until_done(group, 3)
    assert exporter.get_finished_spans() == ()
    assert [m.traceparent async for messages in world.bus.read(topic) for m in messages] == [f"{TRACE[:-2]}00"] * 3
