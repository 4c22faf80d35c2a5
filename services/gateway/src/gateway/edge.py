"""The outermost ASGI callable: names the request, checks the key, and answers the hot route itself.

Everything under /v1 is authenticated here, once, so that no route can forget it. `POST /v1/sales` is then answered without FastAPI's
machinery, by the very function that FastAPI's documented route calls; every other request goes on to FastAPI.
"""

import hashlib
import logging
from collections.abc import Awaitable, Callable, Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.callers import ApiClient, Caller
from gateway.directory import Directory
from gateway.http import Answer, ClientGone, Head, Headers, refuse_unknown_parameters, request_headers
from gateway.problems import internal_error, unauthenticated
from gateway.services import CALLER
from kit.problems import Refusal
from kit.telemetry import bind_request

log = logging.getLogger(__name__)

API = "/v1/"
# The name of a scheme is written in any case (RFC 9110, 11.1).
BEARER = b"bearer"

HotRoute = Callable[[Caller, Head, Receive], Awaitable[Answer]]


class Edge:
    """`hot` maps (method, path) to the routes that are answered here."""

    def __init__(self, app: ASGIApp, directory: Directory, hot: Mapping[tuple[str, str], HotRoute]) -> None:
        self._app = app
        self._directory = directory
        self._hot = hot

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        head = Head.of(scope)
        trace = head.trace()
        request_id, traceparent = head.request_id(trace), trace.header()
        bind_request(trace, request_id)
        headers = request_headers(request_id, traceparent)
        path: str = scope["path"]
        try:
            if path.startswith(API):
                caller = Caller(await self._authenticate(head), request_id, traceparent, head.idempotency_key())
                if hot := self._hot.get((scope["method"], path)):
                    if scope["query_string"]:
                        refuse_unknown_parameters(scope["query_string"])
                    answer = await hot(caller, head, receive)
                    await answer.send(send, headers)
                    return
                scope[CALLER] = caller
                if scope["method"] == "GET":
                    headers.append((b"cache-control", b"no-store"))
            await self._pass_on(scope, receive, send, headers)
        except Refusal as refusal:
            await Answer.problem(refusal).send(send, headers)
        except ClientGone:
            return
        except Exception:
            log.exception("request failed", extra={"method": scope["method"]})
            await Answer.problem(internal_error()).send(send, headers)

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

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        """Has FastAPI answer, under the names of the request."""
        started = False

        async def send_named(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], *headers]
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except Exception:
            if not started:
                raise
            # FastAPI answered 500 and raises the fault again, to have it logged.
            log.exception("request failed", extra={"method": scope["method"]})
