"""What each event says, as rows of the facts' tables, column by column. Pure, and as plain as it is for speed: a rebuild makes millions.

An event that comes again gives the same rows, so that they replace themselves.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain, islice, repeat
from typing import Any, NamedTuple, TypeVar

from google.protobuf.message import DecodeError

from regulars.member.v1 import member_events_pb2 as members_pb
from regulars.member.v1 import points_events_pb2 as points_pb
from regulars.member.v1 import sale_events_pb2 as sales_pb
from reporting.facts.columns import (
    COLUMNS,
    FIRST_PURCHASES,
    MEMBERS,
    POINTS_MOVES,
    RETURN_LINES,
    RETURNS,
    SALE_LINES,
    SALES,
    UNKNOWN_EVENTS,
)
from reporting.native import ValueInvalid, block, millionths

T = TypeVar("T")

REVERSAL = "reversal"
UNLINKED = "unlinked"

_MemberState = members_pb.MemberSignedUp | members_pb.MemberChanged

# The values of each column, by table and name; all columns of a table are equally long.
Rows = dict[str, dict[str, list[Any]]]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class EventInvalid(ValueError):
    """The event can never become rows: it is not the message it says, or a value of it fits no column."""


class Fact(NamedTuple):
    """An event as facts are made of it. `recorded_at`: Unix microseconds; the later of two states of one thing has the larger."""

    event_id: str
    topic: str
    key: str
    type: str
    payload: bytes
    recorded_at: int


def unix_us(moment: datetime) -> int:
    """Microseconds since 1970, exactly."""
    return (moment - _EPOCH) // _MICROSECOND


def instant(unix_us: int) -> datetime:
    """The reverse of `unix_us`."""
    return _EPOCH + unix_us * _MICROSECOND


def blocks_of(facts: Sequence[Fact]) -> dict[str, bytes]:
    """What the events say, as one block of rows for each table concerned, in the order in which they are to be inserted.

    Raises:
        EventInvalid: at least one of them cannot; `invalid_among` says which.
    """
    try:
        rows = _rows_of(facts)
        return {table: block(columns, rows[table]) for table, columns in COLUMNS.items() if table in rows}
    except (DecodeError, ValueInvalid) as error:
        raise EventInvalid from error


def invalid_among(facts: Sequence[Fact]) -> list[Fact]:
    """The events that cannot become rows, found by halving."""
    try:
        blocks_of(facts)
    except EventInvalid:
        half = len(facts) // 2
        return list(facts) if half == 0 else invalid_among(facts[:half]) + invalid_among(facts[half:])
    return []


def _rows_of(facts: Sequence[Fact]) -> Rows:
    by_type: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        by_type[fact.type].append(fact)
    rows: Rows = {}
    for name, alike in by_type.items():
        known = _KNOWN.get(name)
        if known is None:
            _add(rows, UNKNOWN_EVENTS, _unknown_events(alike))
            continue
        message, add = known
        parse = message.FromString
        add(rows, [parse(fact.payload) for fact in alike], [fact.recorded_at for fact in alike])
    return rows


def _add(rows: Rows, table: str, columns: dict[str, list[Any]]) -> None:
    present = rows.setdefault(table, columns)
    if present is not columns:
        for name, values in columns.items():
            present[name] += values


def _sales(rows: Rows, sales: Sequence[sales_pb.SaleRecorded], versions: list[int]) -> None:
    lines = [line for sale in sales for line in sale.lines]
    counts = [len(sale.lines) for sale in sales]
    quantities = [millionths(line.quantity) for line in lines]
    header: dict[str, list[Any]] = {
        "business_day": [sale.business_day for sale in sales],
        "store_id": [sale.store_id for sale in sales],
        "sale_id": [sale.sale_id for sale in sales],
        "member_id": [sale.member_id for sale in sales],
        "programme_id": [sale.programme_id for sale in sales],
        "currency": [sale.currency for sale in sales],
        "channel": [sale.channel for sale in sales],
        "staff_code": [sale.staff_code for sale in sales],
        "version": versions,
    }
    _add(
        rows,
        SALE_LINES,
        {name: _for_lines(values, counts) for name, values in header.items()}
        | {
            "line_no": [line.line_no for line in lines],
            "sku": [line.sku for line in lines],
            "category": [line.category for line in lines],
            "quantity": quantities,
            "gross_minor": [line.gross_minor for line in lines],
            "net_minor": [line.net_minor for line in lines],
            "payable_minor": [line.payable_minor for line in lines],
            "points_earned": [line.points_earned for line in lines],
        },
    )
    _add(
        rows,
        SALES,
        header
        | {
            "till_id": [sale.till_id for sale in sales],
            "sold_at": [sale.sold_at_unix_us for sale in sales],
            "items": _sums(quantities, counts),
            "gross_minor": [sale.gross_minor for sale in sales],
            "discount_minor": [sale.discount_minor for sale in sales],
            "net_minor": [sale.net_minor for sale in sales],
            "points_spent_minor": [sale.points_spent_minor for sale in sales],
            "payable_minor": [sale.payable_minor for sale in sales],
            "points_earned": [sale.points_earned for sale in sales],
            "points_spent": [sale.points_spent for sale in sales],
        },
    )
    # Dates as text compare as dates do.
    first_days: dict[str, str] = {}
    for member_id, day in zip(header["member_id"], header["business_day"], strict=True):
        if member_id and day < first_days.get(member_id, "~"):
            first_days[member_id] = day
    if first_days:
        _add(rows, FIRST_PURCHASES, {"member_id": list(first_days), "first_day": list(first_days.values())})


def _reversals(rows: Rows, reversals: Sequence[sales_pb.SaleReversed], versions: list[int]) -> None:
    _returned(
        rows,
        [line for given in reversals for line in given.lines],
        [len(given.lines) for given in reversals],
        {
            "business_day": [given.business_day for given in reversals],
            "store_id": [given.store_id for given in reversals],
            "return_id": [given.reversal_id for given in reversals],
            "kind": [REVERSAL] * len(reversals),
            "sale_id": [given.sale_id for given in reversals],
            "member_id": [given.member_id for given in reversals],
            "programme_id": [given.programme_id for given in reversals],
            "currency": [given.currency for given in reversals],
            "channel": [given.channel for given in reversals],
            "staff_code": [given.staff_code for given in reversals],
            "version": versions,
        },
        {
            "till_id": [given.till_id for given in reversals],
            "returned_at": [given.reversed_at_unix_us for given in reversals],
            "net_minor": [given.net_minor for given in reversals],
            "refund_minor": [given.refund_minor for given in reversals],
            "points_taken_back": [given.points_taken_back for given in reversals],
            "points_returned": [given.points_returned for given in reversals],
        },
    )


def _unlinked_returns(rows: Rows, returns: Sequence[sales_pb.ReturnRecorded], versions: list[int]) -> None:
    """They belong to no programme, channel or staff, and what was refunded is what they take from the sales."""
    none, nothing = [""] * len(returns), [0] * len(returns)
    refunds = [given.refund_minor for given in returns]
    _returned(
        rows,
        [line for given in returns for line in given.lines],
        [len(given.lines) for given in returns],
        {
            "business_day": [given.business_day for given in returns],
            "store_id": [given.store_id for given in returns],
            "return_id": [given.return_id for given in returns],
            "kind": [UNLINKED] * len(returns),
            "sale_id": none,
            "member_id": [given.member_id for given in returns],
            "programme_id": none,
            "currency": [given.currency for given in returns],
            "channel": none,
            "staff_code": none,
            "version": versions,
        },
        {
            "till_id": list(none),
            "returned_at": [given.returned_at_unix_us for given in returns],
            "net_minor": refunds,
            "refund_minor": list(refunds),
            "points_taken_back": nothing,
            "points_returned": list(nothing),
        },
    )


def _returned(
    rows: Rows, lines: Sequence[sales_pb.SaleReversedLine], counts: list[int], header: dict[str, list[Any]], totals: dict[str, list[Any]]
) -> None:
    quantities = [millionths(line.quantity) for line in lines]
    _add(
        rows,
        RETURN_LINES,
        {name: _for_lines(values, counts) for name, values in header.items()}
        | {
            "line_no": [line.line_no for line in lines],
            "sku": [line.sku for line in lines],
            "category": [line.category for line in lines],
            "quantity": quantities,
            "net_minor": [line.net_minor for line in lines],
            "refund_minor": [line.refund_minor for line in lines],
            "points_returned": [line.points_returned for line in lines],
        },
    )
    _add(rows, RETURNS, {name: list(values) for name, values in header.items()} | totals | {"items": _sums(quantities, counts)})


def _points(rows: Rows, moved: Sequence[points_pb.PointsMoved], versions: list[int]) -> None:
    moves = [move for one in moved for move in one.moves]
    counts = [len(one.moves) for one in moved]
    _add(
        rows,
        POINTS_MOVES,
        {
            # A producer of before the field existed: the day in UTC.
            "day": [move.day or _utc_day(move.at_unix_us) for move in moves],
            "programme_id": _for_lines([one.programme_id for one in moved], counts),
            "member_id": _for_lines([one.member_id for one in moved], counts),
            "sequence": [move.sequence for move in moves],
            "kind": [move.kind for move in moves],
            "points": [move.points for move in moves],
            "pending": [move.pending for move in moves],
            "debt": [move.debt for move in moves],
            "expired": [move.expired for move in moves],
            "lot_id": [move.lot_id for move in moves],
            "sale_id": [move.sale_id for move in moves],
            "cause_id": [move.cause_id for move in moves],
            "at": [move.at_unix_us for move in moves],
            "version": _for_lines(versions, counts),
        },
    )


def _members(rows: Rows, said: Sequence[_MemberState], versions: list[int]) -> None:
    # A change of before events had the values says nothing that reports are made of.
    members = [member for member in said if member.joined_on]
    _add(
        rows,
        MEMBERS,
        {
            "member_id": [member.member_id for member in members],
            "programme_id": [member.programme_id for member in members],
            "joined_on": [member.joined_on for member in members],
            "birth_year_from": [member.birth_year_from for member in members],
            "city": [member.city for member in members],
            "tier": [""] * len(members),
            "version": [member.version or version for member, version in zip(said, versions, strict=True) if member.joined_on],
        },
    )


def _unknown_events(facts: Sequence[Fact]) -> dict[str, list[Any]]:
    return {
        "type": [fact.type for fact in facts],
        "event_id": [fact.event_id for fact in facts],
        "topic": [fact.topic for fact in facts],
        "key": [fact.key for fact in facts],
        "payload": [fact.payload for fact in facts],
        "recorded_at": [fact.recorded_at for fact in facts],
        "version": [fact.recorded_at for fact in facts],
    }


def _for_lines(values: Sequence[T], counts: Sequence[int]) -> list[T]:
    """Each value as often as its count says."""
    return list(chain.from_iterable(map(repeat, values, counts)))


def _sums(quantities: Sequence[int], counts: Sequence[int]) -> list[int]:
    """The sum of each stretch of quantities."""
    rest = iter(quantities)
    return [sum(islice(rest, count)) for count in counts]


def _utc_day(at_unix_us: int) -> str:
    return instant(at_unix_us).date().isoformat()


_KNOWN: dict[str, tuple[type[Any], Callable[[Rows, Sequence[Any], list[int]], None]]] = {
    message.DESCRIPTOR.full_name: (message, add)
    for message, add in (
        (sales_pb.SaleRecorded, _sales),
        (sales_pb.SaleReversed, _reversals),
        (sales_pb.ReturnRecorded, _unlinked_returns),
        (points_pb.PointsMoved, _points),
        (members_pb.MemberSignedUp, _members),
        (members_pb.MemberChanged, _members),
    )
}

# Full names of the messages that facts are made of.
KNOWN_TYPES = frozenset(_KNOWN)
