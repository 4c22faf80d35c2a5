"""A gateway over a database of its own, before a member service that answers as a test tells it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import grpc
import httpx
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from google.protobuf.message_factory import GetMessageClass
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.app import create_app
from gateway.database import MIGRATIONS
from gateway.demo import Demo, seed_demo
from gateway.directory import Directory
from gateway.member import MemberService
from gateway.reporting import ReportingService
from gateway.reports.operations import KpiBoard
from gateway.services import Services
from gateway.settings import Settings
from kit.clock import HeldClock
from kit.db import create_engine, migrate, transaction
from kit.problems import Refusal
from kit.rpc import Server, create_channel, current_actor
from kit.tokens import Actor, TokenMinter, TokenVerifier
from regulars.member.v1 import member_service_pb2, programme_service_pb2, wallet_service_pb2
from regulars.member.v1 import wallet_service_pb2 as pb
from regulars.reporting.v1 import rebuild_service_pb2, reconcile_service_pb2, report_service_pb2
from regulars.reporting.v1 import report_service_pb2 as reports_pb

NOW = datetime(2026, 11, 21, 10, 3, 12, tzinfo=UTC)
MEMBER_ID = "01a201a4-a414-7000-8ebe-0feb8a8dcc59"
READ = b'{"read":true}'
SALE_ID = "01a201a4-a488-7000-8d73-6f7e6bbaa40e"


# A message class has no common base with typed fields: tests know what they sent.
Message = Any
WRITES = ("WalletService/ExecuteCommands", "MemberService/SignUpMembers", "MemberService/ChangeMember")
FILES = (wallet_service_pb2, member_service_pb2, programme_service_pb2)
REPORTING_FILES = (report_service_pb2, rebuild_service_pb2, reconcile_service_pb2)


@dataclass
class FakeMember:
    """Keeps what it is sent. Every write is answered 201 with its operation id, unless `outcome` says otherwise; a read with `refusal`."""

    groups: list[list[pb.Command]] = field(default_factory=list)
    requests: list[Message] = field(default_factory=list)
    outcome: pb.Outcome | None = None
    refusal: Refusal | None = None
    # The ids of operations that it decided before.
    decided: frozenset[str] = frozenset({"till-7:000123"})

    def answer(self, method: str, request: Message) -> dict[str, Any]:
        """The fields of the answer to a call."""
        self.requests.append(request)
        match method:
            case "ExecuteCommands":
                self.groups.append(list(request.commands))
                return {"outcomes": [self.outcome or _done(command.operation_id) for command in request.commands]}
            case "SignUpMembers":
                return {"outcomes": [{"status": 201, "body": b"{}", "member_id": MEMBER_ID} for _ in request.sign_ups]}
            case "ChangeMember":
                return {"outcome": {"status": 200, "body": b"{}", "member_id": MEMBER_ID}}
            case "GetOperation" if request.operation_id not in self.decided:
                raise Refusal("operation_not_found", 404, "No such operation", "Send it again.")
            case _ if self.refusal:
                raise self.refusal
            case "ReconcileWallets":
                return {"wallets": 2, "next_page_token": "more"}
            case "PreviewReversal":
                return {"status": 200, "body": READ}
            case "ApplyProgramme":
                return {"body": READ, "created": True}
            case "GetProgramme":
                return {"body": b'{"currency":"CNY"}'}
            case _:
                return {"body": READ}

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serves every method of the member service."""
        serve(server, FILES, self.answer)

    @property
    def command(self) -> pb.Command:
        """The only command it was sent."""
        (group,) = self.groups
        (command,) = group
        return command


