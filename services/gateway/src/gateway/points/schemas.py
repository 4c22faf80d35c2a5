"""Bodies of a member's points (积分)."""

from datetime import datetime
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from gateway.bodies import ProgrammeId, Reason, Writing


class NextExpiry(msgspec.Struct):
    """How many points expire next, and when."""

    points: int
    at: datetime


class Points(msgspec.Struct):
    """A member's points in one programme. `debt` is what refunds could not take back, netted from later earning."""

    balance: int
    pending: int
    debt: int
    next_expiry: NextExpiry | None


class LotSource(msgspec.Struct):
    """What granted points: a sale or an adjustment; values may grow."""

    kind: str
    id: str


class Lot(msgspec.Struct):
    """Points granted together, which expire together."""

    id: str
    quantity: int
    remaining: int
    available_at: datetime
    expires_at: datetime | None
    source: LotSource


class Entry(msgspec.Struct):
    """One movement of points."""

    id: str
    at: datetime
    kind: str
    points: int
    pending: int
    debt: int
    balance: int
    sale_id: str | None
    lot_id: str | None
    reason: str | None


class AdjustPoints(Writing):
    """Points to grant (positive) or to take (negative), and why."""

    EXAMPLE: ClassVar[dict[str, Any]] = {"operation_id": "desk-000001", "points": 500, "reason": "Welcome gift"}

    points: Annotated[int, Meta(ge=-(10**12), le=10**12, extra_json_schema={"not": {"const": 0}})]
    reason: Reason
    programme_id: ProgrammeId | None = None


class Adjustment(msgspec.Struct):
    """Points granted or taken, and the figures after it."""

    id: str
    operation_id: str
    member_id: str
    programme_id: str
    points: int
    reason: str
    at: datetime
    balance: int
    pending: int
    debt: int
    next_expiry: NextExpiry | None
