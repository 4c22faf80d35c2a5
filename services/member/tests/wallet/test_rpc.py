"""WalletService: whose command it is, and what a key may see."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import grpc
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from kit import rpc
from kit.ids import uuid7
from kit.problems import Refusal
from kit.tokens import Actor, TokenMinter, TokenVerifier
from member.points.rules import unix_us
from member.wallet.rpc import WalletServicer
from regulars.member.v1 import wallet_service_pb2 as pb

if TYPE_CHECKING:
    from .conftest import Chain
else:
    Chain = Any

CALL = cast("grpc.aio.ServicerContext[Any, Any]", None)
KEY = Ed25519PrivateKey.generate()
PRIVATE = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
PUBLIC = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def servicer(chain: Chain) -> WalletServicer:
    return WalletServicer(chain.engine, chain.clock, TokenVerifier(PUBLIC, chain.clock), chain.programmes, lambda: None)


def token(chain: Chain, *roles: str, stores: frozenset[str] | None = None) -> str:
    return TokenMinter(PRIVATE, chain.clock).mint("key", roles, stores)


@contextmanager
def acting(*roles: str, stores: frozenset[str] | None = None) -> Iterator[None]:
    """What the interceptor does for a call with this key."""
    was = rpc._actor.set(Actor("key", frozenset(roles), stores))
    yield
    rpc._actor.reset(was)


def command(chain: Chain, given_token: str) -> pb.Command:
    return pb.Command(
        operation_id=chain.operation_id(),
        fingerprint=b"f" * 32,
        internal_token=given_token,
        method="POST",
        path="/v1/sales",
        traceparent="",
    )


def sale(chain: Chain, given_token: str, member_id: str = "", store_id: str | None = None) -> pb.Command:
    made = command(chain, given_token)
    store = chain.store
    message = made.record_sale
    message.store.CopyFrom(
        pb.StoreContext(
            store_id=store_id or store.store_id,
            store_code=store.code,
            zone=store.zone.key,
            currency="CNY",
            programme_id="demo",
            till_known=True,
        )
    )
    message.till_id, message.currency, message.member_id, message.channel = uuid7(), "CNY", member_id, "store"
    message.sold_at.CopyFrom(pb.Instant(unix_us=unix_us(chain.clock.now()), offset_minutes=480))
    message.lines.add(line_no=1, sku="A", quantity="1.250", unit_price="10.00", amount_minor=1250)
    message.tenders.add(type="cash", amount_minor=1250)
    return made


def adjustment(chain: Chain, given_token: str, member_id: str) -> pb.Command:
    made = command(chain, given_token)
    made.adjust_points.CopyFrom(pb.AdjustPoints(member_id=member_id, programme_id="demo", points=5, reason="by hand"))
    return made


async def test_a_command_without_the_right_is_not_decided_and_harms_no_other(chain: Chain) -> None:
    member = await chain.member()
    till, admin = token(chain, "till"), token(chain, "admin")
    elsewhere = token(chain, "till", stores=frozenset({uuid7()}))
    commands = [
        sale(chain, till, member),
        adjustment(chain, till, member),
        sale(chain, "forged", member),
        sale(chain, elsewhere, member),
        sale(chain, elsewhere, member, store_id=uuid7()),
        command(chain, till),
        adjustment(chain, admin, member),
        sale(chain, token(chain, "reader"), member),
    ]
    answer = await servicer(chain).ExecuteCommands(pb.ExecuteCommandsRequest(commands=commands), CALL)
    assert [outcome.status for outcome in answer.outcomes] == [201, 403, 401, 403, 403, 403, 201, 403]
    assert answer.outcomes[0].amount_minor == 1250
    stored = await chain.rows("SELECT operation_id FROM operations ORDER BY 1")
    assert [row[0] for row in stored] == sorted(commands[i].operation_id for i in (0, 6)), "what was not decided may be sent again"


async def test_what_became_of_a_write_is_told_as_it_was_answered(chain: Chain) -> None:
    made = sale(chain, token(chain, "till"))
    with acting("till"):
        with pytest.raises(Refusal) as caught:
            await servicer(chain).GetOperation(pb.GetOperationRequest(operation_id=made.operation_id), CALL)
        assert caught.value.code == "operation_not_found"
        answer = await servicer(chain).ExecuteCommands(pb.ExecuteCommandsRequest(commands=[made]), CALL)
        found = await servicer(chain).GetOperation(pb.GetOperationRequest(operation_id=made.operation_id), CALL)
    document = msgspec.json.decode(found.body)
    assert (document["status"], document["body"]) == (201, msgspec.json.decode(answer.outcomes[0].body))


async def test_a_key_of_some_stores_lists_their_sales_alone(chain: Chain) -> None:
    here, there = chain.store.store_id, uuid7()
    commands = [sale(chain, token(chain, "till"), store_id=store) for store in (here, there, here)]
    await servicer(chain).ExecuteCommands(pb.ExecuteCommandsRequest(commands=commands), CALL)

    async def stores_seen(asked: str = "") -> list[str]:
        listed = await servicer(chain).ListSales(pb.ListSalesRequest(store_id=asked), CALL)
        return [item["store_id"] for item in msgspec.json.decode(listed.body)["items"]]

    with acting("till"):
        assert await stores_seen() == [here, there, here]
        assert await stores_seen(there) == [there]
    with acting("till", stores=frozenset({here})):
        assert await stores_seen() == [here, here]
        with pytest.raises(Refusal) as caught:
            await stores_seen(there)
        assert caught.value.code == "store_not_allowed"
    with acting("reader"), pytest.raises(Refusal) as caught:
        await stores_seen()
    assert caught.value.status == 403


async def test_reads_of_what_is_not_there_say_so(chain: Chain) -> None:
    member = await chain.member()
    wallet = servicer(chain)
    with acting("till"):
        for call, code in [
            (wallet.GetSale(pb.GetSaleRequest(sale_id=uuid7()), CALL), "sale_not_found"),
            (wallet.GetSale(pb.GetSaleRequest(sale_id="no id"), CALL), "sale_not_found"),
            (wallet.ListMemberSales(pb.ListMemberSalesRequest(member_id=uuid7()), CALL), "member_not_found"),
            (wallet.GetPoints(pb.GetPointsRequest(member_id=uuid7(), programme_id="demo"), CALL), "member_not_found"),
            (wallet.ListLots(pb.ListLotsRequest(member_id="no id", programme_id="demo"), CALL), "member_not_found"),
            (wallet.ListEntries(pb.ListEntriesRequest(member_id=uuid7(), programme_id="demo"), CALL), "member_not_found"),
            (wallet.GetPoints(pb.GetPointsRequest(member_id=member, programme_id="nowhere"), CALL), "programme_not_found"),
        ]:
            with pytest.raises(Refusal) as caught:
                await call
            assert (caught.value.status, caught.value.code) == (404, code)
        empty = await wallet.GetPoints(pb.GetPointsRequest(member_id=member, programme_id="demo"), CALL)
    assert msgspec.json.decode(empty.body) == {"balance": 0, "pending": 0, "debt": 0, "next_expiry": None}


async def test_only_an_admin_reconciles_and_rebuilds(chain: Chain) -> None:
    member = await chain.member()
    await chain.do(chain.sale(member))
    await chain.execute("UPDATE wallets SET balance = balance + 7")
    request = pb.ReconcileWalletsRequest(page_size=10, rebuild=True)
    with acting("till"), pytest.raises(Refusal):
        await servicer(chain).ReconcileWallets(request, CALL)
    with acting("admin"):
        page = await servicer(chain).ReconcileWallets(request, CALL)
    assert [(d.member_id, d.figure, d.cached, d.proven, d.rebuilt) for d in page.differences] == [(member, "balance", "476", "469", True)]
    assert await chain.differences() == []
