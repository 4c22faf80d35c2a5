"""ExportService: what the ledgers hold, for services that keep a view of it."""

from datetime import date, datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from kit.clock import Clock
from kit.crypto import PersonalDataKeys
from kit.db import raw, reading, transaction
from kit.ids import uuid7
from kit.problems import FieldError, Refusal
from kit.rpc import current_actor
from member.access import require_role
from member.exports.reads import export_page
from member.exports.summaries import summarise
from member.points.rules import instant, unix_us
from member.programmes.operations import Books
from regulars.member.v1 import export_service_pb2 as pb
from regulars.member.v1.export_service_pb2_grpc import ExportServiceServicer

FIRST_DAY = date(1900, 1, 1)
LAST_DAY = date(9000, 1, 1)


class ExportServicer(ExportServiceServicer):
    """Serves ExportService."""

    def __init__(self, engine: AsyncEngine, clock: Clock, keys: PersonalDataKeys, programmes: Books) -> None:
        self._engine = engine
        self._clock = clock
        self._keys = keys
        self._programmes = programmes

    async def ExportEvents(self, request: pb.ExportEventsRequest, context: object) -> pb.ExportEventsResponse:
        _check_rights()
        async with reading(self._engine) as connection:
            driver = raw(connection)
            book = await self._programmes.current(driver)
            page = await export_page(driver, self._keys, book, size=request.page_size, page_token=request.page_token)
        return pb.ExportEventsResponse(
            events=[
                pb.ExportedEvent(
                    event_id=event.event_id,
                    topic=event.topic,
                    key=event.key,
                    type=event.type,
                    payload=event.payload,
                    recorded_at_unix_us=unix_us(event.recorded_at),
                )
                for event in page.events
            ],
            next_page_token=page.next_page_token,
        )

    async def SummariseLedger(self, request: pb.SummariseLedgerRequest, context: object) -> pb.SummariseLedgerResponse:
        _check_rights()
        from_day, to_day = _day(request.from_day, "/from_day"), _day(request.to_day, "/to_day")
        before = _instant(request.recorded_before_unix_us) if request.recorded_before_unix_us else self._clock.now()
        members_before = _id(request.members_before) if request.members_before else uuid7()
        async with transaction(self._engine, snapshot=True) as connection:
            driver = raw(connection)
            book = await self._programmes.current(driver)
            summary = await summarise(driver, book, before, members_before, from_day=from_day, to_day=to_day)
        return pb.SummariseLedgerResponse(
            recorded_before_unix_us=unix_us(before),
            members_before=members_before,
            members_days=[pb.MembersDay(day=day.isoformat(), members=members) for day, members in summary.members_days],
            unpublished_events=summary.unpublished_events,
            store_days=[
                pb.StoreDay(
                    store_id=each.store_id,
                    business_day=each.business_day.isoformat(),
                    currency=each.currency,
                    receipts=each.receipts,
                    gross_minor=each.gross_minor,
                    discount_minor=each.discount_minor,
                    net_minor=each.net_minor,
                    payable_minor=each.payable_minor,
                    quantity=each.quantity,
                    returns=each.returns,
                    returned_net_minor=each.returned_net_minor,
                    refund_minor=each.refund_minor,
                    returned_quantity=each.returned_quantity,
                    sales_checksum=each.sales_checksum,
                    lines_checksum=each.lines_checksum,
                    returned_lines_checksum=each.returned_lines_checksum,
                )
                for each in summary.store_days
            ],
            points_days=[
                pb.PointsDay(
                    programme_id=each.programme_id,
                    day=each.day.isoformat(),
                    kind=each.kind,
                    entries=each.entries,
                    points=each.points,
                    pending=each.pending,
                    debt=each.debt,
                    expired=each.expired,
                )
                for each in summary.points_days
            ],
            points_totals=[
                pb.PointsTotal(programme_id=each.programme_id, balance=each.balance, pending=each.pending, debt=each.debt)
                for each in summary.points_totals
            ],
        )


def _check_rights() -> None:
    """Raises Refusal (403) unless the actor is an admin of the whole chain."""
    actor = current_actor()
    require_role(actor, "admin")
    if actor.stores is not None:
        raise Refusal("store_not_allowed", 403, "Not allowed", "This key is for some stores only; it needs one for all.")


def _day(text: str, pointer: str) -> date | None:
    try:
        day = date.fromisoformat(text) if text else None
    except ValueError:
        day = date.max
    # Around a day, others are reckoned with: none of them may be beyond what a calendar has.
    if day is not None and not FIRST_DAY <= day <= LAST_DAY:
        detail = f"Send a day as YYYY-MM-DD, from {FIRST_DAY} to {LAST_DAY}."
        raise Refusal("day_invalid", 400, "Day not valid", detail, [FieldError(pointer, "day_invalid", detail)])
    return day


def _instant(us: int) -> datetime:
    try:
        return instant(us)
    except OverflowError:
        detail = "Send the recorded_before_unix_us of an answer, or nothing."
        errors = [FieldError("/recorded_before_unix_us", "instant_invalid", detail)]
        raise Refusal("instant_invalid", 400, "Instant not valid", detail, errors) from None


def _id(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        detail = "Send the members_before of an answer, or nothing."
        errors = [FieldError("/members_before", "id_invalid", detail)]
        raise Refusal("id_invalid", 400, "Id not valid", detail, errors) from None
