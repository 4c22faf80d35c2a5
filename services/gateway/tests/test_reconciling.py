"""POST /v1/reports:reconcile is passed to the reporting service, for admins alone."""

from typing import Any

import pytest

from kit.problems import Refusal
from regulars.reporting.v1 import reconcile_service_pb2 as pb

PATH = "/v1/reports:reconcile"


@pytest.mark.parametrize(
    "body,asked",
    [
        ({}, pb.ReconcileFactsRequest()),
        ({"from": "2026-11-01"}, pb.ReconcileFactsRequest(from_day="2026-11-01")),
        ({"from": None, "to": "2026-12-01"}, pb.ReconcileFactsRequest(to_day="2026-12-01")),
    ],
)
async def test_the_days_are_passed_on(desk: Any, reporting: Any, body: dict[str, Any], asked: pb.ReconcileFactsRequest) -> None:
    answer = await desk.send("POST", PATH, admin=True, json=body)
    assert (answer.status_code, answer.content) == (200, b'{"read":true}')
    assert reporting.requests == [asked]


async def test_it_is_for_admins(desk: Any, reporting: Any) -> None:
    answer = await desk.send("POST", PATH, json={})
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert reporting.requests == []


async def test_a_day_that_is_none_and_an_unknown_field_are_refused(desk: Any, reporting: Any) -> None:
    for body, pointer in [({"from": "yesterday"}, "/from"), ({"days": 1}, "/days")]:
        answer = await desk.send("POST", PATH, admin=True, json=body)
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, pointer)
    assert reporting.requests == []


async def test_a_refusal_is_passed_on(desk: Any, reporting: Any) -> None:
    reporting.refusal = Refusal("ledger_unavailable", 503, "The ledger cannot be read", "Try again.")
    answer = await desk.send("POST", PATH, admin=True, json={})
    assert (answer.status_code, answer.json()["code"]) == (503, "ledger_unavailable")
