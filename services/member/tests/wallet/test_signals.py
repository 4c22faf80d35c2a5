"""The business is counted once it is committed, a replay never twice; a recorded command has a span; the ledger is checked unasked."""

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from kit import metrics, tracing
from kit.db import raw, reading, transaction
from kit.ids import uuid7
from kit.tokens import TokenMinter, TokenVerifier
from member.points import checking
from member.points.rules import unix_us
from member.wallet import operations, writing
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
TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"

Figures = dict[tuple[str, ...], float]


def figures() -> Figures:
    """Every figure of the business and the writer, as it stands."""
    return {
        (metric.name, *sample.labels.values(), sample.name): sample.value
        for metric in metrics.all_metrics()
        if metrics.MEMBER in metric.parts and metric.kind == "counter" and not metric.name.startswith(("regulars_rpc", "regulars_db"))
        for family in metric.collector.collect()
        for sample in family.samples
    }


def added(before: Figures) -> dict[tuple[str, ...], float]:
    """What was added since, by name without the prefix."""
    return {
        (key[0].removeprefix("regulars_"), *key[1:-1]): value - before.get(key, 0)
        for key, value in figures().items()
        if value != before.get(key, 0)
    }


def servicer(chain: Chain) -> WalletServicer:
    return WalletServicer(chain.engine, chain.clock, TokenVerifier(PUBLIC, chain.clock), chain.programmes, lambda: None)


def command(chain: Chain, *, role: str = "till", traceparent: str = "", operation_id: str = "") -> pb.Command:
    """A command without its act."""
    return pb.Command(
        operation_id=operation_id or chain.operation_id(),
        fingerprint=b"f" * 32,
        internal_token=TokenMinter(PRIVATE, chain.clock).mint("key", (role,), None),
        method="POST",
        path="/v1/sales",
        traceparent=traceparent,
    )


def store(chain: Chain) -> pb.StoreContext:
    return pb.StoreContext(
        store_id=chain.store.store_id,
        store_code=chain.store.code,
        zone=chain.store.zone.key,
        currency="CNY",
        programme_id="demo",
        till_known=True,
    )


def sale(chain: Chain, member_id: str = "", minor: int = 20_000, **given: str) -> pb.Command:
    made = command(chain, **given)
    message = made.record_sale
    message.store.CopyFrom(store(chain))
    message.till_id, message.currency, message.member_id, message.channel = uuid7(), "CNY", member_id, "store"
    message.sold_at.CopyFrom(pb.Instant(unix_us=unix_us(chain.clock.now()), offset_minutes=480))
    message.lines.add(line_no=1, sku="A", quantity="1", unit_price=f"{minor // 100}.00", amount_minor=minor)
    message.tenders.add(type="cash", amount_minor=minor)
    return made


async def execute(chain: Chain, *commands: pb.Command) -> list[int]:
    """Sends a group; the statuses of its answers."""
    answer = await servicer(chain).ExecuteCommands(pb.ExecuteCommandsRequest(commands=commands), CALL)
    return [outcome.status for outcome in answer.outcomes]


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    """Where this process's spans go."""
    kept = InMemorySpanExporter()
    tracing.use(tracing.Recorder("member", "serve", tracing.Sampling.parse("errors=1"), SimpleSpanProcessor(kept)))
    yield kept
    tracing.use(None)


async def test_a_sale_and_what_takes_it_back_are_counted_and_no_replay_is(chain: Chain) -> None:
    member_id = await chain.member()
    sold, before = sale(chain, member_id), figures()
    assert await execute(chain, sold, sale(chain, minor=5_000)) == [201, 201]
    assert added(before) == {
        ("sales_total", "recorded"): 2,
        ("sales_net_minor_total", "CNY"): 25_000,
        ("points_moved_total", "earn"): 200,
    }
    before = figures()
    assert await execute(chain, sold) == [201]
    assert added(before) == {("sales_total", "replayed"): 1}
    back = command(chain)
    back.reverse_sale.sale_operation_id = sold.operation_id
    back.reverse_sale.store.CopyFrom(store(chain))
    back.reverse_sale.till_id = uuid7()
    back.reverse_sale.reversed_at.CopyFrom(pb.Instant(unix_us=unix_us(chain.clock.now()), offset_minutes=480))
    before = figures()
    assert await execute(chain, back) == [201]
    assert added(before) == {
        ("reversals_total", "recorded"): 1,
        ("refunds_minor_total", "CNY"): 20_000,
        ("points_moved_total", "take_back"): 200,
    }


