"""Programmes: read, check and apply."""

from typing import Any

from fastapi import APIRouter, Request, Response

from gateway.audit.operations import note_request
from gateway.bodies import Body
from gateway.http import Answer, Head
from gateway.member import LONG_CALL_SECONDS
from gateway.openapi import gives, takes
from gateway.parameters import ProgrammeIdInPath
from gateway.programmes.schemas import Definition, Programme, ProgrammeProposal
from gateway.services import AdminCaller, AnyCaller, GatewayServices
from regulars.member.v1 import programme_service_pb2 as pb

router = APIRouter(prefix="/v1", tags=["Programmes"])

BODY_LIMIT = 1024 * 1024
_definition = Body(dict[str, Any])


@router.get("/programmes/{programme_id}", summary="Read a programme", responses=gives(Programme))
async def get_programme(services: GatewayServices, caller: AnyCaller, programme_id: ProgrammeIdInPath) -> Response:
    """With all its versions."""
    message = pb.GetProgrammeRequest(programme_id=programme_id)
    return (await services.member.read(caller, services.member.programmes.GetProgramme, message)).response()


@router.post("/programmes:check", summary="Check a programme", responses=gives(ProgrammeProposal), openapi_extra=takes(Definition))
async def check_programme(request: Request, services: GatewayServices, caller: AdminCaller) -> Response:
    """What applying it would change. Writes nothing. 422 `programme_invalid` names every fault."""
    raw = await Head.of(request.scope).json_body(request.receive, BODY_LIMIT)
    _definition.read(raw)
    message = pb.CheckProgrammeRequest(definition=raw)
    return (await services.member.read(caller, services.member.programmes.CheckProgramme, message, LONG_CALL_SECONDS)).response()


@router.post(
    "/programmes:apply",
    summary="Apply a programme as a dated version",
    responses=gives(ProgrammeProposal, 200, "The newest version says the same already") | gives(ProgrammeProposal, 201, "Applied"),
    openapi_extra=takes(Definition),
)
async def apply_programme(request: Request, services: GatewayServices, caller: AdminCaller) -> Response:
    """Needs no operation_id: the same definition again adds nothing. 422 `programme_invalid` names every fault."""
    raw = await Head.of(request.scope).json_body(request.receive, BODY_LIMIT)
    _definition.read(raw)
    await note_request(services, caller, "POST", request.scope["path"])
    message = pb.ApplyProgrammeRequest(definition=raw)
    applied = await services.member.call(caller, services.member.programmes.ApplyProgramme, message, LONG_CALL_SECONDS)
    return Answer(201 if applied.created else 200, applied.body).response()
