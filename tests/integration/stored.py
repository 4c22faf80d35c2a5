"""What is stored after a load: what was answered, each write once and none more."""

from collections import Counter
from typing import Any

from tests.integration.api import Api, Json
from tests.integration.load import OPENING_POINTS, Shop


def check_what_is_stored(shop: Shop, stored: list[Json]) -> None:
    """What the lists show is what was answered: each write once, none more, every figure the same, and right."""
    sales = {w.operation_id: w.document for w in shop.writes if w.is_sale and w.is_done}
    reversals = {w.operation_id: w.document for w in shop.writes if w.is_reversal and w.is_done}
    assert Counter(sale["operation_id"] for sale in stored) == Counter(list(sales))
    assert Counter(back["operation_id"] for sale in stored for back in sale["reversals"]) == Counter(list(reversals))
    for sale in stored:
        answer = sales[sale["operation_id"]]
        assert figures(sale) == figures(answer)
        for back in sale["reversals"]:
            assert without(back, "points") == without(reversals[back["operation_id"]], "points")
        check_sums(answer, [reversals[back["operation_id"]] for back in sale["reversals"]])


def figures(sale: Json) -> Json:
    """A sale without what its reversals change and without the member's figures of the moment."""
    return without(sale, "points", "reversals", "lines") | {"lines": [without(line, "reversed_quantity") for line in sale["lines"]]}


def without(document: Json, *names: str) -> Json:
    return {name: value for name, value in document.items() if name not in names}


def check_sums(sale: Json, reversals: list[Json]) -> None:
    """The demo programme's arithmetic, done again: one point for 100, on what was paid and on what is left after refunds."""

    def total(documents: list[Any], name: str) -> int:
        return sum(each[name] for each in documents)

    payable, refunded = sale["payable_minor"], total(reversals, "refund_minor")
    assert payable == total(sale["lines"], "payable_minor") == total(sale["tenders"], "amount_minor")
    assert 0 <= refunded <= payable
    for back in reversals:
        assert back["refund_minor"] == total(back["lines"], "refund_minor") == total(back["tenders"], "amount_minor")
    if sale["member_id"] is None:
        assert sale["points"] is None
        return
    earned, spent = sale["points"]["earned"], sale["points"]["spent"]
    assert earned == payable // 100 == total(sale["lines"], "points_earned")
    assert spent == sale["points_spent_minor"] == total(sale["lines"], "points_spent")
    moved = [back["points"] for back in reversals]
    assert total(moved, "taken_back") == earned - (payable - refunded) // 100
    assert 0 <= total(moved, "returned") <= spent
    assert refunded + total(moved, "returned") <= sale["net_minor"]


def check_balances(shop: Shop, admin: Api) -> None:
    """Every member has what the answers add up to; nobody has points and a debt."""
    moved: Counter[str] = Counter(dict.fromkeys(shop.members, OPENING_POINTS))
    for write in shop.writes:
        if write.is_done and write.member_id:
            document = write.document
            points = document["points"]
            if write.is_sale:
                moved[write.member_id] += points["earned"] - points["spent"]
            elif write.is_reversal:
                moved[write.member_id] += points["returned"] - points["taken_back"]
            else:
                moved[write.member_id] += points
    for member_id in shop.members:
        points = admin.get(f"/v1/members/{member_id}/points")
        assert points["balance"] - points["debt"] == moved[member_id]
        assert min(points["balance"], points["debt"]) == 0 <= max(points["balance"], points["debt"])
        assert points["pending"] == 0
