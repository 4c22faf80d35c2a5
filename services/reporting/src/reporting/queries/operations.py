"""Answers report queries."""

from datetime import UTC, date, datetime, timedelta

import msgspec
from clickhouse_connect.driver.exceptions import DatabaseError

from kit.problems import Refusal
from kit.tokens import Actor
from reporting.clickhouse import ClickHouse
from reporting.metrics.rules import DIMENSIONS, METRICS, Words
from reporting.queries.rules import (
    Asked,
    Query,
    Row,
    Statement,
    check_currencies,
    check_query,
    check_scope,
    compile_comparison,
    compile_query,
    cursor_after,
    document_row,
)

# No report may take the machine from the facts that come in.
LIMITS = {"max_execution_time": 60, "max_memory_usage": 4 * 1024**3, "enable_extended_results_for_datetime_functions": 1}
# How the engine says that a limit was reached.
_LIMIT_CODES = ("TIMEOUT_EXCEEDED", "MEMORY_LIMIT_EXCEEDED")
_RECORDED = ("sales", "returns", "points_moves", "members")
_NEWEST = " UNION ALL ".join(f"SELECT max(version) AS newest FROM {table} WHERE version >= {{known:UInt64}}" for table in _RECORDED)
_NEWEST = f"SELECT max(newest) FROM ({_NEWEST})"
_encoder = msgspec.json.Encoder()


async def run_query(clickhouse: ClickHouse, freshness: "Freshness", actor: Actor, asked: Asked) -> bytes:
    """The document of a report query, over the facts of the stores that the actor may see.

    Raises:
        Refusal: see `check_query`, `check_scope` and `check_currencies`; 422 report_too_large.
    """
    query = check_query(asked)
    check_scope(query, actor.stores)
    # Before the figures, so that they are at least that new.
    as_of = await freshness.newest()
    # A day ends last at UTC-12, and began first at UTC+14.
    known_until = as_of.date() + timedelta(days=1) if as_of else date.min
    found = await fetch(clickhouse, compile_query(query, actor.stores, known_until))
    rows, more = found[: query.limit], len(found) > query.limit
    compared: list[Row] = []
    if query.compare:
        statement = compile_comparison(query, actor.stores, known_until, rows, is_last_page=not more)
        compared = await fetch(clickhouse, statement)
    currency = _currency(query, [*rows[:1], *compared[:1]])
    return _encoder.encode(
        {
            "columns": _columns(query, currency),
            "rows": [document_row(query, row) for row in rows],
            "compare_rows": [document_row(query, row) for row in compared],
            "as_of": rfc3339(as_of) if as_of else None,
            "next_cursor": cursor_after(query, rows[-1]) if more else None,
        }
    )


def list_metrics() -> bytes:
    """The document of every definition."""

    def words(given: Words) -> dict[str, str]:
        return given._asdict()

    metrics = [
        {
            "key": metric.key,
            "unit": metric.unit,
            "name": words(metric.name),
            "definition": words(metric.meaning),
            "refunds": words(metric.refunds),
            "day": words(metric.day),
            "sources": metric.source,
            "dimensions": metric.dimensions,
            "not_by": [{"dimension": key, "reason": reason} for key, reason in metric.not_by.items()],
        }
        for metric in METRICS.values()
    ]
    dimensions = [
        {"key": each.key, "name": words(each.name), "definition": words(each.meaning), "filterable": each.filterable}
        for each in DIMENSIONS.values()
    ]
    return _encoder.encode({"items": metrics, "dimensions": dimensions, "next_cursor": None})


class Freshness:
    """Tells up to when facts are in: when the latest of them was recorded by its owner."""

    def __init__(self, clickhouse: ClickHouse) -> None:
        self._clickhouse = clickhouse
        self._known = 0

    async def newest(self) -> datetime | None:
        """When that was; None while there is no fact."""
        found = await self._at_least(self._known)
        if not found and self._known:
            # The facts were made anew from less.
            found = await self._at_least(0)
        self._known = found
        return datetime.fromtimestamp(found // 1_000_000, UTC) + timedelta(microseconds=found % 1_000_000) if found else None

    async def _at_least(self, known: int) -> int:
        # No version replaces a later one, so the plain rows tell as much as the exact ones; an index leads to those that are new.
        ((newest,),) = await self._clickhouse.query(_NEWEST, {"known": known}, {"final": 0})
        return int(newest)


async def fetch(clickhouse: ClickHouse, statement: Statement) -> list[Row]:
    """The rows of a statement. Raises Refusal (422, report_too_large)."""
    try:
        return [tuple(row) for row in await clickhouse.query(statement.sql, statement.parameters, LIMITS)]
    except DatabaseError as error:
        if any(code in str(error) for code in _LIMIT_CODES):
            detail = "It takes too long or too much memory: ask for fewer days, fewer dimensions or with a filter."
            raise Refusal("report_too_large", 422, "The report is too large", detail) from None
        raise


def rfc3339(at: datetime) -> str:
    """An instant as the API writes it."""
    return at.isoformat().replace("+00:00", "Z")


def _currency(query: Query, rows: list[Row]) -> str | None:
    """The currency of the money in both periods. The last two columns of every row say it of the whole."""
    known = [code for row in rows for code in row[-2:] if code is not None]
    return check_currencies(query, min(known, default=None), max(known, default=None))


def _columns(query: Query, currency: str | None) -> list[dict[str, str]]:
    columns = [{"key": key, "kind": "dimension"} for key in query.dimensions]
    for metric in query.metrics:
        of_money = {"currency": currency} if metric.unit == "minor" and currency else {}
        columns.append({"key": metric.key, "kind": "metric", "unit": metric.unit, **of_money})
    return columns
