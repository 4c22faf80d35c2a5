from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reporting.clickhouse import ClickHouse
from reporting.native import NO_ID, ValueInvalid, block, millionths

KINDS: dict[str, tuple[list[Any], list[Any]]] = {
    "UUID": (["01a20229-28b0-7000-8417-4bbff4f4937d", ""], [UUID("01a20229-28b0-7000-8417-4bbff4f4937d"), UUID(NO_ID)]),
    "String": (["", "回头客" * 100], ["", "回头客" * 100]),
    "LowCardinality(String)": (["CNY", "CNY"], ["CNY", "CNY"]),
    "Date32": (["1900-01-01", "2299-12-31"], [date(1900, 1, 1), date(2299, 12, 31)]),
    "DateTime64(6, 'UTC')": ([0, 1_790_000_000_123_456], [datetime(1970, 1, 1), datetime(2026, 9, 21, 14, 13, 20, 123456)]),  # noqa: DTZ001  # read without a zone
    "Decimal(18, 6)": ([-1_500_000, 10**18 - 1], [Decimal("-1.500000"), Decimal("999999999999.999999")]),
    "Int64": ([-(2**63), 2**63 - 1], [-(2**63), 2**63 - 1]),
    "UInt64": ([0, 2**64 - 1], [0, 2**64 - 1]),
    "UInt32": ([0, 2**32 - 1], [0, 2**32 - 1]),
    "UInt16": ([0, 2**16 - 1], [0, 2**16 - 1]),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_values_come_out_as_they_went_in(empty_clickhouse: ClickHouse, kind: str) -> None:
    values, expected = KINDS[kind]
    await empty_clickhouse.command(f"CREATE TABLE t (n UInt16, v {kind}) ENGINE = MergeTree ORDER BY n")
    columns = {"n": "UInt16", "v": kind}
    await empty_clickhouse.insert("t", columns, block(columns, {"n": range(len(values)), "v": values}))
    assert [row[0] for row in await empty_clickhouse.query("SELECT v FROM t ORDER BY n")] == expected


@pytest.mark.parametrize(
    "kind, value",
    [
        ("UUID", "not an id"),
        ("UUID", "01a20229-28b0-7000-8417-4bbff4f4937"),
        ("UUID", "01a20229228b0-7000-8417-4bbff4f4937d"),
        ("UUID", "01a20229-28b0-7000-8417-4bbff4f4937g"),
        ("UUID", "01a20229-28b0-7000-8417- bbff4f4937d"),
        ("Date32", ""),
        ("Date32", "2026-02-30"),
        ("Date32", "1899-12-31"),
        ("Date32", "2300-01-01"),
        ("Int64", 2**63),
        ("UInt64", -1),
        ("UInt32", -1),
        ("UInt16", 2**16),
    ],
)
def test_what_does_not_fit_is_refused(kind: str, value: Any) -> None:
    with pytest.raises(ValueInvalid):
        block({"v": kind}, {"v": [value]})


def test_two_wrong_ids_do_not_make_up_for_each_other() -> None:
    # One digit too few and one too many: together they have as many as two ids.
    with pytest.raises(ValueInvalid):
        block({"v": "UUID"}, {"v": ["01a20229-28b0-7000-8417-4bbff4f4937", "01a20229-28b0-7000-8417-4bbff4f4937dd"]})


@given(st.decimals(min_value=Decimal("-999999999999.999999"), max_value=Decimal("999999999999.999999"), places=6))
def test_a_decimal_is_exact(number: Decimal) -> None:
    assert Decimal(millionths(str(number))) == number * 1_000_000


@pytest.mark.parametrize("text", ["", "x", "NaN", "Infinity", "1e400", "0.0000001", "1000000000000"])
def test_a_decimal_that_does_not_fit_is_refused(text: str) -> None:
    with pytest.raises(ValueInvalid):
        millionths(text)
