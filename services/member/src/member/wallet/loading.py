"""Lock and load: what a group's commands need to be decided in memory, with one statement a table.

The locks are taken in the order of ids, wallets before guests' sales, so that two groups never wait for each other in a circle.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import asyncpg
import msgspec

from kit.db import RawConnection
from member.answers.operations import ANSWER, Answer
from member.points.rules import Lot, Wallet
from member.programmes.operations import BOOK_SEQ
from member.sales.rules import Discount, Reversal, ReversalLine, Sale, SaleLine, Tender

WalletKey = tuple[str, str]
# As many as there are: a wallet whose debits cannot be told before they are decided.
ALL = 2**31 - 1

_decode_sums = msgspec.json.Decoder(dict[int, int]).decode
_decode_pairs = msgspec.json.Decoder(tuple[tuple[str, int], ...]).decode
_decode_refunds = msgspec.json.Decoder(tuple[tuple[int, int], ...]).decode
_decode_discounts = msgspec.json.Decoder(tuple[tuple[int, str], ...]).decode
_decode_tenders = msgspec.json.Decoder(tuple[tuple[str, int, str], ...]).decode
_decode_texts = msgspec.json.Decoder(tuple[str, ...]).decode
_decode_reversal_lines = msgspec.json.Decoder(tuple[tuple[int, str, int, int, int], ...]).decode

_RESOLVE = """
SELECT sale_id::text, member_id::text, is_guest, programme_id FROM sales WHERE sale_id = ANY($1::uuid[])
"""

_RESOLVE_OPERATIONS = """
SELECT operation_id, subject_id::text FROM operations WHERE operation_id = ANY($1::text[]) AND subject_id IS NOT NULL
"""

_DECIDED = f"""
SELECT {BOOK_SEQ}, {ANSWER} FROM (VALUES (1)) AS always LEFT JOIN operations ON operation_id = ANY($1::text[])
"""

_WALLET = "member_id::text, programme_id, balance, pending, debt, sequence, expiries, maturities"

_LOCK_WALLETS = f"""
SELECT {_WALLET} FROM wallets
WHERE member_id = ANY($1::uuid[]) AND programme_id = ANY($2::text[]) ORDER BY member_id, programme_id FOR UPDATE
"""

_READ_WALLETS = f"SELECT {_WALLET} FROM wallets WHERE member_id = ANY($1::uuid[]) AND programme_id = ANY($2::text[])"

_LOCK_SALES = "SELECT sale_id FROM sales WHERE sale_id = ANY($1::uuid[]) AND member_id = ANY($2::uuid[]) ORDER BY sale_id FOR UPDATE"

_LIVE_MEMBERS = "SELECT member_id::text FROM members WHERE member_id = ANY($1::uuid[]) AND status = 'live'"

_OPEN_WALLETS = """
INSERT INTO wallets (member_id, programme_id, balance, pending, debt, sequence, expiries, maturities, updated_at)
SELECT member_id, programme_id, 0, 0, 0, 0, '{}', '{}', $3 FROM unnest($1::uuid[], $2::text[]) AS w(member_id, programme_id)
ORDER BY member_id, programme_id
ON CONFLICT DO NOTHING
"""

_LOT = """member_id::text, programme_id, lot_id::text, quantity, remaining, expired, matured, available_at, expires_at, source_kind,
source_id::text"""

_DUE_LOTS = f"""
SELECT {_LOT} FROM points_lots
WHERE member_id = ANY($1::uuid[]) AND programme_id = ANY($2::text[]) AND remaining > 0
  AND (expires_at <= $3 OR (NOT matured AND available_at <= $3))
"""

_LOTS_BY_ID = f"""
SELECT {_LOT} FROM points_lots WHERE member_id = ANY($1::uuid[]) AND programme_id = ANY($2::text[]) AND lot_id = ANY($3::uuid[])
"""

# A lot that holds anything holds a point, so the first `need` lots in spend order cover a debit of `need` points; but for those that
# have expired and lapse when the wallet is settled. That the members are said again leads to their shard (member.distribution).
_LOTS_TO_DEBIT = f"""
SELECT l.* FROM unnest($1::uuid[], $2::text[], $3::bigint[]) AS w(of_member, of_programme, need)
CROSS JOIN LATERAL (
  SELECT {_LOT} FROM points_lots
  WHERE member_id = w.of_member AND member_id = ANY($1::uuid[]) AND programme_id = w.of_programme AND remaining > 0 AND matured
    AND (expires_at > $4 OR expires_at IS NULL)
  ORDER BY expires_at, available_at, lot_id LIMIT w.need
) AS l
"""

# Where it is known whose the sales are, that leads to their shard (member.distribution).
_OF = "AND ($2::uuid[] IS NULL OR member_id = ANY($2))"

_SALES = f"""
SELECT sale_id::text, operation_id, store_id::text, store_code, till_id::text, receipt_no, sold_at, sold_at_offset_minutes, business_day,
  currency, CASE WHEN is_guest THEN '' ELSE member_id::text END AS member_id, programme_id, channel, staff_code, gross_minor,
  discount_minor, net_minor, points_spent, points_spent_minor, payable_minor, points_earned, earn_points, earn_per_minor, earn_rounding,
  earned_lot_id::text, spent_from, discounts, tenders, recorded_at, coalesce(wallet_sequence, 0) AS wallet_sequence
