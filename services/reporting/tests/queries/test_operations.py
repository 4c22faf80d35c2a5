"""Every figure by every dimension is what its words say, over the facts as events told them (REP-01, REP-02, REP-04)."""

import itertools
import json
from collections.abc import Sequence
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest

from kit.ids import uuid7
from kit.problems import Refusal
from kit.tokens import Actor
from reporting.clickhouse import ClickHouse
from reporting.metrics.rules import DIMENSIONS, METRICS
from reporting.queries.operations import Freshness, run_query
from reporting.queries.rules import Asked, Filter, Sort
from services.reporting.tests.story import Joined, Line, Model, Move, Story, Trade, counterparts, random_story, told_as

EVERYWHERE = Actor("test", frozenset({"admin"}), None)
TIMES = {"day": "%Y-%m-%d", "week": "%Y-%m-%d", "month": "%Y-%m"}
A_YEAR = {"from_day": "2026-01-01", "to_day": "2027-01-01"}


async def ask(
    clickhouse: ClickHouse, metrics: Sequence[str], dimensions: Sequence[str] = (), actor: Actor = EVERYWHERE, **given: Any
) -> Any:
    asked = Asked(tuple(metrics), tuple(dimensions), **(A_YEAR | given))
    return json.loads(await run_query(clickhouse, Freshness(clickhouse), actor, asked))


def as_printed(dimensions: Sequence[str], bucket: Sequence[Any]) -> tuple[Any, ...]:
    """A bucket of the model as the API gives it."""
    return tuple(value.strftime(TIMES[key]) if key in TIMES else value or None for key, value in zip(dimensions, bucket, strict=True))


def nothing(metrics: Sequence[str]) -> list[Any]:
    """What a bucket shows in which none of it happened."""
    return [None if METRICS[key].can_be_null else "0" if key == "items" else 0 for key in metrics]


def assert_agrees(rows: list[list[Any]], model: Model, metrics: Sequence[str], dimensions: Sequence[str]) -> None:
    """The rows are the model's figures; a bucket that is only there for something else shows nothing."""
    found = {tuple(row[: len(dimensions)]): row[len(dimensions) :] for row in rows}
    assert len(found) == len(rows)
    for index, key in enumerate(metrics):
        expected = {as_printed(dimensions, bucket): value for bucket, value in model.figure(key, dimensions).items()}
        assert expected.keys() <= found.keys() or not dimensions, (dimensions, key)
        none = nothing([key])[0]
        assert {bucket: row[index] for bucket, row in found.items()} == {bucket: expected.get(bucket, none) for bucket in found}, (
            dimensions,
            key,
        )


@pytest.mark.parametrize("seed", range(4))
async def test_every_metric_by_every_dimension_agrees_with_the_model(clickhouse: ClickHouse, seed: int) -> None:
    story = random_story(seed, date(2026, 8, 20), 70)
    await story.tell(clickhouse)
    # It cuts off weeks and months at both ends.
    first, end = date(2026, 9, 3), date(2026, 10, 20)
    model = Model(story, first, end)
    splits = [
        (),
        *((key,) for key in DIMENSIONS),
        ("store", "day"),
        ("month", "tier"),
        ("week", "programme"),
        ("week", "month"),
        ("sku", "month"),
    ]
    for dimensions in splits:
        metrics = [key for key, metric in METRICS.items() if not set(dimensions) & metric.not_by.keys()]
        # All at once, and alone, where a statement has other parts.
        for chosen in (metrics, [metrics[seed * 5 % len(metrics)]]):
            answer = await ask(clickhouse, chosen, dimensions, from_day=first.isoformat(), to_day=end.isoformat(), limit=5000)
            assert_agrees(answer["rows"], model, chosen, dimensions)


@pytest.fixture
async def chain(clickhouse: ClickHouse) -> Story:
    """A store with the sale of the worked example, and another one."""
    lines = (
        Line("A100", "audio", Decimal(1), 18990, 19990),
        Line("B200", "case", Decimal(2), 19980, 19980),
        Line("C300", "film", Decimal(1), 6990, 6990),
    )
    here, there, member = uuid7(), uuid7(), uuid7()
    story = Story(
        sales=[
            Trade(date(2026, 11, 21), here, lines, member, channel="store", staff="E042"),
            Trade(date(2026, 10, 21), there, lines[:1], member),
            Trade(date(2026, 10, 31), there, lines[2:]),
        ],
        moves=[Move(date(2026, 11, 21), member, "demo", "earn", 449), Move(date(2026, 11, 21), member, "demo", "spend", -1000)],
        members=[Joined(member, "demo", date(2026, 3, 1))],
    )
    await story.tell(clickhouse)
    return story


