"""The facts that were published, made again from the ledgers, a page at a time.

Pages follow the primary keys, which are in order of recording for sales, reversals and returns, so that a page costs the same wherever
it begins and holds no transaction open between pages. What is recorded meanwhile behind the page is not found; its event was published
after the export began.
"""

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from google.protobuf.message import Message

from kit.crypto import PersonalDataKeys
from kit.db import RawConnection
from kit.ids import uuid7
from kit.outbox import Event
from member.members.events import member_changed, member_signed_up
from member.members.operations import PROGRAMME
from member.members.rules import MemberFile
from member.paging import cursor, position_of
from member.points.rules import unix_us
from member.programmes.rules import ProgrammeBook
from member.wallet.events import POINTS_TOPIC, SALES_TOPIC
from regulars.member.v1 import points_events_pb2 as points_pb
from regulars.member.v1 import sale_events_pb2 as sales_pb

DEFAULT_PAGE = 1_000
LARGEST_PAGE = 5_000
# Less than a page asks for, so that sales are not held up while one is made.
_AT_ONCE = 500
_NO_ID = UUID(int=0)

_decode_reversal_lines = msgspec.json.Decoder(tuple[tuple[int, str, int, int, int], ...]).decode
_decode_return_lines = msgspec.json.Decoder(tuple[tuple[int, str, str, str, str, str, int], ...]).decode

# Rows are in the order of the column itself, which has an index, not of its text in the answer: so the order names the table.
_MEMBERS = f"""
SELECT member_id::text, status, kek_id, data_key, birthday, city, joined_on, created_at, changed_at, {PROGRAMME} AS programme_id
FROM members WHERE member_id > $1 ORDER BY members.member_id LIMIT $2
"""

_OWNER = "CASE WHEN is_guest THEN '' ELSE member_id::text END"

_SALES = f"""
SELECT sale_id::text, {_OWNER} AS member_id, programme_id, store_id::text, till_id::text, sold_at, business_day::text, currency, channel,
  staff_code, gross_minor, discount_minor, net_minor, points_spent_minor, payable_minor, points_earned, points_spent,
  coalesce(wallet_sequence, 0) AS wallet_sequence, recorded_at
FROM sales WHERE sale_id > $1 ORDER BY sales.sale_id LIMIT $2
"""

_SALE_LINES = """
SELECT sale_id::text, line_no, sku, category, quantity::text, amount_minor, net_minor, net_minor - points_spent_minor, points_earned
FROM sale_lines WHERE sale_id > $1 AND sale_id <= $2 ORDER BY sale_lines.sale_id, line_no
"""

_REVERSALS = f"""
WITH page AS (
  SELECT * FROM reversals WHERE reversal_id > $1 ORDER BY reversal_id LIMIT $2
)
SELECT r.reversal_id::text, r.sale_id::text, s.member_id, s.programme_id, r.store_id::text, r.till_id::text, r.reversed_at,
  r.business_day::text, s.currency, r.refund_minor, r.net_minor, r.points_taken_back, r.points_returned, r.lines,
  coalesce(r.wallet_sequence, 0) AS wallet_sequence, s.channel, s.staff_code, r.recorded_at
FROM page AS r
CROSS JOIN LATERAL (
  SELECT {_OWNER} AS member_id, programme_id, currency, channel, staff_code FROM sales WHERE sales.sale_id = r.sale_id
) AS s
ORDER BY r.reversal_id
"""

_GOODS = "SELECT sale_id::text, line_no, sku, category FROM sale_lines WHERE sale_id = ANY($1::uuid[])"

_RETURNS = f"""
SELECT return_id::text, {_OWNER} AS member_id, store_id::text, returned_at, business_day::text, currency, refund_minor, lines, recorded_at
FROM unlinked_returns WHERE return_id > $1 ORDER BY unlinked_returns.return_id LIMIT $2
"""

_ENTRIES = """
SELECT member_id::text, programme_id, sequence, kind, points, pending, debt, expired, balance, debt_after,
  coalesce(lot_id::text, '') AS lot_id, coalesce(sale_id::text, '') AS sale_id, coalesce(cause_id::text, '') AS cause_id, at, recorded_at
FROM points_entries AS e WHERE (member_id, programme_id, sequence) > ($1, $2, $3)
ORDER BY e.member_id, e.programme_id, e.sequence LIMIT $4
"""


