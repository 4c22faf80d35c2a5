"""ReconcileService: protobuf in, operation, a JSON document out."""

from collections.abc import Callable
from datetime import date
from functools import partial
from typing import Any, TypeAlias

import grpc
import msgspec

from kit.bus.interface import Bus
from kit.problems import FieldError, Refusal
from regulars.reporting.v1 import reconcile_service_pb2 as pb
from regulars.reporting.v1.reconcile_service_pb2_grpc import ReconcileServiceServicer
from reporting.access import away, require_admin
from reporting.clickhouse import ClickHouse, ClickHouseUnavailable
from reporting.reconcile.operations import Days, ask_member, reconcile

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_encode = msgspec.json.Encoder().encode


class ReconcileServicer(ReconcileServiceServicer):
    """Serves ReconcileService."""

    def __init__(self, clickhouse: ClickHouse, bus_of: Callable[[], Bus], member: grpc.aio.Channel) -> None:
        self._clickhouse = clickhouse
        self._bus_of = bus_of
        self._member = member

    async def ReconcileFacts(self, request: pb.ReconcileFactsRequest, context: Context) -> pb.ReconcileFactsResponse:
        actor = require_admin()
        if actor.stores is not None:
            raise Refusal("all_stores_needed", 403, "Not allowed", "This needs a key for all stores.")
        metadata = dict(context.invocation_metadata() or ())
        token = str(metadata["authorization"]).removeprefix("Bearer ")
        days = Days(_day(request.from_day, "/from"), _day(request.to_day, "/to"))
        try:
            found = await reconcile(self._clickhouse, self._bus_of, partial(ask_member, self._member, token), days)
        except ClickHouseUnavailable:
            raise away() from None
        return pb.ReconcileFactsResponse(body=_encode(found))


def _day(text: str, pointer: str) -> str:
    try:
        return date.fromisoformat(text).isoformat() if text else ""
    except ValueError:
        detail = "Send a day as YYYY-MM-DD."
        raise Refusal("day_invalid", 400, "Day not valid", detail, [FieldError(pointer, "day_invalid", detail)]) from None
