"""The outermost ASGI callable: names the request, checks the key, and answers the hot route itself.

Everything under /v1 is authenticated here, once, so that no route can forget it. `POST /v1/sales` is then answered without FastAPI's
machinery, by the very function that FastAPI's documented route calls; every other request goes on to FastAPI.
"""

import hashlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.callers import ApiClient, Caller
from gateway.directory import Directory
from gateway.http import Answer, ClientGone, Head, Headers, refuse_unknown_parameters, request_headers
from gateway.problems import internal_error, unauthenticated
from gateway.services import CALLER
from kit.metrics import HTTP_DURATION, HTTP_REQUESTS, OTHER, REFUSALS, ROUTE
from kit.problems import Refusal
from kit.rpc import RefusedElsewhere
from kit.telemetry import TraceContext, bind_request
from kit.tracing import recorder

log = logging.getLogger(__name__)

API = "/v1/"
# The name of a scheme is written in any case (RFC 9110, 11.1).
BEARER = b"bearer"

# The client went away before its request was whole, or its answer was begun.
CLIENT_GONE = 499
EVENT_STREAM = b"text/event-stream"

HotRoute = Callable[[Caller, Head, Receive], Awaitable[Answer]]


class Edge:
    """`hot` maps (method, path) to the routes that are answered here."""

    def __init__(self, app: ASGIApp, directory: Directory, hot: Mapping[tuple[str, str], HotRoute]) -> None:
        self._app = app
        self._directory = directory
        self._hot = hot
        ROUTE.declare(path for _, path in hot)
        for method, path in hot:
            # What objectives are held against is there before it happens.
            HTTP_REQUESTS.start((path,), (method,), (201, 500, 503))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = perf_counter()
        head = Head.of(scope)
        path: str = scope["path"]
        above = head.trace()
        spans = recorder()
        begun = above.child() if above else None
        trace = begun or (TraceContext.new() if spans is None else spans.begin(scope["method"], path))
        request_id, traceparent = head.request_id(trace), trace.header()
        bind_request(trace, request_id)
        headers = request_headers(request_id, traceparent)
        hot = self._hot.get((scope["method"], path))
        status = CLIENT_GONE
        try:
            if path.startswith(API):
                caller = Caller(await self._authenticate(head), request_id, traceparent, head.idempotency_key())
                if hot:
                    if scope["query_string"]:
                        refuse_unknown_parameters(scope["query_string"])
                    answer = await hot(caller, head, receive)
                    status = answer.status
                    await answer.send(send, headers)
                    return
                scope[CALLER] = caller
                if scope["method"] == "GET":
                    headers.append((b"cache-control", b"no-store"))
            status = await self._pass_on(scope, receive, send, headers, began)
        except Refusal as refusal:
            status = refusal.status
            count_refusal(refusal)
            await Answer.problem(refusal).send(send, headers)
        except ClientGone:
            return
        except Exception:
            status = 500
            log.exception("request failed", extra={"method": scope["method"]})
            await Answer.problem(internal_error()).send(send, headers)
        finally:
            method, route = scope["method"], path if hot else route_of(scope)
            seconds = perf_counter() - began
            HTTP_REQUESTS.of(route, method, status).inc()
            if STREAMED not in scope:
                HTTP_DURATION.of(route, method).observe(seconds)
            if spans is not None and spans.wants(trace, failed=status >= 500):
                said = {"http.request.method": method, "http.route": route, "http.response.status_code": status}
                fault = str(status) if status >= 500 else ""
                spans.record(f"{method} {route}", "server", trace, above.span_id if above else "", seconds, said, fault=fault)

    async def _authenticate(self, head: Head) -> ApiClient:
        scheme, _, key = head.headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != BEARER:
            raise unauthenticated()
        # Found by its hash: how long that takes says nothing about the keys there are.
        key_sha256 = hashlib.sha256(key.lstrip(b" ")).digest()
        client = self._directory.known_client(key_sha256) or await self._directory.find_client(key_sha256)
        if client is None:
            raise unauthenticated()
        return client

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send, headers: Headers, began: float) -> int:
        """Has FastAPI answer, under the names of the request. Returns the status."""
        status = 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if any(value.startswith(EVENT_STREAM) for name, value in message["headers"] if name == b"content-type"):
                    # It lasts for as long as somebody watches; what is waited for is its beginning.
                    scope[STREAMED] = True
                    HTTP_DURATION.of(route_of(scope), scope["method"]).observe(perf_counter() - began)
                message["headers"] = [*message["headers"], *headers]
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except Exception:
            if not status:
                raise
            # FastAPI answered 500 and raises the fault again, to have it logged.
            log.exception("request failed", extra={"method": scope["method"]})
        return status or CLIENT_GONE


STREAMED = "regulars.streamed"


def route_of(scope: Scope) -> str:
    """The template of the path, once a route was found for it."""
    return getattr(scope.get("route"), "path", OTHER)


def count_refusal(refusal: Refusal) -> None:
    """Counts a refusal of the gateway's own; another service counted its own."""
    if not isinstance(refusal, RefusedElsewhere):
        REFUSALS.of(refusal.code).inc()
