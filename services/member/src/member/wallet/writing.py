"""Write: what a group decided, in one statement.

The rows of a group go over as arrays of rows, one for each table, to one statement that inserts them all: PostgreSQL and this process
wake each other once for it instead of twice for each table, which was most of what a small group cost (docs/adr/0001-batch-writer.md).
What few groups have, changed lots, reversals and returns, goes in statements of its own.
"""

from collections.abc import Sequence
from datetime import datetime

import asyncpg
import msgspec

from kit.db import RawConnection
from kit.outbox import Event
from member.answers.operations import Answer, OperationTaken
from member.points.rules import Entry, Lot, Wallet
from member.sales.rules import Discount, Reversal, Sale, SaleLine, UnlinkedReturn

_encode_bytes = msgspec.json.Encoder().encode

_WRITE = """
WITH lots AS (
  INSERT INTO points_lots
    (member_id, programme_id, lot_id, quantity, remaining, expired, matured, available_at, expires_at, source_kind, source_id)
  SELECT * FROM unnest($1::new_lot[])
), entries AS (
  INSERT INTO points_entries (member_id, programme_id, sequence, entry_id, at, kind, points, pending, debt, expired, balance, debt_after,
    lot_id, sale_id, cause_id, reason, expires_at, recorded_at)
  SELECT *, $8 FROM unnest($2::new_entry[])
), figures AS (
  UPDATE wallets AS w
  SET balance = n.balance, pending = n.pending, debt = n.debt, sequence = n.sequence, expiries = n.expiries::jsonb,
      maturities = n.maturities::jsonb, updated_at = $8
  FROM unnest($3::new_wallet_figures[]) AS n
  WHERE w.member_id = n.member_id AND w.programme_id = n.programme_id AND w.member_id = ANY($9::uuid[])
), sales AS (
  INSERT INTO sales (sale_id, member_id, is_guest, programme_id, operation_id, store_id, store_code, till_id, receipt_no, sold_at,
    sold_at_offset_minutes, business_day, currency, channel, staff_code, gross_minor, discount_minor, net_minor, points_spent,
    points_spent_minor, payable_minor, points_earned, earn_points, earn_per_minor, earn_rounding, earned_lot_id, spent_from, discounts,
    tenders, recorded_at, wallet_sequence)
  SELECT sale_id, member_id, is_guest, programme_id, operation_id, store_id, store_code, till_id, receipt_no, sold_at,
    sold_at_offset_minutes, business_day, currency, channel, staff_code, gross_minor, discount_minor, net_minor, points_spent,
    points_spent_minor, payable_minor, points_earned, earn_points, earn_per_minor, earn_rounding, earned_lot_id, spent_from::jsonb,
    discounts::jsonb, tenders::jsonb, recorded_at, wallet_sequence
  FROM unnest($4::new_sale_v2[])
), lines AS (
  INSERT INTO sale_lines (sale_id, line_no, member_id, sku, description, category, quantity, unit_price, amount_minor, discount_minor,
    net_minor, points_spent, points_spent_minor, points_earned, multiplier_bp, rule, discounts, serials)
  SELECT sale_id, line_no, member_id, sku, description, category, quantity::numeric, unit_price::numeric, amount_minor, discount_minor,
    net_minor, points_spent, points_spent_minor, points_earned, multiplier_bp, rule, discounts::jsonb, serials::jsonb
  FROM unnest($5::new_sale_line[])
), events AS (
  INSERT INTO outbox (event_id, topic, key, type, payload, traceparent, recorded_at) SELECT * FROM unnest($6::new_event[])
)
INSERT INTO operations (operation_id, fingerprint, method, path, status, body, sealed, subject_id, member_id, decided_at)
SELECT * FROM unnest($7::new_answer[])
"""

_UPDATE_LOTS = """
UPDATE points_lots AS l
SET remaining = n.remaining, expired = n.expired, matured = n.matured, expires_at = n.expires_at
FROM unnest($1::new_lot[]) AS n
WHERE l.member_id = n.member_id AND l.programme_id = n.programme_id AND l.lot_id = n.lot_id AND l.member_id = ANY($2::uuid[])
"""

_REVERSAL_COLUMNS = (
    "reversal_id", "member_id", "sale_id", "operation_id", "store_id", "till_id", "reversed_at", "reversed_at_offset_minutes",
    "business_day", "reason", "lines", "net_minor", "refund_minor", "points_taken_back", "points_returned", "returned_to", "refunds",
    "recorded_at", "wallet_sequence",
)  # fmt: skip

_RETURN_COLUMNS = (
    "return_id", "member_id", "is_guest", "operation_id", "store_id", "till_id", "receipt_no", "returned_at", "returned_at_offset_minutes",
    "business_day", "currency", "reason", "lines", "refund_minor", "recorded_at",
)  # fmt: skip


