"""What the lines of a file mean: pure functions from rows to sign-ups, sales, reversals and returns.

The file is read twice. `survey` learns what only the whole file tells: where each invoice begins and ends, who the customers are, and
what was credited. `plan` then makes each command as soon as its last line is read, so that memory grows with the invoices and the
credited lines, not with the file. Both are deterministic: the same file gives the same commands in the same order, whatever was sent
before.
"""

import re
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from heapq import heappop, heappush
from operator import attrgetter, itemgetter
from typing import Literal, NamedTuple

import msgspec

from kit.money import first_part, line_amount_minor
from regulars_cli.imports.faults import SourceFault
from regulars_cli.imports.mapping import LineRule, Sign
from regulars_cli.imports.mapping import Mapping as FileMapping
from regulars_cli.imports.reader import Row
from regulars_cli.imports.wire import Return, ReturnLine, Reversal, ReversalLine, Sale, SaleLine, SignUp, Tender

DECIMAL = re.compile(r"-?(0|[1-9][0-9]{0,11})(\.[0-9]{1,6})?")
# What may stand in an operation id between colons. A digit at least, so that no invoice is called "customer".
NUMBER = re.compile(r"(?=[^0-9]*[0-9])[A-Za-z0-9._-]{1,40}")
MALFORMED = "malformed"
# What the gateway takes at most.
MAX_LINES = 2_000
MAX_AMOUNT_MINOR = 10**13
MAX_CHARACTERS = {"sku": 64, "description": 500, "category": 64}
YEARS = range(1970, 2200)
CHANGED = "The file changed while it was being imported: start the same command again."


class Moment(NamedTuple):
    """A point in time, and how it is written with the store's offset of that local time."""

    at: datetime
    text: str


class Head(msgspec.Struct, frozen=True):
    """What a line says of its invoice."""

    invoice: str
    customer: str
    moment: Moment
    country: str


class Article(msgspec.Struct, frozen=True, gc=False):
    """What a line says of the goods."""

    sku: str
    description: str | None
    category: str | None


class Figures(msgspec.Struct, frozen=True, gc=False):
    """The numbers of a line, without their signs. `amount_minor` is quantity × unit price rounded half up."""

    quantity: Decimal
    quantity_text: str
    quantity_sign: Sign
    unit_price: str
    price_sign: Sign
    amount_minor: int


class Line(msgspec.Struct, frozen=True):
    """A line that is imported."""

    row: Row
    is_credit: bool
    head: Head
    article: Article
    figures: Figures


class Reject(NamedTuple):
    """A line that is not imported, and why."""

    row: Row
    code: str
    because: str


class Judge:
    """Says of one row what it is, by the mapping alone: a line to import, or a reject.

    Half a million rows say the same few thousand things, so each part of a row is read once and remembered.
    """

    def __init__(self, mapping: FileMapping, heading: list[str]) -> None:
        self._width = len(heading)
        at = {role: heading.index(name) for role, name in mapping.columns.named().items()}
        self._invoice_at = at["invoice"]
        head_roles = [role for role in ("invoice", "customer", "sold_at", "country") if role in at]
        article_roles = [role for role in ("sku", "description", "category") if role in at]
        self._head_fields = _fields_getter([at[role] for role in head_roles])
        self._article_fields = _fields_getter([at[role] for role in article_roles])
        self._figures_fields = _fields_getter([at["quantity"], at["unit_price"]])
        self._head_of = _head_reader(head_roles, mapping)
        self._article_of = _article_reader(article_roles)
        self._figures_of = _figures_reader(mapping.store.currency)
        self._rule_for = _rule_finder(mapping.lines)

    def __call__(self, row: Row) -> Line | Reject:
        fields = row[1]
        if len(fields) != self._width:
            return Reject(row, MALFORMED, f"The row has {len(fields)} fields where the heading has {self._width}.")
        head = self._head_of(*self._head_fields(fields))
        article = self._article_of(*self._article_fields(fields))
        figures = self._figures_of(*self._figures_fields(fields))
        if isinstance(head, str) or isinstance(article, str) or isinstance(figures, str):
            return Reject(row, MALFORMED, " ".join(fault for fault in (head, article, figures) if isinstance(fault, str)))
        rule = self._rule_for(head.invoice, figures.quantity_sign, figures.price_sign)
        if rule.kind == "skipped":
            return Reject(row, str(rule.code), str(rule.because))
        is_credit = rule.kind == "credit_note"
        if figures.quantity_sign != ("negative" if is_credit else "positive"):
            side = "A credit note's quantity must be below zero." if is_credit else "A sale's quantity must be above zero."
            return Reject(row, MALFORMED, side)
        if figures.price_sign == "negative":
            return Reject(row, MALFORMED, "The unit price is below zero.")
        return Line(row, is_credit, head, article, figures)

    def invoice_of(self, row: Row) -> str:
        """The invoice a malformed row seems to be of; empty if it cannot be told."""
        return row[1][self._invoice_at].strip() if len(row[1]) > self._invoice_at else ""


