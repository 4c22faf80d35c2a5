"""Live figures are the figures of the reports (REP-01)."""

import json
from datetime import date

import pytest

from kit.ids import uuid7
from kit.problems import Refusal
from kit.tokens import Actor
from reporting.clickhouse import ClickHouse
from reporting.kpis.operations import KEYS, StoreDay, get_kpis
from reporting.queries.operations import Freshness, run_query
from reporting.queries.rules import Asked, Filter
from services.reporting.tests.story import random_story

ADMIN = Actor("test", frozenset({"admin"}), None)


async def test_live_figures_of_each_store_and_day_are_those_of_a_report(clickhouse: ClickHouse) -> None:
    story = random_story(21, date(2026, 11, 20), 3, currencies=("CNY", "GBP"))
    await story.tell(clickhouse)
    currencies = {trade.store: trade.currency for trade in story.sales}
    days = ["2026-11-20", "2026-11-21", "2026-11-22", "2026-11-23"]
    asked = [StoreDay(store, day, currency) for store, currency in currencies.items() for day in days]
    found = await get_kpis(clickhouse, asked)
    assert [store for store, _ in found] == [each.store_id for each in asked]
    for each, (_, body) in zip(asked, found, strict=True):
        following = date.fromisoformat(each.business_day).replace(day=int(each.business_day[-2:]) + 1).isoformat()
        query = Asked(KEYS, (), each.business_day, following, filters=(Filter("store", "eq", (each.store_id,)),))
        (row,) = json.loads(await run_query(clickhouse, Freshness(clickhouse), ADMIN, query))["rows"]
        assert json.loads(body) == each._asdict() | dict(zip(KEYS, row, strict=True))


async def test_a_store_without_facts_has_zeros_in_its_currency(clickhouse: ClickHouse) -> None:
    store = uuid7()
    ((store_id, body),) = await get_kpis(clickhouse, [StoreDay(store, "2026-11-21", "JPY")])
    assert store_id == store
    assert json.loads(body) == {
        "store_id": store,
        "business_day": "2026-11-21",
        "currency": "JPY",
        "net_sales_minor": 0,
        "receipts": 0,
        "average_receipt_minor": None,
        "items_per_receipt": None,
        "buyers": 0,
        "returns_minor": 0,
    }
    assert await get_kpis(clickhouse, []) == []


async def test_the_same_figures_are_the_same_bytes(clickhouse: ClickHouse) -> None:
    story = random_story(22, date(2026, 11, 21), 1)
    await story.tell(clickhouse)
    asked = [StoreDay(trade.store, "2026-11-21", "CNY") for trade in story.sales]
    before = await get_kpis(clickhouse, asked)
    await story.tell(clickhouse)
    assert await get_kpis(clickhouse, asked) == before


@pytest.mark.parametrize("day", ["", "tomorrow", "2026-02-30"])
async def test_a_day_that_does_not_exist_is_refused(clickhouse: ClickHouse, day: str) -> None:
    with pytest.raises(Refusal, match="store_day_invalid"):
        await get_kpis(clickhouse, [StoreDay(uuid7(), day, "CNY")])
