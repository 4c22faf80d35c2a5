from collections import defaultdict
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.tests.imports.history import HEADING, PLACE, Planned, line, planned
from regulars_cli.imports.mapping import SaleDefaults, load_mapping
from regulars_cli.imports.rules import Command, Judge, Reject, plan, survey
from regulars_cli.imports.wire import Reversal, SaleLine, Tender

NOON, LATER, LATEST = "2011-02-01 12:00:00", "2011-02-02 12:00:00", "2011-02-03 12:00:00"


def test_one_invoice_is_one_sale_whose_lines_keep_their_order() -> None:
    lines = [line("500", "A", 3, "1.255"), line("501", "B"), line("500", "B", 1, "2.1", description="")]
    given = planned(lines)
    sale = given.sales["500"]
    assert (sale.operation_id, sale.receipt_no, sale.member_id) == ("online-retail:500", "500", "member-7")
    assert sale.lines == [SaleLine(1, "A", "3", "1.255", 377, "THING"), SaleLine(2, "B", "1", "2.1", 210)]
    assert sale.tenders == [Tender("other", 587)]
    assert list(given.sales) == ["501", "500"], "an invoice is sent when its last line is read"


def test_exact_duplicate_lines_are_two_lines() -> None:
    assert [each.line_no for each in planned([line("500"), line("500")]).sales["500"].lines] == [1, 2]


def test_an_invoice_over_two_timestamps_is_sold_at_the_first() -> None:
    lines = [line("500", at="2011-02-01 11:20:00"), line("500", at="2011-02-01 11:19:00")]
    assert planned(lines).sales["500"].sold_at == "2011-02-01T11:19:00+00:00"


@pytest.mark.parametrize(
    "local,written",
    [
        ("2011-07-01 12:00:00", "2011-07-01T12:00:00+01:00"),
        ("2011-10-30 01:30:00", "2011-10-30T01:30:00+01:00"),  # occurs twice: the first
        ("2011-03-27 01:30:00", "2011-03-27T01:30:00+00:00"),  # does not occur: with the offset from before
    ],
)
def test_local_times_get_the_zones_offset(local: str, written: str) -> None:
    assert planned([line("500", at=local)]).sales["500"].sold_at == written


def test_a_guest_has_no_member_and_no_sign_up() -> None:
    given = planned([line("500", customer="")])
    assert given.sales["500"].member_id is None
    assert not given.survey.sign_ups


def test_a_customer_in_two_countries_is_of_the_first_and_joined_on_the_first_day() -> None:
    lines = [line("500", country="Cyprus"), line("501", at=LATER, country="Norway"), line("502", customer="8", country="Unspecified")]
    sign_ups = planned(lines).survey.sign_ups
    assert msgspec.to_builtins(sign_ups["7"]) == {
        "operation_id": "online-retail:customer:7",
        "card": "7",
        "joined_on": "2011-02-01",
        "country": "CY",
    }
    assert sign_ups["8"].country is None


def test_skus_that_differ_in_case_are_different_goods() -> None:
    given = planned([line("500", "85123a"), line("C1", "85123A", -1, at=LATER)])
    assert not given.reversals
    assert given.returns["C1"].lines[0].sku == "85123A"


def test_skipped_kinds_are_rejected_with_their_reason_and_leave_the_rest_of_the_invoice() -> None:
    lines = [
        line("A1", "B", 1, "-11062.06", customer=""),
        line("500", "A"),
        line("500", "GIFT", 1, "0.0"),
        line("501", "A", -5, "0.0", customer=""),
        line("502", "A", 5, "0", customer=""),
    ]
    given = planned(lines)
    assert given.reasons() == [(2, "adjustment"), (4, "zero_priced"), (5, "write_off"), (6, "zero_priced")]
    assert [each.sku for each in given.sales["500"].lines] == ["A"]


@pytest.mark.parametrize(
    "fields,because",
    [
        (line("500")[:7], "7 fields"),
        (line("500", quantity="1,5"), "quantity"),
        (line("500", quantity="07"), "quantity"),
        (line("500", price="free"), "unit price"),
        (line("500", price="1e3"), "unit price"),
        (line("500", price="1.1234567"), "unit price"),
        (line("500", price="-2"), "below zero"),
        (line("500", quantity=0), "above zero"),
        (line("C500", quantity=2), "must be below zero"),
        (line("500", at="01/02/2011"), "is not of the form"),
        (line("500", at="1011-02-01 10:00:00"), "The year 1011"),
        (line("INV/500"), "The invoice number"),
        (line("customer"), "The invoice number"),
        (line(""), "The invoice number"),
        (line("500", customer="7 8"), "The customer number"),
        (line("500", ""), "no SKU"),
        (line("500", "S" * 65), "sku is longer than 64"),
        (line("500", description="A\0B"), "no text"),
        (line("500", description="A\udca3B"), "no text"),
        (line("500", quantity=999999999999, price="999999999999"), "beyond"),
    ],
)
def test_a_malformed_row_is_rejected_with_the_reason(fields: list[str], because: str) -> None:
    given = planned([fields])
    assert not given.commands
    assert given.reasons() == [(2, "malformed")]
    assert because in given.rejects[0].because


