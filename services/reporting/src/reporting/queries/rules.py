"""A report query: what may be asked, and the one statement that answers it.

Names are only those of `reporting.metrics`; every value of a caller is bound as a parameter. Each source of facts is one SELECT by the
dimensions; their buckets are put together and the metrics are worked out over them.

Comparison: every day of the period before has a counterpart in the period asked for, and its facts stand in the counterpart's bucket. So
a compare row has the dimension values of the row it belongs to. `previous_period` goes back by as many days as the period has, or, when
that is whole months and weeks are not asked for, by as many months; `previous_year` by twelve months, with weeks by 52 weeks. A day that
the month of the counterpart does not have counts on that month's last day. A period that begins on 29 February is compared from 28 February
on, which counts on its first day.
"""

import base64
import binascii
import hashlib
from calendar import monthrange
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from kit.problems import FieldError, Refusal
from reporting.metrics.rules import DIMENSIONS, FIGURES, GOODS, ITEMS_PER_RECEIPT_DECIMALS, METRICS, TIMES, Figure, Metric, Source

LONGEST_PERIOD_DAYS = 3660
EARLIEST, LATEST = date(1970, 1, 1), date(2200, 1, 1)
DEFAULT_LIMIT, LARGEST_LIMIT = 500, 5000
MOST_FILTERS, MOST_VALUES, LONGEST_VALUE = 20, 1000, 200
OPERATORS = {"eq": "IN", "in": "IN", "not_in": "NOT IN"}
ORDERS = ("asc", "desc")
COMPARISONS = ("previous_period", "previous_year")
YEAR_MONTHS, YEAR_OF_WEEKS_DAYS = 12, 364
DECIMAL_FIGURES = frozenset({"items_sold", "items_returned"})

Row = tuple[Any, ...]


class Filter(NamedTuple):
    """Only facts whose `field` is, or is not, one of the values."""

    field: str
    op: str
    values: tuple[str, ...]


class Sort(NamedTuple):
    """By which column, and which way."""

    field: str
    order: str


class Asked(NamedTuple):
    """A query as it came, unchecked."""

    metrics: tuple[str, ...]
    dimensions: tuple[str, ...]
    from_day: str
    to_day: str
    compare: str = ""
    filters: tuple[Filter, ...] = ()
    sort: tuple[Sort, ...] = ()
    limit: int = 0
    cursor: str = ""


@dataclass(frozen=True, slots=True)
class Query:
    """A query that makes sense. `sort` ends in every dimension, so that rows have one order; `after` is where the page before ended."""

    metrics: tuple[Metric, ...]
    dimensions: tuple[str, ...]
    from_day: date
    to_day: date
    compare: str
    filters: tuple[Filter, ...]
    sort: tuple[Sort, ...]
    limit: int
    fingerprint: str
    after: tuple[int | str, ...] = ()

    @property
    def asks_for_money(self) -> bool:
        """Whether currencies matter to it."""
        return any(metric.unit == "minor" for metric in self.metrics)


class Statement(NamedTuple):
    """SQL and its parameters. The columns are the dimensions, the metrics, then the least and the greatest currency."""

    sql: str
    parameters: dict[str, object]


# --- What may be asked -------------------------------------------------------------------------------------------------------------


