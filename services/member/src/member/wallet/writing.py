"""Write: what a group decided, with one statement a table."""

from collections.abc import Sequence
from datetime import datetime

import msgspec

from kit.db import RawConnection
from member.points.rules import Entry, Lot, Wallet
from member.sales.rules import Discount, Reversal, Sale, SaleLine, UnlinkedReturn

_encode_bytes = msgspec.json.Encoder().encode

_UPDATE_WALLETS = """
UPDATE wallets AS w
SET balance = n.balance, pending = n.pending, debt = n.debt, sequence = n.sequence, expiries = n.expiries, maturities = n.maturities,
    updated_at = $9
FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::jsonb[], $8::jsonb[])
  AS n(member_id, programme_id, balance, pending, debt, sequence, expiries, maturities)
WHERE w.member_id = n.member_id AND w.programme_id = n.programme_id
"""

_INSERT_LOTS = """
INSERT INTO points_lots
  (member_id, programme_id, lot_id, quantity, remaining, expired, matured, available_at, expires_at, source_kind, source_id)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::uuid[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bool[], $8::timestamptz[],
  $9::timestamptz[], $10::text[], $11::uuid[])
"""

_UPDATE_LOTS = """
UPDATE points_lots AS l
SET remaining = n.remaining, expired = n.expired, matured = n.matured, expires_at = n.expires_at
FROM unnest($1::uuid[], $2::text[], $3::uuid[], $4::bigint[], $5::bigint[], $6::bool[], $7::timestamptz[])
  AS n(member_id, programme_id, lot_id, remaining, expired, matured, expires_at)
WHERE l.member_id = n.member_id AND l.programme_id = n.programme_id AND l.lot_id = n.lot_id
"""

_INSERT_ENTRIES = """
INSERT INTO points_entries (member_id, programme_id, entry_id, sequence, at, kind, points, pending, debt, expired, balance, debt_after,
  lot_id, sale_id, cause_id, reason)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::uuid[], $4::bigint[], $5::timestamptz[], $6::text[], $7::bigint[], $8::bigint[],
  $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::uuid[], $14::uuid[], $15::uuid[], $16::text[])
"""

_INSERT_SALES = """
INSERT INTO sales (sale_id, member_id, is_guest, programme_id, operation_id, store_id, store_code, till_id, receipt_no, sold_at,
  sold_at_offset_minutes, business_day, currency, channel, staff_code, gross_minor, discount_minor, net_minor, points_spent,
  points_spent_minor, payable_minor, points_earned, earn_points, earn_per_minor, earn_rounding, earned_lot_id, spent_from, discounts,
  tenders, recorded_at)
SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::bool[], $4::text[], $5::text[], $6::uuid[], $7::text[], $8::uuid[], $9::text[],
  $10::timestamptz[], $11::smallint[], $12::date[], $13::text[], $14::text[], $15::text[], $16::bigint[], $17::bigint[], $18::bigint[],
  $19::bigint[], $20::bigint[], $21::bigint[], $22::bigint[], $23::bigint[], $24::bigint[], $25::text[], $26::uuid[], $27::jsonb[],
  $28::jsonb[], $29::jsonb[], $30::timestamptz[])
"""

_INSERT_SALE_LINES = """
INSERT INTO sale_lines (sale_id, line_no, member_id, sku, description, category, quantity, unit_price, amount_minor, discount_minor,
  net_minor, points_spent, points_spent_minor, points_earned, multiplier_bp, rule, discounts, serials)
SELECT sale_id, line_no, member_id, sku, description, category, quantity::numeric, unit_price::numeric, amount_minor, discount_minor,
  net_minor, points_spent, points_spent_minor, points_earned, multiplier_bp, rule, discounts, serials
FROM unnest($1::uuid[], $2::int[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::bigint[], $10::bigint[],
  $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[], $15::bigint[], $16::text[], $17::jsonb[], $18::jsonb[])
  AS n(sale_id, line_no, member_id, sku, description, category, quantity, unit_price, amount_minor, discount_minor, net_minor,
       points_spent, points_spent_minor, points_earned, multiplier_bp, rule, discounts, serials)
"""

