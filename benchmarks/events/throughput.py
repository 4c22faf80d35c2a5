"""Events a second: bare loops and the relay with a consumer, in turn, each round over topics and tables of its own."""

import asyncio
from datetime import timedelta
from typing import Any

import asyncpg

from benchmarks.events import bare, ours
from benchmarks.events.content import Sales
from benchmarks.events.servers import Servers
from benchmarks.events.worker import Worker
from kit.bus.connecting import BusSettings, connect
from kit.bus.interface import TopicSpec
from kit.settings import load

BATCH = 1_000
WARM_UP = 500
# A measurement that takes longer is no measurement.
LONGEST_SECONDS = 120


async def bare_kafka(servers: Servers, *, name: str, partitions: int, events: int) -> dict[str, Any]:
    """The bare loop over Kafka."""
    topic = f"bare-{name}"
    await bare.create_kafka_topic(servers.bootstrap, topic, partitions)
    job = {"bootstrap": servers.bootstrap, "topic": topic, "events": events, "batch": BATCH}
    producer = await Worker.start("bare:kafka_producer", {**job, "partitions": partitions})
    return await _pair(servers, producer, await Worker.start("bare:kafka_consumer", job), events)


async def bare_queue(servers: Servers, *, workers: int, events: int) -> dict[str, Any]:
    """The bare loop over PostgreSQL."""
    url = await servers.database("bare")
    connection = await asyncpg.connect(url)
    await connection.execute(bare.QUEUE)
    await connection.close()
    job = {"url": url, "events": events, "batch": BATCH}
    producer = await Worker.start("bare:queue_producer", job)
    return await _pair(servers, producer, await Worker.start("bare:queue_consumer", {**job, "workers": workers}), events)


async def _pair(servers: Servers, producer: Worker, consumer: Worker, events: int) -> dict[str, Any]:
    before = servers.cpu_seconds()
    try:
        await consumer.begin()
        await producer.begin()
        async with asyncio.timeout(LONGEST_SECONDS):
            produced, consumed = await producer.result(), await consumer.result()
    finally:
        producer.kill()
        consumer.kill()
    return _row(
        servers, before, events, consumed["ended"] - produced["began"],
        {"producer": produced["cpu_seconds"], "consumer": consumed["cpu_seconds"]},
    )  # fmt: skip


def _row(servers: Servers, before: dict[str, float], events: int, seconds: float, used: dict[str, float]) -> dict[str, Any]:
    after = servers.cpu_seconds()
    used = used | {name: after[name] - before[name] for name in after}
    return {"rate": events / seconds, "seconds": seconds, "cpu_us": {name: value / events * 1e6 for name, value in used.items()}}


async def through_bus(servers: Servers, backend: str, *, name: str, partitions: int, events: int) -> dict[str, Any]:
    """Ours: all events are committed to the outbox at once; from that moment until the last took effect in the consumer's database.

    Relay and consumer are there before, and have done a few events. Raises RuntimeError when an effect is missing or doubled.
    """
    topic = f"bench.sale-{name}.v1"
    bus_url, url = await servers.bus_url(backend), await servers.database("bench")
    environment = {"BUS_URL": bus_url}
    await ours.create_tables(url)
    async with connect(load(BusSettings, {"BUS_URL": bus_url}), client_name="bench") as bus:
        await bus.create_topics([TopicSpec(topic, partitions, timedelta(days=30))])
    relay = await Worker.start("ours:relay", {"url": url}, environment)
    consumer = await Worker.start("ours:consumer", {"url": url, "topic": topic, "events": WARM_UP + events}, environment)
    try:
        await relay.begin()
        await consumer.begin()
        await ours.fill_outbox(url, list(Sales(seed=2).events(WARM_UP, topic=topic)))
        async with asyncio.timeout(LONGEST_SECONDS):
            while await ours.effects(url) < WARM_UP:  # noqa: ASYNC110 - in another process
                await asyncio.sleep(0.05)
        sales = list(Sales().events(events, topic=topic))
        before = servers.cpu_seconds()
        committed = await ours.fill_outbox(url, sales)
        async with asyncio.timeout(LONGEST_SECONDS):
            consumed = await consumer.result()
        await relay.stop()
        relayed = await relay.result()
    finally:
        relay.kill()
        consumer.kill()
    if await ours.effects(url) != WARM_UP + events:
        raise RuntimeError(f"{WARM_UP + events:,} events had {await ours.effects(url):,} effects")
    return _row(
        servers, before, events, consumed["ended"] - committed,
        {"relay": relayed["cpu_seconds"], "consumer": consumed["cpu_seconds"]},
    )  # fmt: skip
