"""The service over gRPC: who may ask, what they see, and what they are told when the database is away."""

import json
from collections.abc import AsyncIterator
from datetime import date
from functools import partial
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from kit.ids import uuid7
from kit.rpc import Server, call_metadata, create_channel, refusal_of
from kit.tokens import TokenMinter, TokenVerifier
from regulars.reporting.v1 import report_service_pb2 as pb
from regulars.reporting.v1.report_service_pb2_grpc import ReportServiceStub, add_ReportServiceServicer_to_server
from reporting.clickhouse import ClickHouse, ClickHouseUnavailable, FactsDamaged
from reporting.queries.rpc import ReportServicer
from services.reporting.tests.story import random_story

QUERY = pb.RunQueryRequest(metrics=["receipts"], dimensions=["store"], from_day="2026-11-01", to_day="2026-12-01")


@pytest.fixture
def key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


@pytest.fixture
def minter(key: Ed25519PrivateKey) -> TokenMinter:
    return TokenMinter(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


@pytest.fixture
async def stub(clickhouse: ClickHouse, key: Ed25519PrivateKey) -> AsyncIterator[Any]:
    verifier = TokenVerifier(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    server = Server(verifier, [partial(add_ReportServiceServicer_to_server, ReportServicer(clickhouse))])
    port = await server.start("127.0.0.1:0")
    async with create_channel(f"127.0.0.1:{port}") as channel:
        yield ReportServiceStub(channel)
    await server.stop(0)


async def test_a_key_of_some_stores_gets_their_rows_and_figures(clickhouse: ClickHouse, stub: Any, minter: TokenMinter) -> None:
    story = random_story(32, date(2026, 11, 21), 1)
    await story.tell(clickhouse)
    store, other = sorted({sale.store for sale in story.sales})[:2]
    metadata = call_metadata(minter.mint("branch", ("admin",), frozenset({store})))
    answer = json.loads((await stub.RunQuery(QUERY, metadata=metadata)).body)
    assert answer["rows"] == [[store, sum(sale.store == store for sale in story.sales)]]
    days = [pb.StoreDay(store_id=each, business_day="2026-11-21", currency="CNY") for each in (other, store)]
    kpis = await stub.GetKpis(pb.GetKpisRequest(store_days=days), metadata=metadata)
    assert [each.store_id for each in kpis.stores] == [store]
    assert kpis.as_of == answer["as_of"] == "2026-11-21T10:03:12Z"


async def test_definitions_are_one_page(stub: Any, minter: TokenMinter) -> None:
    answer = await stub.ListMetrics(pb.ListMetricsRequest(), metadata=call_metadata(minter.mint("hq", ("admin",), None)))
    assert json.loads(answer.body)["next_cursor"] is None


@pytest.mark.parametrize(
    "method, request_", [("RunQuery", QUERY), ("ListMetrics", pb.ListMetricsRequest()), ("GetKpis", pb.GetKpisRequest())]
)
async def test_a_till_may_not_ask(stub: Any, minter: TokenMinter, method: str, request_: object) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await getattr(stub, method)(request_, metadata=call_metadata(minter.mint("till", ("till",), None)))
    refused = refusal_of(failed.value)
    assert refused is not None
    assert (refused.status, refused.code) == (403, "forbidden")


@pytest.mark.parametrize(
    "error, code",
    [(ClickHouseUnavailable("OperationalError"), "reporting_unavailable"), (FactsDamaged("CORRUPTED_DATA"), "facts_damaged")],
)
async def test_a_database_that_does_not_answer_is_said(
    clickhouse: ClickHouse, stub: Any, minter: TokenMinter, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str
) -> None:
    async def away(*_: object) -> None:
        raise error

    monkeypatch.setattr(clickhouse, "query", away)
    metadata = call_metadata(minter.mint("hq", ("admin",), None))
    days = [pb.StoreDay(store_id=uuid7(), business_day="2026-11-21", currency="CNY")]
    for call in (stub.RunQuery(QUERY, metadata=metadata), stub.GetKpis(pb.GetKpisRequest(store_days=days), metadata=metadata)):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call
        refused = refusal_of(failed.value)
        assert refused is not None
        assert (refused.status, refused.code) == (503, code)