def _fields_getter(indices: list[int]) -> Callable[[list[str]], tuple[str, ...]]:
    if len(indices) == 1:
        only = indices[0]
        return lambda fields: (fields[only],)
    return itemgetter(*indices)


def _head_reader(roles: Sequence[str], mapping: FileMapping) -> Callable[..., Head | str]:
    moment_of = _moment_reader(mapping)

    @lru_cache(1 << 15)
    def read(*texts: str) -> Head | str:
        said = dict(zip(roles, map(str.strip, texts), strict=True))
        invoice, customer = said["invoice"], said.get("customer", "")
        for name, text in (("invoice", invoice), ("customer", customer or "0")):
            if not NUMBER.fullmatch(text):
                return f"The {name} number must be 1 to 40 of A-Z a-z 0-9 . _ - with a digit among them."
        moment = moment_of(said["sold_at"])
        return moment if isinstance(moment, str) else Head(invoice, customer, moment, said.get("country", ""))

    return read


def _article_reader(roles: Sequence[str]) -> Callable[..., Article | str]:
    @lru_cache(1 << 15)
    def read(*texts: str) -> Article | str:
        said = dict(zip(roles, map(str.strip, texts), strict=True))
        if not said["sku"]:
            return "The row names no SKU."
        for role, text in said.items():
            if len(text) > MAX_CHARACTERS[role]:
                return f"The {role} is longer than {MAX_CHARACTERS[role]} characters."
        if not "".join(said.values()).isprintable():
            return "The row has characters that are no text: control characters, or bytes of another encoding."
        return Article(said["sku"], said.get("description") or None, said.get("category") or None)

    return read


def _moment_reader(mapping: FileMapping) -> Callable[[str], Moment | str]:
    """Reads local times of the store's zone.

    A local time that occurs twice (clocks go back) is its first occurrence; one that does not occur (clocks go forward) is read with
    the offset from before the change.
    """
    zone, formats = mapping.zone(), mapping.sold_at_formats

    @lru_cache(1 << 15)
    def read(text: str) -> Moment | str:
        for form in formats:
            try:
                local = datetime.strptime(text, form).replace(tzinfo=zone, fold=0)
            except ValueError:
                continue
            if local.year not in YEARS:
                return f"The year {local.year} is not between {YEARS[0]} and {YEARS[-1]}."
            return Moment(local.astimezone(UTC), local.isoformat())
        return f"The time {text!r} is not of the form {' or '.join(formats)}."

    return read


def _figures_reader(currency: str) -> Callable[[str, str], Figures | str]:
    @lru_cache(1 << 16)
    def read(quantity: str, unit_price: str) -> Figures | str:
        quantity, unit_price = quantity.strip(), unit_price.strip()
        for name, text in (("quantity", quantity), ("unit price", unit_price)):
            if not DECIMAL.fullmatch(text):
                return f"The {name} {text!r} is not a decimal number of at most 12 digits and 6 decimals."
        number, price = quantity.removeprefix("-"), unit_price.removeprefix("-")
        amount_minor = line_amount_minor(number, price, currency)
        if amount_minor > MAX_AMOUNT_MINOR:
            return f"The amount of {quantity} at {unit_price} is beyond what a sale can hold."
        return Figures(Decimal(number), number, _sign(quantity), price, _sign(unit_price), amount_minor)

    return read


def _sign(number: str) -> Sign:
    return "zero" if not Decimal(number) else "negative" if number.startswith("-") else "positive"


def _rule_finder(rules: list[LineRule]) -> Callable[[str, Sign, Sign], LineRule]:
    @lru_cache(1 << 10)
    def find(invoice: str, quantity: Sign, unit_price: Sign) -> LineRule:
        return next(
            rule
            for rule in rules
            if (rule.when.invoice_begins is None or invoice.startswith(rule.when.invoice_begins))
            and rule.when.quantity in (None, quantity)
            and rule.when.unit_price in (None, unit_price)
        )

    return find


@dataclass(slots=True)
class Invoice:
    """What the whole file says of one invoice: its first time, and the rows its imported lines span."""

    customer: str
    country: str
    moment: Moment
    first_row: int
    last_row: int
    # The row after which every earlier sale of the customer has been read.
    ready_row: int = 0
    line_count: int = 0
    has_credits: bool = False

    def order(self) -> tuple[datetime, int]:
        """Earlier in time, then earlier in the file: what "earlier sale" means."""
        return self.moment.at, self.first_row


