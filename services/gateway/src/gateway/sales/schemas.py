"""Bodies of sales, reversals and returns (api.md, "A sale")."""

from datetime import date, datetime
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gateway.bodies import (
    NO_NUL_NOT_BLANK,
    NOT_BLANK,
    AmountMinor,
    Currency,
    OperationId,
    Quantity,
    Reason,
    Term,
    Text64,
    Text200,
    Text500,
    UnitPrice,
    Uuid,
    Writing,
)
from gateway.points.schemas import NextExpiry
from kit.problems import Problem

# RFC 3339 with an offset. The years are checked where the instant is made.
Moment = Annotated[datetime, Meta(tz=True, description="RFC 3339 with offset, between the years 1970 and 2200")]
LineNo = Annotated[int, Meta(ge=1, le=1_000_000)]
Sku = Annotated[str, Meta(min_length=1, max_length=64, pattern=NOT_BLANK, extra_json_schema=NO_NUL_NOT_BLANK)]
Serials = Annotated[
    list[Text64], Meta(max_length=1000, description="One for each unit, all distinct", extra_json_schema={"uniqueItems": True})
]
# A store and its till in the examples; a chain's own are told by GET /v1/stores and GET /v1/stores/{store_id}/tills.
_PLACE = {"store_id": "01a2019c-3df7-7000-8508-6d75c89ca3e6", "till_id": "01a2019c-3dfc-7000-8537-339435829156"}
PointsAmount = Annotated[int, Meta(ge=0, le=10**12)]


