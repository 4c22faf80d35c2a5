"""Whether the gateway lives, and whether it may be sent requests."""

import asyncio

import msgspec
from fastapi import APIRouter, Response

from gateway.http import Answer
from gateway.openapi import gives
from gateway.services import GatewayServices
from kit.db import answers

router = APIRouter(tags=["Health"])


class Health(msgspec.Struct):
    """`ok`."""

    status: str


class Readiness(msgspec.Struct):
    """`ready` or `not_ready`; each dependency is `ok` or `away`."""

    status: str
    dependencies: dict[str, str]


@router.get("/healthz", summary="Alive?", responses=gives(Health))
async def healthz() -> Response:
    """The process answers."""
    return Answer(200, msgspec.json.encode(Health("ok"))).response()


_not_ready = gives(Readiness, 503, "The gateway's own database is away, or the gateway is about to stop")


@router.get("/readyz", summary="Ready?", responses=gives(Readiness) | _not_ready)
async def readyz(services: GatewayServices) -> Response:
    """Fails only on the gateway's own database, and before a stop: another service that is away must not take every gateway out."""
    database = not await answers(services.engine)
    member, reporting = await asyncio.gather(services.member.is_serving(), services.reporting.is_serving())
    dependencies = {"database": _said(database), "member": _said(member), "reporting": _said(reporting)}
    ready = database and not services.health.is_draining
    body = msgspec.json.encode(Readiness("ready" if ready else "not_ready", dependencies))
    return Response(body, 200 if ready else 503, media_type="application/json")


def _said(answers: bool) -> str:  # noqa: FBT001
    return "ok" if answers else "away"
