"""Reports: definitions, queries, and the stream of live figures."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.types import Receive, Scope, Send

from gateway.bodies import Body
from gateway.callers import ApiClient
from gateway.http import Head
from gateway.openapi import gives, ref, takes
from gateway.parameters import OfStores
from gateway.problems import store_not_allowed, store_not_found
from gateway.reporting import REPORT_SECONDS
from gateway.reports.operations import KpiBoard, Watching
from gateway.reports.schemas import Kpis, MetricDefinitions, Report, ReportQuery
from gateway.services import AdminCaller, GatewayServices
from regulars.reporting.v1 import report_service_pb2 as pb

router = APIRouter(prefix="/v1", tags=["Reports"])

BODY_LIMIT = 1024 * 1024
EVENT_STREAM = "text/event-stream"
# A client that does not read gets no more of an end than this.
LAST_WORDS_SECONDS = 0.5
_query = Body(ReportQuery)
_stream: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events `kpis`, whose data is the schema; `unavailable` while the figures are away; comments as heartbeats",
        "content": {
            EVENT_STREAM: {
                "schema": {
                    "type": "object",
                    "properties": {
                        "event": {"type": "string"},
                        "data": {"type": "string", "contentMediaType": "application/json", "contentSchema": ref(Kpis)},
                    },
                }
            }
        },
    }
}


@router.get("/reports/metrics", summary="What each figure means", responses=gives(MetricDefinitions))
async def get_metrics(services: GatewayServices, caller: AdminCaller) -> Response:
    """The definitions that reports are reckoned by, in Chinese and English."""
    return (await services.reporting.read(caller, services.reporting.reports.ListMetrics, pb.ListMetricsRequest())).response()


@router.post("/reports/query", summary="Ask for figures", responses=gives(Report), openapi_extra=takes(ReportQuery))
async def post_query(request: Request, services: GatewayServices, caller: AdminCaller) -> Response:
    """400 `report_query_invalid`: `errors` says what is allowed. 422 `figure_not_defined`: a figure has no meaning for a dimension.

    422 `several_currencies`: money that does not add up; 422 `report_too_large`.
    """
    body = _query.read(await Head.of(request.scope).json_body(request.receive, BODY_LIMIT))
    message = pb.RunQueryRequest(
        metrics=body.metrics,
        dimensions=body.dimensions,
        from_day=body.from_,
        to_day=body.to,
        compare=body.compare or "",
        filters=[pb.Filter(field=each.field, op=each.op, values=[value or "" for value in each.values]) for each in body.filters],
        sort=[pb.Sort(field=each.field, order=each.order) for each in body.sort],
        page_size=body.limit,
        page_token=body.cursor or "",
    )
    return (await services.reporting.read(caller, services.reporting.reports.RunQuery, message, REPORT_SECONDS)).response()


@router.get("/reports/kpis/stream", summary="Watch live figures", responses=_stream, response_class=Response)
async def stream_kpis(services: GatewayServices, caller: AdminCaller, store: OfStores = None) -> Response:
    """Server-sent events: every store's figures of its present business day, then those that change, within seconds.

    After `unavailable` the stream goes on; the next `kpis` has every store again. It ends when the key does.
    """
    allowed = caller.client.stores
    wanted = allowed
    if store is not None:
        wanted = frozenset(store.lower().split(","))
        if allowed is not None and not wanted <= allowed:
            raise store_not_allowed()
        if not wanted <= {each.store_id for each in services.directory.stores()}:
            await services.directory.catch_up()
            if not wanted <= {each.store_id for each in services.directory.stores()}:
                raise store_not_found()
    return _Stream(services.kpis, caller.client, wanted)


class _Stream(Response):
    """Events as they come, until the client goes or the board closes."""

    media_type = EVENT_STREAM

    def __init__(self, board: KpiBoard, client: ApiClient, stores: frozenset[str] | None) -> None:
        super().__init__(headers={"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._board = board
        self._client = client
        self._stores = stores

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        watching = self._board.join(self._client, self._stores)
        sending = asyncio.create_task(self._send(send, watching))
        gone = asyncio.create_task(_gone(receive))
        closed = asyncio.create_task(self._board.closed.wait())
        try:
            await asyncio.wait({sending, gone, closed}, return_when=asyncio.FIRST_COMPLETED)
            if closed.done():
                await asyncio.wait({sending}, timeout=LAST_WORDS_SECONDS)
        finally:
            self._board.leave(watching)
            for task in (sending, gone, closed):
                task.cancel()
            await asyncio.wait({sending, gone, closed})
        if not sending.cancelled() and (error := sending.exception()):
            raise error

    async def _send(self, send: Send, watching: Watching) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        # The head leaves at once, also when figures are yet to come.
        await send({"type": "http.response.body", "body": b": welcome\n\n", "more_body": True})
        async for event in self._board.events(watching):
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
