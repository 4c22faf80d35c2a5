"""The app: the edge outside, FastAPI inside with its routes, problems, OpenAPI document and page."""

from importlib.resources import files
from typing import Any, cast

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp

from gateway import health, openapi
from gateway.edge import Edge, count_refusal
from gateway.http import Answer
from gateway.members import routes as members
from gateway.members import schemas as member_schemas
from gateway.openapi import document
from gateway.operations import routes as operations
from gateway.operations import schemas as operation_schemas
from gateway.parameters import as_refusal, refuse_unknown
from gateway.points import routes as points
from gateway.points import schemas as point_schemas
from gateway.problems import internal_error
from gateway.programmes import routes as programmes
from gateway.programmes import schemas as programme_schemas
from gateway.reports import rebuilding, reconciling
from gateway.reports import routes as reports
from gateway.reports import schemas as report_schemas
from gateway.sales import routes as sales
from gateway.sales import schemas as sale_schemas
from gateway.sales.recording import SALES, SaleRecorder
from gateway.services import Services
from gateway.stores import routes as stores
from gateway.stores import schemas as store_schemas
from gateway.wallets import routes as wallets
from gateway.wallets import schemas as wallet_schemas
from kit.metrics import ROUTE
from kit.problems import Refusal

SLICES = (members, points, sales, stores, programmes, operations, wallets, reports, rebuilding, reconciling)
SCHEMAS = (
    member_schemas,
    point_schemas,
    sale_schemas,
    store_schemas,
    programme_schemas,
    operation_schemas,
    wallet_schemas,
    report_schemas,
    rebuilding,
    reconciling,
    health,
)
ASSETS = "/docs/assets"
# A page of documentation that works without the internet: the scripts are in the wheel.
SWAGGER_UI = str(files("fastapi_offline") / "static")


def create_app(services: Services) -> ASGIApp:
    """The gateway as an ASGI app."""
    app = create_fastapi(services)
    ROUTE.declare(route.path for module in (*SLICES, health) for route in module.router.routes if isinstance(route, APIRoute))
    ROUTE.declare(("/docs", "/openapi.json"))
    return Edge(app, services.directory, {("POST", SALES): SaleRecorder(services)})


def create_fastapi(services: Services) -> FastAPI:
    """The app behind the edge, which has named and authenticated every request that comes here."""
    app = FastAPI(
        title=openapi.TITLE,
        openapi_url="/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[Depends(refuse_unknown)],
    )
    app.state.services = services
    for module in SLICES:
        app.include_router(module.router)
    app.include_router(health.router)
    app.mount(ASSETS, StaticFiles(directory=SWAGGER_UI))
    app.add_api_route("/docs", _docs, include_in_schema=False)
    app.add_exception_handler(Refusal, _on_refusal)
    app.add_exception_handler(RequestValidationError, _on_invalid_parameters)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_fault)
    made: dict[str, Any] = {}

    def described() -> dict[str, Any]:
        if not made:
            made.update(document(app, SCHEMAS))
        return made

    app.openapi = described  # type: ignore[method-assign]  # FastAPI's documented way
    return app


async def _docs() -> Response:
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title=openapi.TITLE,
        swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{ASSETS}/favicon.png",
    )


async def _on_refusal(_request: Request, error: Exception) -> Response:
    refusal = cast("Refusal", error)
    count_refusal(refusal)
    return Answer.problem(refusal).response()


async def _on_invalid_parameters(_request: Request, error: Exception) -> Response:
    return Answer.problem(as_refusal(cast("RequestValidationError", error))).response()


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """What routing itself refuses: no such path, or not with this method."""
    if cast("HTTPException", error).status_code != 405:
        return Answer.problem(Refusal("route_not_found", 404, "No such path", "See /docs for the paths there are.")).response()
    response = Answer.problem(Refusal("method_not_allowed", 405, "Method not allowed", "See /docs for what this path takes.")).response()
    routes = (cast("APIRoute", route) for module in (*SLICES, health) for route in module.router.routes)
    methods = {method for route in routes if route.matches(request.scope)[0] is not Match.NONE for method in route.methods or ()}
    # A page that is not in the document, such as /docs, is only read.
    response.headers["Allow"] = ", ".join(sorted(methods or {"GET"}))
    return response


async def _on_fault(_request: Request, _error: Exception) -> Response:
    # The error goes on to the edge, which logs it.
    return Answer.problem(internal_error()).response()
