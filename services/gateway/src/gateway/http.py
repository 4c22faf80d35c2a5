"""HTTP as the edge needs it, over bare ASGI: headers in, a bounded body, answers out. The hot route and FastAPI's routes share it."""

from collections.abc import Collection
from urllib.parse import parse_qsl

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.problems import body_too_large, malformed, unsupported_content_encoding, unsupported_media_type
from kit.problems import CONTENT_TYPE as PROBLEM
from kit.problems import FieldError, Refusal, render
from kit.telemetry import REQUEST_ID, TraceContext

JSON = b"application/json"
IDENTITY = b"identity"
PROBLEM_JSON = PROBLEM.encode()
RETRY_AFTER_SECONDS = b"1"
RETRIED_STATUSES = frozenset({429, 503})

Headers = list[tuple[bytes, bytes]]


class ClientGone(Exception):
    """The client closed the connection before its request was whole."""


class Head(msgspec.Struct, frozen=True, gc=False):
    """The headers of a request that the edge reads; of a repeated one the last."""

    headers: dict[bytes, bytes]

    @classmethod
    def of(cls, scope: Scope) -> "Head":
        """The head of an ASGI request."""
        return cls(dict(scope["headers"]))

    def request_id(self, trace: TraceContext) -> str:
        """The caller's X-Request-Id, or the id of the trace where it sent none that may be echoed and logged."""
        given = self.headers.get(b"x-request-id")
        if given is not None and REQUEST_ID.fullmatch(text := given.decode("latin-1")):
            return text
        return trace.trace_id

    def trace(self) -> TraceContext | None:
        """The caller's place in its trace, if it named one."""
        given = self.headers.get(b"traceparent")
        return TraceContext.parse(given.decode("latin-1")) if given else None

    def idempotency_key(self) -> str | None:
        """The Idempotency-Key."""
        given = self.headers.get(b"idempotency-key")
        return None if given is None else given.decode("latin-1")

    async def json_body(self, receive: Receive, limit: int) -> bytes:
        """The body of at most `limit` bytes, which the headers must call JSON, as it is."""
        content_type = self.headers.get(b"content-type", b"")
        if content_type != JSON and not _is_json(content_type):
            raise unsupported_media_type()
        if self.headers.get(b"content-encoding", IDENTITY).lower() != IDENTITY:
            raise unsupported_content_encoding()
        length = self.headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > limit:
            raise body_too_large(limit)
        message = await receive()
        body: bytes = message.get("body", b"")
        if message["type"] == "http.request" and not message.get("more_body"):
            return body
        parts = [body]
        size = len(body)
        while message["type"] == "http.request" and message.get("more_body"):
            message = await receive()
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limit:
                raise body_too_large(limit)
        if message["type"] != "http.request":
            raise ClientGone
        return b"".join(parts)


def _is_json(content_type: bytes) -> bool:
    media_type, _, parameters = content_type.lower().partition(b";")
    return media_type.strip() == JSON and parameters.strip() in (b"", b"charset=utf-8", b'charset="utf-8"')


def refuse_unknown_parameters(query_string: bytes, known: Collection[str] = ()) -> None:
    """Query parameters that a route does not know, or that come twice, are refused, not ignored."""
    seen: set[str] = set()
    errors: list[FieldError] = []
    for name, _ in parse_qsl(query_string.decode("latin-1"), keep_blank_values=True):
        if name not in known:
            errors.append(FieldError(f"/query/{name[:100]}", "unknown_field", "This parameter is not known here."))
        elif name in seen:
            errors.append(FieldError(f"/query/{name}", "repeated", "Give this parameter once."))
        seen.add(name)
    if errors:
        raise malformed(errors)


class Answer(msgspec.Struct, frozen=True, gc=False):
    """A status and a JSON body."""

    status: int
    body: bytes
    replayed: bool = False

    @classmethod
    def problem(cls, refusal: Refusal) -> "Answer":
        """A refusal as the caller sees it."""
        return cls(refusal.status, render(refusal))

    def headers(self) -> Headers:
        """The headers that belong to the answer itself."""
        status = self.status
        headers = [
            (b"content-type", JSON if status < 400 else PROBLEM_JSON),
            (b"content-length", b"%d" % len(self.body)),
        ]
        if self.replayed:
            headers.append((b"idempotent-replayed", b"true"))
        if status in RETRIED_STATUSES:
            headers.append((b"retry-after", RETRY_AFTER_SECONDS))
        elif status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        return headers

    async def send(self, send: Send, request_headers: Headers) -> None:
        """Sends the answer with the headers that name the request."""
        headers = self.headers()
        headers += request_headers
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})

    def response(self) -> Response:
        """The answer for a FastAPI route."""
        response = Response(self.body, self.status)
        response.raw_headers = self.headers()
        return response


def request_headers(request_id: str, traceparent: str) -> Headers:
    """The headers that name the request in its answer."""
    return [(b"x-request-id", request_id.encode("latin-1")), (b"traceparent", traceparent.encode())]