@dataclass(slots=True)
class Survey:
    """What only the whole file tells."""

    rows: int = 0
    invoices: dict[str, Invoice] = field(default_factory=dict)
    # Invoice number → why none of its lines is imported.
    held_back: dict[str, str] = field(default_factory=dict)
    # Customer number → sign-up, in the order of their first invoices.
    sign_ups: dict[str, SignUp] = field(default_factory=dict)
    # Customer number → SKUs on their credit notes.
    credited: dict[str, set[str]] = field(default_factory=dict)


def survey(rows: Iterable[Row], judge: Judge, mapping: FileMapping) -> Survey:
    """Reads the whole file once.

    An invoice is imported whole or not at all: one with a malformed line, with lines of several customers or with too many lines is held
    back, so that it can be imported under the same operation id once the file is put right.
    """
    found = Survey()
    for row in rows:
        found.rows += 1
        line = judge(row)
        if isinstance(line, Reject):
            if line.code == MALFORMED and (number := judge.invoice_of(row)):
                found.held_back.setdefault(number, f"row {row[0]} of it is malformed")
            continue
        head = line.head
        invoice = found.invoices.get(head.invoice)
        if invoice is None:
            invoice = found.invoices[head.invoice] = Invoice(head.customer, head.country, head.moment, row[0], row[0])
        elif invoice.customer != head.customer:
            found.held_back.setdefault(head.invoice, f"row {row[0]} of it is another customer's")
        invoice.last_row = row[0]
        invoice.line_count += 1
        if invoice.line_count > MAX_LINES:
            found.held_back.setdefault(head.invoice, f"it has more than {MAX_LINES:,} lines")
        if head.moment is not invoice.moment:
            invoice.moment = min(invoice.moment, head.moment)
        if line.is_credit:
            invoice.has_credits = True
            found.credited.setdefault(head.customer, set()).add(line.article.sku)
    for number in found.held_back:
        found.invoices.pop(number, None)
    _follow_customers(found, mapping)
    return found


def _follow_customers(found: Survey, mapping: FileMapping) -> None:
    """Goes through each customer's invoices in order of time.

    A customer of several countries is of the first, and joined on the first day, so that a longer file of the same history makes the same
    sign-up. In a file in order of time every invoice is ready at its own last row; in another, some wait for earlier sales that come later.
    """
    last_rows: dict[str, int] = {}
    for invoice in sorted(found.invoices.values(), key=Invoice.order):
        customer = invoice.customer
        if not customer:
            invoice.ready_row = invoice.last_row
            continue
        invoice.ready_row = last_rows[customer] = max(last_rows.get(customer, 0), invoice.last_row)
        if customer not in found.sign_ups:
            found.sign_ups[customer] = SignUp(
                operation_id=mapping.operation_id("customer", customer),
                card=customer,
                joined_on=invoice.moment.text[:10],
                country=mapping.countries.get(invoice.country),
            )


Kind = Literal["sale", "reversal", "return"]


@dataclass(slots=True)
class Command:
    """One command for the gateway, with what the report needs of it."""

    kind: Kind
    body: Sale | Reversal | Return
    invoice: str
    # Commands of one customer are sent in order; a guest's have no order to keep.
    lane: str
    is_guest: bool
    rows: list[Row]
    line_count: int
    # What the gateway is expected to decide: a sale's total, a reversal's frozen share, a return's refund.
    amount_minor: int
    # What the credit note gives for the same quantities; 0 for a sale.
    note_minor: int = 0

    @property
    def follows(self) -> str:
        """Operation id of the command that must have been decided before this one is sent."""
        return self.body.sale_operation_id if isinstance(self.body, Reversal) else ""


@dataclass(slots=True)
class CreditNote:
    """What became of a credit note's lines."""

    invoice: str
    is_guest: bool
    amount_minor: int = 0
    linked_lines: int = 0
    partly_linked_lines: int = 0
    unlinked_lines: int = 0

    @property
    def line_count(self) -> int:
        return self.linked_lines + self.partly_linked_lines + self.unlinked_lines


class Place(NamedTuple):
    store_id: str
    till_id: str


@dataclass(slots=True)
class SoldLine:
    """A sold line, and how much of it was taken back so far."""

    order: tuple[datetime, int, int]
    sale_operation_id: str
    line_no: int
    quantity: Decimal
    amount_minor: int
    reversed: Decimal = Decimal(0)


