"""Sales, reversals, returns."""

from fastapi import APIRouter, Request, Response

from gateway.audit.operations import note_request
from gateway.bodies import Body
from gateway.http import Answer, Head
from gateway.openapi import gives, page_of, takes
from gateway.parameters import DEFAULT_LIMIT, Cursor, Limit, MemberId, OfStore, SaleId
from gateway.sales.commands import write_reversal
from gateway.sales.importing import import_history, read_commands
from gateway.sales.recording import SaleRecorder
from gateway.sales.schemas import ImportedCommands, ImportSales, NewReversal, NewSale, Return, Reversal, ReversalPreview, Sale
from gateway.services import AdminCaller, AnyCaller, GatewayServices
from regulars.member.v1 import wallet_service_pb2 as pb

router = APIRouter(prefix="/v1", tags=["Sales"])

BODY_LIMIT = 1024 * 1024
IMPORT_BODY_LIMIT = 32 * 1024 * 1024
_reversal = Body(NewReversal)
_preview = Body(ReversalPreview)


@router.post("/sales", summary="Record a sale", status_code=201, responses=gives(Sale, 201, "Recorded"), openapi_extra=takes(NewSale))
async def post_sale(request: Request, services: GatewayServices, caller: AnyCaller) -> Response:
    """With each line's share of every discount and of spent points, the points it earned, and the balance after it."""
    return (await SaleRecorder(services)(caller, Head.of(request.scope), request.receive)).response()


@router.get("/sales", summary="List sales", responses=gives(page_of(Sale)))
async def get_sales(
    services: GatewayServices, caller: AnyCaller, store_id: OfStore = None, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
) -> Response:
    """Newest recording first."""
    message = pb.ListSalesRequest(page_size=limit, page_token=cursor or "", store_id=(store_id or "").lower())
    return (await services.member.read(caller, services.member.wallet.ListSales, message)).response()


@router.get("/sales/{sale_id}", summary="Read a sale", responses=gives(Sale))
async def get_sale(services: GatewayServices, caller: AnyCaller, sale_id: SaleId) -> Response:
    """With its reversals so far. 404 `sale_not_found`."""
    return (await services.member.read(caller, services.member.wallet.GetSale, pb.GetSaleRequest(sale_id=sale_id))).response()


@router.get("/members/{member_id}/sales", summary="List a member's sales", responses=gives(page_of(Sale)))
async def get_member_sales(
    services: GatewayServices, caller: AnyCaller, member_id: MemberId, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
) -> Response:
    """Latest `sold_at` first."""
    message = pb.ListMemberSalesRequest(member_id=member_id, page_size=limit, page_token=cursor or "")
    return (await services.member.read(caller, services.member.wallet.ListMemberSales, message)).response()


@router.get("/returns", summary="List returns without a sale", responses=gives(page_of(Return)))
async def get_returns(
    services: GatewayServices, caller: AnyCaller, store_id: OfStore = None, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
) -> Response:
    """Newest recording first."""
    message = pb.ListReturnsRequest(page_size=limit, page_token=cursor or "", store_id=(store_id or "").lower())
    return (await services.member.read(caller, services.member.wallet.ListReturns, message)).response()


@router.post(
    "/sales/{sale_id}/reversals:preview",
    summary="What a reversal would do",
    responses=gives(Reversal, 200, "What the reversal would answer now"),
    openapi_extra=takes(ReversalPreview),
)
async def preview_reversal(request: Request, services: GatewayServices, caller: AnyCaller, sale_id: SaleId) -> Response:
    """Writes nothing. Refused as the reversal would be."""
    body = _preview.read(await Head.of(request.scope).json_body(request.receive, BODY_LIMIT))
    message = pb.PreviewReversalRequest()
    message.reversal.sale_id = sale_id
    await write_reversal(services, body, message.reversal)
    previewed = await services.member.call(caller, services.member.wallet.PreviewReversal, message)
    return Answer(previewed.status, previewed.body).response()


@router.post(
    "/sales/{sale_id}/reversals",
    summary="Take back a sale or part of it",
    status_code=201,
    responses=gives(Reversal, 201, "Reversed"),
    openapi_extra=takes(NewReversal),
)
async def post_reversal(request: Request, services: GatewayServices, caller: AnyCaller, sale_id: SaleId) -> Response:
    """In any number of parts, never more than was sold; the parts add up to the same figures in any order."""
    raw = await Head.of(request.scope).json_body(request.receive, BODY_LIMIT)
    body = _reversal.read(raw)
    write = services.member.write(caller, "POST", request.scope["path"], raw, body)
    command = services.member.command(write)
    command.reverse_sale.sale_id = sale_id
    await write_reversal(services, body, command.reverse_sale)
    return (await services.member.decide(sale_id, command, write.size)).response()


@router.post(
    "/sales:import",
    summary="Record a history",
    responses=gives(ImportedCommands, 200, "What became of each, in order"),
    openapi_extra=takes(ImportSales),
)
async def import_sales(request: Request, services: GatewayServices, caller: AdminCaller) -> Response:
    """Sales, reversals and returns, decided in order: a refused one refuses only itself, and a replay is answered again."""
    raw = await Head.of(request.scope).json_body(request.receive, IMPORT_BODY_LIMIT)
    commands = await read_commands(services, caller, raw)
    await note_request(services, caller, "POST", request.scope["path"])
    return (await import_history(services, commands)).response()