def check_query(asked: Asked) -> Query:
    """The query, when it makes sense.

    Raises:
        Refusal: 400 report_query_invalid, cursor_invalid; 422 figure_not_defined.
    """
    faults: list[FieldError] = []
    _check_names("metrics", asked.metrics, METRICS, faults)
    if not asked.metrics:
        faults.append(FieldError("/metrics", "missing", "Name at least one metric."))
    _check_names("dimensions", asked.dimensions, DIMENSIONS, faults)
    from_day, to_day = check_day("/from", asked.from_day, faults), check_day("/to", asked.to_day, faults)
    check_order(from_day, to_day, faults)
    if from_day and to_day and (to_day - from_day).days > LONGEST_PERIOD_DAYS:
        faults.append(FieldError("/to", "out_of_range", f"A query spans at most {LONGEST_PERIOD_DAYS} days."))
    if asked.compare and asked.compare not in COMPARISONS:
        faults.append(_unknown("/compare", asked.compare, COMPARISONS))
    _check_filters(asked.filters, faults)
    columns = asked.dimensions + asked.metrics
    for index, sort in enumerate(asked.sort):
        if sort.field not in columns:
            faults.append(FieldError(f"/sort/{index}/field", "unknown_name", f"Must be a column of this query: {', '.join(columns)}."))
        if sort.order not in ORDERS:
            faults.append(_unknown(f"/sort/{index}/order", sort.order, ORDERS))
    if len({sort.field for sort in asked.sort}) < len(asked.sort):
        faults.append(FieldError("/sort", "repeated", "Name each column once."))
    if not 0 <= asked.limit <= LARGEST_LIMIT:
        faults.append(FieldError("/limit", "out_of_range", f"Must be between 1 and {LARGEST_LIMIT}."))
    if faults or from_day is None or to_day is None:
        raise Refusal("report_query_invalid", 400, "The report query is not valid", "Correct what `errors` names.", faults)
    metrics = tuple(METRICS[key] for key in asked.metrics)
    _check_meaning(metrics, asked)
    named = {sort.field for sort in asked.sort}
    order = asked.sort + tuple(Sort(key, "asc") for key in asked.dimensions if key not in named)
    fingerprint = _fingerprint(asked)
    after = _position(asked.cursor, fingerprint, order)
    limit = asked.limit or DEFAULT_LIMIT
    return Query(metrics, asked.dimensions, from_day, to_day, asked.compare, asked.filters, order, limit, fingerprint, after)


def check_scope(query: Query, stores: frozenset[str] | None) -> None:
    """Raises Refusal (403) when a figure of the whole chain is asked for by somebody who may see only some stores."""
    if stores is None:
        return
    detail = "is of all stores together: ask with a key of all stores, or leave it out."
    faults = [
        FieldError(f"/metrics/{index}", "all_stores_needed", f"{metric.key} {detail}")
        for index, metric in enumerate(query.metrics)
        if metric.is_chain_wide
    ]
    if faults:
        raise Refusal("all_stores_needed", 403, "Not allowed", faults[0].detail, faults)


def check_currencies(query: Query, least: str | None, greatest: str | None) -> str | None:
    """The one currency of the money in a result whose currencies range from `least` to `greatest`; None: no money, or by currency.

    Raises:
        Refusal: 422 several_currencies, when sums would mix them.
    """
    if least is None or least == greatest or not query.asks_for_money:
        return least if query.asks_for_money else None
    if "currency" in query.dimensions:
        return None
    detail = f"Money of several currencies ({least}, {greatest}) does not add up: add the dimension `currency`, or a filter on one of them."
    faults = [
        FieldError(f"/metrics/{index}", "several_currencies", detail) for index, each in enumerate(query.metrics) if each.unit == "minor"
    ]
    raise Refusal("several_currencies", 422, "Several currencies", detail, faults)


def _check_names(name: str, keys: tuple[str, ...], known: Iterable[str], faults: list[FieldError]) -> None:
    for index, key in enumerate(keys):
        if key not in known:
            faults.append(_unknown(f"/{name}/{index}", key, known))
        elif key in keys[:index]:
            faults.append(FieldError(f"/{name}/{index}", "repeated", "Name it once."))


def _unknown(pointer: str, given: str, known: Iterable[str]) -> FieldError:
    return FieldError(pointer, "unknown_name", f"{given[:60]!r} is not known here; allowed: {', '.join(known)}.")