class Piece(NamedTuple):
    """A part of a credit note's line: what it takes back of a sold line, or of none."""

    line: Line
    sold: SoldLine | None
    quantity: Decimal
    note_minor: int
    refund_minor: int


class SoldLines:
    """What credit notes can take back: the credited SKUs of each customer, by time."""

    def __init__(self, credited: Mapping[str, set[str]]) -> None:
        self._credited = credited
        self._lines: dict[tuple[str, str], list[SoldLine]] = {}

    def add(self, invoice: Invoice, sale: Sale, lines: list[Line]) -> None:
        skus = self._credited.get(invoice.customer)
        if not skus or not invoice.customer:
            return
        for line_no, line in enumerate(lines, 1):
            sku = line.article.sku
            if sku in skus:
                # Taken from the end: the latest sale first, within a sale its first line first.
                sold = SoldLine((*invoice.order(), -line_no), sale.operation_id, line_no, line.figures.quantity, line.figures.amount_minor)
                insort(self._lines.setdefault((invoice.customer, sku), []), sold, key=attrgetter("order"))

    def take_back(self, line: Line, before: tuple[datetime, int]) -> list[Piece]:
        """Links a credit note's line to what was sold to the same customer before: latest sale first, over as many as it takes.

        Quantities, the note's amount and, on each sold line, the frozen shares add up exactly. The last piece may have no sale.
        """
        pieces: list[Piece] = []
        whole, amount_minor = line.figures.quantity, line.figures.amount_minor
        left = whole
        sold_lines = self._lines.get((line.head.customer, line.article.sku), []) if line.head.customer else []
        for sold in reversed(sold_lines[: bisect_left(sold_lines, before, key=attrgetter("order"))]):
            quantity = min(left, sold.quantity - sold.reversed)
            if quantity:
                refund_minor = _part(sold.amount_minor, sold.reversed, quantity, sold.quantity)
                pieces.append(Piece(line, sold, quantity, _part(amount_minor, whole - left, quantity, whole), refund_minor))
                sold.reversed += quantity
                left -= quantity
            if not left:
                return pieces
        note_minor = _part(amount_minor, whole - left, left, whole)
        return [*pieces, Piece(line, None, left, note_minor, note_minor)]


def _part(total: int, done: Decimal, quantity: Decimal, whole: Decimal) -> int:
    """What `quantity` units after the first `done` of `whole` have of the total, by the rule of the API's frozen shares."""
    return first_part(total, done + quantity, whole) - first_part(total, done, whole)


def plan(
    rows: Iterable[Row], judge: Judge, found: Survey, mapping: FileMapping, place: Place, members: Mapping[str, str]
) -> Iterator[Command | CreditNote | Reject]:
    """Reads the file again and gives every command, each after those it follows, and every reject.

    `members` has the member id of every customer number that is a member; lines of others are rejected. A credit note comes after all
    its commands.
    """
    maker = _CommandMaker(mapping, place, members)
    sold_lines = SoldLines(found.credited)
    unfinished: dict[str, list[Line]] = {}
    # Credit notes whose earlier sales are not all read yet.
    waiting: list[tuple[int, tuple[datetime, int], str, list[Line]]] = []
    for row in rows:
        line = judge(row)
        if isinstance(line, Reject):
            yield line
            continue
        number = line.head.invoice
        if number in found.held_back:
            yield Reject(row, "held_back", f"An invoice is imported whole or not at all; {number} is not: {found.held_back[number]}.")
            continue
        invoice = found.invoices.get(number)
        if invoice is None:
            raise SourceFault(CHANGED)
        lines = unfinished.setdefault(number, [])
        lines.append(line)
        if row[0] < invoice.last_row:
            continue
        del unfinished[number]
        if invoice.customer and invoice.customer not in members:
            for refused in lines:
                yield Reject(refused.row, "member_refused", "The sign-up of this customer was refused.")
            continue
        credits_ = [each for each in lines if each.is_credit] if invoice.has_credits else []
        sales = [each for each in lines if not each.is_credit] if credits_ else lines
        if sales:
            command, sale = maker.sale(number, invoice, sales)
            sold_lines.add(invoice, sale, sales)
            yield command
        if credits_:
            heappush(waiting, (invoice.ready_row, invoice.order(), number, credits_))
        while waiting and waiting[0][0] <= row[0]:
            _, order, note, noted = heappop(waiting)
            pieces = [piece for each in noted for piece in sold_lines.take_back(each, order)]
            yield from maker.credit_note(note, found.invoices[note], noted, pieces)
    if unfinished or waiting:
        raise SourceFault(CHANGED)


