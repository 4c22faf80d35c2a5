"""The figures of a business day, store by store, for boards that show them live."""

from collections.abc import Sequence
from datetime import date, timedelta
from typing import NamedTuple

import msgspec

from kit.problems import FieldError, Refusal
from reporting.clickhouse import ClickHouse
from reporting.metrics.rules import METRICS
from reporting.queries.operations import fetch
from reporting.queries.rules import Filter, Query, Sort, compile_query, document_row

# Decided once, by the definitions of every report.
KEYS = ("net_sales_minor", "receipts", "average_receipt_minor", "items_per_receipt", "buyers", "returns_minor")
_BY = ("store", "currency")
_NOTHING = [0, 0, None, None, 0, 0]
_encoder = msgspec.json.Encoder()


class StoreDay(NamedTuple):
    """A business day of a store, whose money is in `currency`."""

    store_id: str
    business_day: str
    currency: str


async def get_kpis(clickhouse: ClickHouse, store_days: Sequence[StoreDay]) -> list[tuple[str, bytes]]:
    """Each store's id and the document of its figures, in the order given; zeros where nothing happened.

    The same figures are the same bytes. Raises Refusal (400, store_day_invalid).
    """
    figures: dict[tuple[str, str, str], list[object]] = {}
    stores: dict[str, set[str]] = {}
    for store_id, day, _ in store_days:
        stores.setdefault(day, set()).add(store_id)
    # Chains span a few zones: two days, at times three.
    for day, ids in stores.items():
        for row in await _figures_of(clickhouse, day, sorted(ids)):
            figures[day, str(row[0]), str(row[1])] = row[len(_BY) :]
    return [(each.store_id, _document(each, figures)) for each in store_days]


async def _figures_of(clickhouse: ClickHouse, day: str, stores: list[str]) -> list[list[object]]:
    try:
        begins = date.fromisoformat(day)
        ends = begins + timedelta(days=1)
    except (ValueError, OverflowError):
        detail = "A business day is a date, such as 2026-11-21."
        faults = [FieldError("/store_days", "store_day_invalid", detail)]
        raise Refusal("store_day_invalid", 400, "Not a business day", detail, faults) from None
    query = Query(
        metrics=tuple(METRICS[key] for key in KEYS),
        dimensions=_BY,
        from_day=begins,
        to_day=ends,
        compare="",
        filters=(Filter("store", "in", tuple(stores)),),
        sort=tuple(Sort(key, "asc") for key in _BY),
        # No store has facts in more than a few currencies.
        limit=len(stores) * 10,
        fingerprint="",
    )
    return [document_row(query, row) for row in await fetch(clickhouse, compile_query(query, None, begins))]


def _document(each: StoreDay, figures: dict[tuple[str, str, str], list[object]]) -> bytes:
    found = figures.get((each.business_day, each.store_id, each.currency), _NOTHING)
    return _encoder.encode(each._asdict() | dict(zip(KEYS, found, strict=True)))