def check_day(pointer: str, text: str, faults: list[FieldError]) -> date | None:
    """The day that a text says; None, with what is wrong added to `faults`, if it says none between `EARLIEST` and `LATEST`."""
    try:
        day = date.fromisoformat(text)
    except ValueError:
        day = None
    # Python also reads other forms of ISO 8601.
    if day is None or day.isoformat() != text:
        faults.append(FieldError(pointer, "invalid_format", "Must be a date that exists, such as 2026-11-01."))
        return None
    if not EARLIEST <= day <= LATEST:
        faults.append(FieldError(pointer, "out_of_range", f"Must be between {EARLIEST} and {LATEST}."))
        return None
    return day


def check_order(from_day: date | None, to_day: date | None, faults: list[FieldError]) -> None:
    """Adds to `faults` that a period holds no day. One without a bound does."""
    if from_day and to_day and not from_day < to_day:
        faults.append(FieldError("/to", "out_of_range", "Must be after `from`: `from` is included, `to` is not."))


def _check_filters(filters: tuple[Filter, ...], faults: list[FieldError]) -> None:
    filterable = [key for key, dimension in DIMENSIONS.items() if dimension.filterable]
    if len(filters) > MOST_FILTERS:
        faults.append(FieldError("/filters", "out_of_range", f"At most {MOST_FILTERS} filters."))
    for index, (field, op, values) in enumerate(filters):
        at = f"/filters/{index}"
        if field in TIMES:
            faults.append(FieldError(f"{at}/field", "unknown_name", "Days are chosen by `from` and `to`."))
        elif field not in filterable:
            faults.append(_unknown(f"{at}/field", field, filterable))
        if op not in OPERATORS:
            faults.append(_unknown(f"{at}/op", op, OPERATORS))
        if not values or (op == "eq" and len(values) != 1) or len(values) > MOST_VALUES:
            expected = "exactly one value" if op == "eq" else f"1 to {MOST_VALUES} values"
            faults.append(FieldError(f"{at}/values", "out_of_range", f"Give {expected}."))
            continue
        for place, value in enumerate(values):
            if field == "store" and not _is_uuid(value):
                faults.append(FieldError(f"{at}/values/{place}", "invalid_format", "Must be a store's id (UUID)."))
            elif len(value) > LONGEST_VALUE or "\0" in value:
                faults.append(FieldError(f"{at}/values/{place}", "out_of_range", f"Must have at most {LONGEST_VALUE} characters."))


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False


def _check_meaning(metrics: tuple[Metric, ...], asked: Asked) -> None:
    named = [(f"/dimensions/{index}", key) for index, key in enumerate(asked.dimensions)]
    named += [(f"/filters/{index}/field", each.field) for index, each in enumerate(asked.filters)]
    faults = [
        FieldError(pointer, "figure_not_defined", f"{metric.key} is not defined by {key}: {metric.not_by[key]}.")
        for pointer, key in named
        for metric in metrics
        if key in metric.not_by
    ]
    if faults:
        detail = f"{faults[0].detail} Ask for it without, or for another figure; GET /v1/reports/metrics tells what goes together."
        raise Refusal("figure_not_defined", 422, "A figure has no meaning for a dimension", detail, faults)


# --- Pages -------------------------------------------------------------------------------------------------------------------------


def _fingerprint(asked: Asked) -> str:
    """Tells a cursor of this query from one of another."""
    return hashlib.sha256(msgspec.json.encode(asked._replace(cursor="", limit=0))).hexdigest()[:16]


def _position(cursor: str, fingerprint: str, sort: tuple[Sort, ...]) -> tuple[int | str, ...]:
    if not cursor:
        return ()
    try:
        of, *values = msgspec.json.decode(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)), type=tuple[str | int, ...])
        keys = _order_keys(sort)
        # What somebody made up must not reach the statement with values that it cannot take.
        fits = of == fingerprint and all(key.takes(value) for key, value in zip(keys, values, strict=True))
    except (binascii.Error, msgspec.MsgspecError, ValueError, ArithmeticError):
        fits = False
    if not fits:
        detail = "Send the next_cursor of the page before with the same query, or none to begin."
        raise Refusal("cursor_invalid", 400, "Cursor not valid", detail, [FieldError("/cursor", "cursor_invalid", detail)])
    return tuple(values)


