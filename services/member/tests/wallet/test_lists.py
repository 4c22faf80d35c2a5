"""Lists: every item once and in order, whatever is written meanwhile; cursors that nobody made are refused."""

import base64
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from kit.db import raw, transaction
from kit.ids import uuid7
from kit.problems import Refusal
from member.paging import DEFAULT_PAGE, LARGEST_PAGE, cursor, page_size
from member.points.operations import get_points, list_entries, list_lots
from member.points.reconcile import reconcile_page
from member.sales.operations import get_sale, list_member_sales, list_returns, list_sales
from member.sales.rules import NewReturn

if TYPE_CHECKING:
    from .conftest import Chain
else:
    Chain = Any

Read = Callable[[Chain, str, int, str], Awaitable[dict[str, Any]]]


async def reading(chain: Chain, read: Callable[[Any], Awaitable[bytes]]) -> dict[str, Any]:
    async with transaction(chain.engine, snapshot=True) as connection:
        document: dict[str, Any] = msgspec.json.decode(await read(raw(connection)))
        return document


async def member_sales(chain: Chain, member_id: str, size: int, token: str) -> dict[str, Any]:
    return await reading(chain, lambda c: list_member_sales(c, member_id, size, token))


async def store_sales(chain: Chain, member_id: str, size: int, token: str) -> dict[str, Any]:  # noqa: ARG001  # one form for all
    return await reading(chain, lambda c: list_sales(c, [chain.store.store_id], size, token))


async def store_returns(chain: Chain, member_id: str, size: int, token: str) -> dict[str, Any]:  # noqa: ARG001
    return await reading(chain, lambda c: list_returns(c, [chain.store.store_id], size, token))


async def lots(chain: Chain, member_id: str, size: int, token: str) -> dict[str, Any]:
    return await reading(chain, lambda c: list_lots(c, member_id, "demo", chain.clock.now(), size=size, page_token=token))


async def entries(chain: Chain, member_id: str, size: int, token: str) -> dict[str, Any]:
    return await reading(chain, lambda c: list_entries(c, member_id, "demo", "debt", size=size, page_token=token))


ALL_LISTS = pytest.mark.parametrize("read", [member_sales, store_sales, store_returns, lots, entries])


async def write(chain: Chain, member_id: str) -> None:
    """One more item on every list."""
    await chain.do(chain.sale(member_id, ["1.00"]))
    lines = ((1, "SKU1", "", "", "1", "1.00", 100),)
    await chain.do(NewReturn(chain.operation_id(), chain.store, uuid7(), "", chain.clock.now(), 480, "CNY", member_id, "", lines))


@ALL_LISTS
async def test_pages_hold_every_item_once_newest_first_though_more_is_written_between_them(chain: Chain, read: Read) -> None:
    member = await chain.member()
    for _ in range(7):
        await write(chain, member)
    before = [item["id"] for item in (await read(chain, member, 500, ""))["items"]]
    assert len(before) == len(set(before)) == 7
    assert before == sorted(before, reverse=True), "ids grow"

    found, token = [], ""
    while True:
        page = await read(chain, member, 2, token)
        found += [item["id"] for item in page["items"]]
        await write(chain, member)
        token = page["next_cursor"]
        if token is None:
            break
        assert len(page["items"]) == 2
    assert found == before


@ALL_LISTS
async def test_the_last_page_has_no_cursor_also_when_it_is_full(chain: Chain, read: Read) -> None:
    member = await chain.member()
    assert await read(chain, member, 2, "") == {"items": [], "next_cursor": None}
    for _ in range(2):
        await write(chain, member)
    page = await read(chain, member, 2, "")
    assert (len(page["items"]), page["next_cursor"]) == (2, None)


def crafted(*position: object) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(position)).decode().rstrip("=")


NEVER_GIVEN = [
    "x",
    "!!!!",
    "é",
    "\0",
    "bm90IGpzb24",
    crafted(),
    crafted(None),
    crafted("text"),
    crafted({"a": 1}),
    crafted([1]),
    crafted(-1),
    crafted(10**30),
    crafted(1, 2),
    crafted(-1, uuid7()),
    crafted(10**18, uuid7()),
    crafted("2026-11-21T10:00:00", uuid7()),
]


