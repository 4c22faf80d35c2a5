"""A member's points: balance, lots, entries, adjustments."""

from fastapi import APIRouter, Request, Response

from gateway.audit.operations import note_request
from gateway.bodies import Body
from gateway.http import Head
from gateway.openapi import gives, page_of, takes
from gateway.parameters import DEFAULT_LIMIT, Cursor, Limit, MemberId, OfProgramme
from gateway.points.schemas import Adjustment, AdjustPoints, Entry, Lot, Points
from gateway.problems import malformed
from gateway.services import AdminCaller, AnyCaller, GatewayServices
from kit.problems import FieldError
from regulars.member.v1 import wallet_service_pb2 as pb

router = APIRouter(prefix="/v1/members/{member_id}", tags=["Points"])

BODY_LIMIT = 64 * 1024
_adjust = Body(AdjustPoints)


@router.get("/points", summary="Read a member's points", responses=gives(Points))
async def get_points(services: GatewayServices, caller: AnyCaller, member_id: MemberId, programme_id: OfProgramme = None) -> Response:
    """As of now."""
    message = pb.GetPointsRequest(member_id=member_id, programme_id=programme_id or services.default_programme_id)
    return (await services.member.read(caller, services.member.wallet.GetPoints, message)).response()


@router.get("/points/lots", summary="List a member's points lots", responses=gives(page_of(Lot)))
async def get_lots(
    services: GatewayServices,
    caller: AnyCaller,
    member_id: MemberId,
    programme_id: OfProgramme = None,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> Response:
    """Newest first."""
    message = pb.ListLotsRequest(
        member_id=member_id, programme_id=programme_id or services.default_programme_id, page_size=limit, page_token=cursor or ""
    )
    return (await services.member.read(caller, services.member.wallet.ListLots, message)).response()


@router.get("/points/entries", summary="List a member's points entries", responses=gives(page_of(Entry)))
async def get_entries(
    services: GatewayServices,
    caller: AnyCaller,
    member_id: MemberId,
    programme_id: OfProgramme = None,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> Response:
    """Newest first."""
    message = pb.ListEntriesRequest(
        member_id=member_id, programme_id=programme_id or services.default_programme_id, page_size=limit, page_token=cursor or ""
    )
    return (await services.member.read(caller, services.member.wallet.ListEntries, message)).response()


@router.post(
    "/points:adjust",
    summary="Grant or take points",
    status_code=201,
    responses=gives(Adjustment, 201, "Adjusted"),
    openapi_extra=takes(AdjustPoints),
)
async def adjust_points(request: Request, services: GatewayServices, caller: AdminCaller, member_id: MemberId) -> Response:
    """422 `insufficient_points`: more would be taken than there are."""
    raw = await Head.of(request.scope).json_body(request.receive, BODY_LIMIT)
    body = _adjust.read(raw)
    if body.points == 0:
        raise malformed([FieldError("/points", "out_of_range", "Must not be 0.")])
    write = services.member.write(caller, "POST", request.scope["path"], raw, body)
    await note_request(services, caller, write.method, write.path, write.operation_id)
    command = services.member.command(write)
    adjust = command.adjust_points
    adjust.member_id = member_id
    adjust.programme_id = body.programme_id or services.default_programme_id
    adjust.points = body.points
    adjust.reason = body.reason
    return (await services.member.decide(member_id, command, write.size)).response()
