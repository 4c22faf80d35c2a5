"""What each figure means (指标口径), once: the page of definitions, the refusals and the SQL all come from here.

A metric is an expression over *figures*; a figure is an aggregate over one *source* of facts. `{…}` in a metric's expression stands for
a figure of that name, already summed over the sources' rows of a bucket. A *bucket* is one combination of the dimensions' values within
the window that was asked for; a week or month that the window cuts off counts only with its days inside.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, NamedTuple

Unit = Literal["minor", "count", "decimal", "basis_points", "points"]


class Words(NamedTuple):
    """The same in Chinese and in English."""

    zh: str
    en: str


class Dimension(NamedTuple):
    """What figures may be split by. `filterable`: whether a filter may name it."""

    key: str
    name: Words
    meaning: Words
    filterable: bool = True


_DIMENSIONS = (
    Dimension("store", Words("门店", "Store"), Words("门店编号(id)。", "The store's id; a return counts in the store that took it back.")),
    Dimension("day", Words("日", "Day"), Words("日期。", "The date, such as 2026-11-21."), filterable=False),
    Dimension("week", Words("周", "Week"), Words("周一的日期。", "The date of the week's Monday (ISO 8601)."), filterable=False),
    Dimension("month", Words("月", "Month"), Words("月份。", "The month, such as 2026-11."), filterable=False),
    Dimension("category", Words("品类", "Category"), Words("明细行的品类。", "The category of the line; null: none was given.")),
    Dimension("sku", Words("商品", "SKU"), Words("明细行的商品编码。", "The SKU of the line.")),
    Dimension(
        "tier", Words("会员等级", "Tier"), Words("会员当前等级。", "The member's tier today; null: a guest, or a member without a tier.")
    ),
    Dimension(
        "channel", Words("渠道", "Channel"), Words("销售渠道。", "The channel of the sale, for a return that of its sale; null: none.")
    ),
    Dimension(
        "staff", Words("导购", "Staff"), Words("导购工号。", "The staff code of the sale, for a return that of its sale; null: none.")
    ),
    Dimension("currency", Words("币种", "Currency"), Words("币种(ISO 4217)。", "The currency of the store (ISO 4217).")),
    Dimension("programme", Words("会员计划", "Programme"), Words("会员计划编号。", "The id of the loyalty programme.")),
)
DIMENSIONS: Mapping[str, Dimension] = {dimension.key: dimension for dimension in _DIMENSIONS}
TIMES = frozenset({"day", "week", "month"})
# These are of a line, not of a whole receipt.
GOODS = frozenset({"category", "sku"})
_TRADE = frozenset({"store", "channel", "staff", "currency"})


class Source(Enum):
    """Where figures come from; each is one part of a query."""

    # Sales, or their lines when the goods are asked about.
    SALES = "sales"
    # The same, member by member: for what is known of a buyer only after looking at all of the bucket's sales.
    BUYERS = "buyers"
    # Reversals and returns without a sale, or their lines.
    RETURNS = "returns"
    POINTS = "points"
    # Wallets at the end of each bucket.
    OUTSTANDING = "outstanding"
    MEMBERS = "members"
    # Whatever a member does.
    ACTIVITY = "activity"


class Figure(NamedTuple):
    """An aggregate over one source. `on_lines` is the expression when the source is read line by line, where it differs."""

    source: Source
    on_rows: str
    on_lines: str = ""


_POINTS_KINDS = "kind IN ('earn', 'adjust', 'take_back')"
FIGURES: Mapping[str, Figure] = {
    "gross_sold": Figure(Source.SALES, "sum(gross_minor)"),
    "net_sold": Figure(Source.SALES, "sum(net_minor)"),
    "receipts": Figure(Source.SALES, "count()", "uniqExact(sale_id)"),
    "items_sold": Figure(Source.SALES, "sum(items)", "sum(quantity)"),
    # All guests are one id of zeros; counted so, a quarter less is spent than on a condition for each row.
    "buyers": Figure(Source.SALES, "uniqExact(f.member_id) - max(empty(f.member_id))"),
    "repeaters": Figure(Source.BUYERS, "countIf(first_day < last_day)"),
    "returning": Figure(Source.BUYERS, "countIf(first_ever < bucket_from)"),
    "net_returned": Figure(Source.RETURNS, "sum(net_minor)"),
    "items_returned": Figure(Source.RETURNS, "sum(items)", "sum(quantity)"),
    # A refund takes points back from what is spendable, pending or lapsed already; what is nowhere left becomes a debt.
    "issued": Figure(Source.POINTS, f"sumIf(points + pending + expired - debt, {_POINTS_KINDS})"),
    "spent": Figure(Source.POINTS, "-sumIf(points, kind IN ('spend', 'return'))"),
    "expired": Figure(Source.POINTS, "sum(expired)"),
    "outstanding": Figure(Source.OUTSTANDING, "sum(held)"),
    "joined": Figure(Source.MEMBERS, "count()"),
    "active": Figure(Source.ACTIVITY, "uniqExact(f.member_id)"),
}

_BUSINESS_DAY = Words(
    "门店营业日:销售计入售出当日,退货计入退货当日和受理退货的门店。",
    "The store's business day: a sale on the day it was made, a return on its own day and in the store that took the goods back.",
)
_SALE_DAY = Words("门店营业日:销售当日。", "The store's business day of the sale.")
_PROGRAMME_DAY = Words("会员计划所在时区的日期。", "The date in the programme's time zone at which the points moved.")
_JOINING_DAY = Words("会员计划所在时区的入会日期。", "The date of joining, in the programme's time zone.")
_EITHER_DAY = Words(
    "销售和退货按门店营业日,积分按会员计划日期。", "Sales and returns by the store's business day, points by the programme's date."
)

_SALE_EVENTS = ("member.sale.v1: SaleRecorded",)
_RETURN_EVENTS = ("member.sale.v1: SaleReversed", "member.sale.v1: ReturnRecorded")
_POINTS_EVENTS = ("member.points.v1: PointsMoved",)
_MEMBER_EVENTS = ("member.member.v1: MemberSignedUp", "member.member.v1: MemberChanged")

_WHOLE_RECEIPT = "a receipt holds goods of several kinds, and an average of the whole receipt belongs to none of them"
_POINTS_PLACE = "points belong to a member's wallet in a programme, not to a place, a sale or its goods"
_POINTS_MONEY = "points are not money of a currency; split by programme instead"
_JOINING_PLACE = "a member joins a programme, not a store, and before any sale"
_ACTIVITY_PLACE = "a member may be active without a sale; buyers are counted there"
_NO_PROGRAMME = "a sale belongs to a store; its currency and its store tell the programme's sales apart"
_ONE_DAY = "a single day holds no second purchase day; take week, month or the whole window"


def _because(reason: str, dimensions: frozenset[str]) -> dict[str, str]:
    return dict.fromkeys(dimensions, reason)


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure as it is printed. `not_by` gives the reason for each dimension that it is not defined for."""

    key: str
    unit: Unit
    name: Words
    meaning: Words
    refunds: Words
    day: Words
    source: tuple[str, ...]
    # Over figures.
    sql: str
    figures: tuple[str, ...]
    not_by: Mapping[str, str] = field(default_factory=dict)

    @property
    def dimensions(self) -> list[str]:
        """The dimensions that it is defined for."""
        return [key for key in DIMENSIONS if key not in self.not_by]

    @property
    def can_be_null(self) -> bool:
        """Whether it divides, and so may have nothing to divide by."""
        return "NULL" in self.sql

    @property
    def is_chain_wide(self) -> bool:
        """Whether it has no store, so that only a key of all stores may see it."""
        return "store" in self.not_by