@ALL_LISTS
async def test_a_cursor_that_was_not_given_is_refused(chain: Chain, read: Read) -> None:
    member = await chain.member()
    for token in NEVER_GIVEN:
        with pytest.raises(Refusal) as caught:
            await read(chain, member, 2, token)
        assert (caught.value.status, caught.value.code) == (400, "cursor_invalid")


async def test_reconciling_takes_no_cursor_that_was_not_given(chain: Chain) -> None:
    positions = [["wallets", "not an id", "demo"], ["wallets", uuid7(), "d\0"], ["sales", "x", ""], ["other", None, ""]]
    for token in [*NEVER_GIVEN, *map(crafted, positions)]:
        async with transaction(chain.engine, snapshot=True) as connection:
            with pytest.raises(Refusal) as caught:
                await reconcile_page(raw(connection), chain.clock.now(), size=10, page_token=token, rebuild=False)
        assert caught.value.code == "cursor_invalid"


async def test_a_members_sales_are_in_the_order_in_which_they_were_made_whenever_they_came_in(chain: Chain) -> None:
    member = await chain.member()
    made: list[tuple[Any, str]] = []
    for days in (3, 0, 400, 0, 0, 3):
        sale = await chain.do(chain.sale(member, sold_at=chain.clock.now() - timedelta(days=days)))
        made.append((sale["sold_at"], sale["id"]))
    found: list[str] = []
    token: Any = ""
    for _ in range(3):
        page = await member_sales(chain, member, 2, token)
        found += [item["id"] for item in page["items"]]
        token = page["next_cursor"]
    assert token is None
    assert found == [sale_id for _, sale_id in sorted(made, reverse=True)]


async def test_guests_sales_are_nobodys_and_other_stores_are_left_out(chain: Chain) -> None:
    member = await chain.member()
    await chain.do(chain.sale(""))
    elsewhere = msgspec.structs.replace(chain.store, store_id=uuid7())
    await chain.do(chain.sale(member, store=elsewhere))
    assert len((await member_sales(chain, member, 50, ""))["items"]) == 1
    assert [item["member_id"] for item in (await store_sales(chain, member, 50, ""))["items"]] == [None]
    everywhere = await reading(chain, lambda c: list_sales(c, None, 50, ""))
    assert len(everywhere["items"]) == 2


async def test_a_sale_is_read_as_it_was_answered_with_what_came_back_of_it(chain: Chain) -> None:
    member = await chain.member()
    lines = (chain.line(1, "10.00", "1.250"), chain.line(2, "0.00"))
    sale = await chain.do(chain.sale(member, lines=lines, receipt_no="0007"))
    back = await chain.do(chain.reversal(sale["id"], [(1, "0.50")]))
    seen = await reading(chain, lambda c: get_sale(c, sale["id"]))
    assert [line["reversed_quantity"] for line in seen["lines"]] == ["0.50", "0"]
    assert [line["quantity"] for line in seen["lines"]] == ["1.250", "1"]
    taken = {"taken_back": back["points"]["taken_back"], "returned": 0}
    assert seen["points"] == {"earned": 12, "spent": 0, **taken}
    assert seen["reversals"] == [back | {"points": taken}]
    same = ("points", "reversals", "lines")
    assert {key: value for key, value in seen.items() if key not in same} == {key: value for key, value in sale.items() if key not in same}


@pytest.mark.parametrize("asked, size", [(0, DEFAULT_PAGE), (-5, DEFAULT_PAGE), (1, 1), (500, 500), (501, LARGEST_PAGE), (2**31 - 1, 500)])
def test_a_page_has_at_most_the_largest_number_of_items(asked: int, size: int) -> None:
    assert page_size(asked) == size


async def test_what_time_did_is_seen_before_it_is_written(chain: Chain) -> None:
    member = await chain.member()
    sale = await chain.do(chain.sale(member, ["100.00"]))
    chain.clock.advance(timedelta(days=3650))
    points = await reading(chain, lambda c: get_points(c, member, "demo", "debt", chain.clock.now()))
    assert points == {"balance": 0, "pending": 0, "debt": 0, "next_expiry": None}
    (lot,) = (await lots(chain, member, 5, ""))["items"]
    assert (lot["quantity"], lot["remaining"], lot["source"]) == (100, 0, {"kind": "sale", "id": sale["id"]})


def test_a_cursor_tells_its_position_again() -> None:
    assert "=" not in cursor(uuid7(), 7)