class _Position(msgspec.Struct, array_like=True):
    """Where a page begins: after the row with this id; in points, after the entry of this wallet, which left so many pending."""

    stage: Literal["members", "sales", "reversals", "returns", "points"] = "members"
    after: UUID = _NO_ID
    programme_id: Annotated[str, msgspec.Meta(pattern="^[a-z0-9-]*$")] = ""
    sequence: Annotated[int, msgspec.Meta(ge=0, lt=2**62)] = 0
    pending: Annotated[int, msgspec.Meta(ge=0, lt=2**62)] = 0


@dataclass(slots=True)
class Page:
    """Facts, and where the next page begins; empty after the last."""

    events: list[Event] = field(default_factory=list)
    next_page_token: str = ""


async def export_page(connection: RawConnection, keys: PersonalDataKeys, book: ProgrammeBook, *, size: int, page_token: str) -> Page:
    """The facts that follow `page_token`: about `size` of them, for those of one row or one transaction stay together.

    Raises Refusal `cursor_invalid`.
    """
    found = position_of(page_token, tuple[_Position])
    position: _Position | None = found[0] if found else _Position()
    wanted = min(size, LARGEST_PAGE) if size > 0 else DEFAULT_PAGE
    page = Page()
    while position is not None and len(page.events) < wanted:
        limit = min(wanted - len(page.events), _AT_ONCE)
        if position.stage == "points":
            position = await _points(connection, book, position, limit, page.events)
        elif position.stage == "members":
            members = await connection.fetch(_MEMBERS, position.after, limit)
            for row in members:
                page.events += _of_member(row, keys)
            position = _following(position, members, limit, "sales")
        else:
            read, next_stage = _STAGES[position.stage]
            rows = await read(connection, position.after, limit, page.events)
            position = _following(position, rows, limit, next_stage)
    page.next_page_token = cursor(position) if position is not None else ""
    return page


def _following(position: _Position, rows: Sequence[Any], limit: int, next_stage: Any) -> _Position:  # noqa: ANN401  # a stage's name
    return _Position(position.stage, UUID(rows[-1][0])) if len(rows) == limit else _Position(next_stage)


def _of_member(row: Any, keys: PersonalDataKeys) -> list[Event]:  # noqa: ANN401  # asyncpg's rows are untyped
    birthday = None
    if row["birthday"] is not None and row["status"] == "live":
        birthday = keys.data_key(row["member_id"], row["kek_id"], row["data_key"]).open("birthday", row["birthday"]).decode()
    file = MemberFile(joined_on=row["joined_on"], birthday=birthday, city=row["city"])
    member_id, programme_id, changed_at = row["member_id"], row["programme_id"], row["changed_at"]
    events = [member_signed_up(member_id, programme_id, file, row["created_at"], "")]
    if changed_at is not None:
        events.append(member_changed(member_id, programme_id, (), file, changed_at, ""))
    return events


async def _sales(connection: RawConnection, after: UUID, limit: int, events: list[Event]) -> Sequence[Any]:
    rows = await connection.fetch(_SALES, after, limit)
    if not rows:
        return rows
    lines: dict[str, list[sales_pb.SaleRecordedLine]] = {}
    for row in await connection.fetch(_SALE_LINES, after, rows[-1][0]):
        line = sales_pb.SaleRecordedLine(
            line_no=row[1], sku=row[2], category=row[3], quantity=row[4], gross_minor=row[5], net_minor=row[6], payable_minor=row[7],
            points_earned=row[8],
        )  # fmt: skip
        lines.setdefault(row[0], []).append(line)
    for row in rows:
        message = sales_pb.SaleRecorded(
            sale_id=row[0], member_id=row[1], programme_id=row[2], store_id=row[3], till_id=row[4], sold_at_unix_us=unix_us(row[5]),
            business_day=row[6], currency=row[7], channel=row[8], staff_code=row[9], gross_minor=row[10], discount_minor=row[11],
            net_minor=row[12], points_spent_minor=row[13], payable_minor=row[14], points_earned=row[15], points_spent=row[16],
            lines=lines.get(row[0], ()), wallet_sequence=row[17],
        )  # fmt: skip
        events.append(_event(SALES_TOPIC, row[1] or row[0], message, row[18]))
    return rows


