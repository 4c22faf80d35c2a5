"""Write: what a group decided, with one statement a table.

New rows are copied in (`COPY … FROM STDIN`): measured against `INSERT … SELECT FROM unnest(arrays)`, it takes half the time on both
sides. A copied row that exists already fails the transaction, which is what every caller wants.
"""

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

_UPDATE_LOTS = """
UPDATE points_lots AS l
SET remaining = n.remaining, expired = n.expired, matured = n.matured, expires_at = n.expires_at
FROM unnest($1::uuid[], $2::text[], $3::uuid[], $4::bigint[], $5::bigint[], $6::bool[], $7::timestamptz[])
  AS n(member_id, programme_id, lot_id, remaining, expired, matured, expires_at)
WHERE l.member_id = n.member_id AND l.programme_id = n.programme_id AND l.lot_id = n.lot_id
"""

_LOT_COLUMNS = (
    "member_id", "programme_id", "lot_id", "quantity", "remaining", "expired", "matured", "available_at", "expires_at", "source_kind",
    "source_id",
)  # fmt: skip

_ENTRY_COLUMNS = (
    "member_id", "programme_id", "entry_id", "sequence", "at", "kind", "points", "pending", "debt", "expired", "balance", "debt_after",
    "lot_id", "sale_id", "cause_id", "reason",
)  # fmt: skip

_SALE_COLUMNS = (
    "sale_id", "member_id", "is_guest", "programme_id", "operation_id", "store_id", "store_code", "till_id", "receipt_no", "sold_at",
    "sold_at_offset_minutes", "business_day", "currency", "channel", "staff_code", "gross_minor", "discount_minor", "net_minor",
    "points_spent", "points_spent_minor", "payable_minor", "points_earned", "earn_points", "earn_per_minor", "earn_rounding",
    "earned_lot_id", "spent_from", "discounts", "tenders", "recorded_at",
)  # fmt: skip

_LINE_COLUMNS = (
    "sale_id", "line_no", "member_id", "sku", "description", "category", "quantity", "unit_price", "amount_minor", "discount_minor",
    "net_minor", "points_spent", "points_spent_minor", "points_earned", "multiplier_bp", "rule", "discounts", "serials",
)  # fmt: skip

_REVERSAL_COLUMNS = (
    "reversal_id", "member_id", "sale_id", "operation_id", "store_id", "till_id", "reversed_at", "reversed_at_offset_minutes",
    "business_day", "reason", "lines", "net_minor", "refund_minor", "points_taken_back", "points_returned", "returned_to", "refunds",
    "recorded_at",
)  # fmt: skip

_RETURN_COLUMNS = (
    "return_id", "member_id", "is_guest", "operation_id", "store_id", "till_id", "receipt_no", "returned_at", "returned_at_offset_minutes",
    "business_day", "currency", "reason", "lines", "refund_minor", "recorded_at",
)  # fmt: skip


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
    new = [_lot_record(w, lot) for w, lot in lots if lot.is_new]
    if new:
        await connection.copy_records_to_table("points_lots", columns=_LOT_COLUMNS, records=new)
    await _update_lots(connection, [(w, lot) for w, lot in lots if not lot.is_new])
    entries = [_entry_record(wallet, entry) for wallet in changed for entry in wallet.entries]
    await connection.copy_records_to_table("points_entries", columns=_ENTRY_COLUMNS, records=entries)
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


def _lot_record(w: Wallet, lot: Lot) -> tuple[object, ...]:
    return (
        w.member_id, w.programme_id, lot.lot_id, lot.quantity, lot.remaining, lot.expired, lot.matured, lot.available_at, lot.expires_at,
        lot.source_kind, lot.source_id,
    )  # fmt: skip


def _entry_record(w: Wallet, e: Entry) -> tuple[object, ...]:
    return (
        w.member_id, w.programme_id, e.entry_id, e.sequence, e.at, e.kind, e.points, e.pending, e.debt, e.expired, e.balance, e.debt_after,
        e.lot_id, e.sale_id, e.cause_id, e.reason,
    )  # fmt: skip


async def write_sales(connection: RawConnection, sales: Sequence[Sale]) -> None:
    """Writes new sales and their lines."""
    if sales:
        await connection.copy_records_to_table("sales", columns=_SALE_COLUMNS, records=[_sale_record(sale) for sale in sales])
        lines = [_line_record(sale, line) for sale in sales for line in sale.lines]
        await connection.copy_records_to_table("sale_lines", columns=_LINE_COLUMNS, records=lines)


def _sale_record(s: Sale) -> tuple[object, ...]:
    return (
        s.sale_id, s.member_id or s.store_id, not s.member_id, s.programme_id, s.operation_id, s.store_id, s.store_code, s.till_id,
        s.receipt_no, s.sold_at, s.sold_at_offset_minutes, s.business_day, s.currency, s.channel, s.staff_code, s.gross_minor,
        s.discount_minor, s.net_minor, s.points_spent, s.points_spent_minor, s.payable_minor, s.points_earned, s.earn_points,
        s.earn_per_minor, s.earn_rounding, s.earned_lot_id, _json(s.spent_from) if s.spent_from else "[]", _discounts(s.discounts),
        _json([(t.type, t.amount_minor, t.reference) for t in s.tenders]), s.recorded_at,
    )  # fmt: skip


def _line_record(s: Sale, n: SaleLine) -> tuple[object, ...]:
    return (
        s.sale_id, n.line_no, s.member_id or s.store_id, n.sku, n.description, n.category, n.quantity, n.unit_price, n.amount_minor,
        n.discount_minor, n.net_minor, n.points_spent, n.points_spent_minor, n.points_earned, n.multiplier_bp, n.rule,
        _discounts(n.discounts) if n.discounts else None, _json(n.serials) if n.serials else None,
    )  # fmt: skip


async def write_reversals(connection: RawConnection, reversals: Sequence[tuple[Sale, Reversal]]) -> None:
    """Writes new reversals."""
    if reversals:
        records = [_reversal_record(sale, reversal) for sale, reversal in reversals]
        await connection.copy_records_to_table("reversals", columns=_REVERSAL_COLUMNS, records=records)


def _reversal_record(s: Sale, r: Reversal) -> tuple[object, ...]:
    lines = [(n.line_no, n.quantity, n.net_minor, n.refund_minor, n.points_returned) for n in r.lines]
    return (
        r.reversal_id, s.member_id or s.store_id, r.sale_id, r.operation_id, r.store_id, r.till_id, r.reversed_at,
        r.reversed_at_offset_minutes, r.business_day, r.reason, _json(lines), r.net_minor, r.refund_minor, r.points_taken_back,
        r.points_returned, _json(r.returned_to), _json(r.refunds), r.recorded_at,
    )  # fmt: skip


async def write_returns(connection: RawConnection, returns: Sequence[UnlinkedReturn]) -> None:
    """Writes new returns without a sale."""
    if returns:
        records = [
            (
                r.return_id, r.member_id or r.store_id, not r.member_id, r.operation_id, r.store_id, r.till_id, r.receipt_no, r.returned_at,
                r.returned_at_offset_minutes, r.business_day, r.currency, r.reason, _json(r.lines), r.refund_minor, r.recorded_at,
            )
            for r in returns
        ]  # fmt: skip
        await connection.copy_records_to_table("unlinked_returns", columns=_RETURN_COLUMNS, records=records)
