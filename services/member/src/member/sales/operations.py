"""Reading sales and returns."""

from typing import Annotated, Any
from uuid import UUID

import msgspec

from kit.db import RawConnection
from kit.problems import Refusal
from member.paging import cursor, page, position_of
from member.points.rules import instant, unix_us
from member.sales.documents import encode, return_document, sale_document
from member.sales.rules import UnlinkedReturn
from member.wallet.loading import SaleWithReversals, load_sales

_decode_return_lines = msgspec.json.Decoder(tuple[tuple[int, str, str, str, str, str, int], ...]).decode

# A cursor's instant in Unix microseconds, of years that the database and Python share.
_Microseconds = Annotated[int, msgspec.Meta(ge=0, le=253_402_300_799_999_999)]

_NO_ID = "ffffffff-ffff-ffff-ffff-ffffffffffff"

_NEWEST = """
SELECT sale_id::text FROM sales
WHERE sale_id < $1 AND ($2::uuid[] IS NULL OR store_id = ANY($2)) ORDER BY sale_id DESC LIMIT $3
"""

_OF_MEMBER = """
SELECT sale_id::text, sold_at FROM sales
WHERE member_id = $1 AND NOT is_guest AND ($2::timestamptz IS NULL OR (sold_at, sale_id) < ($2, $3::uuid))
ORDER BY sold_at DESC, sale_id DESC LIMIT $4
"""

_RETURNS = """
SELECT return_id::text, operation_id, store_id::text, till_id::text, receipt_no, returned_at, returned_at_offset_minutes, business_day,
  currency, CASE WHEN is_guest THEN '' ELSE member_id::text END AS member_id, reason, lines, refund_minor, recorded_at
FROM unlinked_returns WHERE return_id < $1 AND ($2::uuid[] IS NULL OR store_id = ANY($2)) ORDER BY return_id DESC LIMIT $3
"""


async def get_sale(connection: RawConnection, sale_id: str) -> bytes:
    """A sale with its reversals so far. Raises Refusal `sale_not_found`."""
    found = (await load_sales(connection, [sale_id])).get(sale_id)
    if found is None:
        raise Refusal("sale_not_found", 404, "No such sale", "Look the sale up by the member or the store.")
    return encode(_document(found))


async def list_sales(connection: RawConnection, stores: list[str] | None, size: int, page_token: str) -> bytes:
    """Sales of the given stores (None: of all), newest recording first."""
    after = position_of(page_token, tuple[UUID])
    rows = await connection.fetch(_NEWEST, after[0] if after else _NO_ID, stores, size + 1)
    ids = [row[0] for row in rows[:size]]
    found = await load_sales(connection, ids)
    return encode(page([_document(found[sale_id]) for sale_id in ids], cursor(ids[-1]) if len(rows) > size else None))


async def list_member_sales(connection: RawConnection, member_id: str, size: int, page_token: str) -> bytes:
    """A member's sales, latest `sold_at` first."""
    after = position_of(page_token, tuple[_Microseconds, UUID])
    rows = await connection.fetch(_OF_MEMBER, member_id, instant(after[0]) if after else None, after[1] if after else None, size + 1)
    ids = [row[0] for row in rows[:size]]
    found = await load_sales(connection, ids, [member_id])
    more = cursor(unix_us(rows[size - 1][1]), ids[-1]) if len(rows) > size else None
    return encode(page([_document(found[sale_id]) for sale_id in ids], more))


async def list_returns(connection: RawConnection, stores: list[str] | None, size: int, page_token: str) -> bytes:
    """Returns without a sale in the given stores (None: in all), newest recording first."""
    after = position_of(page_token, tuple[UUID])
    rows = await connection.fetch(_RETURNS, after[0] if after else _NO_ID, stores, size + 1)
    items = [return_document(UnlinkedReturn(**(dict(row) | {"lines": _decode_return_lines(row["lines"])}))) for row in rows[:size]]
    return encode(page(items, cursor(items[-1]["id"]) if len(rows) > size else None))


def _document(found: SaleWithReversals) -> dict[str, Any]:
    sale = found.sale
    points = {
        "earned": sale.points_earned,
        "spent": sale.points_spent,
        "taken_back": sum(reversal.points_taken_back for reversal in found.reversals),
        "returned": sum(reversal.points_returned for reversal in found.reversals),
    }
    return sale_document(sale, points if sale.member_id else None, found.reversals)