class _CommandMaker:
    def __init__(self, mapping: FileMapping, place: Place, members: Mapping[str, str]) -> None:
        self._mapping = mapping
        self._place = place
        self._members = members

    def sale(self, number: str, invoice: Invoice, lines: list[Line]) -> tuple[Command, Sale]:
        """One invoice is one sale, at its first time; its lines are numbered in the order of the file."""
        total = sum(line.figures.amount_minor for line in lines)
        sale = Sale(
            operation_id=self._mapping.operation_id(number),
            store_id=self._place.store_id,
            till_id=self._place.till_id,
            receipt_no=number,
            sold_at=invoice.moment.text,
            currency=self._mapping.store.currency,
            member_id=self._members.get(invoice.customer),
            channel=self._mapping.sale.channel,
            lines=[
                SaleLine(
                    line_no,
                    line.article.sku,
                    line.figures.quantity_text,
                    line.figures.unit_price,
                    line.figures.amount_minor,
                    line.article.description,
                    line.article.category,
                )
                for line_no, line in enumerate(lines, 1)
            ],
            tenders=[Tender(self._mapping.sale.tender, total)] if total else [],
        )
        rows = [line.row for line in lines]
        return Command("sale", sale, number, invoice.customer or number, not invoice.customer, rows, len(rows), total), sale

    def credit_note(self, number: str, invoice: Invoice, lines: list[Line], pieces: list[Piece]) -> Iterator[Command | CreditNote]:
        """One reversal for each sale it takes from, in the order the sales were come upon, and one return of what belongs to none."""
        by_sale: dict[str, list[Piece]] = {}
        for piece in pieces:
            by_sale.setdefault(piece.sold.sale_operation_id if piece.sold else "", []).append(piece)
        unlinked = by_sale.pop("", [])
        for index, (sale_operation_id, taken) in enumerate(by_sale.items(), 1):
            yield self._reversal(number, index, invoice, sale_operation_id, taken)
        if unlinked:
            yield self._return(number, invoice, unlinked)
        linked_rows = {piece.line.row[0] for taken in by_sale.values() for piece in taken}
        unlinked_rows = {piece.line.row[0] for piece in unlinked}
        yield CreditNote(
            number,
            not invoice.customer,
            sum(line.figures.amount_minor for line in lines),
            len(linked_rows - unlinked_rows),
            len(linked_rows & unlinked_rows),
            len(unlinked_rows - linked_rows),
        )

    def _reversal(self, number: str, index: int, invoice: Invoice, sale_operation_id: str, pieces: list[Piece]) -> Command:
        quantities: dict[int, Decimal] = {}
        for piece in pieces:
            if piece.sold:
                quantities[piece.sold.line_no] = quantities.get(piece.sold.line_no, Decimal(0)) + piece.quantity
        reversal = Reversal(
            operation_id=self._mapping.operation_id(number, index),
            sale_operation_id=sale_operation_id,
            store_id=self._place.store_id,
            till_id=self._place.till_id,
            reversed_at=invoice.moment.text,
            reason=f"credit note {number}",
            lines=[ReversalLine(line_no, _decimal_text(quantities[line_no])) for line_no in sorted(quantities)],
        )
        return self._credit("reversal", reversal, number, invoice, pieces)

    def _return(self, number: str, invoice: Invoice, pieces: list[Piece]) -> Command:
        returned = Return(
            operation_id=self._mapping.operation_id(number, "return"),
            store_id=self._place.store_id,
            till_id=self._place.till_id,
            receipt_no=number,
            returned_at=invoice.moment.text,
            currency=self._mapping.store.currency,
            reason=f"credit note {number}: no earlier sale in the file",
            member_id=self._members.get(invoice.customer),
            lines=[
                ReturnLine(
                    line_no,
                    piece.line.article.sku,
                    _decimal_text(piece.quantity),
                    piece.line.figures.unit_price,
                    piece.refund_minor,
                    piece.line.article.description,
                    piece.line.article.category,
                )
                for line_no, piece in enumerate(pieces, 1)
            ],
        )
        return self._credit("return", returned, number, invoice, pieces)

    def _credit(self, kind: Kind, body: Reversal | Return, number: str, invoice: Invoice, pieces: list[Piece]) -> Command:
        rows = list({piece.line.row[0]: piece.line.row for piece in pieces}.values())
        return Command(
            kind,
            body,
            number,
            invoice.customer or number,
            not invoice.customer,
            rows,
            len(body.lines),
            sum(piece.refund_minor for piece in pieces),
            sum(piece.note_minor for piece in pieces),
        )


def _decimal_text(quantity: Decimal) -> str:
    return format(quantity, "f")