async def test_the_worked_example_of_the_api_is_answered_as_printed(clickhouse: ClickHouse, chain: Story) -> None:
    store = chain.sales[0].store
    answer = await ask(
        clickhouse,
        ["net_sales_minor", "receipts", "items_per_receipt"],
        ["store", "day"],
        from_day="2026-11-01",
        to_day="2026-12-01",
        compare="previous_period",
        filters=(Filter("store", "in", (store,)),),
        sort=(Sort("net_sales_minor", "desc"),),
        limit=100,
    )
    assert answer == {
        "columns": [
            {"key": "store", "kind": "dimension"},
            {"key": "day", "kind": "dimension"},
            {"key": "net_sales_minor", "kind": "metric", "unit": "minor", "currency": "CNY"},
            {"key": "receipts", "kind": "metric", "unit": "count"},
            {"key": "items_per_receipt", "kind": "metric", "unit": "decimal"},
        ],
        "rows": [[store, "2026-11-21", 45960, 1, "4"]],
        "compare_rows": [],
        "as_of": "2026-11-21T10:03:12Z",
        "next_cursor": None,
    }


async def test_a_window_without_facts_has_no_rows_and_without_dimensions_one_of_nothing(clickhouse: ClickHouse) -> None:
    metrics = list(METRICS)
    empty = await ask(clickhouse, metrics, [])
    assert empty["rows"] == [nothing(metrics)]
    assert (empty["as_of"], empty["next_cursor"]) == (None, None)
    assert (await ask(clickhouse, ["net_sales_minor", "points_outstanding"], ["month"]))["rows"] == []


async def test_compare_rows_stand_under_the_values_of_the_rows_they_belong_to(clickhouse: ClickHouse, chain: Story) -> None:
    november: dict[str, Any] = {"from_day": "2026-11-01", "to_day": "2026-12-01", "compare": "previous_period"}
    by_month = await ask(clickhouse, ["net_sales_minor", "returning_buyers"], ["month"], **november)
    assert (by_month["rows"], by_month["compare_rows"]) == ([["2026-11", 45960, 1]], [["2026-11", 25980, 0]])
    # The 31st has no counterpart in November: it counts on the 30th.
    by_day = await ask(clickhouse, ["net_sales_minor"], ["day"], **november)
    assert (by_day["rows"], by_day["compare_rows"]) == ([["2026-11-21", 45960]], [["2026-11-21", 18990], ["2026-11-30", 6990]])
    # Sold then and not now: the comparison alone has it.
    there = chain.sales[1].store
    by_store = await ask(clickhouse, ["net_sales_minor"], ["store"], **november)
    assert by_store["compare_rows"] == [[there, 25980]]
    by_week = await ask(
        clickhouse, ["net_sales_minor"], ["week"], from_day="2026-11-16", to_day="2026-11-23", compare="previous_period", limit=1
    )
    assert (by_week["rows"], by_week["compare_rows"]) == ([["2026-11-16", 45960]], [])
    then = await ask(clickhouse, ["receipts"], ["week"], from_day="2027-11-15", to_day="2027-11-29", compare="previous_year")
    assert (then["rows"], then["compare_rows"]) == ([], [["2027-11-15", 1]])


@pytest.mark.parametrize("compare", ["previous_period", "previous_year"])
async def test_a_comparison_is_the_figures_of_the_other_period(clickhouse: ClickHouse, compare: str) -> None:
    story = random_story(11, date(2026, 1, 1), 90)
    await story.tell(clickhouse)
    by = "tier" if compare == "previous_period" else "store"
    metrics = [key for key, metric in METRICS.items() if by not in metric.not_by]
    window, other = (
        ((date(2026, 2, 1), date(2026, 3, 1)), (date(2026, 1, 1), date(2026, 2, 1)))
        if compare == "previous_period"
        else ((date(2027, 1, 1), date(2027, 4, 1)), (date(2026, 1, 1), date(2026, 4, 1)))
    )
    answer = await ask(clickhouse, metrics, [by], from_day=window[0].isoformat(), to_day=window[1].isoformat(), compare=compare, limit=5000)
    assert_agrees(answer["compare_rows"], Model(story, *other), metrics, [by])


