"""Bodies of reports (报表). Which figures and dimensions there are, and what goes together, is judged by the reporting service."""

from datetime import date, datetime
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gateway.bodies import DAY, Text64, Text200, Uuid

Day = Annotated[str, Meta(max_length=10, pattern=DAY, description="Business day", examples=["2026-11-01"])]
Key = Annotated[str, Meta(max_length=64, description="As GET /v1/reports/metrics lists them")]


class ReportFilter(msgspec.Struct, forbid_unknown_fields=True):
    """Only facts whose `field` (a dimension, but for day, week and month) is, or is not, one of the values; null: has none.

    `op`: eq (one value), in, not_in.
    """

    field: Key
    op: Text64
    values: Annotated[list[Text200 | None], Meta(min_length=1, max_length=1000)]


class ReportSort(msgspec.Struct, forbid_unknown_fields=True):
    """By a column of the query. What has no figure comes last."""

    field: Key
    order: Literal["asc", "desc"] = "asc"


class ReportQuery(msgspec.Struct, forbid_unknown_fields=True):
    """Figures by dimensions over business days, `from` included and `to` not.

    `compare`: previous_period (as many days before, or as many months when the period is whole months) or previous_year. Rows are in the
    order of `sort`, then of their dimensions.
    """

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "metrics": ["net_sales_minor", "receipts", "items_per_receipt"],
        "dimensions": ["store", "day"],
        "from": "2026-11-01",
        "to": "2026-12-01",
        "compare": "previous_period",
        "sort": [{"field": "net_sales_minor", "order": "desc"}],
        "limit": 100,
    }

    metrics: Annotated[list[Key], Meta(min_length=1, max_length=32)]
    from_: Day = msgspec.field(name="from")
    to: Day
    dimensions: Annotated[list[Key], Meta(max_length=16)] = msgspec.field(default_factory=list)
    # Judged here, since what the service takes for no comparison is an empty name.
    compare: Literal["previous_period", "previous_year"] | None = None
    filters: Annotated[list[ReportFilter], Meta(max_length=20)] = msgspec.field(default_factory=list)
    sort: Annotated[list[ReportSort], Meta(max_length=48)] = msgspec.field(default_factory=list)
    limit: Annotated[int, Meta(ge=1, le=5000, description="Rows of a page")] = 500
    cursor: Annotated[str, Meta(min_length=1, max_length=4000, description="`next_cursor` of the page before")] | None = None


class ReportColumn(msgspec.Struct):
    """A column. `unit`, of a metric: minor, count, decimal, basis_points, points. `currency`: where all its money is of one."""

    key: str
    kind: Literal["dimension", "metric"]
    unit: str | UnsetType = UNSET
    currency: str | UnsetType = UNSET


class Report(msgspec.Struct):
    """Rows of one value for each column: whole numbers, decimals in text, dates and names in text, null for what there is none of.

    A compare row has the dimensions of the row it belongs to: the third day of the period before stands under the third day of this one.
    The last page also has the compare rows that no row belongs to. `as_of`: when the latest fact that is in was recorded.
    """

    columns: list[ReportColumn]
    rows: list[list[str | int | None]]
    compare_rows: list[list[str | int | None]]
    as_of: datetime | None
    next_cursor: str | None


class Words(msgspec.Struct):
    """The same in Chinese and in English."""

    zh: str
    en: str


class Undefined(msgspec.Struct):
    """A dimension that a figure has no meaning for, and why."""

    dimension: str
    reason: str


class MetricDefinition(msgspec.Struct):
    """What a figure means (指标口径): how returns count in it, which day a fact falls on, and the events it is made of."""

    key: str
    unit: str
    name: Words
    definition: Words
    refunds: Words
    day: Words
    sources: list[str]
    dimensions: list[str]
    not_by: list[Undefined]


class DimensionDefinition(msgspec.Struct):
    """What figures may be split by, and whether a filter may name it."""

    key: str
    name: Words
    definition: Words
    filterable: bool


class MetricDefinitions(msgspec.Struct):
    """All of them, on one page."""

    items: list[MetricDefinition]
    dimensions: list[DimensionDefinition]
    next_cursor: str | None


class StoreKpis(msgspec.Struct):
    """The figures of a store's present business day."""

    store_id: Uuid
    business_day: date
    currency: str
    net_sales_minor: int
    receipts: int
    average_receipt_minor: int | None
    items_per_receipt: str | None
    buyers: int
    returns_minor: int


class Kpis(msgspec.Struct):
    """The data of an event `kpis`: at first every store, then those whose figures changed."""

    as_of: datetime | None
    stores: list[StoreKpis]
