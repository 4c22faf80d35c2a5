"""Member files: sign up, read, change, find at the till."""

from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import UNSET

from gateway.audit.operations import note_request
from gateway.bodies import Body
from gateway.http import Answer, Head
from gateway.imports import problem_of, require_operation_id
from gateway.member import answer_of
from gateway.members.schemas import ImportedMembers, ImportMembers, Member, MemberChange, MemberFields, MemberSearch, SignUp
from gateway.openapi import gives, page_of, takes
from gateway.parameters import DEFAULT_LIMIT, Cursor, Limit, MemberId
from gateway.problems import malformed
from gateway.services import AdminCaller, AnyCaller, GatewayServices, Services
from kit.problems import FieldError
from regulars.member.v1 import member_service_pb2 as pb

router = APIRouter(prefix="/v1", tags=["Members"])

BODY_LIMIT = 64 * 1024
IMPORT_BODY_LIMIT = 4 * 1024 * 1024
MEMBERS = "/v1/members"

_sign_up = Body(SignUp)
_change = Body(MemberChange)
_search = Body(MemberSearch)
_import = Body(ImportMembers)


@router.post(
    "/members", summary="Sign up a member", status_code=201, responses=gives(Member, 201, "Signed up"), openapi_extra=takes(SignUp)
)
async def post_member(request: Request, services: GatewayServices, caller: AnyCaller) -> Response:
    """409 `phone_already_registered`: a live member has verified this phone; `card_already_registered`."""
    raw = await Head.of(request.scope).json_body(request.receive, BODY_LIMIT)
    body = _sign_up.read(raw)
    operation = services.member.operation(services.member.write(caller, "POST", MEMBERS, raw, body))
    group = pb.SignUpMembersRequest(sign_ups=[_message(services, operation, body)])
    outcomes = (await services.member.call_until_decided(services.member.members.SignUpMembers, group)).outcomes
    return answer_of(outcomes[0]).response()


@router.post(
    "/members:import",
    summary="Sign up many members",
    responses=gives(ImportedMembers, 200, "What became of each, in order"),
    openapi_extra=takes(ImportMembers),
)
async def import_members(request: Request, services: GatewayServices, caller: AdminCaller) -> Response:
    """Each for itself, and as if it were sent to POST /v1/members: a refused one refuses only itself, and a replay is answered again."""
    raw = await Head.of(request.scope).json_body(request.receive, IMPORT_BODY_LIMIT)
    sign_ups = []
    for index, each in enumerate(_import.read(raw).members):
        at = f"/members/{index}"
        body = _sign_up.read(bytes(each), at)
        require_operation_id(body, at)
        operation = services.member.operation(services.member.write(caller, "POST", MEMBERS, bytes(each), body))
        sign_ups.append(_message(services, operation, body))
    await note_request(services, caller, "POST", request.scope["path"])
    group = pb.SignUpMembersRequest(sign_ups=sign_ups)
    response = await services.member.call_until_decided(services.member.members.SignUpMembers, group)
    outcomes = [
        {
            "operation_id": sign_up.operation.operation_id,
            "status": outcome.status,
            "replayed": outcome.replayed,
            "member_id": outcome.member_id or None,
            "problem": problem_of(outcome),
        }
        for sign_up, outcome in zip(sign_ups, response.outcomes, strict=True)
    ]
    return Answer(200, msgspec.json.encode({"outcomes": outcomes})).response()


@router.post(
    "/members:search", summary="Find members by phone or card", responses=gives(page_of(Member)), openapi_extra=takes(MemberSearch)
)
async def search_members(
    request: Request, services: GatewayServices, caller: AnyCaller, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
) -> Response:
    """A list: a phone that nobody verified may be several members'."""
    raw = await Head.of(request.scope).json_body(request.receive, BODY_LIMIT)
    by = _search.read(raw)
    if (by.phone is UNSET) is (by.card is UNSET):
        raise malformed([FieldError("", "one_of", "Send either a phone or a card.")])
    message = pb.SearchMembersRequest(page_size=limit, page_token=cursor or "", phone_region=by.phone_region or "")
    if by.phone is not UNSET:
        message.phone = by.phone
    elif by.card is not UNSET:
        message.card = by.card
    return (await services.member.read(caller, services.member.members.SearchMembers, message)).response()


@router.get("/members/{member_id}", summary="Read a member", responses=gives(Member))
async def get_member(services: GatewayServices, caller: AnyCaller, member_id: MemberId) -> Response:
    """404 `member_not_found`."""
    message = pb.GetMemberRequest(member_id=member_id)
    return (await services.member.read(caller, services.member.members.GetMember, message)).response()


@router.patch("/members/{member_id}", summary="Change a member", responses=gives(Member), openapi_extra=takes(MemberChange))
async def patch_member(request: Request, services: GatewayServices, caller: AnyCaller, member_id: MemberId) -> Response:
    """Refused as a sign-up is."""
    raw = await Head.of(request.scope).json_body(request.receive, BODY_LIMIT)
    body = _change.read(raw)
    write = services.member.write(caller, "PATCH", request.scope["path"], raw, body)
    await note_request(services, caller, write.method, write.path, write.operation_id)
    message = pb.ChangeMemberRequest(operation=services.member.operation(write), member_id=member_id, fields=_fields(body, removed=""))
    response = await services.member.call_until_decided(services.member.members.ChangeMember, message)
    return answer_of(response.outcome).response()


def _message(services: Services, operation: pb.Operation, body: SignUp) -> pb.SignUp:
    return pb.SignUp(operation=operation, programme_id=services.default_programme_id, fields=_fields(body, removed=None))


def _fields(body: MemberFields, *, removed: str | None) -> pb.MemberFields:
    """The fields that are given; null is `removed`: nothing in a new file, the empty text in a change."""
    given: dict[str, Any] = {name: getattr(body, name) for name in _FIELD_NAMES}
    written: dict[str, Any] = {name: removed if value is None else value for name, value in given.items() if value is not UNSET}
    return pb.MemberFields(**written)


_FIELD_NAMES = tuple(field.name for field in pb.MemberFields.DESCRIPTOR.fields)
