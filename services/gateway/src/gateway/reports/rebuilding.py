"""Rebuilding the facts that reports are made of (重建)."""

from datetime import datetime
from typing import Any, ClassVar, Literal

import msgspec
from fastapi import APIRouter, Request, Response

from gateway.audit.operations import note_request
from gateway.bodies import Body, Uuid
from gateway.http import Answer, Head
from gateway.openapi import gives, takes
from gateway.services import AdminCaller, GatewayServices
from regulars.reporting.v1 import rebuild_service_pb2 as pb

router = APIRouter(prefix="/v1", tags=["Reports"])

BODY_LIMIT = 1024
START_SECONDS = 15.0


class RebuildStart(msgspec.Struct, forbid_unknown_fields=True):
    """`events`: from what the bus retains; `ledger`: from the ledgers of the services that own the facts. Null: events if all are there."""

    EXAMPLE: ClassVar[dict[str, Any]] = {"source": "ledger"}

    source: Literal["events", "ledger"] | None = None


class Rebuild(msgspec.Struct):
    """How a rebuild stands.

    `state`: running; waiting (reading the ledgers needs the rights of whoever asks: this request gave them anew); swapping; done; failed,
    for `reason`; cut_off (its process ended). One that is not done left the facts as they were. `poison`: events that are no facts.
    """

    id: Uuid
    source: Literal["events", "ledger"]
    state: str
    started_by: str
    started_at: datetime
    changed_at: datetime
    events: int
    expected_events: int | None
    poison: int
    reason: str | None


_start = Body(RebuildStart)


@router.post(
    "/reports:rebuild",
    status_code=202,
    summary="Make the facts anew",
    responses=gives(Rebuild, 202, "Begun"),
    openapi_extra=takes(RebuildStart),
)
async def start_rebuild(request: Request, services: GatewayServices, caller: AdminCaller) -> Response:
    """Reports show the present facts until all new ones take their place. Needs no operation_id: one rebuild runs at a time.

    409 `rebuild_running`; 422 `events_trimmed`: the bus no longer has the oldest events.
    """
    body = _start.read(await Head.of(request.scope).json_body(request.receive, BODY_LIMIT))
    await note_request(services, caller, "POST", request.scope["path"])
    message = pb.StartRebuildRequest(source=body.source or "")
    started = await services.reporting.call(caller, services.reporting.rebuilds.StartRebuild, message, START_SECONDS)
    return Answer(202, started.body).response()


@router.get("/reports/rebuilds/current", summary="Follow a rebuild", responses=gives(Rebuild))
async def get_rebuild(services: GatewayServices, caller: AdminCaller) -> Response:
    """The latest one. 404 `rebuild_not_found`: there never was one."""
    return (await services.reporting.read(caller, services.reporting.rebuilds.GetRebuild, pb.GetRebuildRequest())).response()
