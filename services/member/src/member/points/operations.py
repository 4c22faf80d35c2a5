"""Reading points: figures, lots and entries, as of now."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from msgspec import Meta
from sqlalchemy.ext.asyncio import AsyncEngine

from kit.db import RawConnection, raw, transaction
from kit.problems import Refusal
from member.paging import cursor, page, position_of
from member.points.rules import Lot, Shortfall, Wallet
from member.programmes.operations import Books
from member.sales.documents import encode, points_figures, utc_text
from member.wallet.counting import count_moves
from member.wallet.events import points_moved
from member.wallet.loading import load_lots, lock_wallets, read_wallets
from member.wallet.writing import write

_MEMBER_EXISTS = "SELECT 1 FROM members WHERE member_id = $1"

_LOTS = """
SELECT lot_id::text, quantity, remaining, expired, matured, available_at, expires_at, source_kind, source_id::text
FROM points_lots WHERE member_id = $1 AND programme_id = $2 AND lot_id < $3 ORDER BY lot_id DESC LIMIT $4
"""

_ENTRIES = """
SELECT entry_id::text, at, kind, points, pending, debt, balance, debt_after, sale_id::text, lot_id::text, reason, sequence
FROM points_entries WHERE member_id = $1 AND programme_id = $2 AND sequence < $3 ORDER BY sequence DESC LIMIT $4
"""

_NO_ID = "ffffffff-ffff-ffff-ffff-ffffffffffff"
_NO_SEQUENCE = 2**62
_Sequence = Annotated[int, Meta(ge=0, lt=_NO_SEQUENCE)]


async def check_member_exists(connection: RawConnection, member_id: str) -> None:
    """Raises Refusal `member_not_found` unless there is such a member."""
    if await connection.fetchval(_MEMBER_EXISTS, member_id) is None:
        raise Refusal("member_not_found", 404, "No such member", "Find the member with POST /v1/members:search, or sign them up.")


async def get_points(connection: RawConnection, member_id: str, programme_id: str, shortfall: Shortfall, now: datetime) -> bytes:
    """Balance, pending points, debt and next expiry: what time did since the last entry is reckoned with, not written."""
    return encode(points_figures(await _settled_copy(connection, member_id, programme_id, now), shortfall))


async def list_lots(connection: RawConnection, member_id: str, programme_id: str, now: datetime, *, size: int, page_token: str) -> bytes:
    """A member's lots, newest first, as they stand now."""
    after = position_of(page_token, tuple[UUID])
    wallet = await _settled_copy(connection, member_id, programme_id, now)
    rows = await connection.fetch(_LOTS, member_id, programme_id, after[0] if after else _NO_ID, size + 1)
    lots = [wallet.lots.get(row[0]) or Lot(*row) for row in rows[:size]]
    return encode(page([_lot_document(lot) for lot in lots], cursor(lots[-1].lot_id) if len(rows) > size else None))


async def list_entries(
    connection: RawConnection, member_id: str, programme_id: str, shortfall: Shortfall, *, size: int, page_token: str
) -> bytes:
    """A member's points entries, newest first."""
    after = position_of(page_token, tuple[_Sequence])
    rows = await connection.fetch(_ENTRIES, member_id, programme_id, after[0] if after else _NO_SEQUENCE, size + 1)
    items = [_entry_document(row, shortfall) for row in rows[:size]]
    return encode(page(items, cursor(rows[size - 1]["sequence"]) if len(rows) > size else None))


async def settle_wallet(engine: AsyncEngine, programmes: Books, member_id: str, programme_id: str, now: datetime) -> None:
    """Enters what time did to a wallet, if anything, so that its entries tell all of its figures."""
    key = (member_id, programme_id)
    async with transaction(engine) as connection:
        driver = raw(connection)
        seen = (await read_wallets(driver, [key])).get(key)
        if seen is None or not seen.is_due(now):
            return
        wallets = await lock_wallets(driver, [key], now)
        await load_lots(driver, wallets, now, debits={})
        wallet = wallets[key]
        wallet.settle(now)
        if wallet.entries:
            await write(driver, now, wallets=[wallet], events=[points_moved(wallet, await programmes.current(driver), now, "")])
    count_moves([wallet])


async def _settled_copy(connection: RawConnection, member_id: str, programme_id: str, now: datetime) -> Wallet:
    await check_member_exists(connection, member_id)
    wallets = await read_wallets(connection, [(member_id, programme_id)])
    wallet = wallets.get((member_id, programme_id))
    if wallet is None:
        return Wallet(member_id, programme_id)
    await load_lots(connection, wallets, now, debits={})
    wallet.settle(now)
    return wallet


def _lot_document(lot: Lot) -> dict[str, Any]:
    return {
        "id": lot.lot_id,
        "quantity": lot.quantity,
        "remaining": lot.remaining,
        "available_at": utc_text(lot.available_at),
        "expires_at": utc_text(lot.expires_at) if lot.expires_at else None,
        "source": {"kind": lot.source_kind, "id": lot.source_id},
    }


def _entry_document(row: Any, shortfall: Shortfall) -> dict[str, Any]:  # noqa: ANN401  # asyncpg's rows are untyped
    # Where the programme lets the balance go negative, what is owed is part of it.
    owed, owed_after = (row["debt"], row["debt_after"]) if shortfall == "negative" else (0, 0)
    return {
        "id": row["entry_id"],
        "at": utc_text(row["at"]),
        "kind": row["kind"],
        "points": row["points"] - owed,
        "pending": row["pending"],
        "debt": row["debt"] - owed,
        "balance": row["balance"] - owed_after,
        "sale_id": row["sale_id"],
        "lot_id": row["lot_id"],
        "reason": row["reason"],
    }
