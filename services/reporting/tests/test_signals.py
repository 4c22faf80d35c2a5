"""What ClickHouse is asked is timed and counted, and whether it answers is said without waiting behind reports."""

import asyncio
from typing import Any

import pytest
from clickhouse_connect.driver.exceptions import DatabaseError

from kit import metrics
from kit.bus.interface import Bus
from reporting import clickhouse as module
from reporting.clickhouse import ClickHouse, ClickHouseUnavailable
from reporting.facts.consumers import FactsHandler
from reporting.native import block, rows_in
from services.reporting.tests.contents import consume_all
from services.reporting.tests.events import sale


def value(metric: metrics.AnyMetric, *labels: str, suffix: str = "") -> float:
    """What stands there now."""
    named = dict(zip((label.name for label in metric.labels), labels, strict=True))
    (family,) = metric.collector.collect()
    return sum(s.value for s in family.samples if s.labels == named and s.name == metric.name + suffix)


async def test_queries_and_inserts_are_timed_and_facts_counted(clickhouse: ClickHouse, bus: Bus) -> None:
    metrics.TABLE.declare(["sales", "sale_lines"])
    counted = [(metrics.CLICKHOUSE_DURATION, kind, "_count") for kind in ("query", "insert")]
    before = [value(metric, label, suffix=suffix) for metric, label, suffix in counted]
    facts = [value(metrics.FACTS_INSERTED, table) for table in ("sales", "sale_lines")]
    await bus.publish([sale(lines=[("A", "1", 100), ("B", "1", 200)])[1] for _ in range(3)])
    await consume_all(bus, FactsHandler(clickhouse))
    await clickhouse.query("SELECT 1")
    now = [value(metric, label, suffix=suffix) for metric, label, suffix in counted]
    assert all(new > old for new, old in zip(now, before, strict=True))
    inserted = [value(metrics.FACTS_INSERTED, table) for table in ("sales", "sale_lines")]
    assert [new - old for new, old in zip(inserted, facts, strict=True)] == [3, 6]


async def test_errors_are_counted_by_what_was_asked(clickhouse: ClickHouse) -> None:
    before = [value(metrics.CLICKHOUSE_ERRORS, kind) for kind in ("query", "insert")]
    with pytest.raises(DatabaseError):
        await clickhouse.query("SELECT no_such_column")
    with pytest.raises(DatabaseError):
        await clickhouse.insert("no_such_table", ["v"], block({"v": "UInt64"}, {"v": [1]}))
    assert [value(metrics.CLICKHOUSE_ERRORS, kind) - old for kind, old in zip(("query", "insert"), before, strict=True)] == [1, 1]


async def test_a_clickhouse_that_is_away_is_not_ready_and_one_that_is_busy_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FRESH_SECONDS", 0.0)
    begun, ends = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    class Slow:
        """A connection that works on a report until it is told to end."""

        def query(self, *_: Any, **__: Any) -> "Slow":
            loop.call_soon_threadsafe(begun.set)
            asyncio.run_coroutine_threadsafe(ends.wait(), loop).result()
            return self

        @property
        def result_rows(self) -> list[list[int]]:
            return [[1]]

        def close(self) -> None:
            """Nothing to close."""

    async with ClickHouse(Slow, readers=1) as busy:  # type: ignore[arg-type]  # what a report needs of a connection
        report = asyncio.create_task(busy.query("SELECT 1"))
        await begun.wait()
        assert await busy.answers() == ""
        ends.set()
        await report
        assert await busy.answers() == ""

    def refuse() -> Any:
        raise ConnectionRefusedError

    async with ClickHouse(refuse, readers=1) as away:
        assert await away.answers() == "away"
        with pytest.raises(ClickHouseUnavailable):
            await away.query("SELECT 1")


@pytest.mark.parametrize("rows", [0, 1, 127, 128, 300, 70_000])
def test_a_block_tells_how_many_rows_it_has(rows: int) -> None:
    assert rows_in(block({"v": "UInt64", "w": "UInt16"}, {"v": range(rows), "w": [0] * rows})) == rows