async def write(
    connection: RawConnection,
    now: datetime,
    *,
    wallets: Sequence[Wallet],
    sales: Sequence[Sale] = (),
    reversals: Sequence[tuple[Sale, Reversal]] = (),
    returns: Sequence[UnlinkedReturn] = (),
    events: Sequence[Event] = (),
    answers: Sequence[Answer] = (),
) -> None:
    """Writes the wallets that have new entries, with lots and entries; new sales, reversals and returns; events and answers.

    Answers are inserted in the order of their ids, so that two groups never wait for each other. Raises OperationTaken when one of
    them is stored already; the transaction is over then.
    """
    changed = [wallet for wallet in wallets if wallet.entries]
    # Also said apart from the rows: where rows are distributed by member, only this leads to their shard (member.distribution).
    member_ids = [wallet.member_id for wallet in changed]
    lots = [(wallet, lot) for wallet in changed for lot in wallet.lots.values() if lot.is_changed]
    if kept := [_lot_row(w, lot) for w, lot in lots if not lot.is_new]:
        await connection.execute(_UPDATE_LOTS, kept, member_ids)
    if reversals:
        rows = [_reversal_row(sale, reversal) for sale, reversal in reversals]
        await connection.copy_records_to_table("reversals", columns=_REVERSAL_COLUMNS, records=rows)
    if returns:
        await connection.copy_records_to_table("unlinked_returns", columns=_RETURN_COLUMNS, records=[_return_row(r) for r in returns])
    try:
        await connection.execute(
            _WRITE,
            [_lot_row(w, lot) for w, lot in lots if lot.is_new],
            [_entry_row(wallet, entry) for wallet in changed for entry in wallet.entries],
            [_figures_row(wallet) for wallet in changed],
            [_sale_row(sale) for sale in sales],
            [_line_row(sale, line) for sale in sales for line in sale.lines],
            [event.row() for event in events],
            [answer.row() for answer in sorted(answers, key=Answer.id_of)],
            now,
            member_ids,
        )
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name == "operations_pkey":
            raise OperationTaken from error
        raise


def _json(value: object) -> str:
    return _encode_bytes(value).decode()


def _discounts(discounts: Sequence[Discount]) -> str:
    return _json([(d.amount_minor, d.reason) for d in discounts]) if discounts else "[]"


def _lot_row(w: Wallet, lot: Lot) -> tuple[object, ...]:
    return (
        w.member_id, w.programme_id, lot.lot_id, lot.quantity, lot.remaining, lot.expired, lot.matured, lot.available_at, lot.expires_at,
        lot.source_kind, lot.source_id,
    )  # fmt: skip


def _entry_row(w: Wallet, e: Entry) -> tuple[object, ...]:
    return (
        w.member_id, w.programme_id, e.sequence, e.entry_id, e.at, e.kind, e.points, e.pending, e.debt, e.expired, e.balance, e.debt_after,
        e.lot_id, e.sale_id, e.cause_id, e.reason, e.expires_at,
    )  # fmt: skip


def _sale_row(s: Sale) -> tuple[object, ...]:
    return (
        s.sale_id, s.member_id or s.store_id, not s.member_id, s.programme_id, s.operation_id, s.store_id, s.store_code, s.till_id,
        s.receipt_no, s.sold_at, s.sold_at_offset_minutes, s.business_day, s.currency, s.channel, s.staff_code, s.gross_minor,
        s.discount_minor, s.net_minor, s.points_spent, s.points_spent_minor, s.payable_minor, s.points_earned, s.earn_points,
        s.earn_per_minor, s.earn_rounding, s.earned_lot_id, _json(s.spent_from) if s.spent_from else "[]", _discounts(s.discounts),
        _json([(t.type, t.amount_minor, t.reference) for t in s.tenders]), s.recorded_at, s.wallet_sequence,
    )  # fmt: skip


def _line_row(s: Sale, n: SaleLine) -> tuple[object, ...]:
    return (
        s.sale_id, n.line_no, s.member_id or s.store_id, n.sku, n.description, n.category, n.quantity, n.unit_price, n.amount_minor,
        n.discount_minor, n.net_minor, n.points_spent, n.points_spent_minor, n.points_earned, n.multiplier_bp, n.rule,
        _discounts(n.discounts) if n.discounts else None, _json(n.serials) if n.serials else None,
    )  # fmt: skip


def _reversal_row(s: Sale, r: Reversal) -> tuple[object, ...]:
    lines = [(n.line_no, n.quantity, n.net_minor, n.refund_minor, n.points_returned) for n in r.lines]
    return (
        r.reversal_id, s.member_id or s.store_id, r.sale_id, r.operation_id, r.store_id, r.till_id, r.reversed_at,
        r.reversed_at_offset_minutes, r.business_day, r.reason, _json(lines), r.net_minor, r.refund_minor, r.points_taken_back,
        r.points_returned, _json(r.returned_to), _json(r.refunds), r.recorded_at, r.wallet_sequence,
    )  # fmt: skip


def _return_row(r: UnlinkedReturn) -> tuple[object, ...]:
    return (
        r.return_id, r.member_id or r.store_id, not r.member_id, r.operation_id, r.store_id, r.till_id, r.receipt_no, r.returned_at,
        r.returned_at_offset_minutes, r.business_day, r.currency, r.reason, _json(r.lines), r.refund_minor, r.recorded_at,
    )  # fmt: skip


def _figures_row(w: Wallet) -> tuple[object, ...]:
    return (
        w.member_id, w.programme_id, w.balance, w.pending, w.debt, w.sequence, _json(w.expiries) if w.expiries else "{}",
        _json(w.maturities) if w.maturities else "{}",
    )  # fmt: skip
