"""What may be asked: a refusal names the place and what is allowed; nothing is guessed."""

import base64
import itertools
import json
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest

from kit.problems import Refusal
from reporting.metrics.rules import METRICS
from reporting.queries.rules import (
    Asked,
    Filter,
    Query,
    Shift,
    Sort,
    add_months,
    check_query,
    compile_query,
    cursor_after,
    decimal_text,
    shift_of,
)
from services.reporting.tests.story import NEVER, counterparts

STORE = "01a2019c-3df7-7000-8508-6d75c89ca3e6"


def asked(**given: Any) -> Asked:
    return Asked(**({"metrics": ("receipts",), "dimensions": ("store",), "from_day": "2026-11-01", "to_day": "2026-12-01"} | given))


def refusal(**given: Any) -> Refusal:
    with pytest.raises(Refusal) as refused:
        check_query(asked(**given))
    return refused.value


@pytest.mark.parametrize(
    "given, pointer, says",
    [
        ({"metrics": ()}, "/metrics", "at least one"),
        ({"metrics": ("receipts", "profit")}, "/metrics/1", "net_sales_minor"),
        ({"metrics": ("receipts", "receipts")}, "/metrics/1", "once"),
        ({"dimensions": ("store", "city")}, "/dimensions/1", "category"),
        ({"dimensions": ("store", "store")}, "/dimensions/1", "once"),
        ({"from_day": "2026-11-31"}, "/from", "exists"),
        ({"from_day": "20261101"}, "/from", "such as"),
        ({"to_day": ""}, "/to", "exists"),
        ({"to_day": "2026-11-01"}, "/to", "after"),
        ({"to_day": "2056-11-01"}, "/to", "3660 days"),
        ({"from_day": "1960-01-01", "to_day": "1970-06-01"}, "/from", "1970"),
        ({"compare": "last_year"}, "/compare", "previous_year"),
        ({"filters": (Filter("city", "eq", ("x",)),)}, "/filters/0/field", "category"),
        ({"filters": (Filter("day", "eq", ("2026-11-01",)),)}, "/filters/0/field", "`from`"),
        ({"filters": (Filter("sku", "like", ("x",)),)}, "/filters/0/op", "not_in"),
        ({"filters": (Filter("sku", "eq", ("x", "y")),)}, "/filters/0/values", "exactly one"),
        ({"filters": (Filter("sku", "in", ()),)}, "/filters/0/values", "1 to 1000"),
        ({"filters": (Filter("sku", "in", ("x" * 201,)),)}, "/filters/0/values/0", "200"),
        ({"filters": (Filter("store", "in", (STORE, "S001")),)}, "/filters/0/values/1", "UUID"),
        ({"filters": (Filter("sku", "eq", ("x",)),) * 21}, "/filters", "20"),
        ({"sort": (Sort("items", "asc"),)}, "/sort/0/field", "store, receipts"),
        ({"sort": (Sort("receipts", "down"),)}, "/sort/0/order", "asc, desc"),
        ({"sort": (Sort("receipts", "asc"), Sort("receipts", "desc"))}, "/sort", "once"),
        ({"limit": 5001}, "/limit", "5000"),
        ({"limit": -1}, "/limit", "5000"),
    ],
)
def test_what_is_not_known_is_refused_by_its_place(given: dict[str, Any], pointer: str, says: str) -> None:
    refused = refusal(**given)
    assert (refused.status, refused.code) == (400, "report_query_invalid")
    (error,) = refused.errors
    assert error.pointer == pointer
    assert says in error.detail


@pytest.mark.parametrize(
    "metric, dimension",
    [
        *(("points_issued", key) for key in ("store", "category", "sku", "channel", "staff", "currency")),
        *(("new_members", key) for key in ("store", "sku")),
        ("average_receipt_minor", "category"),
        ("items_per_receipt", "sku"),
        ("repurchase_rate_bp", "day"),
        ("receipts", "programme"),
    ],
)
def test_a_figure_without_meaning_for_a_dimension_is_refused_with_the_reason(metric: str, dimension: str) -> None:
    refused = refusal(metrics=("active_members", metric), dimensions=(dimension,))
    assert (refused.status, refused.code) == (422, "figure_not_defined")
    error = refused.errors[-1]
    assert error.pointer == "/dimensions/0"
    assert error.detail == f"{metric} is not defined by {dimension}: {METRICS[metric].not_by[dimension]}."
    if dimension != "day":
        by_filter = refusal(metrics=(metric,), dimensions=(), filters=(Filter(dimension, "eq", (STORE,)),))
        assert by_filter.errors[0].pointer == "/filters/0/field"


