"""Bodies are refused with a pointer and a sentence; a fingerprint tells a replay from a reuse."""

from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta

from gateway.bodies import END, SENTENCES, TIME_OF_DAY, Body, Fingerprints, field_error, operation_id_of
from gateway.members.schemas import MemberChange
from gateway.sales.schemas import NewSale
from kit.problems import Refusal

SALE: dict[str, Any] = {
    "operation_id": "op-1",
    "store_id": "01a2019c-3df7-7000-8508-6d75c89ca3e6",
    "till_id": "01a2019c-3dfc-7000-8537-339435829156",
    "sold_at": "2026-11-21T18:03:11+08:00",
    "currency": "CNY",
    "lines": [{"line_no": 1, "sku": "A100", "quantity": "2", "unit_price": "99.90", "amount_minor": 19980}],
    "tenders": [],
}
LINE: dict[str, Any] = SALE["lines"][0]

read_sale = Body(NewSale).read


def refused(body: bytes) -> tuple[str, str, str]:
    with pytest.raises(Refusal) as raised:
        read_sale(body)
    (error,) = raised.value.errors
    assert raised.value.status == 400
    assert error.detail.endswith(".")
    return raised.value.code, error.pointer, error.code


def with_line(**changed: object) -> dict[str, Any]:
    return SALE | {"lines": [LINE | changed]}


@pytest.mark.parametrize(
    "body, pointer, code",
    [
        ({key: value for key, value in SALE.items() if key != "store_id"}, "/store_id", "missing"),
        (SALE | {"currency": "yuan"}, "/currency", "invalid_format"),
        (SALE | {"currency": "CNY\n"}, "/currency", "invalid_format"),
        (SALE | {"operation_id": ""}, "/operation_id", "invalid_format"),
        (SALE | {"operation_id": "a" * 101}, "/operation_id", "invalid_format"),
        (SALE | {"operation_id": "a b"}, "/operation_id", "invalid_format"),
        (SALE | {"operation_id": None}, "/operation_id", "wrong_type"),
        (SALE | {"store_id": "S001"}, "/store_id", "invalid_format"),
        (SALE | {"sold_at": "2026-11-21T18:03:11"}, "/sold_at", "invalid_format"),
        (SALE | {"sold_at": "2026-13-21T18:03:11Z"}, "/sold_at", "invalid_format"),
        (SALE | {"sold_at": 1}, "/sold_at", "wrong_type"),
        (SALE | {"lines": []}, "/lines", "out_of_range"),
        (SALE | {"lines": [LINE] * 2001}, "/lines", "out_of_range"),
        (SALE | {"points_to_spend": -1}, "/points_to_spend", "out_of_range"),
        (SALE | {"points_to_spend": 10**30}, "/points_to_spend", "out_of_range"),
        (SALE | {"points_to_spend": 1.0}, "/points_to_spend", "wrong_type"),
        (SALE | {"tenders": [{"type": "Cash", "amount_minor": 1}]}, "/tenders/0/type", "invalid_format"),
        (with_line(quantity="0.000"), "/lines/0/quantity", "invalid_format"),
        (with_line(quantity="-1"), "/lines/0/quantity", "invalid_format"),
        (with_line(quantity="1e3"), "/lines/0/quantity", "invalid_format"),
        (with_line(quantity="1.2345678"), "/lines/0/quantity", "invalid_format"),
        (with_line(quantity="1234567890123"), "/lines/0/quantity", "invalid_format"),
        (with_line(quantity=1), "/lines/0/quantity", "wrong_type"),
        (with_line(unit_price="NaN"), "/lines/0/unit_price", "invalid_format"),
        (with_line(line_no=0), "/lines/0/line_no", "out_of_range"),
        (with_line(sku=""), "/lines/0/sku", "out_of_range"),
        (with_line(sku=" \u3000\t"), "/lines/0/sku", "invalid_format"),
        (with_line(discounts=[{"amount_minor": 1, "reason": " "}]), "/lines/0/discounts/0/reason", "invalid_format"),
        (with_line(sku="x" * 65), "/lines/0/sku", "out_of_range"),
        (with_line(description="a\0b"), "/lines/0/description", "nul_character"),
        ([], "", "wrong_type"),
    ],
)
def test_a_malformed_sale_is_refused_with_its_place(body: object, pointer: str, code: str) -> None:
    assert refused(msgspec.json.encode(body)) == ("malformed", pointer, code)


def test_unknown_fields_are_refused_not_ignored() -> None:
    assert refused(msgspec.json.encode(SALE | {"coupon": 1})) == ("unknown_field", "/coupon", "unknown_field")
    assert refused(msgspec.json.encode(with_line(**{"a/b~c": 1}))) == ("unknown_field", "/lines/0/a~1b~0c", "unknown_field")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"NaN",
        b'{"currency": NaN}',
        b'{"currency": Infinity}',
        b'"\xff"',
        b'{"currency": "\xff"}',
        b"[" * 100_000 + b"]" * 100_000,
        b"{} {}",
    ],
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    assert refused(body)[0] == "malformed"


@pytest.mark.parametrize("quantity", ["1", "0.5", "0.000001", "999999999999.999999", "1.250"])
def test_quantities_are_decimal_text_more_than_zero(quantity: str) -> None:
    assert read_sale(msgspec.json.encode(with_line(quantity=quantity))).lines[0].quantity == quantity


def test_an_escaped_backslash_before_u0000_is_no_nul() -> None:
    assert read_sale(msgspec.json.encode(with_line(description="\\u0000"))).lines[0].description == "\\u0000"