def cursor_after(query: Query, row: Row) -> str:
    """Where the page that ends with `row` (as the statement gave it) is gone on from."""
    places = {key: index for index, key in enumerate(_columns(query))}
    values: list[object] = []
    for key, _ in query.sort:
        value = row[places[key]]
        if key in METRICS and METRICS[key].can_be_null:
            values.append(int(value is None))
        values.append(int(value or 0) if isinstance(value, int | None) else str(value))
    return base64.urlsafe_b64encode(msgspec.json.encode([query.fingerprint, *values])).decode().rstrip("=")


class _OrderKey(NamedTuple):
    sql: str
    kind: str
    order: str

    def takes(self, value: str | int) -> bool:
        """Whether a value fits the kind. Raises ValueError or ArithmeticError for some that do not."""
        match self.kind, value:
            case "Int64" | "UInt8", int():
                return -(2**63) <= value < 2**63 if self.kind == "Int64" else value in (0, 1)
            case "Date32", str():
                return EARLIEST.year - 1 <= date.fromisoformat(value).year <= LATEST.year
            case "String", str():
                return "\0" not in value
            case "Decimal(38, 6)", str():
                return abs(Decimal(value)) < 10**32
            case _:
                return False


def _order_keys(sort: tuple[Sort, ...]) -> list[_OrderKey]:
    """What rows are ordered by. A figure that is null comes last, whichever way it is sorted."""
    keys: list[_OrderKey] = []
    for key, order in sort:
        if key not in METRICS:
            keys.append(_OrderKey(f"k_{key}", "Date32" if key in TIMES else "String", order))
            continue
        column = f"m_{key}"
        if METRICS[key].can_be_null:
            keys.append(_OrderKey(f"isNull({column})", "UInt8", "asc"))
            column = f"ifNull({column}, 0)"
        keys.append(_OrderKey(column, "Decimal(38, 6)" if key == "items" else "Int64", order))
    return keys


def _columns(query: Query) -> tuple[str, ...]:
    return query.dimensions + tuple(metric.key for metric in query.metrics)


# --- Comparison --------------------------------------------------------------------------------------------------------------------


class Shift(NamedTuple):
    """How far before a period another lies. The day itself when both are 0."""

    days: int = 0
    months: int = 0

    def counterpart(self, day: date) -> date:
        """The day of the period asked for that a day of the other one stands for."""
        return add_months(day, self.months) + timedelta(days=self.days)

    def back(self, day: date) -> date:
        """The other way, for the first day of the period."""
        return add_months(day - timedelta(days=self.days), -self.months)

    def end_back(self, end: date) -> date:
        """The other way, for the day after the last of the period."""
        # As it stands, 29 February would come to the 28th and leave that day out. The last day, one on, would leave out the 29th that also
        # counts on a 28th.
        return max(self.back(end), self.back(end - timedelta(days=1)) + timedelta(days=1))

    def counterpart_sql(self, day: str) -> str:
        """The counterpart of a column, within the period."""
        if self == _NONE:
            return day
        moved = f"addDays({day}, {self.days})" if self.days else f"addMonths({day}, {self.months})"
        return f"least(greatest({moved}, {{first:Date32}}), {{last:Date32}})"

    def back_sql(self, day: str) -> str:
        """The first day that the bucket of the counterpart `day` holds."""
        if self == _NONE:
            return day
        return f"subtractDays({day}, {self.days})" if self.days else f"subtractMonths({day}, {self.months})"


_NONE = Shift()


def add_months(day: date, months: int) -> date:
    """The same day of a later or earlier month, or that month's last."""
    if not months:
        return day
    year, month = divmod(day.year * 12 + day.month - 1 + months, 12)
    return date(year, month + 1, min(day.day, monthrange(year, month + 1)[1]))


