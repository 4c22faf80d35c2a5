"""The outermost ASGI callable: names the request, checks the key, and answers the hot route itself.

Everything under /v1 is authenticated here, once, so that no route can forget it. `POST /v1/sales` is then answered without FastAPI's
machinery, by the very function that FastAPI's documented route calls; every other request goes on to FastAPI.
"""

import hashlib
import logging
from collections.abc import Awaitable, Callable, Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.callers import Caller
from gateway.directory import Directory
from gateway.http import Answer, ClientGone, Head, refuse_unknown_parameters, request_headers
from gateway.problems import internal_error, unauthenticated
from gateway.services import CALLER
from kit.problems import Refusal
from kit.telemetry import TraceContext, bind_request

log = logging.getLogger(__name__)

API = "/v1/"
BEARER = b"Bearer "

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
        request_id, trace = head.request_id(), head.trace()
        bind_request(trace, request_id)
        headers = request_headers(request_id, trace)
        started = False

        async def send_named(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], *headers]
            await send(message)

        try:
            path = scope["path"]
            if path.startswith(API):
                caller = await self._authenticate(head, request_id, trace)
                if hot := self._hot.get((scope["method"], path)):
                    answer = await _answer_hot(hot, caller, head, scope, receive)
                    await answer.send(send, headers)
                    return
                scope[CALLER] = caller
            await self._app(scope, receive, send_named)
        except Refusal as refusal:
            await Answer.problem(refusal).send(send, headers)
        except ClientGone:
            return
        except Exception:
            log.exception("request failed", extra={"method": scope["method"]})
            if not started:
                await Answer.problem(internal_error()).send(send, headers)

    async def _authenticate(self, head: Head, request_id: str, trace: TraceContext) -> Caller:
        given = head.headers.get(b"authorization", b"")
        if not given.startswith(BEARER):
            raise unauthenticated()
        # Found by its hash: how long that takes says nothing about the keys there are.
        client = await self._directory.client(hashlib.sha256(given[len(BEARER) :]).digest())
        if client is None:
            raise unauthenticated()
        return Caller(client, request_id, trace, head.idempotency_key())


async def _answer_hot(hot: HotRoute, caller: Caller, head: Head, scope: Scope, receive: Receive) -> Answer:
    if scope["query_string"]:
        refuse_unknown_parameters(scope["query_string"])
    return await hot(caller, head, receive)
