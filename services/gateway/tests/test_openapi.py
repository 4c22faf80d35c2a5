"""The OpenAPI document says what the routes take and give, and its page works without the internet."""

import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import msgspec
import pytest

from gateway.bodies import Body
from gateway.members.schemas import SignUp
from gateway.points.schemas import AdjustPoints
from gateway.reports.rebuilding import RebuildStart
from gateway.reports.reconciling import ReconcileReports
from gateway.reports.schemas import ReportQuery
from gateway.sales.schemas import NewReversal, NewSale, ReversalPreview

METHODS = {"get", "post", "patch"}


@pytest.fixture
async def document(desk: Any) -> dict[str, Any]:
    answer: dict[str, Any] = (await desk.http.get("/openapi.json")).json()
    return answer


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert method in METHODS
            yield path, method, operation


def references(value: object) -> Iterator[str]:
    match value:
        case dict():
            for key, item in value.items():
                if key == "$ref":
                    yield item
                yield from references(item)
        case list():
            for item in value:
                yield from references(item)
        case _:
            pass


async def test_it_is_openapi_3_1_and_every_reference_resolves(document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.1.0"
    defined = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(references(document)) <= defined


async def test_every_route_documents_its_answers_and_problems(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        statuses = set(operation["responses"])
        assert statuses & {"200", "201", "202"}, path
        for status, response in operation["responses"].items():
            (content_type,) = response["content"]
            if path.endswith("/stream") and status == "200":
                assert content_type == "text/event-stream"
                continue
            expected = "application/json" if int(status) < 400 or not path.startswith("/v1/") else "application/problem+json"
            assert content_type == expected
            assert response["content"][content_type]["schema"]
        if path.startswith("/v1/"):
            assert "429" not in statuses
            assert {"400", "401", "403", "404", "500", "503"} <= statuses
            assert operation["security"] == [{"key": []}]
            assert ("requestBody" in operation) is (method != "get")


async def test_the_sale_of_the_worked_example_is_valid_by_its_schema(document: dict[str, Any], desk: Any) -> None:
    schema = {"$ref": "#/components/schemas/NewSale", "components": document["components"]}
    validator = jsonschema_rs.validator_for(schema)
    assert validator.is_valid(desk.sale())
    assert not validator.is_valid(desk.sale(coupon=1))
    assert not validator.is_valid({key: value for key, value in desk.sale().items() if key != "operation_id"})
    assert not validator.is_valid(desk.sale(points_to_spend=-1))


async def test_headers_are_documented_where_they_are_read_and_given(document: dict[str, Any]) -> None:
    for path, _, operation in operations(document):
        headers = {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "header"}
        kept = path.startswith("/v1/") and "operation_id" in required(document, operation)
        assert headers == {"X-Request-Id", "traceparent"} | ({"Idempotency-Key"} if kept else set()), path
        replayed = {status for status, response in operation["responses"].items() if "Idempotent-Replayed" in response.get("headers", {})}
        assert replayed == ({"404", "409", "422"} | (replayed & {"200", "201"}) if kept else set()), path
        assert bool(replayed & {"200", "201"}) is kept


def required(document: dict[str, Any], operation: dict[str, Any]) -> list[str]:
    schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    found: list[str] = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]].get("required", []) if schema else []
    return found


EXAMPLES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (NewSale, NewReversal, ReversalPreview, SignUp, AdjustPoints, ReportQuery, RebuildStart, ReconcileReports)
}


async def test_the_page_starts_filled_with_bodies_that_are_taken(document: dict[str, Any]) -> None:
    filled = set()
    for path, _, operation in operations(document):
        content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        if "example" in content:
            filled.add(path)
            name = content["schema"]["$ref"].rpartition("/")[2]
            Body(EXAMPLES[name]).read(msgspec.json.encode(content["example"]))
            assert jsonschema_rs.is_valid(content["schema"] | {"components": document["components"]}, content["example"])
    assert filled == {
        "/v1/sales",
        "/v1/sales/{sale_id}/reversals",
        "/v1/sales/{sale_id}/reversals:preview",
        "/v1/members",
        "/v1/members/{member_id}/points:adjust",
        "/v1/reports/query",
        "/v1/reports:rebuild",
        "/v1/reports:reconcile",
    }


async def test_nothing_of_python_shows(document: dict[str, Any]) -> None:
    text = str(document)
    assert "(?!\\\\n)" not in text
    assert "HTTPValidationError" not in text


async def test_the_page_needs_no_other_host(desk: Any) -> None:
    page = (await desk.http.get("/docs")).text
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(addresses) == 3
    for address in addresses:
        assert address.startswith("/docs/assets/")
        assert (await desk.http.get(address)).status_code == 200
