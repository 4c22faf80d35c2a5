"""Programmes belong to the member service; the gateway asks."""

import msgspec

from gateway.callers import Caller
from gateway.services import Services
from kit.problems import FieldError, Refusal
from regulars.member.v1 import programme_service_pb2 as pb

NOT_FOUND = 404


class _Programme(msgspec.Struct):
    """What is asked here of the document that the member service gives."""

    currency: str


_decoder = msgspec.json.Decoder(_Programme)


async def require_programme(services: Services, caller: Caller, programme_id: str, currency: str) -> None:
    """Requires that a programme is there and counts in `currency`; it never changes its own.

    Raises:
        Refusal: 422 programme_not_found, programme_currency_mismatch.
    """
    member = services.member
    try:
        answer = await member.read(caller, member.programmes.GetProgramme, pb.GetProgrammeRequest(programme_id=programme_id))
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
    counted = _decoder.decode(answer.body).currency
    if counted != currency:
        detail = f"The programme {programme_id} counts in {counted}."
        raise Refusal(
            "programme_currency_mismatch",
            422,
            "The programme counts in another currency",
            f"{detail} Open the store in {counted}, or name a programme that counts in {currency}.",
            [FieldError("/currency", "programme_currency_mismatch", detail)],
        )