FROM sales WHERE sale_id = ANY($1::uuid[]) {_OF}
"""

_SALE_LINES = f"""
SELECT sale_id::text, line_no, sku, description, category, quantity::text, unit_price::text, amount_minor, discount_minor, net_minor,
  discounts, points_spent, points_spent_minor, points_earned, multiplier_bp, rule, serials
FROM sale_lines WHERE sale_id = ANY($1::uuid[]) {_OF} ORDER BY sale_id, line_no
"""

_REVERSALS = f"""
SELECT reversal_id::text, sale_id::text, operation_id, store_id::text, till_id::text, reversed_at, reversed_at_offset_minutes,
  business_day, reason, lines, net_minor, refund_minor, points_taken_back, points_returned, returned_to, refunds, recorded_at,
  coalesce(wallet_sequence, 0) AS wallet_sequence
FROM reversals WHERE sale_id = ANY($1::uuid[]) {_OF} ORDER BY reversal_id
"""


@dataclass(slots=True)
class SaleWithReversals:
    """A sale and what has come back of it, oldest first."""

    sale: Sale
    reversals: list[Reversal] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SaleOwner:
    """Whose a sale is: which wallet its reversal locks; a guest's sale is locked itself."""

    sale_id: str
    member_id: str
    is_guest: bool
    programme_id: str


async def find_sale_owners(
    connection: RawConnection, sale_ids: Iterable[str], operation_ids: Iterable[str]
) -> tuple[dict[str, SaleOwner], dict[str, str]]:
    """Owners of sales by sale id, and sale ids by the operation that recorded them, of those that exist."""
    by_operation: dict[str, str] = {}
    if operations := list(operation_ids):
        by_operation = {row[0]: row[1] for row in await connection.fetch(_RESOLVE_OPERATIONS, operations)}
    wanted = [*sale_ids, *by_operation.values()]
    owners = {row[0]: SaleOwner(*row) for row in await connection.fetch(_RESOLVE, wanted)} if wanted else {}
    return owners, by_operation


async def find_decided(connection: RawConnection, operation_ids: Sequence[str]) -> tuple[dict[str, Answer], int]:
    """The stored answers among these operations, and the `seq` of the book of programmes: what every group asks, asked at once."""
    rows = await connection.fetch(_DECIDED, operation_ids)
    return {row[1]: Answer(*row[1:]) for row in rows if row[1] is not None}, rows[0][0]


async def lock_wallets(connection: RawConnection, keys: Iterable[WalletKey], now: datetime) -> dict[WalletKey, Wallet]:
    """Locks and reads wallets, in the order of their keys; a live member without one in the programme gets it. Others are left out."""
    wanted = set(keys)
    wallets = await _fetch_wallets(connection, _LOCK_WALLETS, wanted)
    missing = [key for key in wanted if key not in wallets]
    if missing:
        live = {row[0] for row in await connection.fetch(_LIVE_MEMBERS, list({key[0] for key in missing}))}
        opened = [key for key in missing if key[0] in live]
        if opened:
            await open_wallets(connection, opened, now)
            wallets |= await _fetch_wallets(connection, _LOCK_WALLETS, set(opened))
    return wallets


async def read_wallets(connection: RawConnection, keys: Iterable[WalletKey]) -> dict[WalletKey, Wallet]:
    """Wallets without a lock, to compute on and throw away."""
    return await _fetch_wallets(connection, _READ_WALLETS, set(keys))


async def open_wallets(connection: RawConnection, keys: Sequence[WalletKey], now: datetime) -> None:
    """Opens empty wallets where there are none."""
    await connection.execute(_OPEN_WALLETS, [key[0] for key in keys], [key[1] for key in keys], now)


