"""A gateway over a database of its own, before a member service that answers as a test tells it."""

import asyncio
from collections.abc import AsyncIterator, Callable
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
from gateway.services import Services
from gateway.settings import Settings
from kit.clock import HeldClock
from kit.db import create_engine, migrate, transaction
from kit.problems import Refusal
from kit.rpc import Server, create_channel
from kit.tokens import TokenMinter, TokenVerifier
from regulars.member.v1 import member_service_pb2, programme_service_pb2, wallet_service_pb2
from regulars.member.v1 import wallet_service_pb2 as pb

NOW = datetime(2026, 11, 21, 10, 3, 12, tzinfo=UTC)
MEMBER_ID = "01a201a4-a414-7000-8ebe-0feb8a8dcc59"
READ = b'{"read":true}'
SALE_ID = "01a201a4-a488-7000-8d73-6f7e6bbaa40e"


# A message class has no common base with typed fields: tests know what they sent.
Message = Any
WRITES = ("WalletService/ExecuteCommands", "MemberService/SignUpMembers", "MemberService/ChangeMember")
FILES = (wallet_service_pb2, member_service_pb2, programme_service_pb2)


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
        for file in FILES:
            for service in file.DESCRIPTOR.services_by_name.values():
                handlers = {method.name: self._handler(method) for method in service.methods}
                server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))

    def _handler(self, method: Any) -> Any:  # descriptors and handlers are untyped
        given, made = GetMessageClass(method.input_type), GetMessageClass(method.output_type)

        async def handle(request: Message, _context: object) -> Message:
            return made(**self.answer(method.name, request))

        return grpc.unary_unary_rpc_method_handler(handle, given.FromString, made.SerializeToString)

    @property
    def command(self) -> pb.Command:
        """The only command it was sent."""
        (group,) = self.groups
        (command,) = group
        return command


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
async def services(
    engine: AsyncEngine, clock: HeldClock, demo: Demo, key_pair: tuple[bytes, bytes], fake: tuple[FakeMember, int]
) -> AsyncIterator[Services]:
    """The gateway's parts before the fake member service."""
    assert demo["till_key"]
    async with create_channel(f"127.0.0.1:{fake[1]}") as channel:
        service = MemberService(channel, TokenMinter(key_pair[0], clock), b"k" * 32, clock, SETTINGS)
        yield Services(engine, clock, Directory(engine), service, "demo")


SETTINGS: Settings = Settings(
    database_url="",
    log_level="INFO",
    pool_size=4,
    host="",
    port=0,
    member_address="",
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
