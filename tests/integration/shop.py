"""Tills of the demo chain: what they send, and what they do through the public API."""

from datetime import timedelta
from typing import Any
from zoneinfo import ZoneInfo

from kit.clock import SystemClock
from kit.ids import uuid7
from kit.money import line_amount_minor
from tests.integration.api import Api, Json

SHANGHAI = ZoneInfo("Asia/Shanghai")

# The lines of the sale in api.md.
LINES: list[Json] = [
    {
        "line_no": 1, "sku": "A100", "description": "Earphones", "category": "audio", "quantity": "1", "unit_price": "199.90",
        "amount_minor": 19990, "discounts": [{"amount_minor": 1000, "reason": "member price"}],
    },
    {"line_no": 2, "sku": "B200", "category": "case", "quantity": "2", "unit_price": "99.90", "amount_minor": 19980},
    {"line_no": 3, "sku": "C300", "category": "film", "quantity": "1", "unit_price": "69.90", "amount_minor": 6990},
]  # fmt: skip


def now(**ago: int) -> str:
    """The present, or `ago` before it (hours=1), as a till in China writes it."""
    return (SystemClock().now() - timedelta(**ago)).astimezone(SHANGHAI).isoformat(timespec="seconds")


def end_of_next_year() -> str:
    """When what is earned now expires in the demo programme: the first instant of the year after the next, in Shanghai."""
    return f"{SystemClock().now().astimezone(SHANGHAI).year + 1}-12-31T16:00:00Z"


def cash(amount_minor: int) -> list[Json]:
    """Tenders that pay so much."""
    return [{"type": "cash", "amount_minor": amount_minor}] if amount_minor else []


def lines_of(*unit_prices: str) -> list[Json]:
    """One unit of something for each price."""
    return [
        {"line_no": n, "sku": f"P{n}", "quantity": "1", "unit_price": price, "amount_minor": line_amount_minor("1", price, "CNY")}
        for n, price in enumerate(unit_prices, 1)
    ]


class Till:
    """A till of the demo chain's first store. What it sends is paid in cash unless it says otherwise."""

    def __init__(self, api: Api, store_id: str, till_id: str) -> None:
        self.api = api
        self.place: Json = {"store_id": store_id, "till_id": till_id}

    def sale(self, member_id: str | None = None, lines: list[Json] = LINES, points: int = 0, **more: Any) -> Json:
        """The body of a sale."""
        given: list[Json] = [each for line in [*lines, more] for each in line.get("discounts", [])]
        payable = sum(line["amount_minor"] for line in lines) - sum(each["amount_minor"] for each in given) - points
        sale = {"operation_id": uuid7(), **self.place, "sold_at": now(), "currency": "CNY", "member_id": member_id, "lines": lines}
        return sale | {"points_to_spend": points, "tenders": cash(payable)} | more

    def reversal(self, *lines: tuple[int, str], **more: Any) -> Json:
        """The body of a reversal of some units of some lines; of all that is left, where none are named."""
        body = {"operation_id": uuid7(), **self.place, "reversed_at": now(), "reason": "changed their mind"}
        return body | ({"lines": [{"line_no": n, "quantity": quantity} for n, quantity in lines]} if lines else {}) | more

    def sell(self, member_id: str | None = None, lines: list[Json] = LINES, points: int = 0, **more: Any) -> Json:
        """Records a sale."""
        return self.api.post("/v1/sales", self.sale(member_id, lines, points, **more))

    def reverse(self, sale: Json, *lines: tuple[int, str], **more: Any) -> Json:
        """Reverses, after a preview that must say exactly what then happens."""
        body = self.reversal(*lines, **more)
        path = f"/v1/sales/{sale['id']}/reversals"
        preview = self.api.post(f"{path}:preview", {name: value for name, value in body.items() if name != "operation_id"}, 200)
        done = self.api.post(path, body)
        assert preview | {"id": done["id"], "operation_id": done["operation_id"]} == done
        return done

    def sign_up(self, **fields: Any) -> str:
        """A new member's id."""
        return str(self.api.post("/v1/members", {"operation_id": uuid7(), **fields})["id"])

    def points(self, member_id: str) -> tuple[int, int]:
        """Balance and debt."""
        points = self.api.get(f"/v1/members/{member_id}/points")
        return points["balance"], points["debt"]