class NewDiscount(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """An amount off, and why."""

    amount_minor: AmountMinor
    reason: Reason | None = None


NewDiscounts = Annotated[list[NewDiscount], Meta(max_length=50)]


class Tender(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One way in which a sale is paid: cash, card, wechat_pay, alipay, stored_value, other; values may grow."""

    type: Term
    amount_minor: AmountMinor
    reference: Text200 | None = None


class NewSaleLine(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A line of a sale. `amount_minor` is quantity × unit price, rounded half up."""

    line_no: LineNo
    sku: Sku
    quantity: Quantity
    unit_price: UnitPrice
    amount_minor: AmountMinor
    description: Text500 | None = None
    category: Text64 | None = None
    discounts: NewDiscounts = []
    serials: Serials = []


class NewSale(Writing):
    """A sale as the till made it. Line numbers are distinct."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "operation_id": "till-7-000123",
        **_PLACE,
        "receipt_no": "000123",
        "sold_at": "2026-11-21T18:03:11+08:00",
        "currency": "CNY",
        "member_id": "01a201a4-a414-7000-8ebe-0feb8a8dcc59",
        "channel": "store",
        "staff_code": "E042",
        "lines": [
            {
                "line_no": 1,
                "sku": "A100",
                "description": "Earphones",
                "category": "audio",
                "quantity": "1",
                "unit_price": "199.90",
                "amount_minor": 19990,
                "discounts": [{"amount_minor": 1000, "reason": "member price"}],
            },
            {"line_no": 2, "sku": "B200", "category": "case", "quantity": "2", "unit_price": "99.90", "amount_minor": 19980},
            {"line_no": 3, "sku": "C300", "category": "film", "quantity": "1", "unit_price": "69.90", "amount_minor": 6990},
        ],
        "points_to_spend": 1000,
        "tenders": [{"type": "cash", "amount_minor": 44960}],
    }

    store_id: Uuid
    till_id: Uuid
    sold_at: Moment
    currency: Currency
    lines: Annotated[list[NewSaleLine], Meta(min_length=1, max_length=2000)]
    tenders: Annotated[list[Tender], Meta(max_length=20, description="None when points pay all")]
    receipt_no: Text64 | None = None
    member_id: Uuid | None = None
    channel: Text64 | None = None
    staff_code: Text64 | None = None
    discounts: NewDiscounts = msgspec.field(default_factory=list)
    points_to_spend: PointsAmount = 0


class Discount(msgspec.Struct):
    """An amount off, and why: the empty text where nothing was said."""

    amount_minor: int
    reason: str


class SaleLine(msgspec.Struct):
    """A line with its frozen shares of every discount and of spent points, the points it earned, and the rule that gave them."""

    line_no: int
    sku: str
    description: str | None
    category: str | None
    quantity: str
    unit_price: str
    amount_minor: int
    discount_minor: int
    net_minor: int
    discounts: list[Discount]
    points_spent: int
    points_spent_minor: int
    payable_minor: int
    points_earned: int
    rule: str | None
    serials: list[str]
    reversed_quantity: str


class SalePoints(msgspec.Struct):
    """What a sale did to the member's points.

    The member's figures after it are in the answer to the sale itself, what its reversals did so far in every later reading.
    """

    earned: int
    spent: int
    taken_back: int | UnsetType = UNSET
    returned: int | UnsetType = UNSET
    balance: int | UnsetType = UNSET
    pending: int | UnsetType = UNSET
    debt: int | UnsetType = UNSET
    next_expiry: NextExpiry | UnsetType | None = UNSET


class ReversedLine(msgspec.Struct):
    """What of a line was taken back."""

    line_no: int
    quantity: str
    refund_minor: int
    points_returned: int


class ReversalPoints(msgspec.Struct):
    """What a reversal did to the member's points; the figures after it are in the answer to the reversal itself."""

    taken_back: int
    returned: int
    balance: int | UnsetType = UNSET
    pending: int | UnsetType = UNSET
    debt: int | UnsetType = UNSET
    next_expiry: NextExpiry | UnsetType | None = UNSET


class Reversal(msgspec.Struct):
    """A sale taken back, whole or in part (退货). A preview has neither id nor operation id."""

    id: str | None
    sale_id: str
    operation_id: str | None
    store_id: str
    till_id: str
    reversed_at: datetime
    business_day: date
    reason: str | None
    currency: str
    lines: list[ReversedLine]
    refund_minor: int
    tenders: list[Tender]
    points: ReversalPoints | None


class Sale(msgspec.Struct):
    """A sale as it was recorded, with its reversals so far."""

    id: str
    operation_id: str
    store_id: str
    till_id: str
    receipt_no: str | None
    sold_at: datetime
    business_day: date
    currency: str
    member_id: str | None
    channel: str | None
    staff_code: str | None
    gross_minor: int
    discount_minor: int
    net_minor: int
    points_spent_minor: int
    payable_minor: int
    discounts: list[Discount]
    lines: list[SaleLine]
    tenders: list[Tender]
    points: SalePoints | None
    reversals: list[Reversal]


class NewReversalLine(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """How much of a line to take back."""

    line_no: LineNo
    quantity: Quantity


class NewReversal(Writing):
    """What to take back of a sale. Without `lines`: all that is left."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "operation_id": "till-7-000124",
        **_PLACE,
        "reversed_at": "2026-11-21T18:30:00+08:00",
        "reason": "Changed their mind",
        "lines": [{"line_no": 2, "quantity": "1"}],
    }

    store_id: Uuid
    till_id: Uuid
    reversed_at: Moment
    reason: Reason | None = None
    lines: Annotated[list[NewReversalLine], Meta(min_length=1, max_length=2000)] | None = None


class ReversalPreview(NewReversal):
    """The same as the reversal; its operation_id is not needed and not used."""

    NEEDS_OPERATION_ID: ClassVar[bool] = False


class ImportedReversal(Writing):
    """A reversal of a sale that is known by its operation id."""

    sale_operation_id: OperationId
    store_id: Uuid
    till_id: Uuid
    reversed_at: Moment
    reason: Reason | None = None
    lines: Annotated[list[NewReversalLine], Meta(min_length=1, max_length=2000)] | None = None


class NewReturnLine(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A line of a return."""

    line_no: LineNo
    sku: Sku
    quantity: Quantity
    unit_price: UnitPrice
    refund_minor: AmountMinor
    description: Text500 | None = None
    category: Text64 | None = None


class ImportedReturn(Writing):
    """A return that belongs to no recorded sale. It touches no points."""

    store_id: Uuid
    till_id: Uuid
    returned_at: Moment
    currency: Currency
    lines: Annotated[list[NewReturnLine], Meta(min_length=1, max_length=2000)]
    receipt_no: Text64 | None = None
    member_id: Uuid | None = None
    reason: Reason | None = None


class ReturnLine(msgspec.Struct):
    """A line of a return."""

    line_no: int
    sku: str
    description: str | None
    category: str | None
    quantity: str
    unit_price: str
    refund_minor: int


class Return(msgspec.Struct):
    """A return that belongs to no recorded sale."""

    id: str
    operation_id: str
    store_id: str
    till_id: str
    receipt_no: str | None
    returned_at: datetime
    business_day: date
    currency: str
    member_id: str | None
    reason: str | None
    lines: list[ReturnLine]
    refund_minor: int


class ImportCommand(msgspec.Struct, forbid_unknown_fields=True):
    """One of a sale, a reversal or a return, exactly."""

    SCHEMA: ClassVar[dict[str, Any]] = {
        "properties": {
            "sale": {"$ref": "#/components/schemas/NewSale"},
            "reversal": {"$ref": "#/components/schemas/ImportedReversal"},
            "return": {"$ref": "#/components/schemas/ImportedReturn"},
        },
        "minProperties": 1,
        "maxProperties": 1,
    }

    sale: msgspec.Raw | UnsetType = UNSET
    reversal: msgspec.Raw | UnsetType = UNSET
    return_: msgspec.Raw | UnsetType = msgspec.field(name="return", default=UNSET)


class ImportSales(msgspec.Struct, forbid_unknown_fields=True):
    """A history to record, decided in order in one group."""

    SCHEMA: ClassVar[dict[str, Any]] = {
        "properties": {
            "commands": {"type": "array", "minItems": 1, "maxItems": 1000, "items": {"$ref": "#/components/schemas/ImportCommand"}}
        }
    }

    # Read one by one, so that each has its own fingerprint and none holds up the tills.
    commands: Annotated[list[msgspec.Raw], Meta(min_length=1, max_length=1000)]


class ImportedCommand(msgspec.Struct):
    """What became of one. `amount_minor`: a sale's net, a reversal's or return's refund; 0 for a refusal."""

    operation_id: str
    status: int
    replayed: bool
    amount_minor: int
    problem: Problem | None


class ImportedCommands(msgspec.Struct):
    """What became of each, in order."""

    outcomes: list[ImportedCommand]
