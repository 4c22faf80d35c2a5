"""Reconciliation: the cached sums proven from their entries."""

import msgspec
from fastapi import APIRouter, Request, Response

from gateway.audit.operations import note_request
from gateway.bodies import Body
from gateway.http import Answer, Head
from gateway.member import LONG_CALL_SECONDS
from gateway.openapi import gives, takes
from gateway.services import AdminCaller, GatewayServices
from gateway.wallets.schemas import Reconcile, Reconciled, WalletDifference
from regulars.member.v1 import wallet_service_pb2 as pb

router = APIRouter(prefix="/v1", tags=["Wallets"])

BODY_LIMIT = 64 * 1024
_reconcile = Body(Reconcile)


@router.post("/wallets:reconcile", summary="Prove a page of wallets", responses=gives(Reconciled), openapi_extra=takes(Reconcile))
async def reconcile_wallets(request: Request, services: GatewayServices, caller: AdminCaller) -> Response:
    """Names every difference. Needs no operation_id: doing it again finds nothing more to do."""
    raw = await Head.of(request.scope).json_body(request.receive, BODY_LIMIT)
    body = _reconcile.read(raw)
    if body.rebuild:
        await note_request(services, caller, "POST", request.scope["path"])
    message = pb.ReconcileWalletsRequest(page_token=body.cursor or "", page_size=body.limit, rebuild=body.rebuild)
    found = await services.member.call(caller, services.member.wallet.ReconcileWallets, message, LONG_CALL_SECONDS)
    reconciled = Reconciled(found.wallets, [_difference(each) for each in found.differences], found.next_page_token or None)
    return Answer(200, msgspec.json.encode(reconciled)).response()


def _difference(each: pb.WalletDifference) -> WalletDifference:
    return WalletDifference(each.member_id, each.programme_id, each.figure, each.subject_id or None, each.cached, each.proven, each.rebuilt)
