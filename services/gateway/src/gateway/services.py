"""What the routes work with, put together once by `main`."""

from dataclasses import dataclass, field
from typing import Annotated, cast

from fastapi import Depends, Request
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.callers import Caller
from gateway.directory import Directory
from gateway.member import MemberService
from gateway.problems import forbidden
from gateway.reporting import ReportingService
from gateway.reports.operations import KpiBoard
from kit.clock import Clock
from kit.health import Health


@dataclass(frozen=True, slots=True)
class Services:
    """The gateway's parts."""

    engine: AsyncEngine
    clock: Clock
    directory: Directory
    member: MemberService
    reporting: ReportingService
    kpis: KpiBoard
    default_programme_id: str
    health: Health = field(default_factory=Health)


CALLER = "regulars.caller"


def _services(request: Request) -> Services:
    return cast("Services", request.app.state.services)


def _caller(request: Request) -> Caller:
    return cast("Caller", request.scope[CALLER])


def _admin(request: Request) -> Caller:
    caller = _caller(request)
    if caller.client.role != "admin":
        raise forbidden("admin")
    return caller


GatewayServices = Annotated[Services, Depends(_services)]
AnyCaller = Annotated[Caller, Depends(_caller)]
AdminCaller = Annotated[Caller, Depends(_admin)]
