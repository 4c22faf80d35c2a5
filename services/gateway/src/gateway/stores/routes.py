"""Stores and tills."""

import msgspec
from fastapi import APIRouter, Request, Response

from gateway.bodies import Body
from gateway.directory import DATABASE_FAULTS
from gateway.http import Answer, Head
from gateway.openapi import gives, page_of, takes
from gateway.operations.operations import decide_once
from gateway.parameters import DEFAULT_LIMIT, Cursor, Limit, StoreId
from gateway.problems import database_away
from gateway.services import AdminCaller, AnyCaller, GatewayServices
from gateway.stores.operations import list_stores, list_tills, open_store, set_up_till
from gateway.stores.schemas import NewStore, NewTill, Store, Till
from kit.db import reading

router = APIRouter(prefix="/v1", tags=["Stores"])

BODY_LIMIT = 64 * 1024
_new_store = Body(NewStore)
_new_till = Body(NewTill)


@router.get("/stores", summary="List the stores", responses=gives(page_of(Store)))
async def get_stores(services: GatewayServices, caller: AnyCaller, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None) -> Response:
    """By code; those that the key may act in."""
    try:
        async with reading(services.engine) as connection:
            items, following = await list_stores(connection, caller, limit, cursor)
    except DATABASE_FAULTS as error:
        raise database_away() from error
    return Answer(200, msgspec.json.encode({"items": items, "next_cursor": following})).response()


@router.get("/stores/{store_id}/tills", summary="List a store's tills", responses=gives(page_of(Till)))
async def get_tills(
    services: GatewayServices, caller: AnyCaller, store_id: StoreId, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
) -> Response:
    """By code."""
    try:
        async with reading(services.engine) as connection:
            items, following = await list_tills(connection, caller, store_id, limit, cursor)
    except DATABASE_FAULTS as error:
        raise database_away() from error
    return Answer(200, msgspec.json.encode({"items": items, "next_cursor": following})).response()


@router.post("/stores", summary="Open a store", status_code=201, responses=gives(Store, 201, "Opened"), openapi_extra=takes(NewStore))
async def post_store(request: Request, services: GatewayServices, caller: AdminCaller) -> Response:
    """Its programme must be there already, and count in the store's currency."""
    raw = await Head.of(request.scope).json_body(request.receive, BODY_LIMIT)
    new = _new_store.read(raw)
    write = services.member.write(caller, "POST", request.scope["path"], raw, new)
    answer = await decide_once(services, write, lambda connection: open_store(connection, services, caller, new))
    await services.directory.catch_up()
    return answer.response()


@router.post(
    "/stores/{store_id}/tills", summary="Set up a till", status_code=201, responses=gives(Till, 201, "Set up"), openapi_extra=takes(NewTill)
)
async def post_till(request: Request, services: GatewayServices, caller: AdminCaller, store_id: StoreId) -> Response:
    """In a store that is there already."""
    raw = await Head.of(request.scope).json_body(request.receive, BODY_LIMIT)
    new = _new_till.read(raw)
    write = services.member.write(caller, "POST", request.scope["path"], raw, new)
    answer = await decide_once(services, write, lambda connection: set_up_till(connection, services.clock, store_id, new))
    await services.directory.catch_up()
    return answer.response()