async def _fetch_wallets(connection: RawConnection, query: str, keys: set[WalletKey]) -> dict[WalletKey, Wallet]:
    if not keys:
        return {}
    rows = await connection.fetch(query, [key[0] for key in keys], list({key[1] for key in keys}))
    return {
        (row[0], row[1]): Wallet(
            row[0], row[1], row[2], row[3], row[4], row[5],
            _decode_sums(row[6]) if row[6] != "{}" else {},
            _decode_sums(row[7]) if row[7] != "{}" else {},
        )
        for row in rows
        if (row[0], row[1]) in keys
    }  # fmt: skip


async def lock_sales(connection: RawConnection, owners: Iterable[SaleOwner]) -> None:
    """Locks sales, in the order of their ids."""
    if wanted := {owner.sale_id: owner.member_id for owner in owners}:
        await connection.execute(_LOCK_SALES, sorted(wanted), sorted(set(wanted.values())))


async def load_lots(
    connection: RawConnection,
    wallets: dict[WalletKey, Wallet],
    now: datetime,
    *,
    debits: dict[WalletKey, int],
    lot_ids: Iterable[str] = (),
) -> None:
    """Puts into the wallets the lots that may be touched: due since they were settled, first in spend order up to `debits`, and named."""
    rows: list[Any] = []
    due = [key for key, wallet in wallets.items() if wallet.is_due(now)]
    if due:
        rows += await connection.fetch(_DUE_LOTS, [key[0] for key in due], list({key[1] for key in due}), now)
    needs = [(key, min(need, wallets[key].balance)) for key, need in debits.items() if key in wallets and wallets[key].balance]
    if needs:
        rows += await connection.fetch(
            _LOTS_TO_DEBIT, [key[0] for key, _ in needs], [key[1] for key, _ in needs], [need for _, need in needs], now
        )
    if named := list(lot_ids):
        rows += await connection.fetch(_LOTS_BY_ID, list({key[0] for key in wallets}), list({key[1] for key in wallets}), named)
    for row in rows:
        wallet = wallets.get((row[0], row[1]))
        if wallet is not None and row[2] not in wallet.lots:
            wallet.lots[row[2]] = Lot(*row[2:])


async def load_sales(
    connection: RawConnection, sale_ids: Iterable[str], owner_ids: Iterable[str] | None = None
) -> dict[str, SaleWithReversals]:
    """Sales with their lines and reversals, in the order asked for; those that do not exist are left out.

    `owner_ids`: whose they are, members or for guests' sales stores, where that is known; None: not known, they are looked for everywhere.
    """
    wanted = list(sale_ids)
    if not wanted:
        return {}
    given = (wanted, sorted(set(owner_ids)) if owner_ids is not None else None)
    lines: dict[str, list[SaleLine]] = {}
    for row in await connection.fetch(_SALE_LINES, *given):
        lines.setdefault(row[0], []).append(_sale_line(row))
    found = {row[0]: SaleWithReversals(_sale(row, tuple(lines.get(row["sale_id"], ())))) for row in await connection.fetch(_SALES, *given)}
    for row in await connection.fetch(_REVERSALS, *given):
        found[row["sale_id"]].reversals.append(_reversal(row))
    return {sale_id: found[sale_id] for sale_id in wanted if sale_id in found}


def _sale_line(row: "asyncpg.Record") -> SaleLine:
    fields: dict[str, Any] = dict(row) | {
        "discounts": _discounts(row["discounts"]),
        "serials": _decode_texts(row["serials"]) if row["serials"] else (),
    }
    del fields["sale_id"]
    return SaleLine(**fields)


def _sale(row: "asyncpg.Record", lines: tuple[SaleLine, ...]) -> Sale:
    fields: dict[str, Any] = dict(row) | {
        "lines": lines,
        "spent_from": _decode_pairs(row["spent_from"]),
        "discounts": _discounts(row["discounts"]),
        "tenders": tuple(Tender(*tender) for tender in _decode_tenders(row["tenders"])),
    }
    return Sale(**fields)


def _reversal(row: "asyncpg.Record") -> Reversal:
    fields: dict[str, Any] = dict(row) | {
        "lines": tuple(ReversalLine(*line) for line in _decode_reversal_lines(row["lines"])),
        "returned_to": _decode_pairs(row["returned_to"]),
        "refunds": _decode_refunds(row["refunds"]),
    }
    return Reversal(**fields)


def _discounts(text: str | None) -> tuple[Discount, ...]:
    return tuple(Discount(*discount) for discount in _decode_discounts(text)) if text else ()
