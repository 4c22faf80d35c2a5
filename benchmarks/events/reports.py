"""Reporting: facts from the bus, the facts made anew from retained events, and queries over ten million lines; embedded, as by default."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import date, timedelta
from functools import partial
from importlib.resources import files
from typing import Any

from benchmarks.events.content import CATEGORIES, LINES, SKUS, STORES, Sales
from benchmarks.events.ours import GROUP, percentiles
from benchmarks.events.servers import Servers
from benchmarks.events.worker import Signals, Worker
from kit.bus.connecting import BusSettings, connect
from kit.bus.consuming import consume
from kit.bus.interface import Message
from kit.bus.topics import all_specs, load_topics
from kit.clock import SystemClock
from kit.settings import load
from kit.tokens import Actor
from reporting.clickhouse import ClickHouse, migrate, open_clickhouse
from reporting.facts.consumers import GATHER_SECONDS, MAX_MESSAGES, FactsHandler
from reporting.facts.rules import Fact
from reporting.kpis.operations import KEYS, StoreDay, get_kpis
from reporting.queries.operations import Freshness, run_query
from reporting.queries.rules import Asked, Sort
from reporting.rebuilds.ledger import Rights
from reporting.rebuilds.operations import DONE, EVENTS, FAILED, Rebuilder
from reporting.settings import StorageSettings

PUBLISH = 2_000
LAST_DAY = date(2026, 11, 20)
DAYS = 365
# The days whose facts came in small parts a while ago, not yet merged into one.
FRESH_DAYS = 20
FRESH_PARTS = 40
BUYERS = 100_000
LONGEST_REBUILD_SECONDS = 300
# A query is asked no more after it was asked for so long.
LONGEST_QUERY_SECONDS = 15


@asynccontextmanager
async def _facts(folder: str) -> AsyncIterator[ClickHouse]:
    async with open_clickhouse(load(StorageSettings, {"REPORTING_DATA_DIR": folder})) as clickhouse:
        await migrate(clickhouse)
        yield clickhouse


async def ingest(signals: Signals, *, folder: str, topic: str, events: int) -> dict[str, Any]:
    """Consumes as the service does, until so many events are in the facts."""
    stop = asyncio.Event()
    counted = batches = 0
    ended = 0.0
    async with _facts(folder) as clickhouse, connect(load(BusSettings), client_name="bench-reporting") as bus:
        handle = FactsHandler(clickhouse)

        async def counting(messages: Sequence[Message]) -> None:
            nonlocal counted, batches, ended
            await handle(messages)
            counted += len(messages)
            batches += 1
            if counted >= events:
                ended = time.monotonic()
                stop.set()

        consuming = asyncio.create_task(
            consume(
                bus, GROUP, [topic], counting, stop=stop, clock=SystemClock(),
                together=True, max_messages=MAX_MESSAGES, gather_seconds=GATHER_SECONDS,
            )
        )  # fmt: skip
        await signals.ready()
        await consuming
        ((effects,),) = await clickhouse.query("SELECT count() FROM sales")
    return {"ended": ended, "effects": effects, "batches": batches}


async def publisher(signals: Signals, *, sales: int) -> dict[str, Any]:
    """Puts sales straight into the topic from which facts are made."""
    settings = load(BusSettings)
    async with connect(settings, client_name="bench") as bus:
        await bus.create_topics(all_specs(load_topics((files("regulars") / "topics.yaml").read_text())))
        await signals.ready()
        began = time.monotonic()
        for batch in Sales(members=BUYERS).batches(sales, PUBLISH):
            await bus.publish(batch)
        return {"seconds": time.monotonic() - began}


async def rebuild(signals: Signals, *, folder: str, sales: int) -> dict[str, Any]:
    """Makes all facts anew from what the bus retains; the facts before are the same ones after the first time."""
    settings = load(BusSettings)
    async with _facts(folder) as clickhouse:
        rebuilder = Rebuilder(
            clickhouse, FactsHandler(clickhouse), partial(connect, settings, client_name="bench"), _no_export, SystemClock(), alone=True
        )
        await signals.ready()
        began = time.monotonic()
        await rebuilder.start(EVENTS, "bench", "")
        async with asyncio.timeout(LONGEST_REBUILD_SECONDS):
            while (found := await rebuilder.latest("")) is None or found.state not in {DONE, FAILED}:  # noqa: ASYNC110 - tells nobody
                await asyncio.sleep(0.05)
        seconds = time.monotonic() - began
        await rebuilder.close()
        ((counted, lines),) = await clickhouse.query("SELECT (SELECT count() FROM sales), (SELECT count() FROM sale_lines)")
    if (found.state, counted, lines) != (DONE, sales, sales * LINES):
        raise RuntimeError(f"the rebuild is {found.state} ({found.reason}), with {counted:,} sales and {lines:,} lines of {sales:,} sales")
    return {"seconds": seconds, "rate": sales / seconds}


async def _no_export(_: Rights) -> AsyncIterator[Sequence[Fact]]:
    """Nothing is read from the ledger here."""
    nothing: list[Sequence[Fact]] = []
    for part in nothing:
        yield part


async def measure_rebuild(servers: Servers, backend: str, *, sales: int, rounds: int) -> dict[str, Any]:
    """Publishes, then rebuilds again and again."""
    environment = {"BUS_URL": await servers.bus_url(backend)}
    publishing = await Worker.start("reports:publisher", {"sales": sales}, environment)
    try:
        await publishing.begin()
        published = await publishing.result()
    finally:
        publishing.kill()
    found = []
    for number in range(rounds):
        before = servers.cpu_seconds()
        worker = await Worker.start(
            "reports:rebuild", {"folder": str(servers.folder / f"rebuild-{backend}-{number}"), "sales": sales}, environment
        )
        try:
            await worker.begin()
            row = await worker.result()
        finally:
            worker.kill()
        after = servers.cpu_seconds()
        used = {"reporting": row["cpu_seconds"]} | {name: after[name] - before[name] for name in after}
        found.append({**row, "cpu_us": {name: value / sales * 1e6 for name, value in used.items()}})
    return {"sales": sales, "publish_rate": sales / published["seconds"], "rounds": found}


async def queries(signals: Signals, *, folder: str, lines: int, times: int) -> dict[str, Any]:
    """Times of the queries that boards and reports ask, over so many lines of a year."""
    async with _facts(folder) as clickhouse:
        await _fill(clickhouse, lines // LINES)
        # What was put in at once is merged for seconds after, on the cores that queries would have.
        while (await clickhouse.query("SELECT count() FROM system.merges"))[0][0]:  # noqa: ASYNC110 - tells nobody
            await asyncio.sleep(0.1)
        ((sales, counted, parts),) = await clickhouse.query(
            "SELECT (SELECT count() FROM sales), (SELECT count() FROM sale_lines),"
            " (SELECT count() FROM system.parts WHERE active AND table = 'sale_lines')"
        )
        await signals.ready()
        asking = _asking(clickhouse)
        took: dict[str, list[float]] = {name: [] for name in asking}
        for name, ask in asking.items():
            await ask()
            enough = time.monotonic() + LONGEST_QUERY_SECONDS
            while len(took[name]) < times and time.monotonic() < enough:
                began = time.monotonic()
                await ask()
                took[name].append((time.monotonic() - began) * 1000)
    return {
        "sales": sales,
        "lines": counted,
        "parts_of_lines": parts,
        "ms": {name: {"times": len(found), **percentiles(found)} for name, found in took.items()},
    }


async def measure_queries(servers: Servers, *, lines: int, times: int) -> dict[str, Any]:
    """Fills tables of their own and asks."""
    worker = await Worker.start("reports:queries", {"folder": str(servers.folder / "queries"), "lines": lines, "times": times})
    try:
        await worker.begin()
        return await worker.result()
    finally:
        worker.kill()


def _asking(clickhouse: ClickHouse) -> dict[str, Callable[[], Awaitable[object]]]:
    freshness, actor = Freshness(clickhouse), Actor("bench", frozenset({"admin"}), None)
    stores = [f"00000000-0000-0000-0000-{store:012x}" for store in range(1, STORES + 1)]
    after, year, month = LAST_DAY + timedelta(days=1), LAST_DAY - timedelta(days=DAYS - 1), LAST_DAY - timedelta(days=29)

    def report(metrics: Sequence[str], by: Sequence[str], begin: date, compare: str = "") -> Callable[[], Awaitable[object]]:
        sort = (Sort(metrics[0], "desc"),)
        asked = Asked(tuple(metrics), tuple(by), str(begin), str(after), compare=compare, sort=sort, limit=100)
        return lambda: run_query(clickhouse, freshness, actor, asked)

    return {
        f"live KPIs of a day, {STORES} stores": lambda: get_kpis(clickhouse, [StoreDay(each, str(LAST_DAY), "CNY") for each in stores]),
        "KPIs of a month by store": report(KEYS, ["store"], month),
        "KPIs of the year": report(KEYS, [], year),
        "KPIs of the year by month": report(KEYS, ["month"], year),
        "KPIs of the year by store": report(KEYS, ["store"], year),
        "KPIs of a month by day, beside the month before": report(KEYS, ["day"], month, "previous_period"),
        "sales and items of the year by category": report(["net_sales_minor", "items"], ["category"], year),
        "first 100 SKUs of the year": report(["net_sales_minor", "items"], ["sku"], year),
        "returning and repeat buyers of the year by month": report(["buyers", "returning_buyers", "repurchase_rate_bp"], ["month"], year),
    }


# One row for each sale, drawn from its number.
_DRAWN = f"""
SELECT
    toDate32({{begin:Date32}} + intDiv((number - {{first:UInt64}}) * {{days:UInt64}}, {{count:UInt64}})) AS business_day,
    toUUID(concat('00000000-0000-0000-0000-', leftPad(lower(hex(toUInt8(cityHash64(number, 1) % {STORES} + 1))), 12, '0'))) AS store_id,
    reinterpret(toUInt128(cityHash64(number, 2)) * 18446744073709551557 + number, 'UUID') AS sale_id,
    cityHash64(number, 3) % {BUYERS // 9 * 10} AS buyer,
    if(buyer < {BUYERS}, reinterpret(toUInt128(buyer + 1), 'UUID'), toUUID('00000000-0000-0000-0000-000000000000')) AS member_id,
    'demo' AS programme_id, 'CNY' AS currency, if(cityHash64(number, 4) % 5 = 0, 'web', 'store') AS channel,
    concat('E', toString(cityHash64(number, 5) % 300)) AS staff_code,
    toUInt64(toUnixTimestamp(toDateTime(business_day))) * 1000000 + number % 1000000 AS version, number AS sale
FROM numbers({{first:UInt64}}, {{count:UInt64}})
"""
_LINES = f"""
SELECT *, line_no, cityHash64(sale, line_no) AS draw, draw % {SKUS} AS item, toInt64(990 + cityHash64(item) % 99000) AS price,
    toDecimal64(1 + intDiv(draw, 65536) % 3, 6) AS units
FROM ({_DRAWN}) ARRAY JOIN range(1, {LINES + 1}) AS line_no
"""
_LINES_OF = f"""
INSERT INTO sale_lines (business_day, store_id, sale_id, line_no, member_id, programme_id, currency, channel, staff_code, sku, category,
    quantity, gross_minor, net_minor, payable_minor, points_earned, version)
SELECT business_day, store_id, sale_id, line_no, member_id, programme_id, currency, channel, staff_code, concat('SKU-', toString(item)),
    concat('category-', toString(item % {CATEGORIES})), units, price, price, price, intDiv(price, 100), version
FROM ({_LINES})
"""
# The lines are there, and tell the sums.
_SALES_OF = """
INSERT INTO sales (business_day, store_id, sale_id, till_id, member_id, programme_id, currency, channel, staff_code, sold_at, items,
    gross_minor, discount_minor, net_minor, points_spent_minor, payable_minor, points_earned, points_spent, version)
SELECT business_day, store_id, sale_id, store_id, any(member_id), 'demo', 'CNY', any(channel), any(staff_code),
    fromUnixTimestamp64Micro(toInt64(any(version)), 'UTC'), sum(quantity), sum(gross_minor), 0, sum(net_minor), 0, sum(payable_minor),
    sum(points_earned), 0, any(version)
FROM sale_lines
WHERE business_day >= {begin:Date32} AND business_day < {begin:Date32} + {days:UInt64}
GROUP BY business_day, store_id, sale_id
"""
_FIRST_OF = f"""
INSERT INTO first_purchases (member_id, first_day)
SELECT member_id, min(business_day) FROM ({_DRAWN}) WHERE buyer < {BUYERS} GROUP BY member_id
"""


async def _fill(clickhouse: ClickHouse, sales: int) -> None:
    """Months of before as the background leaves them, a part each; the last days in many parts, as they come in."""
    begin = LAST_DAY - timedelta(days=DAYS - 1)
    spans: list[tuple[date, int]] = []
    fresh = LAST_DAY - timedelta(days=FRESH_DAYS - 1)
    while begin < fresh:
        following = min((begin.replace(day=1) + timedelta(days=32)).replace(day=1), fresh)
        spans.append((begin, (following - begin).days))
        begin = following
    parts = [(day, days, sales * days // DAYS) for day, days in spans]
    left = sales - sum(count for _, _, count in parts)
    parts += [
        (fresh + timedelta(days=number * FRESH_DAYS // FRESH_PARTS), 1, left * (number + 1) // FRESH_PARTS - left * number // FRESH_PARTS)
        for number in range(FRESH_PARTS)
    ]
    first = 0
    for day, days, count in parts:
        parameters = {"begin": day, "days": days, "first": first, "count": count}
        for statement in (_LINES_OF, _FIRST_OF):
            await clickhouse.command(statement, parameters)
        first += count
    for day, days in [*spans, *((fresh + timedelta(days=number), 1) for number in range(FRESH_DAYS))]:
        await clickhouse.command(_SALES_OF, {"begin": day, "days": days})
