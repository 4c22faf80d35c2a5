"""The bodies of the gateway's import routes, encoded straight from these structs. Field names are the public API's."""

from http import HTTPStatus

import msgspec


class SignUp(msgspec.Struct, omit_defaults=True, gc=False, frozen=True):
    operation_id: str
    card: str
    joined_on: str
    country: str | None = None


class Tender(msgspec.Struct, gc=False, frozen=True):
    type: str
    amount_minor: int


class SaleLine(msgspec.Struct, omit_defaults=True, gc=False, frozen=True):
    line_no: int
    sku: str
    quantity: str
    unit_price: str
    amount_minor: int
    description: str | None = None
    category: str | None = None


class Sale(msgspec.Struct, omit_defaults=True, frozen=True):
    operation_id: str
    store_id: str
    till_id: str
    receipt_no: str
    sold_at: str
    currency: str
    lines: list[SaleLine]
    tenders: list[Tender]
    member_id: str | None = None
    channel: str | None = None


class ReversalLine(msgspec.Struct, gc=False, frozen=True):
    line_no: int
    quantity: str


class Reversal(msgspec.Struct, frozen=True):
    operation_id: str
    sale_operation_id: str
    store_id: str
    till_id: str
    reversed_at: str
    reason: str
    lines: list[ReversalLine]


class ReturnLine(msgspec.Struct, omit_defaults=True, gc=False, frozen=True):
    line_no: int
    sku: str
    quantity: str
    unit_price: str
    refund_minor: int
    description: str | None = None
    category: str | None = None


class Return(msgspec.Struct, omit_defaults=True, frozen=True):
    operation_id: str
    store_id: str
    till_id: str
    receipt_no: str
    returned_at: str
    currency: str
    reason: str
    lines: list[ReturnLine]
    member_id: str | None = None


class FieldFault(msgspec.Struct):
    pointer: str = ""
    code: str = ""
    detail: str = ""


class Problem(msgspec.Struct):
    """An RFC 9457 problem document."""

    code: str = "unknown"
    detail: str = ""
    errors: list[FieldFault] = []


class Outcome(msgspec.Struct):
    """What the gateway says became of one command or sign-up."""

    operation_id: str
    status: int
    replayed: bool = False
    amount_minor: int = 0
    member_id: str | None = None
    problem: Problem | None = None

    @property
    def is_refusal(self) -> bool:
        return self.status >= HTTPStatus.BAD_REQUEST


class Outcomes(msgspec.Struct):
    outcomes: list[Outcome]


class StoreItem(msgspec.Struct):
    id: str
    code: str
    zone: str
    currency: str
    programme_id: str


class TillItem(msgspec.Struct):
    id: str
    code: str


class Member(msgspec.Struct):
    id: str


class WalletDifference(msgspec.Struct):
    """One cached figure that its entries do not prove."""

    member_id: str
    programme_id: str
    figure: str
    cached: str | int | None
    proven: str | int | None
    subject_id: str | None = None
    rebuilt: bool = False


class ReconcilePage(msgspec.Struct):
    wallets: int
    differences: list[WalletDifference]
    next_cursor: str | None = None


class ReportsDifference(msgspec.Struct):
    """A figure that the reports have otherwise than the ledger, and of which store, day, programme."""

    figure: str
    ledger: str
    reports: str
    store_id: str | None = None
    day: str | None = None
    currency: str | None = None
    programme_id: str | None = None
    kind: str | None = None


class Compared(msgspec.Struct):
    """How many sums were compared."""

    store_days: int
    points_days: int
    members_days: int


class Behind(msgspec.Struct):
    """How many events the reports had yet to take in; `unread` is None when that is not known."""

    unpublished: int
    unread: int | None


class ReportsReconciled(msgspec.Struct):
    """What comparing the reports with the ledger found."""

    as_of: str
    compared: Compared
    behind: Behind
    differences_total: int
    differences: list[ReportsDifference]


class Rebuild(msgspec.Struct):
    """How a rebuild of the reports' facts stands."""

    id: str
    source: str
    state: str
    events: int
    expected_events: int | None = None
    poison: int = 0
    reason: str | None = None
