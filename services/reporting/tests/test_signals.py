"""What ClickHouse is asked is timed and counted, and whether it answers is said without waiting behind reports."""

import asyncio
from typing import Any

import pytest
from clickhouse_connect.driver.exceptions import DatabaseError

from kit import metrics
from kit.bus.interface import Bus
from reporting import clickhouse as module
from reporting import disks
from reporting.clickhouse import ClickHouse, ClickHouseUnavailable
from reporting.disks import look, watch_disks
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


async def test_the_room_on_disks_with_facts_is_said(clickhouse: ClickHouse) -> None:
    await clickhouse.query("SELECT 1")
    await look(clickhouse)
    said = {str(row[0]): int(row[1]) for row in await clickhouse.query("SELECT name, total_space FROM system.disks")}
    assert {name: value(metrics.CLICKHOUSE_DISK_TOTAL, name) for name in said} == said
    assert all(0 < value(metrics.CLICKHOUSE_DISK_FREE, name) <= total for name, total in said.items())


async def test_a_look_at_disks_that_is_refused_is_said_once_and_made_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disks, "LOOK_SECONDS", 0.0)
    asked, enough = 0, asyncio.Event()

    class Refusing:
        """No right to look there, or not there at all."""

        async def query(self, _: str) -> None:
            nonlocal asked
            asked += 1
            if asked == 6:
                enough.set()
            raise ClickHouseUnavailable if asked % 2 else DatabaseError

    watching = asyncio.create_task(watch_disks(Refusing()))  # type: ignore[arg-type]  # what it needs of a ClickHouse
    await enough.wait()
    watching.cancel()
    assert [record.message for record in caplog.records] == ["the room on ClickHouse's disks cannot be read"]


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
