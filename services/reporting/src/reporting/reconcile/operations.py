"""Reading the facts' sums and the ledger's, both as of one instant, until they agree or what differs stays as it is."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import grpc
from msgspec import Struct

from kit.bus.interface import Bus, BusUnavailable
from kit.problems import Refusal
from kit.rpc import call_metadata, refusal_of
from regulars.member.v1 import export_service_pb2 as pb
from regulars.member.v1.export_service_pb2_grpc import ExportServiceStub
from reporting.clickhouse import ClickHouse
from reporting.facts.consumers import GROUP, TOPICS
from reporting.facts.rules import instant
from reporting.reconcile.rules import (
    MEMBERS,
    POINTS_FIGURES,
    RETURN_FIGURES,
    RETURN_LINE_FIGURES,
    SALE_FIGURES,
    SALE_LINE_FIGURES,
    TOTAL_FIGURES,
    Difference,
    Sums,
    differences_between,
)

LEDGER_SECONDS = 120.0
# Between two looks.
PAUSE_SECONDS = 0.5
# Of what differs for so long without a change nothing more is on its way, or not soon.
STEADY_SECONDS = 3.0
LONGEST_SECONDS = 30.0
MOST_DIFFERENCES = 1_000

_FIRST_DAY, _LAST_DAY = "1900-01-01", "2299-12-31"
_POINTS_DAYS = """
SELECT programme_id, toString(day), kind, count(), sum(points), sum(pending), sum(debt), sum(expired) FROM points_moves
WHERE day >= {from_day:Date32} AND day < {to_day:Date32} AND version < {before:UInt64} GROUP BY programme_id, day, kind
"""
_POINTS_TOTALS = """
SELECT programme_id, sum(points), sum(pending), sum(debt) FROM points_moves WHERE version < {before:UInt64} GROUP BY programme_id
"""
# The text of an id is in the order of time; the engine's own order of UUIDs is not.
_MEMBERS_DAYS = """
SELECT toString(joined_on), count() FROM members
WHERE joined_on >= {from_day:Date32} AND joined_on < {to_day:Date32} AND toString(member_id) < {members_before:String} GROUP BY joined_on
"""


def _checksum(*values: str) -> str:
    """As `export_service.proto` says."""
    texts = ", ".join(f"toString({value})" for value in values)
    return f"sum(toInt64(reinterpretAsUInt32(reverse(substring(MD5(concatWithSeparator(char(31), {texts})), 1, 4)))))"


# In the order in which `member.exports.summaries` has them.
_SALES_CHECKSUM = _checksum("sale_id", "member_id", "programme_id", "channel", "staff_code", "net_minor", "points_earned")
_LINES_CHECKSUM = _checksum(
    "sale_id", "line_no", "member_id", "channel", "staff_code", "sku", "category", "net_minor", "points_earned",
)  # fmt: skip
_RETURN_LINES_CHECKSUM = _checksum(
    "return_id", "line_no", "member_id", "channel", "staff_code", "sku", "category", "net_minor", "refund_minor",
)  # fmt: skip


def _store_days(table: str, figures: str) -> str:
    return (
        f"SELECT toString(store_id), toString(business_day), currency, {figures} FROM {table} "
        "WHERE business_day >= {from_day:Date32} AND business_day < {to_day:Date32} AND version < {before:UInt64} "
        "GROUP BY store_id, business_day, currency"
    )


class Compared(Struct, frozen=True):
    """How many sums were compared, of each kind."""

    store_days: int
    points_days: int
    members_days: int


class Behind(Struct, frozen=True):
    """How many events were on their way when it was looked last: not yet published, and published but not yet taken in.

    `unread` is None when the bus did not answer.
    """

    unpublished: int
    unread: int | None


class Reconciliation(Struct, frozen=True):
    """What comparing gave. `as_of`: what was recorded from then on was left out on both sides."""

    as_of: datetime
    compared: Compared
    behind: Behind
    differences_total: int
    # The first thousand.
    differences: list[Difference]


@dataclass(frozen=True, slots=True)
class Ledger:
    """A ledger's sums, and of what they are."""

    sums: Sums
    recorded_before_unix_us: int
    members_before: str
    unpublished_events: int


@dataclass(frozen=True, slots=True)
class Days:
    """From the first up to, not including, the second; empty: without a bound."""

    from_day: str = ""
    to_day: str = ""


AskLedger = Callable[[Days, Ledger | None], Awaitable[Ledger]]


async def reconcile(clickhouse: ClickHouse, bus_of: Callable[[], Bus], ask_ledger: AskLedger, days: Days) -> Reconciliation:
    """Compares what was recorded up to now. Facts on their way are waited for while they come.

    Raises:
        ClickHouseUnavailable: the facts cannot be read.
        Refusal: the ledger's, or 503 when it does not answer.
    """
    clock = asyncio.get_running_loop().time
    began = changed = clock()
    last: list[Difference] | None = None
    ledger: Ledger | None = None
    while True:
        # Of the same instant each time: also the ledger may have been told of a sale late, by a transaction that was under way.
        ledger = await ask_ledger(days, ledger)
        reports = await sums_of_facts(clickhouse, days, ledger.recorded_before_unix_us, ledger.members_before)
        found = differences_between(ledger.sums, reports)
        if found != last:
            changed = clock()
        behind = Behind(ledger.unpublished_events, await _unread(bus_of))
        nothing_comes = found == last and behind == Behind(0, 0)
        if not found or nothing_comes or clock() >= min(changed + STEADY_SECONDS, began + LONGEST_SECONDS):
            return Reconciliation(
                as_of=instant(ledger.recorded_before_unix_us),
                compared=Compared(
                    store_days=len(ledger.sums.store_days.keys() | reports.store_days.keys()),
                    points_days=len(ledger.sums.points_days.keys() | reports.points_days.keys()),
                    members_days=len(ledger.sums.members_days.keys() | reports.members_days.keys()),
                ),
                behind=behind,
                differences_total=len(found),
                differences=found[:MOST_DIFFERENCES],
            )
        last = found
        await asyncio.sleep(PAUSE_SECONDS)