_INSERT_REVERSALS = """
INSERT INTO reversals (reversal_id, member_id, sale_id, operation_id, store_id, till_id, reversed_at, reversed_at_offset_minutes,
  business_day, reason, lines, net_minor, refund_minor, points_taken_back, points_returned, returned_to, refunds, recorded_at)
SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::uuid[], $6::uuid[], $7::timestamptz[], $8::smallint[],
  $9::date[], $10::text[], $11::jsonb[], $12::bigint[], $13::bigint[], $14::bigint[], $15::bigint[], $16::jsonb[], $17::jsonb[],
  $18::timestamptz[])
"""

_INSERT_RETURNS = """
INSERT INTO unlinked_returns (return_id, member_id, is_guest, operation_id, store_id, till_id, receipt_no, returned_at,
  returned_at_offset_minutes, business_day, currency, reason, lines, refund_minor, recorded_at)
SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::bool[], $4::text[], $5::uuid[], $6::uuid[], $7::text[], $8::timestamptz[],
  $9::smallint[], $10::date[], $11::text[], $12::text[], $13::jsonb[], $14::bigint[], $15::timestamptz[])
"""


def _json(value: object) -> str:
    return _encode_bytes(value).decode()


def _discounts(discounts: Sequence[Discount]) -> str:
    return _json([(d.amount_minor, d.reason) for d in discounts]) if discounts else "[]"


async def write_wallets(connection: RawConnection, wallets: Sequence[Wallet], now: datetime) -> None:
    """Writes the wallets that have new entries, their lots and the entries."""
    changed = [wallet for wallet in wallets if wallet.entries]
    if not changed:
        return
    lots = [(wallet, lot) for wallet in changed for lot in wallet.lots.values() if lot.is_changed]
    await _insert_lots(connection, [(w, lot) for w, lot in lots if lot.is_new])
    await _update_lots(connection, [(w, lot) for w, lot in lots if not lot.is_new])
    await _insert_entries(connection, [(wallet, entry) for wallet in changed for entry in wallet.entries])
    await connection.execute(
        _UPDATE_WALLETS,
        [w.member_id for w in changed],
        [w.programme_id for w in changed],
        [w.balance for w in changed],
        [w.pending for w in changed],
        [w.debt for w in changed],
        [w.sequence for w in changed],
        [_json(w.expiries) if w.expiries else "{}" for w in changed],
        [_json(w.maturities) if w.maturities else "{}" for w in changed],
        now,
    )


async def _insert_lots(connection: RawConnection, lots: Sequence[tuple[Wallet, Lot]]) -> None:
    if lots:
        await connection.execute(
            _INSERT_LOTS,
            [w.member_id for w, _ in lots],
            [w.programme_id for w, _ in lots],
            [lot.lot_id for _, lot in lots],
            [lot.quantity for _, lot in lots],
            [lot.remaining for _, lot in lots],
            [lot.expired for _, lot in lots],
            [lot.matured for _, lot in lots],
            [lot.available_at for _, lot in lots],
            [lot.expires_at for _, lot in lots],
            [lot.source_kind for _, lot in lots],
            [lot.source_id for _, lot in lots],
        )


async def _update_lots(connection: RawConnection, lots: Sequence[tuple[Wallet, Lot]]) -> None:
    if lots:
        await connection.execute(
            _UPDATE_LOTS,
            [w.member_id for w, _ in lots],
            [w.programme_id for w, _ in lots],
            [lot.lot_id for _, lot in lots],
            [lot.remaining for _, lot in lots],
            [lot.expired for _, lot in lots],
            [lot.matured for _, lot in lots],
            [lot.expires_at for _, lot in lots],
        )


async def _insert_entries(connection: RawConnection, entries: Sequence[tuple[Wallet, Entry]]) -> None:
    await connection.execute(
        _INSERT_ENTRIES,
        [w.member_id for w, _ in entries],
        [w.programme_id for w, _ in entries],
        [e.entry_id for _, e in entries],
        [e.sequence for _, e in entries],
        [e.at for _, e in entries],
        [e.kind for _, e in entries],
        [e.points for _, e in entries],
        [e.pending for _, e in entries],
        [e.debt for _, e in entries],
        [e.expired for _, e in entries],
        [e.balance for _, e in entries],
        [e.debt_after for _, e in entries],
        [e.lot_id for _, e in entries],
        [e.sale_id for _, e in entries],
        [e.cause_id for _, e in entries],
        [e.reason for _, e in entries],
    )


