"""A client of the REST API that holds every answer against the published OpenAPI document."""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import httpx
import jsonschema_rs

Json = dict[str, Any]


class Contract:
    """`/openapi.json` of a running gateway."""

    def __init__(self, document: Json) -> None:
        self.document = document
        self._components = _closed(document["components"])
        self._routes = [(re.compile(re.sub(r"\{[^}]*\}", "[^/]+", path)), path) for path in document["paths"]]

    def check(self, answer: httpx.Response) -> None:
        """Fails unless status, content type and body are what the document says of this request's route."""
        method, path = answer.request.method.lower(), urlsplit(str(answer.request.url)).path
        route = next((route for pattern, route in self._routes if pattern.fullmatch(path)), None)
        operation = self.document["paths"].get(route, {}).get(method)
        if operation is None:
            assert answer.status_code in (401, 404, 405), f"{method} {path} is not documented and answered {answer.status_code}"
            return
        documented = operation["responses"].get(str(answer.status_code))
        assert documented is not None, f"{method} {route} answered {answer.status_code}, undocumented: {answer.text}"
        media_type = answer.headers["content-type"]
        assert media_type in documented["content"], f"{method} {route} answered {media_type}"
        schema = documented["content"][media_type].get("schema", {})
        jsonschema_rs.validate(self._resolved(json.dumps(schema)), exact(answer.content), validate_formats=True)

    @cache  # noqa: B019  # one contract for one system, as long as the tests
    def _resolved(self, schema: str) -> Json:
        return {**_closed(json.loads(schema)), "components": self._components}


def _closed(schema: Any) -> Any:
    """The schema, strict: clients must bear a field that is new to them, but none leaves the gateway that the document does not name."""
    match schema:
        case dict():
            closed = {name: _closed(value) for name, value in schema.items()}
            return {"additionalProperties": False, **closed} if "properties" in schema and schema.get("type") == "object" else closed
        case list():
            return [_closed(value) for value in schema]
        case _:
            return schema


def exact(body: bytes) -> Any:
    """JSON in which a number with a fraction is a fault: money and points are integers, quantities are text."""

    def refuse(number: str) -> float:
        raise AssertionError(f"{number} is not exact: {body.decode()}")

    return json.loads(body, parse_float=refuse)


_contracts: dict[str, Contract] = {}


def contract_of(url: str) -> Contract:
    """The contract of the gateway at `url`, fetched once."""
    if url not in _contracts:
        _contracts[url] = Contract(httpx.get(f"{url}/openapi.json", trust_env=False).raise_for_status().json())
    return _contracts[url]


class Api:
    """The API as the holder of one key sees it. May be used from several threads."""

    def __init__(self, url: str, key: str | None) -> None:
        self._contract = contract_of(url)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        parameters: Mapping[str, str | int] | None = None,
    ) -> httpx.Response:
        """Any request; the answer is held against the contract."""
        answer = self._http.request(method, path, json=body, headers=headers, params=parameters)
        self._contract.check(answer)
        return answer

    def get(self, path: str, **parameters: str | int) -> Json:
        """A reading that succeeds."""
        return _body(self.ask("GET", path, parameters=parameters or None), 200)

    def post(self, path: str, body: object, status: int = 201) -> Json:
        """A write that succeeds (or, with status 200, an act that writes nothing)."""
        return _body(self.ask("POST", path, body), status)

    def refused(self, path: str, body: object, method: str = "POST") -> tuple[int, str]:
        """Status and code of a refusal."""
        answer = self.ask(method, path, body)
        assert answer.status_code >= 400, answer.text
        return answer.status_code, exact(answer.content)["code"]

    def items(self, path: str, **parameters: str | int) -> Iterator[Json]:
        """Everything in a list, page by page."""
        page = self.get(path, **parameters)
        yield from page["items"]
        while page["next_cursor"] is not None:
            page = self.get(path, **parameters, cursor=page["next_cursor"])
            yield from page["items"]

    def differences(self) -> list[Json]:
        """What `POST /v1/wallets:reconcile` finds, over all its pages."""
        found: list[Json] = []
        cursor: Json = {}
        while True:
            page = self.post("/v1/wallets:reconcile", cursor, 200)
            found += page["differences"]
            if page["next_cursor"] is None:
                return found
            cursor = {"cursor": page["next_cursor"]}


def _body(answer: httpx.Response, status: int) -> Json:
    assert answer.status_code == status, f"{answer.status_code}: {answer.text}"
    body: Json = exact(answer.content)
    return body