@pytest.mark.parametrize(
    "given, shift, period",
    [
        # As many days.
        ({"from_day": "2026-11-10", "to_day": "2026-11-17"}, Shift(days=7), ("2026-11-03", "2026-11-10")),
        # Whole months: as many months, however long they are.
        ({"from_day": "2026-03-01", "to_day": "2026-04-01"}, Shift(months=1), ("2026-02-01", "2026-03-01")),
        ({"from_day": "2026-01-01", "to_day": "2026-04-01"}, Shift(months=3), ("2025-10-01", "2026-01-01")),
        # Weeks stay whole.
        ({"from_day": "2026-06-01", "to_day": "2026-07-01", "dimensions": ("week",)}, Shift(days=30), ("2026-05-02", "2026-06-01")),
        ({"compare": "previous_year"}, Shift(months=12), ("2025-11-01", "2025-12-01")),
        ({"compare": "previous_year", "from_day": "2028-02-29", "to_day": "2028-03-02"}, Shift(months=12), ("2027-02-28", "2027-03-02")),
        # 29 February has no counterpart a year before; 28 February has one, wherever the period ends.
        ({"compare": "previous_year", "from_day": "2024-02-28", "to_day": "2024-02-29"}, Shift(months=12), ("2023-02-28", "2023-03-01")),
        ({"compare": "previous_year", "from_day": "2024-02-01", "to_day": "2024-02-29"}, Shift(months=12), ("2023-02-01", "2023-03-01")),
        ({"compare": "previous_year", "from_day": "2024-02-01", "to_day": "2024-03-01"}, Shift(months=12), ("2023-02-01", "2023-03-01")),
        # 29 February counts on the 28th of the year after.
        ({"compare": "previous_year", "from_day": "2025-02-28", "to_day": "2025-03-01"}, Shift(months=12), ("2024-02-28", "2024-03-01")),
        ({"compare": "previous_year", "dimensions": ("week",)}, Shift(days=364), ("2025-11-02", "2025-12-02")),
    ],
)
def test_a_comparison_goes_back_by_days_months_or_weeks(given: dict[str, Any], shift: Shift, period: tuple[str, str]) -> None:
    query = check_query(asked(**({"compare": "previous_period"} | given)))
    assert shift_of(query) == shift
    assert (shift.back(query.from_day).isoformat(), shift.end_back(query.to_day).isoformat()) == period


@pytest.mark.parametrize("dimensions", [(), ("week",)])
@pytest.mark.parametrize("compare", ["previous_period", "previous_year"])
def test_every_day_of_a_comparison_counts_on_the_day_that_the_words_say(compare: str, dimensions: tuple[str, ...]) -> None:
    months = [date(year, month, 1) for year in (2023, 2024, 2025) for month in range(1, 13)]
    beginnings = [start - timedelta(days=back) for start in months if start.month < 4 for back in range(4)]
    lengths = [*range(1, 33), 60, 365, 366]
    periods = [(start, start + timedelta(days=length)) for start in beginnings for length in lengths]
    for first, end in periods + list(itertools.combinations(months[10:18], 2)):
        given = {"from_day": first.isoformat(), "to_day": end.isoformat(), "dimensions": dimensions}
        shift = shift_of(check_query(asked(compare=compare, **given)))
        expected = counterparts(first, end, compare, by_week="week" in dimensions)
        days = list(expected)
        assert (shift.back(first), shift.end_back(end)) == (days[0], days[-1] + timedelta(days=1)), (first, end)
        assert [max(shift.counterpart(day), first) for day in days] == list(expected.values()), (first, end)


def test_months_are_added_within_the_month() -> None:
    assert add_months(date(2026, 10, 31), 1) == date(2026, 11, 30)
    assert add_months(date(2026, 1, 31), -11) == date(2025, 2, 28)
    assert add_months(date(2027, 2, 28), 12) == date(2028, 2, 28)


def test_only_names_of_ours_and_no_values_are_in_a_statement() -> None:
    value = "a value of a caller's"
    query = check_query(asked(filters=(Filter("sku", "in", (value,)), Filter("staff", "not_in", (value,)))))
    statement = compile_query(query, frozenset({STORE}), NEVER)
    assert value not in statement.sql
    assert STORE not in statement.sql
    assert "2026" not in statement.sql
    assert statement.parameters["filter_0"] == [value]
    assert statement.parameters["scope"] == [STORE]


def page(**given: Any) -> tuple[Query, str]:
    query = check_query(asked(dimensions=("day",), metrics=("items",), **given))
    return query, cursor_after(query, (date(2026, 11, 2), Decimal(4), None, None))


def test_a_cursor_goes_on_after_its_row() -> None:
    query, cursor = page(sort=(Sort("items", "desc"),))
    following = check_query(asked(dimensions=("day",), metrics=("items",), sort=(Sort("items", "desc"),), cursor=cursor, limit=3))
    assert following.after == ("4", "2026-11-02")
    assert "after_0" in compile_query(following, None, NEVER).parameters
    assert query.fingerprint == following.fingerprint


@pytest.mark.parametrize(
    "of",
    [
        "1",
        "[]",
        "{}",
        '["x"]',
        '["{fingerprint}"]',
        '["{fingerprint}","x","y"]',
        '["{fingerprint}",1]',
        '["{fingerprint}","2026-02-30"]',
        '["{fingerprint}","0001-01-01"]',
        "\u00ff",
    ],
)
def test_a_cursor_that_was_made_up_is_refused(of: str) -> None:
    query, _ = page()
    made_up = base64.urlsafe_b64encode(of.replace("{fingerprint}", query.fingerprint).encode("latin-1")).decode()
    for cursor in (made_up, "!", "é"):
        refused = refusal(dimensions=("day",), metrics=("items",), cursor=cursor)
        assert (refused.status, refused.code, refused.errors[0].pointer) == (400, "cursor_invalid", "/cursor")


def test_a_refusal_is_plain_json() -> None:
    assert json.dumps([error.detail for error in refusal(metrics=("'; DROP TABLE sales",)).errors])


@pytest.mark.parametrize("value, text", [("4.000000", "4"), ("100", "100"), ("-0.355000", "-0.355"), ("0.000000", "0"), ("1E+3", "1000")])
def test_decimals_have_no_trailing_zeros(value: str, text: str) -> None:
    assert decimal_text(Decimal(value)) == text