def shift_of(query: Query) -> Shift:
    """How far back the comparison of a query goes."""
    by_week = "week" in query.dimensions
    if query.compare == "previous_year":
        return Shift(days=YEAR_OF_WEEKS_DAYS) if by_week else Shift(months=YEAR_MONTHS)
    if query.from_day.day == query.to_day.day == 1 and not by_week:
        return Shift(months=(query.to_day.year - query.from_day.year) * 12 + query.to_day.month - query.from_day.month)
    return Shift(days=(query.to_day - query.from_day).days)


# --- The statement -----------------------------------------------------------------------------------------------------------------

_PLACES = {
    "store": "f.store_id",
    "category": "f.category",
    "sku": "f.sku",
    "channel": "f.channel",
    "staff": "f.staff_code",
    "currency": "f.currency",
    "programme": "f.programme_id",
    "tier": "m.tier",
}
_TABLES = {
    Source.SALES: ("sales", "sale_lines", "business_day"),
    Source.BUYERS: ("sales", "sale_lines", "business_day"),
    Source.RETURNS: ("returns", "return_lines", "business_day"),
    Source.POINTS: ("points_moves", "points_moves", "day"),
    Source.OUTSTANDING: ("points_moves", "points_moves", "day"),
    Source.MEMBERS: ("(SELECT *, joined_on AS day FROM members)", "", "day"),
    Source.ACTIVITY: ("", "", "day"),
}
_STARTS = {"day": "{}", "week": "toDate32(toMonday({}))", "month": "toDate32(toStartOfMonth({}))"}
_TIERS = " LEFT ANY JOIN (SELECT member_id AS tiered, tier FROM members) AS m ON m.tiered = f.member_id"
_TRADE_SOURCES = (Source.SALES, Source.RETURNS)


@dataclass(frozen=True, slots=True)
class _Part:
    """What the SELECTs of a statement share."""

    query: Query
    shift: Shift
    stores: frozenset[str] | None
    known_until: date

    @property
    def from_day(self) -> date:
        return self.shift.back(self.query.from_day)

    @property
    def to_day(self) -> date:
        return self.shift.end_back(self.query.to_day)

    @property
    def by_goods(self) -> bool:
        return not GOODS.isdisjoint(self.query.dimensions) or any(each.field in GOODS for each in self.query.filters)

    @property
    def by_tier(self) -> bool:
        return "tier" in self.query.dimensions or any(each.field == "tier" for each in self.query.filters)

    @property
    def times(self) -> list[str]:
        return [key for key in self.query.dimensions if key in TIMES]


def compile_query(query: Query, stores: frozenset[str] | None, known_until: date) -> Statement:
    """The statement of a page: its rows and one more, if there are more.

    `stores`: those the asker may see; None: all. `known_until`: the last day of which anything can be known; wallets are not looked at
    for buckets that begin after it.
    """
    part = _Part(query, _NONE, stores, known_until)
    keys = _order_keys(query.sort)
    parameters = _parameters(part)
    conditions = []
    for index, key in enumerate(keys[: len(query.after)]):
        parameters[f"after_{index}"] = query.after[index]
        before = [f"{each.sql} = {{after_{place}:{each.kind}}}" for place, each in enumerate(keys[:index])]
        beyond = f"{key.sql} {'>' if key.order == 'asc' else '<'} {{after_{index}:{key.kind}}}"
        conditions.append(" AND ".join([*before, beyond]))
    where = f" WHERE {' OR '.join(f'({each})' for each in conditions)}" if conditions else ""
    return Statement(f"{_figures(part)}{where}{_ordered(keys)} LIMIT {query.limit + 1}", parameters)