@pytest.mark.parametrize(
    "compare, first, end",
    [
        ("previous_year", date(2024, 2, 28), date(2024, 2, 29)),
        ("previous_year", date(2024, 2, 21), date(2024, 2, 29)),
        ("previous_year", date(2024, 2, 21), date(2024, 3, 5)),
        ("previous_year", date(2024, 2, 29), date(2024, 3, 3)),
        ("previous_year", date(2025, 2, 21), date(2025, 3, 1)),
        ("previous_year", date(2025, 2, 28), date(2025, 3, 3)),
        ("previous_period", date(2024, 2, 1), date(2024, 3, 1)),
        ("previous_period", date(2024, 3, 1), date(2024, 4, 1)),
        ("previous_period", date(2024, 2, 1), date(2024, 2, 29)),
    ],
)
async def test_a_comparison_across_a_leap_day_or_months_of_other_lengths_is_the_models(
    clickhouse: ClickHouse, compare: str, first: date, end: date
) -> None:
    days = counterparts(first, end, compare)
    beginning = min(days) - timedelta(days=3)
    story = random_story(1, beginning, len(days) + 6)
    await story.tell(clickhouse)
    model = Model(told_as(story, days), first, end)
    given: dict[str, Any] = {"from_day": first.isoformat(), "to_day": end.isoformat(), "compare": compare, "limit": 5000}
    for dimensions in (["day"], ["month", "store"], ["month"]):
        # A day of the period that no day counts on has no row, though points are outstanding on it too.
        metrics = [key for key, metric in METRICS.items() if not set(dimensions) & metric.not_by.keys() and key != "points_outstanding"]
        answer = await ask(clickhouse, metrics, dimensions, **given)
        assert_agrees(answer["compare_rows"], model, metrics, dimensions)
    held = await ask(clickhouse, ["points_outstanding"], ["day"], **given)
    expected = model.figure("points_outstanding", ["day"])
    assert [tuple(row) for row in held["compare_rows"]] == [
        (day.isoformat(), expected[day,]) for day in sorted(set(days.values())) if (day,) in expected
    ]


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("key", ["average_receipt_minor", "items", "day", "channel"])
async def test_pages_together_are_the_whole_and_so_are_their_compare_rows(clickhouse: ClickHouse, key: str, order: str) -> None:
    story = random_story(5, date(2026, 9, 1), 60)
    await story.tell(clickhouse)
    metrics, dimensions = ["average_receipt_minor", "items", "returns_minor"], ["day", "channel"]
    given: dict[str, Any] = {
        "from_day": "2026-10-01",
        "to_day": "2026-10-31",
        "compare": "previous_period",
        "sort": (Sort(key, order),),
    }
    whole = await ask(clickhouse, metrics, dimensions, **given)
    rows, compared, sizes = [], [], []
    cursor: str | None = ""
    while cursor is not None:
        page = await ask(clickhouse, metrics, dimensions, limit=4, cursor=cursor, **given)
        rows += page["rows"]
        compared += page["compare_rows"]
        sizes.append(len(page["rows"]))
        cursor = page["next_cursor"]
    assert rows == whole["rows"]
    assert sorted(map(str, compared)) == sorted(map(str, whole["compare_rows"]))
    assert set(sizes[:-1]) == {4}
    column = (dimensions + metrics).index(key)
    values = [row[column] for row in rows if row[column] is not None]
    numbers = [Decimal(value) if key == "items" else value for value in values]
    assert numbers == sorted(numbers, reverse=order == "desc")


@pytest.mark.parametrize("metrics", [["items", "buyers"], ["items_per_receipt"]])
@pytest.mark.parametrize("dimension", ["channel", "month"])
async def test_figures_other_than_money_come_in_pages_too(clickhouse: ClickHouse, metrics: list[str], dimension: str) -> None:
    await random_story(6, date(2026, 9, 1), 60).tell(clickhouse)
    whole = await ask(clickhouse, metrics, [dimension])
    pages = []
    cursor: str | None = ""
    while cursor is not None:
        page = await ask(clickhouse, metrics, [dimension], limit=1, cursor=cursor)
        pages += page["rows"]
        cursor = page["next_cursor"]
    assert pages == whole["rows"]


@pytest.mark.usefixtures("chain")
async def test_a_cursor_of_another_query_is_refused(clickhouse: ClickHouse) -> None:
    page = await ask(clickhouse, ["receipts"], ["day"], limit=1)
    for given in ({"from_day": "2026-02-01"}, {"sort": (Sort("receipts", "asc"),)}):
        with pytest.raises(Refusal) as refused:
            await ask(clickhouse, ["receipts"], ["day"], limit=1, cursor=page["next_cursor"], **given)
        assert (refused.value.code, refused.value.errors[0].pointer) == ("cursor_invalid", "/cursor")