async def _reversals(connection: RawConnection, after: UUID, limit: int, events: list[Event]) -> Sequence[Any]:
    rows = await connection.fetch(_REVERSALS, after, limit)
    goods = {(row[0], row[1]): (row[2], row[3]) for row in await connection.fetch(_GOODS, [row[1] for row in rows])} if rows else {}
    for row in rows:
        lines = [
            sales_pb.SaleReversedLine(
                line_no=line_no, sku=goods[row[1], line_no][0], category=goods[row[1], line_no][1], quantity=quantity, net_minor=net_minor,
                refund_minor=refund_minor, points_returned=points_returned,
            )
            for line_no, quantity, net_minor, refund_minor, points_returned in _decode_reversal_lines(row[13])
        ]  # fmt: skip
        message = sales_pb.SaleReversed(
            reversal_id=row[0], sale_id=row[1], member_id=row[2], programme_id=row[3], store_id=row[4], till_id=row[5],
            reversed_at_unix_us=unix_us(row[6]), business_day=row[7], currency=row[8], refund_minor=row[9], net_minor=row[10],
            points_taken_back=row[11], points_returned=row[12], lines=lines, wallet_sequence=row[14], channel=row[15], staff_code=row[16],
        )  # fmt: skip
        events.append(_event(SALES_TOPIC, row[2] or row[1], message, row[17]))
    return rows


async def _returns(connection: RawConnection, after: UUID, limit: int, events: list[Event]) -> Sequence[Any]:
    rows = await connection.fetch(_RETURNS, after, limit)
    for row in rows:
        lines = [
            sales_pb.SaleReversedLine(
                line_no=line_no, sku=sku, category=category, quantity=quantity, net_minor=refund_minor, refund_minor=refund_minor
            )
            for line_no, sku, _, category, quantity, _, refund_minor in _decode_return_lines(row[7])
        ]
        message = sales_pb.ReturnRecorded(
            return_id=row[0], member_id=row[1], store_id=row[2], returned_at_unix_us=unix_us(row[3]), business_day=row[4],
            currency=row[5], refund_minor=row[6], lines=lines,
        )  # fmt: skip
        events.append(_event(SALES_TOPIC, row[1] or row[0], message, row[8]))
    return rows


async def _points(connection: RawConnection, book: ProgrammeBook, position: _Position, limit: int, events: list[Event]) -> _Position | None:
    """What moved on the wallets after a position, up to `limit` entries; what one transaction entered is one fact."""
    after = (position.after, position.programme_id, position.sequence)
    rows = await connection.fetch(_ENTRIES, *after, limit)
    groups = _by_transaction(rows)
    if len(rows) == limit and len(groups) > 1:
        # Of the last, more may follow.
        groups.pop()
    elif len(rows) == limit:
        # One transaction that entered more than a page.
        return await _points(connection, book, position, limit * 2, events)
    wallet = (str(position.after), position.programme_id)
    pending = position.pending
    for group in groups:
        if (group[0][0], group[0][1]) != wallet:
            wallet, pending = (group[0][0], group[0][1]), 0
        pending += sum(row["pending"] for row in group)
        events.append(_moved(group, book, pending))
    return _Position("points", UUID(wallet[0]), wallet[1], groups[-1][-1]["sequence"], pending) if len(rows) == limit else None


def _by_transaction(rows: Sequence[Any]) -> list[list[Any]]:
    """Entries of one wallet that were recorded at one instant belong together; those whose instant was not kept stand alone."""
    groups: list[list[Any]] = []
    last: tuple[str, str, datetime] | None = None
    for row in rows:
        key = (row["member_id"], row["programme_id"], row["recorded_at"]) if row["recorded_at"] is not None else None
        if key is not None and key == last:
            groups[-1].append(row)
        else:
            groups.append([row])
        last = key
    return groups


def _moved(group: Sequence[Any], book: ProgrammeBook, pending: int) -> Event:
    first, last = group[0], group[-1]
    message = points_pb.PointsMoved(
        member_id=first["member_id"],
        programme_id=first["programme_id"],
        moves=[
            points_pb.PointsMove(
                sequence=row["sequence"], kind=row["kind"], points=row["points"], pending=row["pending"], debt=row["debt"],
                expired=row["expired"], lot_id=row["lot_id"], sale_id=row["sale_id"], cause_id=row["cause_id"],
                at_unix_us=unix_us(row["at"]), day=book.day_of(row["programme_id"], row["at"]).isoformat(),
            )
            for row in group
        ],
        balance=last["balance"],
        pending=pending,
        debt=last["debt_after"],
        wallet_sequence=last["sequence"],
    )  # fmt: skip
    return _event(POINTS_TOPIC, first["member_id"], message, first["recorded_at"] or first["at"])


def _event(topic: str, key: str, message: Message, at: datetime) -> Event:
    return Event(uuid7(), topic, key, message.DESCRIPTOR.full_name, message.SerializeToString(), "", at)


_Read = Callable[[RawConnection, UUID, int, list[Event]], Coroutine[Any, Any, Sequence[Any]]]
_STAGES: dict[str, tuple[_Read, str]] = {
    "sales": (_sales, "reversals"),
    "reversals": (_reversals, "returns"),
    "returns": (_returns, "points"),
}
