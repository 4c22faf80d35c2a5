"""Proof of the ledgers: every cached figure is computed again from the entries, and every difference is named.

Wallets and lots are cached sums of entries; sales and reversals are frozen, and have to add up. A page is read in one snapshot, so
that it may run beside sales. With `rebuild`, a wallet's and its lots' figures are set to what the entries prove, under the wallet's
lock; a sale that does not add up is only named, since nothing proves which of its figures is right.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

import msgspec

from kit.db import RawConnection
from member.paging import cursor, position_of

LARGEST_PAGE = 10_000


@dataclass(frozen=True, slots=True)
class Difference:
    """One cached figure that its entries do not prove. `subject_id`: the lot or sale, where there is one."""

    member_id: str
    programme_id: str
    figure: str
    subject_id: str
    cached: str
    proven: str
    rebuilt: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """What one page proved. `next_page_token` is empty after the last."""

    wallets: int
    differences: list[Difference]
    next_page_token: str


_PAGE_OF_WALLETS = """
SELECT member_id::text, programme_id FROM wallets
WHERE $1::uuid IS NULL OR (member_id, programme_id) > ($1, $2::text) ORDER BY member_id, programme_id LIMIT $3
"""

_LOCK = """
SELECT 1 FROM wallets WHERE member_id = ANY($1::uuid[]) AND programme_id = ANY($2::text[]) ORDER BY member_id, programme_id FOR UPDATE
"""

# What each lot's entries come to. An entry carries the expiry that its lot had then, so the last one tells the lot's.
_LOT_SUMS = """
keys AS (
  SELECT * FROM unnest($1::uuid[], $2::text[]) AS k(member_id, programme_id)
), lot_sums AS (
  SELECT e.member_id, e.programme_id, e.lot_id, sum(e.points) AS spendable, sum(e.pending) AS pending, sum(e.expired) AS expired,
         sum(e.points + e.pending) FILTER (WHERE e.kind = 'earn' OR (e.kind = 'adjust' AND e.points > 0)) AS quantity,
         bool_or(e.points <> 0) AS has_matured, (array_agg(e.expires_at ORDER BY e.sequence DESC))[1] AS expires_at
  FROM points_entries e JOIN keys USING (member_id, programme_id) WHERE e.lot_id IS NOT NULL GROUP BY 1, 2, 3
)
"""

# What each wallet's entries come to.
_WALLET_SUMS = f"""
{_LOT_SUMS}, sums AS (
  SELECT e.member_id, e.programme_id, sum(e.points) AS balance, sum(e.pending) AS pending, sum(e.debt) AS debt,
         max(e.sequence) AS sequence, count(*) AS number
  FROM points_entries e JOIN keys USING (member_id, programme_id) GROUP BY 1, 2
), expiries AS (
  SELECT member_id, programme_id, jsonb_object_agg((extract(epoch FROM expires_at) * 1000000)::bigint::text, points) AS sums
  FROM (
    SELECT member_id, programme_id, expires_at, sum(spendable) AS points
    FROM lot_sums WHERE spendable > 0 AND expires_at IS NOT NULL GROUP BY 1, 2, 3
  ) AS x GROUP BY 1, 2
), maturities AS (
  SELECT member_id, programme_id, jsonb_object_agg((extract(epoch FROM available_at) * 1000000)::bigint::text, points) AS sums
  FROM (
    SELECT member_id, programme_id, l.available_at, sum(s.pending) AS points
    FROM lot_sums s JOIN points_lots l USING (member_id, programme_id, lot_id) WHERE s.pending > 0 GROUP BY 1, 2, 3
  ) AS x GROUP BY 1, 2
), proven AS (
  SELECT k.member_id, k.programme_id, coalesce(s.balance, 0) AS balance, coalesce(s.pending, 0) AS pending, coalesce(s.debt, 0) AS debt,
         coalesce(s.sequence, 0) AS sequence, coalesce(s.number, 0) AS number, coalesce(x.sums, '{{}}') AS expiries,
         coalesce(m.sums, '{{}}') AS maturities
  FROM keys k
  LEFT JOIN sums s USING (member_id, programme_id)
  LEFT JOIN expiries x USING (member_id, programme_id)
  LEFT JOIN maturities m USING (member_id, programme_id)
)
"""

# Each figure of each wallet beside what its entries prove; only those that differ.
_WALLET_FIGURES = f"""
WITH {_WALLET_SUMS}, running AS (
  SELECT member_id, programme_id, min(sequence) AS first_wrong
  FROM (
    SELECT e.member_id, e.programme_id, e.sequence, e.balance, e.debt_after,
           sum(e.points) OVER w AS proven, sum(e.debt) OVER w AS proven_debt
    FROM points_entries e JOIN keys USING (member_id, programme_id)
    WINDOW w AS (PARTITION BY e.member_id, e.programme_id ORDER BY e.sequence)
  ) AS r WHERE balance <> proven OR debt_after <> proven_debt GROUP BY 1, 2
)
SELECT w.member_id::text, w.programme_id, f.figure, '' AS subject_id, f.cached, f.proven
FROM wallets w
JOIN proven p USING (member_id, programme_id)
LEFT JOIN running r USING (member_id, programme_id)
CROSS JOIN LATERAL (VALUES
  ('balance', w.balance::text, p.balance::text),
  ('pending', w.pending::text, p.pending::text),
  ('debt', w.debt::text, p.debt::text),
  ('sequence', w.sequence::text, p.sequence::text),
  ('number of entries', p.number::text, p.sequence::text),
  ('balance written on entry ' || coalesce(r.first_wrong, 0), CASE WHEN r.first_wrong IS NULL THEN 'right' ELSE 'wrong' END, 'right'),
  ('expiries', w.expiries::text, p.expiries::text),
  ('maturities', w.maturities::text, p.maturities::text)
) AS f(figure, cached, proven)
WHERE f.cached <> f.proven
"""

_LOT_FIGURES = f"""
WITH {_LOT_SUMS}, lots AS (
  SELECT l.* FROM points_lots l JOIN keys USING (member_id, programme_id)
)
SELECT member_id::text, programme_id, f.figure, lot_id::text, f.cached, f.proven
FROM lots l FULL JOIN lot_sums s USING (member_id, programme_id, lot_id)
CROSS JOIN LATERAL (VALUES
  ('lot.remaining', coalesce(l.remaining::text, 'no such lot'), coalesce(s.spendable + s.pending, 0)::text),
  ('lot.expired', coalesce(l.expired::text, 'no such lot'), coalesce(s.expired, 0)::text),
  ('lot.quantity', coalesce(l.quantity::text, 'no such lot'), coalesce(s.quantity, 0)::text),
  ('lot.expires_at', coalesce(l.expires_at::text, 'never'), coalesce(s.expires_at::text, 'never')),
  ('lot.matured', l.matured::text, CASE WHEN s.pending > 0 THEN 'false' WHEN s.has_matured THEN 'true' ELSE l.matured::text END)
) AS f(figure, cached, proven)
WHERE f.cached <> f.proven
"""

_PAGE_OF_SALES = "SELECT sale_id FROM sales WHERE $1::uuid IS NULL OR sale_id > $1 ORDER BY sale_id LIMIT $2"

# A sale's figures beside what its lines, tenders, entries and reversals prove.
_SALE_FIGURES = """
WITH page AS (
  SELECT * FROM sales WHERE sale_id = ANY($1::uuid[])
), lines AS (
  SELECT sale_id, sum(amount_minor) AS gross, sum(net_minor) AS net, sum(points_spent) AS spent, sum(points_spent_minor) AS spent_minor,
         sum(points_earned) AS earned
  FROM sale_lines WHERE sale_id = ANY($1::uuid[]) GROUP BY 1
), tenders AS (
  SELECT sale_id, coalesce(sum((t.tender ->> 1)::bigint), 0) AS paid FROM page, jsonb_array_elements(tenders) AS t(tender) GROUP BY 1
), entries AS (
  SELECT p.sale_id, coalesce(sum(-e.points) FILTER (WHERE e.kind = 'spend'), 0) AS spent,
         coalesce(sum(e.points + e.pending) FILTER (WHERE e.kind = 'earn'), 0) AS earned,
         coalesce(sum(e.points) FILTER (WHERE e.kind = 'return'), 0) AS returned
  FROM page p JOIN points_entries e ON e.member_id = p.member_id AND e.programme_id = p.programme_id AND e.sale_id = p.sale_id
  WHERE NOT p.is_guest GROUP BY 1
), back AS (
  SELECT r.sale_id, sum(r.refund_minor) AS refund, sum(r.points_returned) AS returned, sum(r.points_taken_back) AS taken_back
  FROM reversals r WHERE r.sale_id = ANY($1::uuid[]) GROUP BY 1
), over AS (
  SELECT l.sale_id, min(l.line_no) AS line_no
  FROM sale_lines l
  JOIN (
    SELECT r.sale_id, (x.line ->> 0)::int AS line_no, sum((x.line ->> 1)::numeric) AS quantity
    FROM reversals r, jsonb_array_elements(r.lines) AS x(line) WHERE r.sale_id = ANY($1::uuid[]) GROUP BY 1, 2
  ) AS b ON b.sale_id = l.sale_id AND b.line_no = l.line_no
  WHERE b.quantity > l.quantity GROUP BY 1
)
SELECT CASE WHEN p.is_guest THEN '' ELSE p.member_id::text END, p.programme_id, f.figure, p.sale_id::text, f.cached, f.proven
FROM page p
LEFT JOIN lines l USING (sale_id)
LEFT JOIN tenders t USING (sale_id)
LEFT JOIN entries e USING (sale_id)
LEFT JOIN back b USING (sale_id)
LEFT JOIN over o USING (sale_id)
CROSS JOIN LATERAL (VALUES
  ('sale.gross_minor', p.gross_minor::text, coalesce(l.gross, 0)::text),
  ('sale.net_minor', p.net_minor::text, coalesce(l.net, 0)::text),
  ('sale.points_spent_minor', p.points_spent_minor::text, coalesce(l.spent_minor, 0)::text),
  ('sale.points_spent', p.points_spent::text, coalesce(l.spent, 0)::text),
  ('sale.points_earned', p.points_earned::text, coalesce(l.earned, 0)::text),
  ('sale.payable_minor', p.payable_minor::text, coalesce(t.paid, 0)::text),
  ('entries.points_spent', p.points_spent::text, coalesce(e.spent, 0)::text),
  ('entries.points_earned', p.points_earned::text, coalesce(e.earned, 0)::text),
  ('reversals.points_returned', coalesce(b.returned, 0)::text, coalesce(e.returned, 0)::text),
  ('reversals.refund_minor', greatest(coalesce(b.refund, 0), p.payable_minor)::text, p.payable_minor::text),
  ('reversals.points_taken_back', greatest(coalesce(b.taken_back, 0), p.points_earned)::text, p.points_earned::text),
  ('reversals.quantity', coalesce('more than sold of line ' || o.line_no, 'within'), 'within')
) AS f(figure, cached, proven)
WHERE f.cached <> f.proven
"""

_REBUILD_LOTS = f"""
WITH {_LOT_SUMS}
UPDATE points_lots AS l
SET remaining = s.spendable + s.pending, expired = s.expired, expires_at = s.expires_at,
    matured = CASE WHEN s.pending > 0 THEN false WHEN s.has_matured THEN true ELSE l.matured END