async def sums_of_facts(clickhouse: ClickHouse, days: Days, recorded_before_unix_us: int, members_before: str) -> Sums:
    """What the facts come to. Raises ClickHouseUnavailable."""
    given = {
        "from_day": days.from_day or _FIRST_DAY,
        "to_day": days.to_day or _LAST_DAY,
        "before": recorded_before_unix_us,
        "members_before": members_before,
    }
    sums = Sums()
    for table, columns, figures in (
        (
            "sales",
            f"count(), sum(gross_minor), sum(discount_minor), sum(net_minor), sum(payable_minor), sum(items), {_SALES_CHECKSUM}",
            SALE_FIGURES,
        ),
        ("sale_lines", f"sum(gross_minor), sum(net_minor), sum(payable_minor), sum(quantity), {_LINES_CHECKSUM}", SALE_LINE_FIGURES),
        ("returns", "count(), sum(net_minor), sum(refund_minor), sum(items)", RETURN_FIGURES),
        ("return_lines", f"sum(net_minor), sum(refund_minor), sum(quantity), {_RETURN_LINES_CHECKSUM}", RETURN_LINE_FIGURES),
    ):
        for row in await clickhouse.query(_store_days(table, columns), given):
            sums.store_days.setdefault((row[0], row[1], row[2]), {}).update(zip(figures, row[3:], strict=True))
    for row in await clickhouse.query(_POINTS_DAYS, given):
        sums.points_days[row[0], row[1], row[2]] = dict(zip(POINTS_FIGURES, row[3:], strict=True))
    for row in await clickhouse.query(_POINTS_TOTALS, given):
        sums.points_totals[row[0]] = dict(zip(TOTAL_FIGURES, row[1:], strict=True))
    for row in await clickhouse.query(_MEMBERS_DAYS, given):
        sums.members_days[row[0]] = {MEMBERS: row[1]}
    return sums


async def ask_member(channel: grpc.aio.Channel, token: str, days: Days, before: Ledger | None) -> Ledger:
    """The member service's sums, with the rights of `token`; as of the instant of `before`, or of now.

    Raises:
        Refusal: it refused, or 503 `ledger_unavailable` when it does not answer.
    """
    request = pb.SummariseLedgerRequest(
        from_day=days.from_day,
        to_day=days.to_day,
        recorded_before_unix_us=before.recorded_before_unix_us if before else 0,
        members_before=before.members_before if before else "",
    )
    try:
        answer = await ExportServiceStub(channel).SummariseLedger(request, timeout=LEDGER_SECONDS, metadata=call_metadata(token))
    except grpc.aio.AioRpcError as error:
        if refused := refusal_of(error):
            raise refused from error
        detail = "The member service does not answer: try again shortly."
        raise Refusal("ledger_unavailable", 503, "The ledger cannot be read", detail) from error
    return Ledger(_sums_in(answer), answer.recorded_before_unix_us, answer.members_before, answer.unpublished_events)


def _sums_in(answer: pb.SummariseLedgerResponse) -> Sums:
    sums = Sums()
    for day in answer.store_days:
        sold = (day.receipts, day.gross_minor, day.discount_minor, day.net_minor, day.payable_minor, Decimal(day.quantity))
        back = (day.returns, day.returned_net_minor, day.refund_minor, Decimal(day.returned_quantity))
        sums.store_days[day.store_id, day.business_day, day.currency] = {
            **_figures(SALE_FIGURES, (*sold, day.sales_checksum)),
            **_figures(SALE_LINE_FIGURES, (sold[1], *sold[3:], day.lines_checksum)),
            **_figures(RETURN_FIGURES, back),
            **_figures(RETURN_LINE_FIGURES, (*back[1:], day.returned_lines_checksum)),
        }
    for each in answer.points_days:
        figures = (each.entries, each.points, each.pending, each.debt, each.expired)
        sums.points_days[each.programme_id, each.day, each.kind] = _figures(POINTS_FIGURES, figures)
    for total in answer.points_totals:
        sums.points_totals[total.programme_id] = _figures(TOTAL_FIGURES, (total.balance, total.pending, total.debt))
    for joined in answer.members_days:
        sums.members_days[joined.day] = {MEMBERS: joined.members}
    return sums


def _figures(names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(names, values, strict=True))


async def _unread(bus_of: Callable[[], Bus]) -> int | None:
    """How many published events the consumers have yet to take in; None when the bus does not answer."""
    try:
        async with bus_of() as bus:
            known: Mapping[Any, int] = {lag.source: lag.messages for lag in await bus.lag(GROUP)}
            states = [state for states in (await bus.topics(TOPICS)).values() for state in states]
    except BusUnavailable:
        return None
    # A partition that was never read is behind by all that it holds.
    return sum(known.get(state.source, state.next_offset - state.first_offset) for state in states)