@dataclass
class FakeReporting:
    """Keeps what it is sent, answers every read with a document, and live figures as a test sets them by store."""

    requests: list[Message] = field(default_factory=list)
    refusal: Refusal | None = None
    net_sales_minor: dict[str, int] = field(default_factory=dict)
    actors: list[Actor] = field(default_factory=list)

    def answer(self, method: str, request: Message) -> dict[str, Any]:
        """The fields of the answer to a call."""
        self.requests.append(request)
        self.actors.append(current_actor())
        if self.refusal:
            raise self.refusal
        if method != "GetKpis":
            return {"body": READ}
        stores = [reports_pb.StoreKpis(store_id=each.store_id, body=self._figures(each)) for each in request.store_days]
        return {"stores": stores, "as_of": "2026-11-21T10:03:12Z"}

    def _figures(self, each: reports_pb.StoreDay) -> bytes:
        net = self.net_sales_minor.get(each.store_id, 0)
        return msgspec.json.encode({"store_id": each.store_id, "business_day": each.business_day, "net_sales_minor": net})

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serves every method of the reporting service."""
        serve(server, REPORTING_FILES, self.answer)


def serve(server: grpc.aio.Server, files: Iterable[Any], answer: Callable[[str, Message], dict[str, Any]]) -> None:
    """Serves every method of the services in these files."""

    def handler(method: Any) -> Any:  # descriptors and handlers are untyped
        given, made = GetMessageClass(method.input_type), GetMessageClass(method.output_type)

        async def handle(request: Message, _context: object) -> Message:
            return made(**answer(method.name, request))

        return grpc.unary_unary_rpc_method_handler(handle, given.FromString, made.SerializeToString)

    for file in files:
        for service in file.DESCRIPTOR.services_by_name.values():
            handlers = {method.name: handler(method) for method in service.methods}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))


def _done(operation_id: str) -> pb.Outcome:
    return pb.Outcome(status=201, body=msgspec.json.encode({"operation_id": operation_id}), amount_minor=100)


@pytest.fixture(scope="session")
def database(make_database: Callable[..., str]) -> str:
    """A migrated database, which every test finds empty."""
    url = make_database()
    asyncio.run(migrate(url, MIGRATIONS))
    return url


@pytest.fixture
async def engine(database: str) -> AsyncIterator[AsyncEngine]:
    """An engine on an empty database."""
    made = create_engine(database, 4)
    async with transaction(made) as connection:
        await connection.execute(text("TRUNCATE stores, tills, api_clients, audit_log, operations"))
    yield made
    await made.dispose()


@pytest.fixture
def clock() -> HeldClock:
    return HeldClock(NOW)


@pytest.fixture
async def demo(engine: AsyncEngine, clock: HeldClock) -> Demo:
    """The demo chain and its keys."""
    return await seed_demo(engine, clock, new_keys=True)


@pytest.fixture(scope="session")
def key_pair() -> tuple[bytes, bytes]:
    """Private and public key of internal tokens."""
    key = Ed25519PrivateKey.generate()
    return (
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    )


@pytest.fixture
async def fake(key_pair: tuple[bytes, bytes], clock: HeldClock) -> AsyncIterator[tuple[FakeMember, int]]:
    """A member service and the port it listens on."""
    member = FakeMember()
    inside = [f"/regulars.member.v1.{name}" for name in WRITES]
    server = Server(TokenVerifier(key_pair[1], clock), [member.add_to], tokens_inside=inside)
    port = await server.start("127.0.0.1:0")
    yield member, port
    await server.stop(0)


@pytest.fixture
def member(fake: tuple[FakeMember, int]) -> FakeMember:
    return fake[0]


@pytest.fixture
async def fake_reporting(key_pair: tuple[bytes, bytes], clock: HeldClock) -> AsyncIterator[tuple[FakeReporting, int, Server]]:
    """A reporting service, the port it listens on, and its server."""
    reporting = FakeReporting()
    server = Server(TokenVerifier(key_pair[1], clock), [reporting.add_to])
    port = await server.start("127.0.0.1:0")
    yield reporting, port, server
    await server.stop(0)


@pytest.fixture
def reporting(fake_reporting: tuple[FakeReporting, int, Server]) -> FakeReporting:
    return fake_reporting[0]


@pytest.fixture
async def services(
    engine: AsyncEngine,
    clock: HeldClock,
    demo: Demo,
    key_pair: tuple[bytes, bytes],
    fake: tuple[FakeMember, int],
    fake_reporting: tuple[FakeReporting, int, Server],
) -> AsyncIterator[Services]:
    """The gateway's parts before the fake services."""
    assert demo["till_key"]
    minter = TokenMinter(key_pair[0], clock)
    async with create_channel(f"127.0.0.1:{fake[1]}") as channel, create_channel(f"127.0.0.1:{fake_reporting[1]}") as reporting_channel:
        member = MemberService(channel, minter, b"k" * 32, clock, SETTINGS)
        reporting = ReportingService(reporting_channel, minter)
        directory = Directory(engine)
        yield Services(engine, clock, directory, member, reporting, KpiBoard(directory, reporting, clock), "demo")


SETTINGS: Settings = Settings(
    database_url="",
    log_level="INFO",
    pool_size=4,
    host="",
    port=0,
    connection_seconds=0,
    member_address="",
    reporting_address="",
    internal_token_private_key_file=None,  # type: ignore[arg-type]  # what is made of it is given
    fingerprint_key_file=None,  # type: ignore[arg-type]
    default_programme_id="demo",
    lanes=2,
    lane_capacity=64,
    group_size=16,
    import_lanes=1,
    write_deadline_seconds=10,
)


@dataclass
class Desk:
    """A client of the gateway with the demo's keys."""

    http: httpx.AsyncClient
    demo: Demo

    async def send(self, method: str, path: str, *, admin: bool = False, **given: Any) -> httpx.Response:  # as httpx takes it
        """Sends a request with the till's or the admin's key."""
        key = self.demo["admin_key" if admin else "till_key"]
        headers = {"Authorization": f"Bearer {key}"} | given.pop("headers", {})
        return await self.http.request(method, path, headers=headers, **given)

    def sale(self, operation_id: str = "op-1", **given: Any) -> dict[str, Any]:  # any field
        """A sale of one line, at the demo's till."""
        return {
            "operation_id": operation_id,
            "store_id": self.demo["store_id"],
            "till_id": self.demo["till_id"],
            "sold_at": "2026-11-21T18:03:11+08:00",
            "currency": "CNY",
            "member_id": MEMBER_ID,
            "lines": [{"line_no": 1, "sku": "A100", "quantity": "2", "unit_price": "99.90", "amount_minor": 19980}],
            "tenders": [{"type": "cash", "amount_minor": 19980}],
        } | given


@pytest.fixture
async def desk(services: Services, demo: Demo) -> AsyncIterator[Desk]:
    """A client of the gateway."""
    transport = httpx.ASGITransport(create_app(services))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
        yield Desk(http, demo)