def _quotient(numerator: str, denominator: str) -> str:
    """numerator ÷ denominator to the nearest integer, halves away from zero, in integers throughout; null where nothing is divided by."""
    # Both sides of an `if` may be worked out: neither divides by zero.
    divided = f"intDiv(2 * abs({numerator}) + {denominator}, 2 * greatest({denominator}, 1))"
    return f"if({denominator} = 0, NULL, toInt64(sign({numerator}) * {divided}))"


_BY_PROGRAMME = {"programme": _NO_PROGRAMME}
_POINTS_NOT_BY = _because(_POINTS_PLACE, GOODS | _TRADE) | {"currency": _POINTS_MONEY}
_NET = "({net_sold} - {net_returned})"
# Ten-thousandths: quantities have six decimals.
_ITEMS = "toInt128(({items_sold} - {items_returned}) * 1000000)"
ITEMS_PER_RECEIPT_DECIMALS = 4

_METRICS = (
    Metric(
        "gross_sales_minor",
        "minor",
        Words("销售毛额", "Gross sales"),
        Words("各明细金额之和,未扣折扣。", "The lines' amounts before any discount."),
        Words("不扣除退货。", "Returns are not deducted."),
        _SALE_DAY,
        _SALE_EVENTS,
        "{gross_sold}",
        ("gross_sold",),
        _BY_PROGRAMME,
    ),
    Metric(
        "net_sales_minor",
        "minor",
        Words("净销售额", "Net sales"),
        Words(
            "折后销售额减去退货净额;积分抵扣属于支付,不减少销售额。",
            "Sales after discounts less returned net. Points are a way to pay, and take nothing away.",
        ),
        Words(
            "退货在退货当日、受理门店扣除。", "A return is deducted on its own day and in its own store; one without a sale by its refund."
        ),
        _BUSINESS_DAY,
        _SALE_EVENTS + _RETURN_EVENTS,
        _NET,
        ("net_sold", "net_returned"),
        _BY_PROGRAMME,
    ),
    Metric(
        "returns_minor",
        "minor",
        Words("退货净额", "Returns"),
        Words("退回商品的折后金额;无原单退货按退款额。", "The net amount of what came back; of a return without a sale, its refund."),
        Words("即退货本身。", "This is the returns themselves."),
        _BUSINESS_DAY,
        _RETURN_EVENTS,
        "{net_returned}",
        ("net_returned",),
        _BY_PROGRAMME,
    ),
    Metric(
        "receipts",
        "count",
        Words("小票数", "Receipts"),
        Words(
            "已记录的销售笔数;按品类或商品时,为包含该商品的小票数。",
            "Sales recorded. By category or SKU: the receipts that hold it, so that one receipt counts under each of its goods.",
        ),
        Words("退货不减少小票数。", "A return takes none away."),
        _SALE_DAY,
        _SALE_EVENTS,
        "{receipts}",
        ("receipts",),
        _BY_PROGRAMME,
    ),
    Metric(
        "items",
        "decimal",
        Words("件数", "Items"),
        Words("售出数量减去退回数量。", "Quantity sold less quantity returned."),
        Words("退回数量在退货当日扣除。", "What came back is deducted on its own day and in its own store."),
        _BUSINESS_DAY,
        _SALE_EVENTS + _RETURN_EVENTS,
        "{items_sold} - {items_returned}",
        ("items_sold", "items_returned"),
        _BY_PROGRAMME,
    ),
    Metric(
        "average_receipt_minor",
        "minor",
        Words("客单价", "Average receipt"),
        Words("净销售额 ÷ 小票数,四舍五入。", "Net sales ÷ receipts, halves rounded away from zero; null without a receipt."),
        Words("退货减少净销售额,不减少小票数。", "Returns lower net sales and leave the receipts."),
        _BUSINESS_DAY,
        _SALE_EVENTS + _RETURN_EVENTS,
        _quotient(_NET, "toInt64({receipts})"),
        ("net_sold", "net_returned", "receipts"),
        _BY_PROGRAMME | _because(_WHOLE_RECEIPT, GOODS),
    ),
    Metric(
        "items_per_receipt",
        "decimal",
        Words("连带率", "Items per receipt"),
        Words("件数 ÷ 小票数,最多四位小数。", "Items ÷ receipts, rounded to four decimals, halves away from zero; null without a receipt."),
        Words("退回数量减少件数,不减少小票数。", "Returns lower the items and leave the receipts."),
        _BUSINESS_DAY,
        _SALE_EVENTS + _RETURN_EVENTS,
        _quotient(_ITEMS, "(toInt128({receipts}) * 100)"),
        ("items_sold", "items_returned", "receipts"),
        _BY_PROGRAMME | _because(_WHOLE_RECEIPT, GOODS),
    ),
    Metric(
        "buyers",
        "count",
        Words("购买会员数", "Buyers"),
        Words(
            "有销售的会员数(去重),不含散客。",
            "Distinct members with a sale; guests are not counted. By category or SKU: with a sale that holds it.",
        ),
        Words("退货不影响:买过即计入。", "A return changes nothing: who bought has bought."),
        _SALE_DAY,
        _SALE_EVENTS,
        "{buyers}",
        ("buyers",),
        _BY_PROGRAMME,
    ),
    Metric(
        "repurchase_rate_bp",
        "basis_points",
        Words("复购率", "Repurchase rate"),
        Words(
            "有至少两个购买日的会员数 ÷ 购买会员数,以万分之一计,四舍五入。",
            "Buyers with at least two purchase days ÷ buyers, in basis points, halves rounded up; null without a buyer.",
        ),
        Words("退货不影响。", "A return changes nothing."),
        _SALE_DAY,
        _SALE_EVENTS,
        _quotient("(toInt64({repeaters}) * 10000)", "toInt64({buyers})"),
        ("repeaters", "buyers"),
        _BY_PROGRAMME | {"day": _ONE_DAY},
    ),
    Metric(
        "returning_buyers",
        "count",
        Words("老客购买数", "Returning buyers"),
        Words(
            "首次购买(任何门店、任何商品)早于本期的购买会员数。",
            "Buyers whose first purchase ever, of anything and anywhere, was before the bucket began.",
        ),
        Words("退货不影响。", "A return changes nothing."),
        _SALE_DAY,
        _SALE_EVENTS,
        "{returning}",
        ("returning",),
        _BY_PROGRAMME,
    ),
    Metric(
        "new_members",
        "count",
        Words("新会员数", "New members"),
        Words("本期入会的会员数。", "Members who joined."),
        Words("与退货无关。", "Returns have no part in it."),
        _JOINING_DAY,
        _MEMBER_EVENTS,
        "{joined}",
        ("joined",),
        _because(_JOINING_PLACE, GOODS | _TRADE),
    ),
    Metric(
        "active_members",
        "count",
        Words("活跃会员数", "Active members"),
        Words("有销售、退货或积分消费的会员数(去重)。", "Distinct members with a sale, a return or points spent."),
        Words("退货也算活跃。", "A return is activity too."),
        _EITHER_DAY,
        _SALE_EVENTS + _RETURN_EVENTS + _POINTS_EVENTS,
        "{active}",
        ("active",),
        _BY_PROGRAMME | _because(_ACTIVITY_PLACE, GOODS | _TRADE),
    ),
    Metric(
        "points_issued",
        "points",
        Words("发放积分", "Points issued"),
        Words("消费所得积分(含待生效)与人工调整之和。", "Points earned, pending ones included, and adjusted by hand up or down."),
        Words(
            "退货收回的积分在退货当日扣除。", "What a refund takes back is deducted on the day of the refund, also where it became a debt."
        ),
        _PROGRAMME_DAY,
        _POINTS_EVENTS,
        "{issued}",
        ("issued",),
        _POINTS_NOT_BY,
    ),
    Metric(
        "points_spent",
        "points",
        Words("消费积分", "Points spent"),
        Words("已使用的积分。", "Points spent."),
        Words("退货返还的积分在退货当日扣除。", "What a refund gives back is deducted on the day of the refund."),
        _PROGRAMME_DAY,
        _POINTS_EVENTS,
        "{spent}",
        ("spent",),
        _POINTS_NOT_BY,
    ),
    Metric(
        "points_expired",
        "points",
        Words("过期积分", "Points expired"),
        Words("已过期的积分。", "Points that lapsed."),
        Words(
            "退货收回时视为已收回的过期积分扣除。",
            "Lapsed points that a refund counts as taken back are deducted on the day of the refund.",
        ),
        _PROGRAMME_DAY,
        _POINTS_EVENTS,
        "{expired}",
        ("expired",),
        _POINTS_NOT_BY,
    ),
    Metric(
        "points_outstanding",
        "points",
        Words("积分余额", "Points outstanding"),
        Words(
            "期末所有会员的可用积分与待生效积分之和,不扣欠分。",
            "Spendable and pending points of all wallets at the end of the bucket; debts are not deducted.",
        ),
        Words("收回和返还均已计入。", "What refunds took back and gave back is in it."),
        _PROGRAMME_DAY,
        _POINTS_EVENTS,
        "{outstanding}",
        ("outstanding",),
        _POINTS_NOT_BY,
    ),
)
METRICS: Mapping[str, Metric] = {metric.key: metric for metric in _METRICS}
