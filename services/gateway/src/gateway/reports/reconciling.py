"""Comparing the reports with the ledger (对账)."""

from datetime import datetime
from typing import Any, ClassVar

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import field

from gateway.bodies import Body, Uuid
from gateway.http import Head
from gateway.openapi import gives, takes
from gateway.reports.schemas import Day
from gateway.services import AdminCaller, GatewayServices
from regulars.reporting.v1 import reconcile_service_pb2 as pb

router = APIRouter(prefix="/v1", tags=["Reports"])

BODY_LIMIT = 1024
# The ledger adds up whole days, and what is on its way is waited for.
RECONCILE_SECONDS = 200.0


class ReconcileReports(msgspec.Struct, forbid_unknown_fields=True):
    """Which days: the first is included, the second is not. Null: without a bound."""

    EXAMPLE: ClassVar[dict[str, Any]] = {"from": "2026-11-01", "to": "2026-12-01"}

    from_: Day | None = field(default=None, name="from")
    to: Day | None = None


class Compared(msgspec.Struct):
    """How many sums were compared: of a store on a day, of a kind of points entries on a day, of members who joined on a day."""

    store_days: int
    points_days: int
    members_days: int


class Behind(msgspec.Struct):
    """How many events were on their way: not yet published, and not yet taken in (null: the bus did not answer)."""

    unpublished: int
    unread: int | None


class ReportsDifference(msgspec.Struct):
    """A figure that the reports have otherwise than the ledger; decimal text.

    `checksum` and `lines.…checksum`: the sums may agree, but a sale or line is of another member, channel, staff, SKU or category.
    """

    figure: str
    ledger: str
    reports: str
    store_id: Uuid | None
    day: Day | None
    currency: str | None
    programme_id: str | None
    kind: str | None


class ReportsReconciled(msgspec.Struct):
    """What was recorded from `as_of` on is left out on both sides. `differences`: the first thousand, by day."""

    as_of: datetime
    compared: Compared
    behind: Behind
    differences_total: int
    differences: list[ReportsDifference]


_reconcile = Body(ReconcileReports)


@router.post(
    "/reports:reconcile",
    summary="Compare the reports with the ledger",
    responses=gives(ReportsReconciled),
    openapi_extra=takes(ReconcileReports),
)
async def reconcile_reports(request: Request, services: GatewayServices, caller: AdminCaller) -> Response:
    """Names every figure that differs. Writes nothing; facts that are on their way are waited for, for some seconds.

    400 `day_invalid`: days as a report query may have them, and at least one. 503 `ledger_unavailable`: the member service is away.
    """
    body = _reconcile.read(await Head.of(request.scope).json_body(request.receive, BODY_LIMIT))
    message = pb.ReconcileFactsRequest(from_day=body.from_ or "", to_day=body.to or "")
    found = await services.reporting.read(caller, services.reporting.reconciliation.ReconcileFacts, message, RECONCILE_SECONDS)
    return found.response()
