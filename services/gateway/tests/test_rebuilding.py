"""POST /v1/reports:rebuild and GET /v1/reports/rebuilds/current are passed to the reporting service, for admins alone."""

from typing import Any

import pytest

from kit.problems import Refusal
from regulars.reporting.v1 import rebuild_service_pb2 as pb

START = "/v1/reports:rebuild"
CURRENT = "/v1/reports/rebuilds/current"


@pytest.mark.parametrize(
    "body,source", [({}, ""), ({"source": None}, ""), ({"source": "events"}, "events"), ({"source": "ledger"}, "ledger")]
)
async def test_a_rebuild_is_begun(desk: Any, reporting: Any, body: dict[str, Any], source: str) -> None:
    answer = await desk.send("POST", START, admin=True, json=body)
    assert (answer.status_code, answer.content) == (202, b'{"read":true}')
    assert reporting.requests == [pb.StartRebuildRequest(source=source)]
    answer = await desk.send("GET", CURRENT, admin=True)
    assert (answer.status_code, answer.content) == (200, b'{"read":true}')


async def test_it_is_for_admins(desk: Any, reporting: Any) -> None:
    assert (await desk.send("POST", START, json={})).status_code == 403
    assert (await desk.send("GET", CURRENT)).status_code == 403
    assert reporting.requests == []


async def test_another_source_is_refused(desk: Any, reporting: Any) -> None:
    answer = await desk.send("POST", START, admin=True, json={"source": "memory"})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, "/source")
    assert answer.json()["errors"][0]["detail"] == "Must be events or ledger."
    assert reporting.requests == []


async def test_a_second_one_is_refused_as_the_service_says(desk: Any, reporting: Any) -> None:
    reporting.refusal = Refusal("rebuild_running", 409, "A rebuild is under way", "Wait until it is done.")
    answer = await desk.send("POST", START, admin=True, json={})
    assert (answer.status_code, answer.json()["code"]) == (409, "rebuild_running")
