"""What the ledgers come to: by store and business day, and by programme and day. Whole sums, reckoned by the database."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from kit.db import RawConnection
from kit.ids import smallest_uuid7
from member.programmes.rules import ProgrammeBook

# An act is never dated more than minutes after its recording, whatever the zones; a clock that was put right may have lagged.
_BEFORE_RECORDING = timedelta(days=7)
_ZONES_APART = timedelta(days=2)
_NO_ID = "00000000-0000-0000-0000-000000000000"


@dataclass(slots=True)
class StoreDay:
    """Sales of a store on one of its days, and what it took back on that day: reversals, and returns of no recorded sale."""

    store_id: str
    business_day: date
    currency: str
    receipts: int = 0
    gross_minor: int = 0
    discount_minor: int = 0
    net_minor: int = 0
    payable_minor: int = 0
    quantity: str = "0"
    returns: int = 0
    returned_net_minor: int = 0
    refund_minor: int = 0
    returned_quantity: str = "0"
    sales_checksum: int = 0
    lines_checksum: int = 0
    returned_lines_checksum: int = 0


@dataclass(frozen=True, slots=True)
class PointsDay:
    """Entries of one kind on one of a programme's days."""

    programme_id: str
    day: date
    kind: str
    entries: int
    points: int
    pending: int
    debt: int
    expired: int


@dataclass(frozen=True, slots=True)
class PointsTotal:
    """What the wallets of a programme come to."""

    programme_id: str
    balance: int
    pending: int
    debt: int


@dataclass(frozen=True, slots=True)
class Summary:
    """Sums of what was recorded before an instant, and of the members before an id."""

    store_days: list[StoreDay]
    points_days: list[PointsDay]
    points_totals: list[PointsTotal]
    # Days of joining and the members who did.
    members_days: list[tuple[date, int]]
    unpublished_events: int


_DAYS = "($1::date IS NULL OR {0}.business_day >= $1) AND ($2::date IS NULL OR {0}.business_day < $2) AND {0}.recorded_at < $3"


def _checksum(*values: str) -> str:
    """What one row adds to a checksum: nothing that it says can change, or move to another row, without a trace in the sum."""
    texts = ", ".join(f"coalesce(({value})::text, '')" for value in values)
    return f"('x' || left(md5(concat_ws(chr(31), {texts})), 8))::bit(32)::bigint"


_OWNER = f"CASE WHEN s.is_guest THEN '{_NO_ID}' ELSE s.member_id::text END"
# In the order in which `reporting.reconcile.operations` has them.
_SALE_SAYS = ("s.sale_id", _OWNER, "s.programme_id", "s.channel", "s.staff_code", "s.net_minor", "s.points_earned")
_LINE_SAYS = ("l.sale_id", "l.line_no", _OWNER, "s.channel", "s.staff_code", "l.sku", "l.category", "l.net_minor", "l.points_earned")
_REVERSAL_LINE_SAYS = (
    "r.reversal_id", "line ->> 0", _OWNER, "s.channel", "s.staff_code", "g.sku", "g.category", "line ->> 2", "line ->> 3",
)  # fmt: skip
_RETURN_LINE_SAYS = ("s.return_id", "line ->> 0", _OWNER, "''", "''", "line ->> 1", "line ->> 3", "line ->> 6", "line ->> 6")

_SALES = f"""
SELECT store_id::text, business_day, currency, count(*), sum(gross_minor)::bigint, sum(discount_minor)::bigint, sum(net_minor)::bigint,
  sum(payable_minor)::bigint, sum({_checksum(*_SALE_SAYS)})::bigint
FROM sales AS s WHERE {_DAYS.format("s")} AND sale_id >= $4 GROUP BY store_id, business_day, currency
"""

_LINES = f"""
SELECT s.store_id::text, s.business_day, s.currency, trim_scale(sum(l.quantity))::text, sum({_checksum(*_LINE_SAYS)})::bigint
FROM sales AS s JOIN sale_lines AS l ON l.sale_id = s.sale_id
WHERE {_DAYS.format("s")} AND s.sale_id >= $4 AND l.sale_id >= $4 GROUP BY s.store_id, s.business_day, s.currency
"""

_RETURNS = f"""
WITH back AS (
  SELECT r.store_id, r.business_day, s.currency, r.net_minor, r.refund_minor, lines.quantity, lines.checksum
  FROM reversals AS r JOIN sales AS s ON s.sale_id = r.sale_id
  CROSS JOIN LATERAL (
    SELECT sum((line ->> 1)::numeric) AS quantity, sum({_checksum(*_REVERSAL_LINE_SAYS)}) AS checksum
    FROM jsonb_array_elements(r.lines) AS line JOIN sale_lines AS g ON g.sale_id = r.sale_id AND g.line_no = (line ->> 0)::integer
  ) AS lines
  WHERE {_DAYS.format("r")} AND r.reversal_id >= $4
  UNION ALL
  SELECT s.store_id, s.business_day, s.currency, s.refund_minor, s.refund_minor, lines.quantity, lines.checksum
  FROM unlinked_returns AS s
  CROSS JOIN LATERAL (
    SELECT sum((line ->> 4)::numeric) AS quantity, sum({_checksum(*_RETURN_LINE_SAYS)}) AS checksum
    FROM jsonb_array_elements(s.lines) AS line
  ) AS lines
  WHERE {_DAYS.format("s")} AND s.return_id >= $4
)
SELECT store_id::text, business_day, currency, count(*), sum(net_minor)::bigint, sum(refund_minor)::bigint,
  coalesce(trim_scale(sum(quantity)), 0)::text, coalesce(sum(checksum), 0)::bigint
FROM back GROUP BY store_id, business_day, currency
"""