def test_an_invoice_is_imported_whole_or_not_at_all() -> None:
    given = planned([line("500"), line("500", quantity="x"), line("501"), line("502"), line("502", customer="8"), line("502")])
    assert list(given.sales) == ["501"]
    assert given.reasons() == [(2, "held_back"), (3, "malformed"), (5, "held_back"), (6, "held_back"), (7, "held_back")]
    assert "row 3 of it is malformed" in given.rejects[0].because
    assert "row 6 of it is another customer's" in given.rejects[2].because
    assert set(given.survey.sign_ups) == {"7"}


def test_an_invoice_may_have_two_thousand_lines_and_no_more() -> None:
    given = planned([line("500")] * 2000 + [line("501")] * 2001)
    assert len(given.sales["500"].lines) == 2000
    assert len(given.rejects) == 2001


def test_lines_of_a_customer_whose_sign_up_was_refused_are_rejected() -> None:
    mapping = load_mapping("online-retail")
    rows = list(enumerate([line("500"), line("501", customer=""), line("C1", quantity=-1, at=LATER)], 2))
    judge = Judge(mapping, HEADING)
    given = list(plan(rows, judge, survey(rows, judge, mapping), mapping, PLACE, {}))
    assert [each.code for each in given if isinstance(each, Reject)] == ["member_refused", "member_refused"]
    assert [each.invoice for each in given if isinstance(each, Command)] == ["501"]


def reversal_lines(given: Planned) -> dict[str, tuple[str, list[tuple[int, str]]]]:
    return {
        operation_id.removeprefix("online-retail:"): (
            reversal.sale_operation_id.removeprefix("online-retail:"),
            [(each.line_no, each.quantity) for each in reversal.lines],
        )
        for operation_id, reversal in given.reversals.items()
    }


def test_a_credit_note_takes_from_the_latest_earlier_sale_first_and_from_as_many_as_it_takes() -> None:
    lines = [
        line("500", "A", 2, at=NOON),
        line("501", "A", 3, at=LATER),
        line("502", "A", 9, at=LATER, customer="8"),
        line("C1", "A", -4, at=LATEST),
        line("503", "A", 9, at=LATEST),
    ]
    given = planned(lines)
    assert reversal_lines(given) == {"C1:1": ("501", [(1, "3")]), "C1:2": ("500", [(1, "1")])}
    assert given.reversals["online-retail:C1:1"].reversed_at == "2011-02-03T12:00:00+00:00"
    assert not given.returns


def test_lines_of_one_note_against_one_sale_are_one_reversal_over_its_lines_in_order() -> None:
    lines = [
        line("500", "A", 2, at=NOON),
        line("500", "B", 5, at=NOON),
        line("500", "A", 2, at=NOON),
        line("C1", "A", -1, at=LATER),
        line("C1", "A", -2, at=LATER),
        line("C1", "B", -5, at=LATER),
        line("C2", "A", -1, at=LATEST),
    ]
    assert reversal_lines(planned(lines)) == {"C1:1": ("500", [(1, "2"), (2, "5"), (3, "1")]), "C2:1": ("500", [(3, "1")])}


def test_what_belongs_to_no_earlier_sale_is_a_return_and_keeps_the_notes_amount() -> None:
    lines = [line("500", "A", 2, "3.33", at=NOON), line("C1", "A", -3, "3.00", at=LATER), line("C1", "Z", -1, "1.00", at=LATER)]
    given = planned(lines)
    assert reversal_lines(given) == {"C1:1": ("500", [(1, "2")])}
    returned = given.returns["C1"]
    assert returned.operation_id == "online-retail:C1:return"
    assert [(each.sku, each.quantity, each.refund_minor) for each in returned.lines] == [("A", "1", 300), ("Z", "1", 100)]
    reversal = next(command for command in given.commands if command.kind == "reversal")
    assert (reversal.amount_minor, reversal.note_minor) == (666, 600)
    note = given.notes[0]
    assert (note.linked_lines, note.partly_linked_lines, note.unlinked_lines, note.amount_minor) == (0, 1, 1, 1000)


def test_a_guests_credit_note_is_a_return() -> None:
    given = planned([line("500", customer="", at=NOON), line("C1", quantity=-1, customer="", at=LATER)])
    assert not given.reversals
    assert given.returns["C1"].member_id is None


def test_a_sale_at_the_notes_own_minute_is_earlier_if_it_stands_before_it() -> None:
    before, after = [line("500"), line("C1", quantity=-1)], [line("C1", quantity=-1), line("500")]
    assert len(planned(before).reversals) == 1
    assert len(planned(after).reversals) == 0


