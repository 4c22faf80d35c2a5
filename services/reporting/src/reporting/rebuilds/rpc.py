"""RebuildService: protobuf in, operation, JSON documents out."""

from typing import Any, TypeAlias

import grpc
import msgspec

from kit.problems import Refusal
from regulars.reporting.v1 import rebuild_service_pb2 as pb
from regulars.reporting.v1.rebuild_service_pb2_grpc import RebuildServiceServicer
from reporting.access import away, require_admin
from reporting.clickhouse import ClickHouseUnavailable
from reporting.rebuilds.operations import EVENTS, LEDGER, Rebuilder

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_encoder = msgspec.json.Encoder()


class RebuildServicer(RebuildServiceServicer):
    """Serves RebuildService."""

    def __init__(self, rebuilder: Rebuilder) -> None:
        self._rebuilder = rebuilder

    async def StartRebuild(self, request: pb.StartRebuildRequest, context: Context) -> pb.StartRebuildResponse:
        subject, token = _admin(context)
        if request.source not in {"", EVENTS, LEDGER}:
            raise Refusal("source_invalid", 400, "No such source", f"Say {EVENTS} or {LEDGER}, or nothing.")
        try:
            return pb.StartRebuildResponse(body=_encoder.encode(await self._rebuilder.start(request.source, subject, token)))
        except ClickHouseUnavailable as error:
            raise away(error) from None

    async def GetRebuild(self, request: pb.GetRebuildRequest, context: Context) -> pb.GetRebuildResponse:
        _, token = _admin(context)
        try:
            rebuild = await self._rebuilder.latest(token)
        except ClickHouseUnavailable as error:
            raise away(error) from None
        if rebuild is None:
            raise Refusal("rebuild_not_found", 404, "No rebuild", "The facts were never rebuilt.")
        return pb.GetRebuildResponse(body=_encoder.encode(rebuild))


def _admin(context: Context) -> tuple[str, str]:
    """The actor's subject, and the token it came with."""
    actor = require_admin()
    if actor.stores is not None:
        raise Refusal("all_stores_needed", 403, "Not allowed", "This needs a key for all stores.")
    metadata = dict(context.invocation_metadata() or ())
    return actor.subject, str(metadata["authorization"]).removeprefix("Bearer ")