def test_every_pattern_ends_at_the_very_end_and_has_a_sentence() -> None:
    assert all(pattern.endswith(END) for pattern in SENTENCES if pattern.startswith("^"))


@pytest.mark.parametrize(
    "found, sentence",
    [
        ("Expected `str | null`, got `int`", "Must be text or null, not a whole number."),
        ("Expected `object`, got `array`", "Must be an object, not a list."),
        ("Expected `str` of length >= 1", "Must have at least 1 character."),
        ("Expected `array` of length <= 2000", "Must hold at most 2000 items."),
        ("Expected `int` >= -5", "Must be at least -5."),
        ("Expected `datetime` with a timezone component", "Add the offset from UTC, such as +08:00 or Z."),
        (f"Expected `str` matching regex {TIME_OF_DAY!r}", 'Must be a time of day between "00:00" and "23:59".'),
        ("Number out of range", "The number is too large."),
    ],
)
def test_every_fault_is_told_as_what_to_do(found: str, sentence: str) -> None:
    error = field_error(f"{found} - at `$.lines[0].sku`")
    assert (error.pointer, error.detail) == ("/lines/0/sku", sentence)


class Chosen(msgspec.Struct):
    """What is one of a few values, at several places."""

    colour: Literal["red", "green"] | None = None
    sizes: Annotated[list[Literal[1, 2, 3]], Meta(max_length=9)] = []
    parts: list["Chosen"] = msgspec.field(default_factory=list, name="of")


@pytest.mark.parametrize(
    "body, pointer, sentence",
    [
        ({"colour": "blue"}, "/colour", "Must be green or red."),
        ({"colour": ""}, "/colour", "Must be green or red."),
        ({"sizes": [1, 4]}, "/sizes/1", "Must be 1 or 2 or 3."),
        ({"of": [{}, {"colour": "blue"}]}, "/of/1/colour", "Must be green or red."),
        ({"colour": "a - at `$.b`"}, "/colour", "Must be green or red."),
        ({"colour": 1}, "/colour", "Must be text or null, not a whole number."),
    ],
)
def test_what_is_none_of_a_few_values_is_told_which_there_are(body: object, pointer: str, sentence: str) -> None:
    with pytest.raises(Refusal) as raised:
        Body(Chosen).read(msgspec.json.encode(body), "/at")
    (error,) = raised.value.errors
    assert (error.pointer, error.detail) == (f"/at{pointer}", sentence)


@pytest.mark.parametrize("text", [r"\ud800", r"\ud800 and much that follows", r"\udc00", r"\ud800\u0041", r"\ud83d\ud83d\ude00"])
def test_half_of_a_character_is_said_to_be_that(text: str) -> None:
    for body in (f'{{"currency": "{text}"}}', f'{{"{text}": 1}}', f'"{text}"'):
        with pytest.raises(Refusal) as raised:
            read_sale(body.encode())
        assert "half of a character" in raised.value.errors[0].detail


@pytest.mark.parametrize("end", ["", r"\ud83d", r"\ud83d\u", r"\ud83d\ud", r"\ud83d\ude0", r"\ud83d\ude00", r"\\ud800"])
def test_what_is_cut_off_is_said_to_end_too_early(end: str) -> None:
    with pytest.raises(Refusal) as raised:
        read_sale(f'{{"currency": "{end}'.encode())
    assert raised.value.errors[0].detail == "The body must be JSON: it ends too early."


@pytest.mark.parametrize("country", ["cn", "CHN", "中国", "", "C1"])
def test_a_country_is_two_capital_letters(country: str) -> None:
    with pytest.raises(Refusal) as raised:
        Body(MemberChange).read(msgspec.json.encode({"operation_id": "a", "country": country}))
    assert raised.value.errors[0].pointer == "/country"


def test_a_field_left_out_differs_from_null() -> None:
    change = Body(MemberChange).read(b'{"operation_id": "a", "card": null}')
    assert change.card is None
    assert change.name is msgspec.UNSET


def test_a_fingerprint_ignores_order_spaces_and_the_operation_id() -> None:
    fingerprints = Fingerprints(b"k" * 32)
    first = fingerprints.of("POST", "/v1/sales", b'{"operation_id": "a", "x": {"b": 1, "a": 2}, "y": [1, 2]}')
    assert len(first) == 32
    assert first == fingerprints.of("POST", "/v1/sales", b'{"y":[1,2],"x":{"a":2,"b":1}}')
    others = [
        fingerprints.of("PATCH", "/v1/sales", b'{"y":[1,2],"x":{"a":2,"b":1}}'),
        fingerprints.of("POST", "/v1/sale", b'{"y":[1,2],"x":{"a":2,"b":1}}'),
        fingerprints.of("POST", "/v1/sales", b'{"y":[2,1],"x":{"a":2,"b":1}}'),
        fingerprints.of("POST", "/v1/sales", b'{"y":[1,2],"x":{"a":2,"b":1},"z":null}'),
        Fingerprints(b"l" * 32).of("POST", "/v1/sales", b'{"y":[1,2],"x":{"a":2,"b":1}}'),
    ]
    assert first not in others
    assert len(set(others)) == len(others)


def test_the_header_stands_in_for_an_operation_id_that_the_body_lacks() -> None:
    with_id, without = Body(MemberChange).read(b'{"operation_id": "a"}'), Body(MemberChange).read(b"{}")
    assert operation_id_of(with_id, "b") == "a"
    assert operation_id_of(without, "b") == "b"
    with pytest.raises(Refusal, match="operation_id_missing"):
        operation_id_of(without, None)
    with pytest.raises(Refusal, match="malformed"):
        operation_id_of(without, "not one")
