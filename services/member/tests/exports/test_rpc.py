"""ExportService: who may ask, and in what form it answers."""

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from kit.problems import Refusal
from member.exports.rpc import FIRST_DAY, LAST_DAY, ExportServicer
from member.points.rules import unix_us
from member.programmes.operations import Books
from regulars.member.v1 import export_service_pb2 as pb
from services.member.tests.wallet.test_rpc import CALL, acting

if TYPE_CHECKING:
    from .conftest import Past
else:
    Past = Any


def servicer(past: Past) -> ExportServicer:
    return ExportServicer(past.desk.engine, past.desk.clock, past.desk.keys, Books())


async def test_only_an_admin_of_the_whole_chain_is_told(past: Past) -> None:
    export = servicer(past)
    for roles, stores in [(("till",), None), (("admin",), frozenset({past.stores[0].store.store_id}))]:
        with acting(*roles, stores=stores):
            for call in (export.ExportEvents(pb.ExportEventsRequest(), CALL), export.SummariseLedger(pb.SummariseLedgerRequest(), CALL)):
                with pytest.raises(Refusal) as caught:
                    await call
                assert caught.value.status == 403


async def test_events_and_sums_are_told_of_the_same_acts(past: Past) -> None:
    chain = past.stores[0]
    member = await past.desk.member()
    sale = await chain.do(chain.sale(member["id"], [("1.00", "2.500")], channel="web"))
    past.pass_time(timedelta(days=1))
    await chain.do(chain.reversal(sale["id"]))
    past.pass_time(timedelta(days=1))
    with acting("admin"):
        events = await servicer(past).ExportEvents(pb.ExportEventsRequest(page_size=2), CALL)
        more = await servicer(past).ExportEvents(pb.ExportEventsRequest(page_token=events.next_page_token), CALL)
        summary = await servicer(past).SummariseLedger(pb.SummariseLedgerRequest(to_day=sale["business_day"]), CALL)
        whole = await servicer(past).SummariseLedger(pb.SummariseLedgerRequest(from_day=sale["business_day"]), CALL)
    assert [event.type.rsplit(".", 1)[1] for event in [*events.events, *more.events]] == [
        "MemberSignedUp", "SaleRecorded", "SaleReversed", "PointsMoved", "PointsMoved",
    ]  # fmt: skip
    assert more.next_page_token == ""
    assert list(summary.store_days) == list(summary.points_days) == []
    sold, back = whole.store_days
    assert (sold.receipts, sold.net_minor, sold.quantity, sold.returns) == (1, 250, "2.5", 0)
    assert (back.receipts, back.returned_net_minor, back.returned_quantity, back.returns) == (0, 250, "2.5", 1)
    assert [(each.kind, each.points) for each in whole.points_days] == [("earn", 2), ("take_back", -2)]
    assert list(whole.points_totals) == [pb.PointsTotal(programme_id="demo")]
    assert whole.recorded_before_unix_us == unix_us(past.desk.clock.now())


@pytest.mark.parametrize("day", ["tomorrow", "0001-01-01", "1899-12-31", "9999-12-31"])
async def test_a_day_that_is_none_or_absurd_is_refused(past: Past, day: str) -> None:
    with acting("admin"), pytest.raises(Refusal) as caught:
        await servicer(past).SummariseLedger(pb.SummariseLedgerRequest(to_day=day), CALL)
    assert (caught.value.status, caught.value.code, caught.value.errors[0].pointer) == (400, "day_invalid", "/to_day")


async def test_the_first_and_the_last_day_that_are_taken_can_be_reckoned_with(past: Past) -> None:
    with acting("admin"):
        asked = pb.SummariseLedgerRequest(from_day=str(FIRST_DAY), to_day=str(LAST_DAY))
        assert (await servicer(past).SummariseLedger(asked, CALL)).recorded_before_unix_us


async def test_an_instant_that_is_none_is_refused(past: Past) -> None:
    with acting("admin"), pytest.raises(Refusal) as caught:
        await servicer(past).SummariseLedger(pb.SummariseLedgerRequest(recorded_before_unix_us=2**62), CALL)
    assert (caught.value.status, caught.value.errors[0].pointer) == (400, "/recorded_before_unix_us")
