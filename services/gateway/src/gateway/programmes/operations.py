"""Programmes belong to the member service; the gateway asks."""

from gateway.callers import Caller
from gateway.services import Services
from kit.problems import FieldError, Refusal
from regulars.member.v1 import programme_service_pb2 as pb

NOT_FOUND = 404


async def require_programme(services: Services, caller: Caller, programme_id: str) -> None:
    """Raises Refusal (422, programme_not_found) when there is no such programme."""
    member = services.member
    try:
        await member.read(caller, member.programmes.GetProgramme, pb.GetProgrammeRequest(programme_id=programme_id))
    except Refusal as refusal:
        if refusal.status != NOT_FOUND:
            raise
        raise Refusal(
            "programme_not_found",
            422,
            "No such programme",
            "Apply the programme first (regulars programme apply FILE), or name one that is there.",
            [FieldError("/programme_id", "programme_not_found", "No programme has this id.")],
        ) from None
