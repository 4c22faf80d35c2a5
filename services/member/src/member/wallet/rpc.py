"""WalletService: protobuf in, operation, JSON documents out."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
from sqlalchemy.ext.asyncio import AsyncEngine

from kit.clock import Clock
from kit.db import RawConnection, raw, reading, transaction
from kit.problems import Refusal, render
from kit.rpc import GroupSpans, current_actor
from kit.tokens import Actor, TokenInvalid, TokenVerifier
from kit.tracing import recorder
from member.access import require_role
from member.answers.operations import find_answers
from member.paging import page_size
from member.points import operations as points
from member.points.reconcile import reconcile_page
from member.points.rules import Shortfall, instant
from member.programmes.operations import Books
from member.sales import operations as sales
from member.sales.documents import encode, utc_text
from member.sales.rules import Discount, NewLine, NewReturn, NewReversal, NewSale, Store, Tender
from member.wallet.commands import Act, Command, NewAdjustment, Outcome, SaleToReverse
from member.wallet.counting import count_outcome
from member.wallet.operations import execute_commands, preview_reversal
from regulars.member.v1 import wallet_service_pb2 as pb
from regulars.member.v1.wallet_service_pb2_grpc import WalletServiceServicer

_EXECUTE = "regulars.member.v1.WalletService/ExecuteCommands"
_ROLES_OF_ACT = {
    "record_sale": ("till", "admin"),
    "reverse_sale": ("till", "admin"),
    "adjust_points": ("admin",),
    "record_return": ("admin",),
}


class WalletServicer(WalletServiceServicer):
    """Serves WalletService. `nudge` is called when there may be new events in the outbox."""

    def __init__(self, engine: AsyncEngine, clock: Clock, verifier: TokenVerifier, programmes: Books, nudge: Callable[[], None]) -> None:
        self._engine = engine
        self._clock = clock
        self._verifier = verifier
        self._programmes = programmes
        self._nudge = nudge

    async def ExecuteCommands(self, request: pb.ExecuteCommandsRequest, context: object) -> pb.ExecuteCommandsResponse:
        if recorder() is None:
            found = await self._execute(request)
        else:
            found = await self._execute_recorded(request)
        for message, outcome in zip(request.commands, found, strict=True):
            count_outcome(message.WhichOneof("act") or "", outcome)
        return pb.ExecuteCommandsResponse(
            outcomes=[
                pb.Outcome(status=outcome.status, body=outcome.body, replayed=outcome.replayed, amount_minor=outcome.amount_minor)
                for outcome in found
            ]
        )

    async def _execute_recorded(self, request: pb.ExecuteCommandsRequest) -> list[Outcome]:
        """Decides the commands; in each trace that is recorded there is a span of it, below which the events are."""
        spans, code = GroupSpans(_EXECUTE, "server"), "INTERNAL"
        given = [message.traceparent for message in request.commands]
        for message in request.commands:
            message.traceparent = spans.under(message.traceparent)
        try:
            outcomes = await self._execute(request)
            code = "OK"
            for traceparent, message, outcome in zip(given, request.commands, outcomes, strict=True):
                ended = "OK" if outcome.status < 500 else "UNAVAILABLE" if outcome.status == 503 else "INTERNAL"
                said = {"regulars.act": message.WhichOneof("act") or "", "regulars.status": outcome.status, "regulars.code": outcome.code}
                spans.tell(traceparent, ended, **said, **{"regulars.replayed": outcome.replayed})
        finally:
            spans.end(code, **{"regulars.group_size": len(given)})
        return outcomes

    async def _execute(self, request: pb.ExecuteCommandsRequest) -> list[Outcome]:
        outcomes: list[Outcome | None] = []
        allowed: list[Command] = []
        for message in request.commands:
            try:
                self._check_rights(message)
                allowed.append(_command(message))
                outcomes.append(None)
            except Refusal as refused:
                outcomes.append(Outcome(refused.status, render(refused), code=refused.code))
        # A caller that goes away does not undo a group: its answers are stored, and given when it asks again.
        decided = iter(await asyncio.shield(execute_commands(self._engine, self._clock, self._programmes, allowed)) if allowed else [])
        self._nudge()
        return [given or next(decided) for given in outcomes]

    def _check_rights(self, message: pb.Command) -> None:
        try:
            actor = self._verifier.verify(message.internal_token)
        except TokenInvalid:
            raise Refusal("unauthenticated", 401, "Not authenticated", "Send a valid key.") from None
        act = message.WhichOneof("act") or ""
        require_role(actor, *_ROLES_OF_ACT.get(act, ()))
        if actor.stores is not None and act != "adjust_points":
            _require_store(actor, getattr(message, act).store.store_id)

    async def PreviewReversal(self, request: pb.PreviewReversalRequest, context: object) -> pb.PreviewReversalResponse:
        actor = current_actor()
        require_role(actor, "till", "admin")
        _require_store(actor, request.reversal.store.store_id)
        outcome = await preview_reversal(self._engine, self._clock, self._programmes, _reversal(request.reversal, ""))
        return pb.PreviewReversalResponse(status=outcome.status, body=outcome.body)

    async def GetSale(self, request: pb.GetSaleRequest, context: object) -> pb.GetSaleResponse:
        require_role(current_actor(), "till", "admin")
        sale_id = _uuid(request.sale_id, "sale_not_found", "sale")
        async with transaction(self._engine, snapshot=True) as connection:
            return pb.GetSaleResponse(body=await sales.get_sale(raw(connection), sale_id))

    async def ListSales(self, request: pb.ListSalesRequest, context: object) -> pb.ListSalesResponse:
        async with transaction(self._engine, snapshot=True) as connection:
            stores = _stores(request.store_id)
            return pb.ListSalesResponse(
                body=await sales.list_sales(raw(connection), stores, page_size(request.page_size), request.page_token)
            )

    async def ListMemberSales(self, request: pb.ListMemberSalesRequest, context: object) -> pb.ListMemberSalesResponse:
        require_role(current_actor(), "till", "admin")
        member_id = _uuid(request.member_id, "member_not_found", "member")
        async with transaction(self._engine, snapshot=True) as connection:
            await points.check_member_exists(raw(connection), member_id)
            body = await sales.list_member_sales(raw(connection), member_id, page_size(request.page_size), request.page_token)
        return pb.ListMemberSalesResponse(body=body)

    async def ListReturns(self, request: pb.ListReturnsRequest, context: object) -> pb.ListReturnsResponse:
        async with reading(self._engine) as connection:
            stores = _stores(request.store_id)
            return pb.ListReturnsResponse(
                body=await sales.list_returns(raw(connection), stores, page_size(request.page_size), request.page_token)
            )

    async def GetPoints(self, request: pb.GetPointsRequest, context: object) -> pb.GetPointsResponse:
        member_id, now = self._member(request.member_id)
        async with transaction(self._engine, snapshot=True) as connection:
            driver = raw(connection)
            shortfall = await self._shortfall(driver, request.programme_id, now)
            return pb.GetPointsResponse(body=await points.get_points(driver, member_id, request.programme_id, shortfall, now))

    async def ListLots(self, request: pb.ListLotsRequest, context: object) -> pb.ListLotsResponse:
        member_id, now = self._member(request.member_id)
        async with transaction(self._engine, snapshot=True) as connection:
            body = await points.list_lots(
                raw(connection), member_id, request.programme_id, now, size=page_size(request.page_size), page_token=request.page_token
            )
        return pb.ListLotsResponse(body=body)

    async def ListEntries(self, request: pb.ListEntriesRequest, context: object) -> pb.ListEntriesResponse:
        member_id, now = self._member(request.member_id)
        if not request.page_token:
            await points.settle_wallet(self._engine, self._programmes, member_id, request.programme_id, now)
        async with transaction(self._engine, snapshot=True) as connection:
            driver = raw(connection)
            await points.check_member_exists(driver, member_id)
            body = await points.list_entries(
                driver,
                member_id,
                request.programme_id,
                await self._shortfall(driver, request.programme_id, now),
                size=page_size(request.page_size),
                page_token=request.page_token,
            )
        return pb.ListEntriesResponse(body=body)

    async def GetOperation(self, request: pb.GetOperationRequest, context: object) -> pb.GetOperationResponse:
        require_role(current_actor(), "till", "admin")
        async with reading(self._engine) as connection:
            found = (await find_answers(raw(connection), [request.operation_id])).get(request.operation_id)
        if found is None:
            detail = "No write with this id was decided. If it is yours, send it again under the same id."
            raise Refusal("operation_not_found", 404, "No such operation", detail)
        document = {
            "operation_id": found.operation_id,
            "method": found.method,
            "path": found.path,
            "decided_at": utc_text(found.decided_at),
            "status": found.status,
            # A member file's answer holds personal data: it is given to a replay, or read through the member.
            "body": None if found.sealed else msgspec.Raw(found.body),
            "member_id": found.member_id,
        }
        return pb.GetOperationResponse(body=encode(document))

    async def ReconcileWallets(self, request: pb.ReconcileWalletsRequest, context: object) -> pb.ReconcileWalletsResponse:
        require_role(current_actor(), "admin")
        async with transaction(self._engine, snapshot=not request.rebuild) as connection:
            page = await reconcile_page(
                raw(connection), self._clock.now(), size=request.page_size, page_token=request.page_token, rebuild=request.rebuild
            )
        return pb.ReconcileWalletsResponse(
            wallets=page.wallets,
            differences=[
                pb.WalletDifference(
                    member_id=d.member_id,
                    programme_id=d.programme_id,
                    figure=d.figure,
                    subject_id=d.subject_id,
                    cached=d.cached,
                    proven=d.proven,
                    rebuilt=d.rebuilt,
                )
                for d in page.differences
            ],
            next_page_token=page.next_page_token,
        )

    def _member(self, member_id: str) -> tuple[str, datetime]:
        require_role(current_actor(), "till", "admin")
        return _uuid(member_id, "member_not_found", "member"), self._clock.now()

    async def _shortfall(self, driver: RawConnection, programme_id: str, now: datetime) -> Shortfall:
        book = await self._programmes.current(driver)
        latest = book.latest(programme_id)
        if latest is None:
            raise Refusal("programme_not_found", 404, "No such programme", "Check the programme's id.")
        version = book.at(programme_id, now.astimezone(latest.zone).date())
        return version.shortfall if version else "debt"


def _require_store(actor: Actor, store_id: str) -> None:
    """Raises Refusal (403) unless the actor may act in the store; an unknown one (empty) is for the rules to refuse."""
    if store_id and not actor.may_act_in(store_id):
        raise Refusal("store_not_allowed", 403, "Not allowed", "This key is for other stores.")


def _uuid(text: str, code: str, noun: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        raise Refusal(code, 404, f"No such {noun}", f"There is no {noun} with this id.") from None


def _stores(asked: str) -> list[str] | None:
    """The stores whose rows the caller may list; None: all."""
    actor: Actor = current_actor()
    require_role(actor, "till", "admin")
    if asked:
        _require_store(actor, asked)
        return [_uuid(asked, "store_not_found", "store")]
    return None if actor.stores is None else sorted(actor.stores)


def _command(message: pb.Command) -> Command:
    return Command(
        operation_id=message.operation_id,
        fingerprint=message.fingerprint,
        method=message.method,
        path=message.path,
        traceparent=message.traceparent,
        deadline=datetime.fromtimestamp(message.deadline_unix_ms / 1000, UTC) if message.deadline_unix_ms else None,
        act=_act(message),
    )


def _act(message: pb.Command) -> Act:
    match message.WhichOneof("act"):
        case "record_sale":
            return _sale(message.record_sale, message.operation_id)
        case "reverse_sale":
            return _reversal(message.reverse_sale, message.operation_id)
        case "adjust_points":
            adjustment = message.adjust_points
            return NewAdjustment(adjustment.member_id, adjustment.programme_id, adjustment.points, adjustment.reason)
        case "record_return":
            return _return(message.record_return, message.operation_id)
        case None:
            raise Refusal("command_unknown", 400, "Unknown command", "This release does not know the command.")


def _sale(message: pb.RecordSale, operation_id: str) -> NewSale:
    return NewSale(
        operation_id=operation_id,
        store=_store(message.store) if message.HasField("store") else None,
        till_id=message.till_id,
        receipt_no=message.receipt_no,
        sold_at=instant(message.sold_at.unix_us),
        sold_at_offset_minutes=message.sold_at.offset_minutes,
        currency=message.currency,
        member_id=message.member_id,
        channel=message.channel,
        staff_code=message.staff_code,
        lines=tuple([
            NewLine(
                line.line_no, line.sku, line.description, line.category, line.quantity, line.unit_price, line.amount_minor,
                _discounts(line.discounts), tuple(line.serials),
            )
            for line in message.lines
        ]),
        discounts=_discounts(message.discounts),
        points_to_spend=message.points_to_spend,
        tenders=tuple([Tender(tender.type, tender.amount_minor, tender.reference) for tender in message.tenders]),
    )  # fmt: skip


def _reversal(message: pb.ReverseSale, operation_id: str) -> SaleToReverse:
    reversal = NewReversal(
        operation_id=operation_id,
        store=_store(message.store) if message.HasField("store") else None,
        till_id=message.till_id,
        reversed_at=instant(message.reversed_at.unix_us),
        reversed_at_offset_minutes=message.reversed_at.offset_minutes,
        reason=message.reason,
        lines=tuple((line.line_no, line.quantity) for line in message.lines),
    )
    return SaleToReverse(reversal, message.sale_id, message.sale_operation_id)


def _return(message: pb.RecordReturn, operation_id: str) -> NewReturn:
    return NewReturn(
        operation_id=operation_id,
        store=_store(message.store) if message.HasField("store") else None,
        till_id=message.till_id,
        receipt_no=message.receipt_no,
        returned_at=instant(message.returned_at.unix_us),
        returned_at_offset_minutes=message.returned_at.offset_minutes,
        currency=message.currency,
        member_id=message.member_id,
        reason=message.reason,
        lines=tuple(
            (line.line_no, line.sku, line.description, line.category, line.quantity, line.unit_price, line.refund_minor)
            for line in message.lines
        ),
    )


def _discounts(messages: Sequence[pb.Discount]) -> tuple[Discount, ...]:
    return tuple([Discount(discount.amount_minor, discount.reason) for discount in messages]) if messages else ()


def _store(message: pb.StoreContext) -> Store:
    return _store_of(
        message.store_id, message.store_code, message.zone, message.currency, message.programme_id, message.day_cut_over_minutes,
        message.till_known,
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _store_of(  # the cache's key is all that a store is
    store_id: str,
    code: str,
    zone: str,
    currency: str,
    programme_id: str,
    cut_over: int,
    till_known: bool,  # noqa: FBT001
) -> Store:
    return Store(store_id, code, ZoneInfo(zone), currency, programme_id, cut_over, till_known)