def compile_comparison(
    query: Query, stores: frozenset[str] | None, known_until: date, rows: Sequence[Row], *, is_last_page: bool
) -> Statement:
    """The statement of the compare rows: those of the rows of a page and, on the last page, those that no row of the period has.

    Of the latter the first 5000 in the order of the rows.
    """
    part = _Part(query, shift_of(query), stores, known_until)
    parameters = _parameters(part)
    where = ""
    if query.dimensions and not (is_last_page and not query.after):
        buckets = ", ".join(f"k_{key}" for key in query.dimensions)
        arrays = []
        for index, key in enumerate(query.dimensions):
            kind = "Date32" if key in TIMES else "String"
            parameters[f"bucket_{index}"] = [str(row[index]) for row in rows]
            arrays.append(f"{{bucket_{index}:Array({kind})}}")
        names = [f"b_{index}" for index in range(len(arrays))]
        joined = ", ".join(f"{array} AS {name}" for array, name in zip(arrays, names, strict=True))
        where = f" WHERE ({buckets}) IN (SELECT {', '.join(names)} FROM system.one ARRAY JOIN {joined})"
        if is_last_page:
            present = _Part(query, _NONE, stores, known_until)
            parameters |= _parameters(present, "now_")
            where += f" OR ({buckets}) NOT IN (SELECT {buckets} FROM ({_figures(present, 'now_')}))"
    limit = len(rows) + LARGEST_LIMIT
    return Statement(f"{_figures(part)}{where}{_ordered(_order_keys(query.sort))} LIMIT {limit}", parameters)


def _ordered(keys: list[_OrderKey]) -> str:
    return f" ORDER BY {', '.join(f'{key.sql} {key.order.upper()}' for key in keys)}" if keys else ""


def _parameters(part: _Part, prefix: str = "") -> dict[str, object]:
    query = part.query
    parameters: dict[str, object] = {f"{prefix}from": part.from_day.isoformat(), f"{prefix}to": part.to_day.isoformat()}
    parameters |= {"first": query.from_day.isoformat(), "last": (query.to_day - timedelta(days=1)).isoformat()}
    if part.stores is not None:
        parameters["scope"] = sorted(part.stores)
    for index, each in enumerate(query.filters):
        parameters[f"filter_{index}"] = list(each.values)
    if part.times and any("outstanding" in metric.figures for metric in query.metrics):
        ends = _bucket_ends(part)
        parameters[f"{prefix}ends"] = [end.isoformat() for end in ends.values()]
        for place, key in enumerate(part.times):
            parameters[f"{prefix}{key}s"] = [starts[place].isoformat() for starts in ends]
    return parameters


def _bucket_ends(part: _Part) -> dict[tuple[date, ...], date]:
    """The last day of each bucket of time that has begun."""
    ends: dict[tuple[date, ...], date] = {}
    day, end = part.from_day, part.to_day
    while day < end:
        # A day before the period has no bucket of its own there: see `counterpart_sql`.
        counterpart = max(part.shift.counterpart(day), part.query.from_day)
        starts = {
            "day": counterpart,
            "week": counterpart - timedelta(days=counterpart.weekday()),
            "month": counterpart.replace(day=1),
        }
        bucket = tuple(starts[key] for key in part.times)
        if bucket in ends or day <= part.known_until:
            ends[bucket] = day
        day += timedelta(days=1)
    return ends


def _figures(part: _Part, prefix: str = "") -> str:
    """SELECT of every bucket with its metrics, not yet ordered."""
    query = part.query
    names = list(dict.fromkeys(name for metric in query.metrics for name in metric.figures))
    sources = list(dict.fromkeys(FIGURES[name].source for name in names))
    of_money = query.asks_for_money
    parts = " UNION ALL ".join(_source(part, source, names, prefix) for source in sources)
    sums = [f"sum(f_{name}) AS s_{name}" for name in names]
    if of_money:
        sums += ["min(c_least) AS least", "max(c_greatest) AS greatest"]
    grouped = [f"d_{key}" for key in query.dimensions]
    inner = f"SELECT {', '.join(grouped + sums)} FROM ({parts}){_group_by(grouped)}"
    columns = [f"{f'd_{key}' if key in TIMES else f'toString(d_{key})'} AS k_{key}" for key in query.dimensions]
    figures = {name: f"s_{name}" for name in names}
    columns += [f"{metric.sql.format(**figures)} AS m_{metric.key}" for metric in query.metrics]
    # Text also where there is none: the engine fails to sort a column of bare NULLs into a page by channel, staff or category.
    none = "CAST(NULL, 'Nullable(String)')"
    least, greatest = ("min(least) OVER ()", "max(greatest) OVER ()") if of_money else (none, none)
    columns += [f"{least} AS currency_least", f"{greatest} AS currency_greatest"]
    return f"SELECT * FROM (SELECT {', '.join(columns)} FROM ({inner}))"


