"""What a group consists of: commands as the writer takes them, and the outcomes it gives."""

from datetime import datetime

from msgspec import Struct

from member.sales.rules import NewReturn, NewReversal, NewSale


class SaleToReverse(Struct, frozen=True):
    """A reversal with the sale it concerns, named by its id or by the operation that recorded it; the other is empty."""

    reversal: NewReversal
    sale_id: str
    sale_operation_id: str


class NewAdjustment(Struct, frozen=True):
    """Points granted (positive) or taken (negative) by a person, for a reason."""

    member_id: str
    programme_id: str
    points: int
    reason: str


Act = NewSale | SaleToReverse | NewAdjustment | NewReturn


class Command(Struct, frozen=True):
    """One write. `fingerprint` tells a replay from a reuse of the operation id."""

    operation_id: str
    fingerprint: bytes
    method: str
    path: str
    traceparent: str
    # None: someone waits for ever.
    deadline: datetime | None
    act: Act


class Outcome(Struct, frozen=True):
    """The answer to one command: HTTP status and public JSON. `amount_minor`: a sale's net, or a refund. `code`: of a new refusal."""

    status: int
    body: bytes
    replayed: bool = False
    amount_minor: int = 0
    code: str = ""