async def test_refusals_are_counted_with_their_codes_and_change_no_amount(chain: Chain) -> None:
    sold = sale(chain)
    await execute(chain, sold)
    other = sale(chain, operation_id=sold.operation_id)
    other.fingerprint = b"g" * 32
    before = figures()
    statuses = await execute(chain, sale(chain, uuid7()), sale(chain, role="nobody"), other)
    assert statuses == [422, 403, 409]
    assert added(before) == {
        ("sales_total", "refused"): 3,
        ("refusals_total", "member_not_found"): 1,
        ("refusals_total", "forbidden"): 1,
        ("refusals_total", "operation_id_reused"): 1,
    }


async def test_a_group_that_is_not_committed_counts_nothing_but_its_attempts(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    written = writing.write
    fails: list[Exception] = [ConnectionResetError()]

    async def write(*arguments: Any, **named: Any) -> None:
        if fails:
            raise fails.pop()
        await written(*arguments, **named)

    monkeypatch.setattr(operations, "write", write)
    before = figures()
    assert await execute(chain, sale(chain)) == [201]
    assert added(before) == {("writer_retries_total",): 1, ("sales_total", "recorded"): 1, ("sales_net_minor_total", "CNY"): 20_000}
    fails += [ValueError(), ValueError(), ValueError()]
    before = figures()
    assert await execute(chain, sale(chain), sale(chain)) == [500, 500]
    assert added(before) == {("writer_splits_total",): 1, ("sales_total", "failed"): 2}


async def test_a_recorded_command_has_a_span_below_which_its_events_are(chain: Chain, exporter: InMemorySpanExporter) -> None:
    member_id = await chain.member()
    await execute(
        chain, sale(chain, member_id, traceparent=f"00-{TRACE_ID}-{SPAN_ID}-01"), sale(chain, traceparent=f"00-{SPAN_ID * 2}-{SPAN_ID}-00")
    )
    (span,) = exporter.get_finished_spans()
    assert span.context is not None
    assert span.parent is not None
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE_ID, SPAN_ID)
    assert (span.name, span.kind.name) == ("regulars.member.v1.WalletService/ExecuteCommands", "SERVER")
    said = dict(span.attributes or {})
    assert (said["regulars.act"], said["regulars.status"], said["regulars.replayed"], said["regulars.group_size"]) == (
        "record_sale",
        201,
        False,
        2,
    )
    async with reading(chain.engine) as connection:
        traces = await raw(connection).fetch("SELECT DISTINCT traceparent FROM outbox WHERE key = $1", member_id)
    assert [row[0] for row in traces] == [f"00-{TRACE_ID}-{span.context.span_id:016x}-01"]


async def test_a_ledger_that_proves_itself_has_no_mismatch_and_a_changed_figure_is_found(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checking, "PAGE", 2)

    def found() -> list[float]:
        return [
            sample.value
            for gauge in (metrics.LEDGER_MISMATCHES, metrics.LEDGER_CHECKED)
            for f in gauge.collector.collect()
            for sample in f.samples
        ]

    metrics.LEDGER_MISMATCHES.forget()
    metrics.LEDGER_CHECKED.forget()
    members = [await chain.member() for _ in range(5)]
    await execute(chain, *(sale(chain, member_id) for member_id in members))
    assert not await checking.check(chain.engine, chain.clock, lambda: False)
    assert found() == []
    assert await checking.check(chain.engine, chain.clock, lambda: True)
    assert found() == [0, chain.clock.now().timestamp()]
    async with transaction(chain.engine) as connection:
        await raw(connection).execute("UPDATE wallets SET balance = balance + 1 WHERE member_id = $1", members[3])
    assert await checking.check(chain.engine, chain.clock, lambda: True)
    assert found()[0] >= 1
    assert members[3] in {getattr(record, "member_id", "") for record in caplog.records if record.levelname == "ERROR"}


async def test_only_the_relay_that_leads_checks_and_not_at_once(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(checking, "FIRST_SECONDS", 0.01)
    checks, leads, looked = 0, False, 0

    async def check(*_: object) -> bool:
        nonlocal checks
        checks += 1
        return True

    def asked() -> bool:
        nonlocal looked
        looked += 1
        return leads

    async def turns(condition: Any) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110  # what is waited for sets no event
                await asyncio.sleep(0)

    monkeypatch.setattr(checking, "check", check)
    checking_task = asyncio.create_task(checking.keep_checking(chain.engine, chain.clock, asked, 3600))
    await turns(lambda: looked > 100)
    assert checks == 0
    leads = True
    await turns(lambda: checks == 1)
    seen = looked
    await turns(lambda: looked > seen + 100)
    assert checks == 1
    checking_task.cancel()
