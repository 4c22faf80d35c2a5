"""Bodies of sales, reversals and returns written into commands of the member service.

What is malformed is refused here (400). Every rule of the business is judged, and its answer stored, by the member service: an unknown
store is left unset, an unknown till marked as such.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol

from gateway.problems import malformed
from gateway.sales.schemas import ImportedReturn, NewReversalLine, NewSale
from gateway.services import Services
from kit.problems import FieldError
from regulars.member.v1 import wallet_service_pb2 as pb

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LAST_YEAR = 2200
NO_OFFSET = timedelta(0)
SECONDS_PER_DAY = 86_400


class Numbered(Protocol):
    """A line of any kind."""

    @property
    def line_no(self) -> int:
        """Its number, distinct within its document."""


async def write_sale(services: Services, sale: NewSale, command: pb.Command, at: str = "") -> None:
    """Writes a sale into a command. Raises Refusal (400) with pointers below `at`; 503 when the store cannot be looked up."""
    message = command.record_sale
    write_instant(sale.sold_at, message.sold_at, f"{at}/sold_at")
    require_distinct(sale.lines, at)
    store_id, till_id = sale.store_id.lower(), sale.till_id.lower()
    message.till_id = till_id
    if store := services.directory.known_store(store_id, till_id) or await services.directory.find_store(store_id, till_id):
        message.store.CopyFrom(store)
    message.currency = sale.currency
    if sale.member_id is not None:
        message.member_id = sale.member_id.lower()
    if sale.receipt_no:
        message.receipt_no = sale.receipt_no
    if sale.channel:
        message.channel = sale.channel
    if sale.staff_code:
        message.staff_code = sale.staff_code
    if sale.points_to_spend:
        message.points_to_spend = sale.points_to_spend
    add_line = message.lines.add
    for index, line in enumerate(sale.lines):
        written = add_line(
            line_no=line.line_no, sku=line.sku, quantity=line.quantity, unit_price=line.unit_price, amount_minor=line.amount_minor
        )
        if line.description:
            written.description = line.description
        if line.category:
            written.category = line.category
        for discount in line.discounts:
            written.discounts.add(amount_minor=discount.amount_minor, reason=discount.reason)
        if line.serials:
            require_distinct_serials(line.serials, f"{at}/lines/{index}/serials")
            written.serials.extend(line.serials)
    for discount in sale.discounts:
        message.discounts.add(amount_minor=discount.amount_minor, reason=discount.reason)
    for tender in sale.tenders:
        message.tenders.add(type=tender.type, amount_minor=tender.amount_minor, reference=tender.reference)


class Reversing(Protocol):
    """What every form of a reversal holds."""

    @property
    def store_id(self) -> str: ...
    @property
    def till_id(self) -> str: ...
    @property
    def reversed_at(self) -> datetime: ...
    @property
    def reason(self) -> str | None: ...
    @property
    def lines(self) -> list[NewReversalLine] | None: ...


async def write_reversal(services: Services, reversal: Reversing, message: pb.ReverseSale, at: str = "") -> None:
    """Writes a reversal but for the sale it is of. Raises as `write_sale`."""
    write_instant(reversal.reversed_at, message.reversed_at, f"{at}/reversed_at")
    require_distinct(reversal.lines or (), at)
    store_id, till_id = reversal.store_id.lower(), reversal.till_id.lower()
    message.till_id = till_id
    if store := services.directory.known_store(store_id, till_id) or await services.directory.find_store(store_id, till_id):
        message.store.CopyFrom(store)
    message.reason = reversal.reason or ""
    for line in reversal.lines or ():
        message.lines.add(line_no=line.line_no, quantity=line.quantity)


async def write_return(services: Services, given: ImportedReturn, message: pb.RecordReturn, at: str = "") -> None:
    """Writes a return that belongs to no sale. Raises as `write_sale`."""
    write_instant(given.returned_at, message.returned_at, f"{at}/returned_at")
    require_distinct(given.lines, at)
    store_id, till_id = given.store_id.lower(), given.till_id.lower()
    message.till_id = till_id
    if store := services.directory.known_store(store_id, till_id) or await services.directory.find_store(store_id, till_id):
        message.store.CopyFrom(store)
    message.receipt_no = given.receipt_no or ""
    message.currency = given.currency
    message.member_id = (given.member_id or "").lower()
    message.reason = given.reason or ""
    for line in given.lines:
        message.lines.add(
            line_no=line.line_no,
            sku=line.sku,
            description=line.description,
            category=line.category,
            quantity=line.quantity,
            unit_price=line.unit_price,
            refund_minor=line.refund_minor,
        )


def write_instant(moment: datetime, message: pb.Instant, at: str) -> None:
    """Writes an instant with the offset its sender used. Raises Refusal (400) for one out of 1970 to 2200."""
    if not EPOCH.year <= moment.year <= LAST_YEAR:
        raise malformed([FieldError(at, "out_of_range", "Must be between the years 1970 and 2200.")])
    since, offset = moment - EPOCH, moment.utcoffset() or NO_OFFSET
    message.unix_us = (since.days * SECONDS_PER_DAY + since.seconds) * 1_000_000 + since.microseconds
    message.offset_minutes = (offset.days * SECONDS_PER_DAY + offset.seconds) // 60


def require_distinct(lines: Sequence[Numbered], at: str) -> None:
    """Raises Refusal (400) when two lines have one number."""
    if len({line.line_no for line in lines}) != len(lines):
        seen: set[int] = set()
        errors = []
        for index, line in enumerate(lines):
            if line.line_no in seen:
                errors.append(FieldError(f"{at}/lines/{index}/line_no", "repeated", "Every line needs a number of its own."))
            seen.add(line.line_no)
        raise malformed(errors)


def require_distinct_serials(serials: Sequence[str], at: str) -> None:
    """Raises Refusal (400) when two units of a line have one serial."""
    if len(set(serials)) != len(serials):
        again = [index for index, serial in enumerate(serials) if serial in serials[:index]]
        raise malformed([FieldError(f"{at}/{index}", "repeated", "Every unit of a line needs a serial of its own.") for index in again])