async def write_sales(connection: RawConnection, sales: Sequence[Sale]) -> None:
    """Writes new sales and their lines."""
    if not sales:
        return
    await connection.execute(
        _INSERT_SALES,
        [s.sale_id for s in sales],
        [s.member_id or s.store_id for s in sales],
        [not s.member_id for s in sales],
        [s.programme_id for s in sales],
        [s.operation_id for s in sales],
        [s.store_id for s in sales],
        [s.store_code for s in sales],
        [s.till_id for s in sales],
        [s.receipt_no for s in sales],
        [s.sold_at for s in sales],
        [s.sold_at_offset_minutes for s in sales],
        [s.business_day for s in sales],
        [s.currency for s in sales],
        [s.channel for s in sales],
        [s.staff_code for s in sales],
        [s.gross_minor for s in sales],
        [s.discount_minor for s in sales],
        [s.net_minor for s in sales],
        [s.points_spent for s in sales],
        [s.points_spent_minor for s in sales],
        [s.payable_minor for s in sales],
        [s.points_earned for s in sales],
        [s.earn_points for s in sales],
        [s.earn_per_minor for s in sales],
        [s.earn_rounding for s in sales],
        [s.earned_lot_id for s in sales],
        [_json(s.spent_from) if s.spent_from else "[]" for s in sales],
        [_discounts(s.discounts) for s in sales],
        [_json([(t.type, t.amount_minor, t.reference) for t in s.tenders]) for s in sales],
        [s.recorded_at for s in sales],
    )
    lines: list[tuple[Sale, SaleLine]] = [(sale, line) for sale in sales for line in sale.lines]
    await connection.execute(
        _INSERT_SALE_LINES,
        [s.sale_id for s, _ in lines],
        [n.line_no for _, n in lines],
        [s.member_id or s.store_id for s, _ in lines],
        [n.sku for _, n in lines],
        [n.description for _, n in lines],
        [n.category for _, n in lines],
        [n.quantity for _, n in lines],
        [n.unit_price for _, n in lines],
        [n.amount_minor for _, n in lines],
        [n.discount_minor for _, n in lines],
        [n.net_minor for _, n in lines],
        [n.points_spent for _, n in lines],
        [n.points_spent_minor for _, n in lines],
        [n.points_earned for _, n in lines],
        [n.multiplier_bp for _, n in lines],
        [n.rule for _, n in lines],
        [_discounts(n.discounts) if n.discounts else None for _, n in lines],
        [_json(n.serials) if n.serials else None for _, n in lines],
    )


async def write_reversals(connection: RawConnection, reversals: Sequence[tuple[Sale, Reversal]]) -> None:
    """Writes new reversals."""
    if reversals:
        await connection.execute(
            _INSERT_REVERSALS,
            [r.reversal_id for _, r in reversals],
            [s.member_id or s.store_id for s, _ in reversals],
            [r.sale_id for _, r in reversals],
            [r.operation_id for _, r in reversals],
            [r.store_id for _, r in reversals],
            [r.till_id for _, r in reversals],
            [r.reversed_at for _, r in reversals],
            [r.reversed_at_offset_minutes for _, r in reversals],
            [r.business_day for _, r in reversals],
            [r.reason for _, r in reversals],
            [_json([(n.line_no, n.quantity, n.net_minor, n.refund_minor, n.points_returned) for n in r.lines]) for _, r in reversals],
            [r.net_minor for _, r in reversals],
            [r.refund_minor for _, r in reversals],
            [r.points_taken_back for _, r in reversals],
            [r.points_returned for _, r in reversals],
            [_json(r.returned_to) for _, r in reversals],
            [_json(r.refunds) for _, r in reversals],
            [r.recorded_at for _, r in reversals],
        )


async def write_returns(connection: RawConnection, returns: Sequence[UnlinkedReturn]) -> None:
    """Writes new returns without a sale."""
    if returns:
        await connection.execute(
            _INSERT_RETURNS,
            [r.return_id for r in returns],
            [r.member_id or r.store_id for r in returns],
            [not r.member_id for r in returns],
            [r.operation_id for r in returns],
            [r.store_id for r in returns],
            [r.till_id for r in returns],
            [r.receipt_no for r in returns],
            [r.returned_at for r in returns],
            [r.returned_at_offset_minutes for r in returns],
            [r.business_day for r in returns],
            [r.currency for r in returns],
            [r.reason for r in returns],
            [_json(r.lines) for r in returns],
            [r.refund_minor for r in returns],
            [r.recorded_at for r in returns],
        )
