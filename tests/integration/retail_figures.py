"""Monthly figures of Online Retail, computed from the file alone: an independent reckoning that shares no code with the product.

Rows are read and summed with polars; money is counted in whole pence. A credit note takes back what was sold to its customer before, at
the price that was paid then (docs/import.md tells the rule in words), and counts in its own month.
"""

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import polars as pl

# A price has up to three decimals, so a line's amount times a hundred thousand is whole; half a penny up.
_PENCE = (pl.col("quantity") * pl.col("price_mils")).alias("mils")


@dataclass(frozen=True)
class Month:
    """What a month's business came to. `returned_minor` is not negative."""

    gross_minor: int
    returned_minor: int
    receipts: int
    buyers: int
    items: int

    @property
    def net_minor(self) -> int:
        """Sales less returns."""
        return self.gross_minor - self.returned_minor


@dataclass
class Sold:
    """A sold line, and how many of its units have come back."""

    amount: int
    units: int
    back: int = 0

    def take(self, units: int) -> int:
        """The pence that so many more units bring back: what the first r of n units have is floor(amount × r ÷ n)."""
        before, self.back = self.back, self.back + units
        return self.amount * self.back // self.units - self.amount * before // self.units


def monthly_figures(file: Path) -> dict[str, Month]:
    """The figures of each month, by `YYYY-MM`."""
    rows = read(file)
    # `A…` are bad debts and their like: nothing was sold.
    sales = rows.filter(pl.col("quantity") > 0, pl.col("mils") > 0, ~pl.col("invoice").str.starts_with("A"))
    notes = rows.filter(pl.col("invoice").str.starts_with("C"))
    returned, units_back = credit(sales, notes)
    by_month = sales.group_by(pl.col("at").dt.strftime("%Y-%m").alias("month")).agg(
        pl.col("pence").sum(),
        pl.col("invoice").n_unique().alias("receipts"),
        pl.col("customer").drop_nulls().n_unique(),
        pl.col("quantity").sum(),
    )
    return {
        month: Month(pence, returned[month], receipts, buyers, quantity - units_back[month])
        for month, pence, receipts, buyers, quantity in by_month.sort("month").iter_rows()
    }


def read(file: Path) -> pl.DataFrame:
    """Every row, with its amount in pence and the earliest time of its invoice."""
    text = pl.read_csv(file, infer_schema=False, encoding="utf8-lossy").with_row_index("row")
    price = pl.col("UnitPrice").str.to_decimal(scale=3)
    return (
        text.select(
            "row",
            pl.col("InvoiceNo").alias("invoice"),
            pl.col("StockCode").alias("sku"),
            pl.col("Quantity").cast(pl.Int64).alias("quantity"),
            (price * 1000).cast(pl.Int64).alias("price_mils"),
            pl.col("CustomerID").replace("", None).alias("customer"),
            pl.col("InvoiceDate").str.to_datetime("%Y-%m-%d %H:%M:%S").min().over("InvoiceNo").alias("at"),
        )
        .with_columns(_PENCE)
        .with_columns(((pl.col("mils").abs() + 5) // 10).alias("pence"))
    )


def credit(sales: pl.DataFrame, notes: pl.DataFrame) -> tuple[dict[str, int], dict[str, int]]:
    """The pence and the units that credit notes brought back, by month."""
    sold: dict[tuple[str, str], list[tuple[datetime, int, list[Sold]]]] = defaultdict(list)
    known = sales.filter(pl.col("customer").is_not_null())
    order = known.group_by("invoice").agg(pl.col("at").first(), pl.col("row").min().alias("begins")).sort("at", "begins")
    rank = {invoice: number for number, invoice in enumerate(order["invoice"])}
    lines: dict[tuple[str, str, str], list[Sold]] = defaultdict(list)
    for invoice, sku, customer, pence, quantity in known.select("invoice", "sku", "customer", "pence", "quantity").iter_rows():
        lines[invoice, sku, customer].append(Sold(pence, quantity))
    begins = dict(zip(order["invoice"], zip(order["at"], order["begins"], strict=True), strict=True))
    for invoice, sku, customer in sorted(lines, key=lambda each: rank[each[0]]):
        sold[customer, sku].append((*begins[invoice], lines[invoice, sku, customer]))

    pence_back: dict[str, int] = defaultdict(int)
    units_back: dict[str, int] = defaultdict(int)
    first_row: dict[str, int] = dict(notes.group_by("invoice").agg(pl.col("row").min()).iter_rows())
    for invoice, sku, customer, at, quantity, pence, _ in sorted(
        notes.select("invoice", "sku", "customer", "at", "quantity", "pence", "row").iter_rows(),
        key=lambda each: (each[3], first_row[each[0]], each[6]),
    ):
        month, left, linked = f"{at:%Y-%m}", -quantity, 0
        for sold_at, row, parts in reversed(sold.get((customer, sku), ())):
            if (sold_at, row) > (at, first_row[invoice]):
                continue
            for part in parts:
                units = min(left - linked, part.units - part.back)
                if units:
                    pence_back[month] += part.take(units)
                    linked += units
        # What no earlier sale had comes back at the note's own price.
        pence_back[month] += pence - pence * linked // left
        units_back[month] += left
    return pence_back, units_back
