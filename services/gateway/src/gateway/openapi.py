"""The OpenAPI 3.1 document: FastAPI's, with the bodies' msgspec types and every problem a route may answer."""

from collections.abc import Iterable
from types import ModuleType
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from gateway.bodies import END, Writing
from kit.problems import CONTENT_TYPE, Problem

TITLE = "Regulars"
VERSION = "1"
DESCRIPTION = """Members, points, sales and reversals of a retail chain.

Every write carries an `operation_id` made by the caller (or the header `Idempotency-Key` in its place): a replay gives the first decided
answer byte for byte, with `Idempotent-Replayed: true`. Money is an integer of minor units; quantities and unit prices are decimals in
strings; times are RFC 3339 with offset. Values of enumerations may grow. Errors are RFC 9457 problem documents with a stable `code`."""

_REF = "#/components/schemas/{name}"
Json = dict[str, Any]


def _header(name: str, description: str) -> Json:
    return {"name": name, "in": "header", "required": False, "schema": {"type": "string"}, "description": description}


_IDEMPOTENCY_KEY = _header("Idempotency-Key", "Taken for the operation_id of a body that has none, and of the same form")
_EVERYWHERE = (
    _header("X-Request-Id", "Names the request in the answer and in logs: 1 to 100 letters, digits and . _ : / + = -; another is replaced"),
    _header("traceparent", "The request's place in the caller's trace (W3C Trace Context); the answer's goes on from it"),
)
_REPLAYED = {"Idempotent-Replayed": {"schema": {"const": "true"}, "description": "The write was decided before; this is its first answer"}}
# What a service decides about a write is stored, and given again for a replay.
_STORED_STATUSES = frozenset({"200", "201", "404", "409", "422"})

READ_PROBLEMS = {
    400: "malformed",
    401: "no valid key",
    403: "not allowed",
    404: "not there",
    500: "a fault of ours",
    503: "a service is away",
}
WRITE_PROBLEMS = READ_PROBLEMS | {
    409: "state or replay conflict",
    413: "too large",
    415: "not JSON, or encoded",
    422: "a rule refuses",
}


def ref(kind: type) -> Json:
    """A reference to the schema of a type."""
    return {"$ref": _REF.format(name=kind.__name__)}


def page_of(kind: type) -> Json:
    """The schema of a list."""
    return {
        "type": "object",
        "required": ["items", "next_cursor"],
        "properties": {"items": {"type": "array", "items": ref(kind)}, "next_cursor": {"type": ["string", "null"]}},
    }


def takes(kind: type) -> Json:
    """What a route's body must be, as its `openapi_extra`, with the example that the type holds."""
    content = {"schema": ref(kind)} | ({"example": kind.EXAMPLE} if hasattr(kind, "EXAMPLE") else {})
    body = {"requestBody": {"required": True, "content": {"application/json": content}}}
    return body | ({"parameters": [_IDEMPOTENCY_KEY]} if issubclass(kind, Writing) and kind.NEEDS_OPERATION_ID else {})


def gives(schema: type | Json, status: int = 200, description: str = "Done") -> dict[int | str, Json]:
    """What a route answers when it succeeds, as its `responses`."""
    content = schema if isinstance(schema, dict) else ref(schema)
    return {status: {"description": description, "content": {"application/json": {"schema": content}}}}


def document(app: FastAPI, schemas: Iterable[ModuleType]) -> Json:
    """The OpenAPI document of an app whose bodies are the structs in the modules `schemas`."""
    made = get_openapi(title=TITLE, version=VERSION, description=DESCRIPTION, openapi_version="3.1.0", routes=app.routes)
    kinds: list[type[msgspec.Struct]] = [Problem, *(kind for module in schemas for kind in _structs(module))]
    _, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    for kind in kinds:
        components[kind.__name__] |= getattr(kind, "SCHEMA", {})
        if issubclass(kind, Writing) and kind.NEEDS_OPERATION_ID:
            # The header may stand in its place; whoever follows the document sends it in the body.
            components[kind.__name__]["required"] = sorted({*components[kind.__name__].get("required", ()), "operation_id"})
    made["components"] = {
        "schemas": dict(sorted(_plain(components).items())),
        "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "A key of the chain"}},
    }
    for path, operations in made["paths"].items():
        for method, operation in operations.items():
            operation["responses"] = _responses(operation["responses"], path, method)
            if _IDEMPOTENCY_KEY in operation.get("parameters", ()):
                for status in operation["responses"].keys() & _STORED_STATUSES:
                    operation["responses"][status]["headers"] = _REPLAYED
            operation["parameters"] = [*operation.get("parameters", ()), *_EVERYWHERE]
            if path.startswith("/v1/"):
                operation["security"] = [{"key": []}]
    return made


def _structs(module: ModuleType) -> list[type[msgspec.Struct]]:
    found = (kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, msgspec.Struct))
    return [kind for kind in found if kind.__module__ == module.__name__]


def _responses(declared: Json, path: str, method: str) -> Json:
    """The successes that a route declares, and the problems of its kind."""
    # FastAPI's own 422 is answered as 400 here.
    kept = {status: response for status, response in declared.items() if int(status) < 400}
    if not path.startswith("/v1/"):
        return declared
    problems = READ_PROBLEMS if method == "get" else WRITE_PROBLEMS
    return kept | {str(status): _problem(status, meaning) for status, meaning in sorted(problems.items())}


def _problem(status: int, meaning: str) -> Json:
    response: Json = {"description": meaning.capitalize(), "content": {CONTENT_TYPE: {"schema": ref(Problem)}}}
    if status == 503:
        response["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds"}}
    return response


def _plain(value: Any) -> Any:  # noqa: ANN401  # a JSON document
    """The schemas without what only Python's patterns need."""
    match value:
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case list():
            return [_plain(item) for item in value]
        case str() if value.endswith(END):
            return value.removesuffix(END) + "$"
        case _:
            return value