# The zone of a programme may change with a version: a day is of the zone that held at that instant.
_POINTS = """
WITH zones AS (
  SELECT * FROM unnest($5::text[], $6::timestamptz[], $7::timestamptz[], $8::text[]) AS z(programme_id, starts_at, ends_at, zone)
), entries AS (
  SELECT e.programme_id, (e.at AT TIME ZONE coalesce(z.zone, 'UTC'))::date AS day, e.kind, e.points, e.pending, e.debt, e.expired
  FROM points_entries AS e
  LEFT JOIN zones AS z ON z.programme_id = e.programme_id AND (z.starts_at IS NULL OR e.at >= z.starts_at)
    AND (z.ends_at IS NULL OR e.at < z.ends_at)
  WHERE (e.recorded_at < $3 OR e.recorded_at IS NULL) AND e.entry_id >= $4
    AND ($9::timestamptz IS NULL OR e.at >= $9) AND ($10::timestamptz IS NULL OR e.at < $10)
)
SELECT programme_id, day, kind, count(*), sum(points)::bigint, sum(pending)::bigint, sum(debt)::bigint, sum(expired)::bigint
FROM entries WHERE ($1::date IS NULL OR day >= $1) AND ($2::date IS NULL OR day < $2)
GROUP BY programme_id, day, kind ORDER BY programme_id, day, kind
"""

# The wallets hold the sums of all their entries; those recorded since are few.
_TOTALS = """
WITH since AS (
  SELECT programme_id, sum(points) AS points, sum(pending) AS pending, sum(debt) AS debt
  FROM points_entries WHERE recorded_at >= $1 AND entry_id >= $2 GROUP BY programme_id
)
SELECT programme_id, (sum(w.balance) - coalesce(min(s.points), 0))::bigint, (sum(w.pending) - coalesce(min(s.pending), 0))::bigint,
  (sum(w.debt) - coalesce(min(s.debt), 0))::bigint
FROM wallets AS w LEFT JOIN since AS s USING (programme_id) GROUP BY programme_id ORDER BY programme_id
"""

_MEMBERS = """
SELECT joined_on, count(*) FROM members
WHERE member_id < $3 AND ($1::date IS NULL OR joined_on >= $1) AND ($2::date IS NULL OR joined_on < $2)
GROUP BY joined_on ORDER BY joined_on
"""

_UNPUBLISHED = "SELECT count(*) FROM (SELECT FROM outbox LIMIT 1000000) AS waiting"


async def summarise(
    connection: RawConnection,
    book: ProgrammeBook,
    recorded_before: datetime,
    members_before: str,
    *,
    from_day: date | None,
    to_day: date | None,
) -> Summary:
    """The ledgers' sums of the days from `from_day` up to, not including, `to_day`; the totals are of all days.

    The caller's transaction must see one snapshot.
    """
    days = (from_day, to_day, recorded_before, _first_id(from_day))
    store_days: dict[tuple[str, date, str], StoreDay] = {}

    def at(key: tuple[str, date, str]) -> StoreDay:
        return store_days.setdefault(key, StoreDay(*key))

    for row in await connection.fetch(_SALES, *days):
        day = at((row[0], row[1], row[2]))
        day.receipts, day.gross_minor, day.discount_minor, day.net_minor, day.payable_minor, day.sales_checksum = row[3:9]
    for row in await connection.fetch(_LINES, *days):
        day = at((row[0], row[1], row[2]))
        day.quantity, day.lines_checksum = row[3:5]
    for row in await connection.fetch(_RETURNS, *days):
        day = at((row[0], row[1], row[2]))
        day.returns, day.returned_net_minor, day.refund_minor, day.returned_quantity, day.returned_lines_checksum = row[3:8]
    zones = _zones(book)
    instants = [_midnight(each) + margin if each else None for each, margin in ((from_day, -_ZONES_APART), (to_day, _ZONES_APART))]
    moved = await connection.fetch(_POINTS, *days, *([list(column) for column in zip(*zones, strict=True)] or [[]] * 4), *instants)
    totals = await connection.fetch(_TOTALS, recorded_before, _first_id(recorded_before.date()))
    return Summary(
        sorted(store_days.values(), key=lambda each: (each.business_day, each.store_id, each.currency)),
        [PointsDay(*row) for row in moved],
        [PointsTotal(*row) for row in totals],
        [(row[0], row[1]) for row in await connection.fetch(_MEMBERS, from_day, to_day, members_before)],
        await connection.fetchval(_UNPUBLISHED),
    )


def _zones(book: ProgrammeBook) -> list[tuple[str, datetime | None, datetime | None, str]]:
    """From when until when each programme's days were of which zone, as `ProgrammeBook.day_of` has it; None: always."""
    zones: list[tuple[str, datetime | None, datetime | None, str]] = []
    for programme_id, versions in book.versions.items():
        # The newest in effect holds, so a version ends where any later one begins.
        ends_at: datetime | None = None
        for index in range(len(versions) - 1, -1, -1):
            version = versions[index]
            starts_at = version.day_start(version.effective_from) if index else None
            if starts_at is None or ends_at is None or starts_at < ends_at:
                zones.append((programme_id, starts_at, ends_at, version.zone.key))
                ends_at = starts_at
    return zones


def _first_id(day: date | None) -> str:
    """An id that is less than those of all that was recorded on or after a day."""
    return smallest_uuid7(max(0, int((_midnight(day) - _BEFORE_RECORDING).timestamp()) * 1000)) if day is not None else _NO_ID


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), tzinfo=UTC)