FROM lot_sums s
WHERE l.member_id = s.member_id AND l.programme_id = s.programme_id AND l.lot_id = s.lot_id
"""

_REBUILD_WALLETS = f"""
WITH {_WALLET_SUMS}
UPDATE wallets AS w
SET balance = p.balance, pending = p.pending, debt = p.debt, sequence = p.sequence, expiries = p.expiries, maturities = p.maturities,
    updated_at = $3
FROM proven p
WHERE w.member_id = p.member_id AND w.programme_id = p.programme_id
  AND (w.balance, w.pending, w.debt, w.sequence, w.expiries, w.maturities)
      IS DISTINCT FROM (p.balance, p.pending, p.debt, p.sequence, p.expiries, p.maturities)
"""


class _Position(msgspec.Struct, array_like=True):
    """Where a page begins: after a wallet, or after a sale."""

    phase: Literal["wallets", "sales"]
    after: UUID | None
    programme_id: Annotated[str, msgspec.Meta(pattern="^[a-z0-9-]*$")] = ""


async def reconcile_page(connection: RawConnection, now: datetime, *, size: int, page_token: str, rebuild: bool) -> Page:
    """Proves the wallets (then, when they are done, the sales) that follow `page_token`, in the caller's transaction."""
    found = position_of(page_token, tuple[_Position])
    position = found[0] if found else _Position("wallets", None)
    size = min(size, LARGEST_PAGE) if size > 0 else LARGEST_PAGE
    if position.phase == "sales":
        return await _reconcile_sales(connection, position, size)
    rows = await connection.fetch(_PAGE_OF_WALLETS, position.after, position.programme_id, size)
    keys = [row[0] for row in rows], [row[1] for row in rows]
    if rebuild:
        await connection.execute(_LOCK, keys[0], list(set(keys[1])))
    differences = await _differences(connection, keys)
    if rebuild and differences:
        await connection.execute(_REBUILD_LOTS, *keys)
        await connection.execute(_REBUILD_WALLETS, *keys, now)
        left = {_name(d) for d in await _differences(connection, keys)}
        differences = [replace(d, rebuilt=_name(d) not in left) for d in differences]
    more = _Position("wallets", UUID(rows[-1][0]), rows[-1][1]) if len(rows) == size else _Position("sales", None)
    return Page(len(rows), differences, cursor(more))


def _name(difference: Difference) -> tuple[str, str, str, str]:
    return difference.member_id, difference.programme_id, difference.figure, difference.subject_id


async def _differences(connection: RawConnection, keys: tuple[list[str], list[str]]) -> list[Difference]:
    return [Difference(*row) for query in (_WALLET_FIGURES, _LOT_FIGURES) for row in await connection.fetch(query, *keys)]


async def _reconcile_sales(connection: RawConnection, position: _Position, size: int) -> Page:
    ids = [row[0] for row in await connection.fetch(_PAGE_OF_SALES, position.after, size)]
    differences = [Difference(*row) for row in await connection.fetch(_SALE_FIGURES, ids)]
    return Page(0, differences, cursor(_Position("sales", ids[-1])) if len(ids) == size else "")