def _source(part: _Part, source: Source, names: list[str], prefix: str) -> str:
    """SELECT of what one source has of the figures, by the dimensions; the figures of others are 0."""
    query = part.query
    whole, lines, day = _TABLES[source]
    by_goods = part.by_goods and bool(lines)
    grouped = [f"d_{key}" for key in query.dimensions]
    columns = [f"{_value(part, source, key, day)} AS d_{key}" for key in query.dimensions]
    figures = []
    for name in names:
        figure = FIGURES[name]
        expression = _aggregate(figure, by_goods=by_goods) if figure.source is source else "0"
        figures.append(f"{f'toDecimal128({expression}, 6)' if name in DECIMAL_FIGURES else f'toInt64({expression})'} AS f_{name}")
    if query.asks_for_money:
        known = "toNullable(toString(f.currency))" if source in _TRADE_SOURCES else "CAST(NULL, 'Nullable(String)')"
        figures += [f"{known} AS c_least", f"{known} AS c_greatest"]
    window = _window(f"f.{day}", prefix)
    table = _activity(prefix) if source is Source.ACTIVITY else lines if by_goods else whole
    facts = f"{table} AS f{_tier_join(part, source)}"
    conditions = _conditions(part, source)
    match source:
        case Source.BUYERS:
            return _by_buyer(part, facts, [window, "notEmpty(f.member_id)", *conditions], columns, figures, prefix)
        case Source.OUTSTANDING:
            return _at_the_end(part, facts, [f"f.day < {{{prefix}to:Date32}}", *conditions], columns, figures, prefix)
        case _:
            where = " AND ".join([window, *conditions])
            if query.asks_for_money and source in _TRADE_SOURCES:
                # Cheaper than the least and the greatest of every row. Where it splits a bucket, money is refused as a whole.
                grouped = [*grouped, "f.currency"]
            return f"SELECT {', '.join(columns + figures)} FROM {facts} WHERE {where}{_group_by(grouped)}"


def _activity(prefix: str) -> str:
    """Each day on which a member did anything."""
    trade = " UNION ALL ".join(
        f"SELECT business_day AS day, member_id FROM {table} WHERE notEmpty(member_id) AND {_window('business_day', prefix)}"
        for table in ("sales", "returns")
    )
    spent = f"SELECT day, member_id FROM points_moves WHERE kind = 'spend' AND {_window('day', prefix)}"
    return f"({trade} UNION ALL {spent})"


def _by_buyer(part: _Part, facts: str, where: list[str], columns: list[str], figures: list[str], prefix: str) -> str:
    grouped = [f"d_{key}" for key in part.query.dimensions]
    days = ["f.member_id AS buyer", "min(f.business_day) AS first_day", "max(f.business_day) AS last_day"]
    buyers = f"SELECT {', '.join(columns + days)} FROM {facts} WHERE {' AND '.join(where)}{_group_by([*grouped, 'buyer'])}"
    starts = [part.shift.back_sql(f"d_{key}") for key in part.times]
    began = f"greatest({', '.join([f'{{{prefix}from:Date32}}', *starts])})" if starts else f"{{{prefix}from:Date32}}"
    return (
        f"SELECT {', '.join([*grouped, *(each.replace('bucket_from', began) for each in figures)])} FROM ({buyers}) AS b"
        " INNER JOIN (SELECT member_id, first_day AS first_ever FROM first_purchases) AS p ON p.member_id = b.buyer"
        f"{_group_by(grouped)}"
    )


