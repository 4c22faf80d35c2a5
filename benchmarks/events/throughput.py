"""Events a second: bare loops and the relay with a consumer, in turn, each round over topics and tables of its own."""

import asyncio
from datetime import timedelta
from typing import Any

import asyncpg

from benchmarks.events import bare, ours
from benchmarks.events.content import Sales
from benchmarks.events.servers import Servers
from benchmarks.events.sizes import Sizes
from benchmarks.events.worker import Worker
from kit.bus.connecting import BusSettings, connect
from kit.bus.interface import Bus, TopicSpec
from kit.settings import load

BATCH = 1_000
# A measurement that takes longer is no measurement.
LONGEST_SECONDS = 120
KEEP_SECONDS = 5


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


async def through_bus(servers: Servers, backend: str, effect: str, *, name: str, partitions: int, events: int) -> dict[str, Any]:
    """Ours: all events are committed to the outbox at once; from that moment until the last took effect.

    The effect is `count`, in PostgreSQL with the inbox, or `facts`, in ClickHouse. Relay and consumer are there before, and have done a
    few events. Raises RuntimeError when an effect is missing or doubled.
    """
    topic = f"bench.{effect}-{name}.v1"
    bus_url, url = await servers.bus_url(backend), await servers.database("bench")
    environment = {"BUS_URL": bus_url}
    await ours.create_tables(url)
    relay = await Worker.start("ours:relay", {"url": url}, environment)
    job = {"topic": topic, "events": ours.WARM_UP + events}
    async with connect(load(BusSettings, environment), client_name="bench") as bus:
        await bus.create_topics([TopicSpec(topic, partitions, timedelta(days=30))])
        if effect == "count":
            consumer = await Worker.start("ours:consumer", {**job, "url": url}, environment)
        else:
            consumer = await Worker.start("reports:ingest", {**job, "folder": str(servers.folder / f"{backend}-{name}")}, environment)
        try:
            await relay.begin()
            await consumer.begin()
            await _warm_up(bus, url, topic)
            sales = list(Sales().events(events, topic=topic))
            committed = await ours.fill_outbox(url, sales)
            before = servers.cpu_seconds()
            async with asyncio.timeout(LONGEST_SECONDS):
                consumed = await consumer.result()
            await relay.stop()
            relayed = await relay.result()
        finally:
            relay.kill()
            consumer.kill()
    effects = consumed["effects"] if effect == "facts" else await ours.effects(url)
    if effects != ours.WARM_UP + events:
        raise RuntimeError(f"{ours.WARM_UP + events:,} events had {effects:,} effects")
    used = {"relay": relayed["cpu_seconds"], "consumer": consumed["cpu_seconds"]}
    return _row(servers, before, events, consumed["ended"] - committed, used)


async def steady(servers: Servers, backend: str, *, partitions: int, rate: int, seconds: int) -> dict[str, Any]:
    """Events come at an even rate: how soon they take effect, and how large outbox and inbox are meanwhile.

    The inbox keeps ids for a few seconds instead of weeks, so that its trimming is seen too.
    """
    topic = "bench.steady.v1"
    bus_url, url = await servers.bus_url(backend), await servers.database("bench")
    environment = {"BUS_URL": bus_url}
    await ours.create_tables(url)
    sizes = Sizes({"outbox": url, "inbox": url})
    workers = [
        await Worker.start("ours:relay", {"url": url}, environment),
        await Worker.start("ours:writer", {"url": url, "topic": topic, "rate": rate, "seconds": seconds}),
    ]
    relay, writer = workers
    async with connect(load(BusSettings, environment), client_name="bench") as bus:
        await bus.create_topics([TopicSpec(topic, partitions, timedelta(days=30))])
        job = {"url": url, "topic": topic, "events": ours.WARM_UP + rate * seconds, "keep_seconds": KEEP_SECONDS}
        workers.append(consumer := await Worker.start("ours:consumer", job, environment))
        try:
            await relay.begin()
            await consumer.begin()
            await _warm_up(bus, url, topic)
            await sizes.note("before")
            await writer.begin()
            async with asyncio.timeout(LONGEST_SECONDS), sizes.watched("load"):
                written = await writer.result()
                consumed = await consumer.result()
            await sizes.note("after")
            await relay.stop()
            await relay.result()
        finally:
            for worker in workers:
                worker.kill()
    return {"rate": written["rate"], "delays_seconds": consumed["delays"], "sizes": sizes.found}


async def _warm_up(bus: Bus, url: str, topic: str) -> None:
    await ours.fill_outbox(url, list(Sales(seed=2).events(ours.WARM_UP, topic=topic)))
    async with asyncio.timeout(LONGEST_SECONDS):
        done = 0
        while done < ours.WARM_UP:
            await asyncio.sleep(0.05)
            done = sum(lag.committed or 0 for lag in await bus.lag(ours.GROUP) if lag.source.topic == topic)


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
