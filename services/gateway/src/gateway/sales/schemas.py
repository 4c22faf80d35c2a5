"""Bodies of sales, reversals and returns (api.md, "A sale")."""

from datetime import date, datetime
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gateway.bodies import NO_NUL, AmountMinor, Currency, OperationId, Quantity, Term, Text64, Text200, Text500, UnitPrice, Uuid, Writing
from gateway.points.schemas import NextExpiry
from kit.problems import Problem

# RFC 3339 with an offset. The years are checked where the instant is made.
Moment = Annotated[datetime, Meta(tz=True, description="RFC 3339 with offset, between the years 1970 and 2200")]
LineNo = Annotated[int, Meta(ge=1, le=1_000_000)]
Sku = Annotated[str, Meta(min_length=1, max_length=64, extra_json_schema=NO_NUL)]
Serials = Annotated[list[Text64], Meta(max_length=1000, description="One for each unit")]
PointsAmount = Annotated[int, Meta(ge=0, le=10**12)]


class Discount(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """An amount off, and why."""

    amount_minor: AmountMinor
    reason: Text200 | None = None


Discounts = Annotated[list[Discount], Meta(max_length=50)]


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
    discounts: Discounts = []
    serials: Serials = []


class NewSale(Writing):
    """A sale as the till made it. Line numbers are distinct."""

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
    discounts: Discounts = msgspec.field(default_factory=list)
    points_to_spend: PointsAmount = 0


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

    store_id: Uuid
    till_id: Uuid
    reversed_at: Moment
    reason: Text200 | None = None
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
    reason: Text200 | None = None
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
    reason: Text200 | None = None


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