def _at_the_end(part: _Part, facts: str, where: list[str], columns: list[str], figures: list[str], prefix: str) -> str:
    """Wallets at the end of each bucket of time, also of those in which nothing moved."""
    grouped = [f"d_{key}" for key in part.query.dimensions]
    still = [column for column, key in zip(columns, part.query.dimensions, strict=True) if key not in TIMES]
    by = [f"d_{key}" for key in part.query.dimensions if key not in TIMES]
    moves = f"SELECT {', '.join([*still, 'f.day AS moved_on', 'sum(f.points + f.pending) AS held'])} FROM {facts}"
    moves += f" WHERE {' AND '.join(where)}{_group_by([*by, 'moved_on'])}"
    if part.times:
        buckets = [f"{{{prefix}ends:Array(Date32)}} AS bucket_end"]
        buckets += [f"{{{prefix}{key}s:Array(Date32)}} AS d_{key}" for key in part.times]
        return (
            f"SELECT {', '.join(grouped + figures)} FROM ({moves})"
            f" ARRAY JOIN {', '.join(buckets)} WHERE moved_on <= bucket_end{_group_by(grouped)}"
        )
    return f"SELECT {', '.join(grouped + figures)} FROM ({moves}){_group_by(grouped)}"


def _aggregate(figure: Figure, *, by_goods: bool) -> str:
    return figure.on_lines if by_goods and figure.on_lines else figure.on_rows


def _value(part: _Part, source: Source, key: str, day: str) -> str:
    if key in TIMES:
        return _STARTS[key].format(part.shift.counterpart_sql(f"f.{day}"))
    return "f.tier" if key == "tier" and source is Source.MEMBERS else _PLACES[key]


def _tier_join(part: _Part, source: Source) -> str:
    return _TIERS if part.by_tier and source is not Source.MEMBERS else ""


def _conditions(part: _Part, source: Source) -> list[str]:
    conditions = []
    for index, (field, op, _) in enumerate(part.query.filters):
        kind = "UUID" if field == "store" else "String"
        conditions.append(f"{_value(part, source, field, '')} {OPERATORS[op]} {{filter_{index}:Array({kind})}}")
    # Figures of the whole chain are refused to whoever has a scope.
    if part.stores is not None:
        conditions.append("f.store_id IN {scope:Array(UUID)}")
    return conditions


def _window(day: str, prefix: str) -> str:
    return f"{day} >= {{{prefix}from:Date32}} AND {day} < {{{prefix}to:Date32}}"


def _group_by(names: list[str]) -> str:
    return f" GROUP BY {', '.join(names)}" if names else ""


# --- The answer --------------------------------------------------------------------------------------------------------------------


def document_row(query: Query, row: Row) -> list[object]:
    """A row as the API gives it: dates and quantities as text, null for what has none."""
    values: list[object] = []
    for key, value in zip(query.dimensions, row, strict=False):
        values.append(value.isoformat()[: 7 if key == "month" else 10] if key in TIMES else value or None)
    for metric, value in zip(query.metrics, row[len(query.dimensions) :], strict=False):
        values.append(figure_text(metric.key, value))
    return values


def figure_text(key: str, value: Any) -> object:  # noqa: ANN401  # as the database gives it
    """A metric's value as the API gives it."""
    match key, value:
        case _, None:
            return None
        case "items", _:
            return decimal_text(Decimal(value))
        case "items_per_receipt", _:
            return decimal_text(Decimal(int(value)).scaleb(-ITEMS_PER_RECEIPT_DECIMALS))
        case _:
            return int(value)


def decimal_text(value: Decimal) -> str:
    """Decimal text without an exponent or trailing zeros."""
    return format(value.normalize(), "f") if value else "0"
