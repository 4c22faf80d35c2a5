"""ReconcileService: protobuf in, operation, a JSON document out."""

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeAlias

import grpc
import msgspec

from kit.bus.interface import Bus
from kit.clock import Clock
from kit.metrics import LEDGER_CHECKED, LEDGER_MISMATCHES
from kit.problems import FieldError, Refusal
from regulars.reporting.v1 import reconcile_service_pb2 as pb
from regulars.reporting.v1.reconcile_service_pb2_grpc import ReconcileServiceServicer
from reporting.access import away, require_admin
from reporting.clickhouse import ClickHouse, ClickHouseUnavailable
from reporting.queries.rules import check_day, check_order
from reporting.reconcile.operations import Days, Reconciliation, ask_member, reconcile

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_encode = msgspec.json.Encoder().encode


class ReconcileServicer(ReconcileServiceServicer):
    """Serves ReconcileService."""

    def __init__(self, clickhouse: ClickHouse, bus_of: Callable[[], Bus], member: grpc.aio.Channel, clock: Clock) -> None:
        self._clock = clock
        self._clickhouse = clickhouse
        self._bus_of = bus_of
        self._member = member

    async def ReconcileFacts(self, request: pb.ReconcileFactsRequest, context: Context) -> pb.ReconcileFactsResponse:
        actor = require_admin()
        if actor.stores is not None:
            raise Refusal("all_stores_needed", 403, "Not allowed", "This needs a key for all stores.")
        metadata = dict(context.invocation_metadata() or ())
        token = str(metadata["authorization"]).removeprefix("Bearer ")
        days = _days(request)
        try:
            found = await reconcile(self._clickhouse, self._bus_of, partial(ask_member, self._member, token), days)
        except ClickHouseUnavailable as error:
            raise away(error) from None
        self._tell(found, days)
        return pb.ReconcileFactsResponse(body=_encode(found))

    def _tell(self, found: Reconciliation, days: Days) -> None:
        """For operators. What differs while events are on their way may only be late, and that old days agree says little."""
        if found.differences_total:
            if found.behind.unpublished or found.behind.unread != 0:
                return
        elif not _has_yesterday(days, self._clock.now()):
            return
        LEDGER_MISMATCHES.of("reports").set(found.differences_total)
        LEDGER_CHECKED.of("reports").set(self._clock.now().timestamp())


def _has_yesterday(days: Days, now: datetime) -> bool:
    yesterday = (now - timedelta(days=1)).date().isoformat()
    return (days.from_day or yesterday) <= yesterday < (days.to_day or "9999-12-31")


def _days(request: pb.ReconcileFactsRequest) -> Days:
    """The days asked for, each of which may be left out. Raises Refusal (400, day_invalid)."""
    faults: list[FieldError] = []
    from_day = check_day("/from", request.from_day, faults) if request.from_day else None
    to_day = check_day("/to", request.to_day, faults) if request.to_day else None
    # Of no day at all everything agrees, which would prove nothing.
    check_order(from_day, to_day, faults)
    if faults:
        raise Refusal("day_invalid", 400, "Day not valid", "Correct what `errors` names.", faults)
    return Days(request.from_day, request.to_day)