async def test_money_of_several_currencies_is_never_summed(clickhouse: ClickHouse) -> None:
    story = random_story(3, date(2026, 9, 1), 60, currencies=("CNY", "GBP"))
    await story.tell(clickhouse)
    with pytest.raises(Refusal) as refused:
        await ask(clickhouse, ["receipts", "net_sales_minor"], ["month"])
    assert (refused.value.status, refused.value.code, refused.value.errors[0].pointer) == (422, "several_currencies", "/metrics/1")
    assert "CNY, GBP" in refused.value.detail
    # A filter that leaves several is none.
    with pytest.raises(Refusal, match="several_currencies"):
        await ask(clickhouse, ["net_sales_minor"], filters=(Filter("currency", "in", ("CNY", "GBP")),))
    by_currency = await ask(clickhouse, ["net_sales_minor"], ["currency"])
    assert [row[0] for row in by_currency["rows"]] == ["CNY", "GBP"]
    assert "currency" not in by_currency["columns"][1]
    of_one = await ask(clickhouse, ["net_sales_minor"], filters=(Filter("currency", "eq", ("GBP",)),))
    assert of_one["columns"][0]["currency"] == "GBP"
    assert of_one["rows"] == [[by_currency["rows"][1][1]]]
    assert (await ask(clickhouse, ["receipts", "items"], ["month"]))["rows"]


@pytest.mark.parametrize("op", ["in", "not_in"])
@pytest.mark.parametrize("field", ["store", "category", "sku", "tier", "channel", "staff"])
async def test_a_filter_leaves_the_rows_of_its_values(clickhouse: ClickHouse, field: str, op: str) -> None:
    story = random_story(8, date(2026, 9, 1), 60)
    await story.tell(clickhouse)
    metrics = [key for key, metric in METRICS.items() if field not in metric.not_by]
    whole = (await ask(clickhouse, metrics, [field]))["rows"]
    chosen = [whole[0][0] or "", whole[-1][0] or ""]
    found = (await ask(clickhouse, metrics, [field], filters=(Filter(field, op, tuple(chosen)),)))["rows"]
    assert found == [row for row in whole if ((row[0] or "") in chosen) is (op == "in")]


async def test_a_key_of_some_stores_sees_only_theirs(clickhouse: ClickHouse) -> None:
    story = random_story(9, date(2026, 9, 1), 60)
    await story.tell(clickhouse)
    store = story.sales[0].store
    scoped = Actor("branch", frozenset({"admin"}), frozenset({store}))
    metrics = [key for key, metric in METRICS.items() if not metric.is_chain_wide]
    whole = (await ask(clickhouse, metrics, ["store"]))["rows"]
    assert (await ask(clickhouse, metrics, ["store"], actor=scoped))["rows"] == [row for row in whole if row[0] == store]
    others = tuple({row[0] for row in whole} - {store})
    assert (await ask(clickhouse, metrics, ["store"], actor=scoped, filters=(Filter("store", "in", others),)))["rows"] == []
    for key in METRICS.keys() - set(metrics):
        with pytest.raises(Refusal) as refused:
            await ask(clickhouse, ["receipts", key], [], actor=scoped)
        assert (refused.value.status, refused.value.errors[0].pointer) == (403, "/metrics/1")
        # A name stays as it is written, also where a sentence begins with it.
        assert refused.value.detail.startswith(f"{key} is of all stores together")


async def test_facts_that_come_again_count_once(clickhouse: ClickHouse, chain: Story) -> None:
    once = {key: (await ask(clickhouse, [key]))["rows"] for key in METRICS}
    for _ in range(2):
        await chain.tell(clickhouse)
    assert {key: (await ask(clickhouse, [key]))["rows"] for key in METRICS} == once


@pytest.mark.usefixtures("chain")
async def test_values_are_bound_not_written_into_the_statement(clickhouse: ClickHouse) -> None:
    odd = ("') OR 1=1 --", "{from:Date32}", "\\'; DROP TABLE sales", "%s", "门店")
    for field, op in itertools.product(["channel", "sku", "staff", "category", "tier"], ["in", "not_in"]):
        answer = await ask(clickhouse, ["receipts"], filters=(Filter(field, op, odd),))
        assert answer["rows"] == [[0 if op == "in" else 3]]