def test_a_file_in_any_order_links_by_time() -> None:
    lines = [
        line("C2", "A", -1, at=LATEST),
        line("C1", "A", -2, at=LATER),
        line("500", "A", 2, at="2011-01-01 09:00:00"),
        line("501", "A", 1, at=NOON),
    ]
    given = planned(lines)
    assert reversal_lines(given) == {"C1:1": ("501", [(1, "1")]), "C1:2": ("500", [(1, "1")]), "C2:1": ("500", [(1, "1")])}
    sent = [command.body.operation_id for command in given.commands]
    for command in given.commands:
        assert command.follows == "" or sent.index(command.follows) < sent.index(command.body.operation_id)


def test_other_columns_zones_and_currencies_are_a_matter_of_the_mapping() -> None:
    shipped = load_mapping("online-retail")
    store = msgspec.structs.replace(shipped.store, zone="Asia/Tokyo", currency="JPY")
    columns = msgspec.structs.replace(shipped.columns, customer=None, country=None, description=None, category="Description")
    mapping = msgspec.structs.replace(shipped, store=store, columns=columns, sale=SaleDefaults())
    sale = planned([line("500", "A", 3, "1.5")], mapping).sales["500"]
    assert (sale.sold_at, sale.currency, sale.member_id, sale.channel) == ("2011-02-01T10:00:00+09:00", "JPY", None, None)
    assert sale.lines == [SaleLine(1, "A", "3", "1.5", 5, None, "THING")]


QUANTITIES = st.integers(1, 6)
PRICES = st.sampled_from(["0.01", "0.333", "1.00", "2.55", "19.99"])
SKUS = st.sampled_from(["A", "B", "a"])
TIMES = st.integers(0, 9).map(lambda hour: f"2011-02-01 1{hour}:00:00")


@st.composite
def histories(draw: st.DrawFn) -> list[list[str]]:
    """Invoices and credit notes of few customers and goods, so that they meet; in any order of time and file."""
    lines: list[list[str]] = []
    for number in range(draw(st.integers(1, 12))):
        is_credit = draw(st.booleans())
        customer, at = draw(st.sampled_from(["7", "8", ""])), draw(TIMES)
        for _ in range(draw(st.integers(1, 3))):
            quantity = draw(QUANTITIES)
            lines.append(
                line(
                    f"{'C' if is_credit else ''}{number}",
                    draw(SKUS),
                    -quantity if is_credit else quantity,
                    draw(PRICES),
                    at=at,
                    customer=customer,
                )
            )
    return draw(st.permutations(lines)) if draw(st.booleans()) else lines


@given(histories())
def test_never_more_is_reversed_than_sold_and_every_sum_adds_up(lines: list[list[str]]) -> None:
    given = planned(lines)
    assert not given.rejects
    sold = {sale.operation_id: {each.line_no: each for each in sale.lines} for sale in given.sales.values()}
    customer_of = {sale.operation_id: sale.member_id for sale in given.sales.values()}
    reversed_quantity: dict[tuple[str, int], Decimal] = defaultdict(Decimal)
    refunded: dict[tuple[str, int], int] = defaultdict(int)
    linked: dict[str, int] = defaultdict(int)
    unlinked: dict[str, int] = defaultdict(int)
    quantities: dict[str, Decimal] = defaultdict(Decimal)
    for command in given.commands:
        if isinstance(command.body, Reversal):
            assert command.body.sale_operation_id in sold, "the sale comes first"
            assert customer_of[command.body.sale_operation_id] == f"member-{command.lane}"
            linked[command.invoice] += command.note_minor
            expected = 0
            for each in command.body.lines:
                at = command.body.sale_operation_id, each.line_no
                whole = sold[at[0]][at[1]]
                reversed_quantity[at] += Decimal(each.quantity)
                assert 0 < reversed_quantity[at] <= Decimal(whole.quantity)
                due = int(whole.amount_minor * reversed_quantity[at] // Decimal(whole.quantity))
                expected += due - refunded[at]
                refunded[at] = due
                quantities[command.invoice] += Decimal(each.quantity)
            assert command.amount_minor == expected
        elif command.kind == "return":
            unlinked[command.invoice] += command.note_minor
            quantities[command.invoice] += sum(Decimal(each.quantity) for each in command.body.lines)
    for note in given.notes:
        own = [fields for fields in lines if fields[0] == note.invoice]
        assert linked[note.invoice] + unlinked[note.invoice] == note.amount_minor
        assert quantities[note.invoice] == sum(-int(fields[3]) for fields in own)
        assert note.line_count == len(own)
    assert {note.invoice for note in given.notes} == {fields[0] for fields in lines if fields[0].startswith("C")}


@given(histories())
def test_the_same_file_makes_the_same_commands_and_a_longer_one_the_same_first(lines: list[list[str]]) -> None:
    given = planned(lines)
    assert planned(lines).commands == given.commands
    longer = planned([*lines, line("999", at="2012-01-01 00:00:00"), line("C999", quantity=-9, at="2012-01-02 00:00:00")])
    first = {command.body.operation_id: command.body for command in given.commands}
    again = {command.body.operation_id: command.body for command in longer.commands}
    assert {operation_id: again[operation_id] for operation_id in first} == first
    assert {customer: longer.survey.sign_ups[customer] for customer in given.survey.sign_ups} == given.survey.sign_ups
