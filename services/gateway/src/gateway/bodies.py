"""Request bodies: decoded into their type, or refused with a pointer and a sentence; and the fingerprint of what was asked.

Types are msgspec structs that forbid unknown fields. Their patterns end in `END`, since Python's `$` also matches before a last
newline; the OpenAPI document shows the plain `$`.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType, inspect

from gateway.problems import malformed, operation_id_missing
from kit.problems import FieldError

END = r"$(?!\n)"
# What the document says of text, for a database knows no NUL; the second also of text that must say something.
NO_NUL = {"pattern": "^[^\\u0000]*$"}
NO_NUL_NOT_BLANK = {"pattern": "^[^\\u0000]*[^\\s\\u0000][^\\u0000]*$"}

OPERATION_ID = r"^[A-Za-z0-9._:-]{1,100}" + END
UUID = r"^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}" + END
QUANTITY = r"^(?!0+(\.0+)?$)(0|[1-9][0-9]{0,11})(\.[0-9]{1,6})?" + END
UNIT_PRICE = r"^(0|[1-9][0-9]{0,11})(\.[0-9]{1,6})?" + END
CURRENCY = r"^[A-Z]{3}" + END
CODE = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}" + END
TERM = r"^[a-z][a-z0-9_]{0,31}" + END
PROGRAMME_ID = r"^[a-z0-9][a-z0-9-]{0,62}" + END
TIME_OF_DAY = r"^([01][0-9]|2[0-3]):[0-5][0-9]" + END
DAY = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}" + END
COUNTRY = r"^[A-Z]{2}" + END
REGION = r"^[A-Za-z]{2}" + END
NOT_BLANK = r"\S"

SENTENCES = {
    OPERATION_ID: "Must be 1 to 100 letters, digits, dots, underscores, colons or dashes.",
    UUID: "Must be an id (UUID).",
    QUANTITY: 'Must be a decimal in a string, more than zero, with at most 12 digits before and 6 after the point, such as "1.250".',
    UNIT_PRICE: 'Must be a decimal in a string with at most 12 digits before and 6 after the point, such as "199.90".',
    CURRENCY: "Must be an ISO 4217 code, such as CNY.",
    CODE: "Must be a code of 1 to 32 letters, digits, dots, underscores or dashes.",
    TERM: "Must be a term of small letters, digits and underscores, such as wechat_pay.",
    PROGRAMME_ID: "Must be a programme's id: small letters, digits and dashes.",
    TIME_OF_DAY: 'Must be a time of day between "00:00" and "23:59".',
    DAY: "Must be a date, such as 2024-05-01.",
    COUNTRY: "Must be the two capital letters of a country (ISO 3166-1), such as CN.",
    REGION: "Must be the two letters of a country (ISO 3166-1), such as CN.",
    NOT_BLANK: "Must hold more than white space; null, where it may be left out, says nothing.",
}
_TYPES = {
    "str": "text",
    "int": "a whole number",
    "float": "a number with a fraction or an exponent",
    "bool": "true or false",
    "null": "null",
    "array": "a list",
    "object": "an object",
    "datetime": "a time, such as 2026-11-21T18:03:11+08:00",
}

OperationId = Annotated[
    str, Meta(pattern=OPERATION_ID, description="Made by the caller, unique for ever. A replay gives the first answer.")
]
Uuid = Annotated[str, Meta(pattern=UUID)]
Quantity = Annotated[str, Meta(pattern=QUANTITY, description="Decimal text, more than zero", examples=["1.250"])]
UnitPrice = Annotated[str, Meta(pattern=UNIT_PRICE, description="Decimal text in major units", examples=["199.90"])]
Currency = Annotated[str, Meta(pattern=CURRENCY, description="ISO 4217", examples=["CNY"])]
Code = Annotated[str, Meta(pattern=CODE)]
Term = Annotated[str, Meta(pattern=TERM)]
ProgrammeId = Annotated[str, Meta(pattern=PROGRAMME_ID)]
AmountMinor = Annotated[int, Meta(ge=0, le=10**13, description="Minor units")]
Text64 = Annotated[str, Meta(max_length=64, extra_json_schema=NO_NUL)]
Text200 = Annotated[str, Meta(max_length=200, extra_json_schema=NO_NUL)]
Text500 = Annotated[str, Meta(max_length=500, extra_json_schema=NO_NUL)]
Reason = Annotated[str, Meta(min_length=1, max_length=200, pattern=NOT_BLANK, extra_json_schema=NO_NUL_NOT_BLANK)]

_fits_operation_id = re.compile(OPERATION_ID).search
_generic = msgspec.json.Decoder()
_sorted = msgspec.json.Encoder(order="sorted")
# An escape in text; the group is there when it is the first half of a character, and neither its second half nor the end follows.
_ESCAPE = re.compile(rb"\\(?:(u[dD][89abAB][0-9a-fA-F]{2})(?!\\u[dD][c-fC-F]|\\?u?[dD]?\Z)|.)", re.DOTALL)
# What was sent may stand before it, and look like it.
_AT = re.compile(r" - at `\$([^`]*)`$")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")
_MISSING = re.compile(r"missing required field `(.*)`")
_UNKNOWN = re.compile(r"unknown field `(.*)`", re.DOTALL)
_LIMIT = re.compile(r"Expected `(\w+)` (of length )?(>=|<=) (-?\d+)")
_TYPE = re.compile(r"Expected `(.+)`, got `(\w+)`")
_SENTENCE_OF = {f"Expected `str` matching regex {pattern!r}": sentence for pattern, sentence in SENTENCES.items()} | {
    "Expected `datetime` with a timezone component": "Add the offset from UTC, such as +08:00 or Z.",
    "Invalid RFC3339 encoded datetime": "Must be a time that exists, with its offset, such as 2026-11-21T18:03:11+08:00.",
}

T = TypeVar("T")


class Writing(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, gc=False):
    """The body of a write."""

    NEEDS_OPERATION_ID: ClassVar[bool] = True

    operation_id: OperationId | UnsetType = UNSET


class Body(Generic[T]):
    """Reads JSON of one type."""

    def __init__(self, kind: type[T]) -> None:
        self.kind = kind
        self._decoder = msgspec.json.Decoder(kind)

    def read(self, body: bytes, at: str = "") -> T:
        """The body as its type. `at` is the pointer of `body` itself, where it is a part of a larger one.

        Raises:
            Refusal: 400 with the pointer of the first fault.
        """
        try:
            value = self._decoder.decode(body)
        except msgspec.ValidationError as error:
            raise malformed([field_error(str(error), at, self.kind)]) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise malformed([FieldError(at, "invalid_json", _json_fault(error, body))]) from None
        # NUL is text in JSON and none in a database.
        if b"\\u0000" in body:
            refuse_nul(_generic.decode(body), at)
        return value


def _json_fault(error: Exception, body: bytes) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "The body must be JSON in UTF-8."
    if isinstance(error, RecursionError):
        return "The body is nested too deeply."
    fault = str(error).removeprefix("JSON is malformed: ")
    is_cut_off = fault == "Input data was truncated"
    # msgspec looks for the other half further on, and may find the end first.
    if "surrogate" in fault or (is_cut_off and any(each[1] for each in _ESCAPE.finditer(body))):
        return "Text must be Unicode: an escape from \\ud800 to \\udfff, half of a character, stands without its other half."
    return f"The body must be JSON: {'it ends too early' if is_cut_off else fault}."


def refuse_nul(value: object, at: str) -> None:
    """Refuses text that holds the character NUL, anywhere in a decoded body."""
    errors = [FieldError(pointer, "nul_character", "Text must not hold the character NUL.") for pointer in _texts_with_nul(value, at)]
    if errors:
        raise malformed(errors)


def _texts_with_nul(value: object, at: str) -> Iterator[str]:
    match value:
        case str() if "\0" in value:
            yield at
        case list():
            for index, item in enumerate(value):
                yield from _texts_with_nul(item, f"{at}/{index}")
        case dict():
            for key, item in value.items():
                if "\0" in key:
                    yield at
                yield from _texts_with_nul(item, f"{at}/{escaped(key)}")
        case _:
            pass


def escaped(key: str) -> str:
    """A key as a step of a JSON pointer (RFC 6901)."""
    return key.replace("~", "~0").replace("/", "~1")


def field_error(sentence: str, at: str = "", kind: Any = Any) -> FieldError:  # noqa: ANN401  # whatever is a type to msgspec
    """What msgspec found in a `kind`, with a JSON pointer, a code and a sentence to act on."""
    steps: list[str] = []
    if place := _AT.search(sentence):
        sentence = sentence[: place.start()]
        steps = [name or index for name, index in _STEP.findall(place[1])]
        at += "".join("/" + step for step in steps)
    if missing := _MISSING.search(sentence):
        return FieldError(f"{at}/{escaped(missing[1])}", "missing", "This field is required.")
    if unknown := _UNKNOWN.search(sentence):
        return FieldError(f"{at}/{escaped(unknown[1][:100])}", "unknown_field", "This field is not known here.")
    if known := _SENTENCE_OF.get(sentence):
        return FieldError(at, "invalid_format", known)
    if wrong := _TYPE.fullmatch(sentence):
        expected = " or ".join(_TYPES.get(each, each) for each in wrong[1].split(" | "))
        return FieldError(at, "wrong_type", f"Must be {expected}, not {_TYPES.get(wrong[2], wrong[2])}.")
    if limit := _LIMIT.fullmatch(sentence):
        return FieldError(at, "out_of_range", _limit_sentence(*limit.groups()))
    if sentence.startswith("Invalid enum value "):
        choices = _choices(inspect.type_info(kind), steps)
        return FieldError(at, "unknown_name", f"Must be {' or '.join(choices)}." if choices else "This value is not known here.")
    # What is left is a number that no field takes.
    return FieldError(at, "out_of_range", "The number is too large.")


def _choices(kind: inspect.Type, steps: Sequence[str]) -> list[str]:
    """What may stand at a place of a body, where that is one of a few values."""
    match kind:
        case inspect.Metadata():
            return _choices(kind.type, steps)
        case inspect.UnionType():
            return [choice for each in kind.types for choice in _choices(each, steps)]
        case inspect.StructType() if steps:
            return [choice for each in kind.fields if each.encode_name == steps[0] for choice in _choices(each.type, steps[1:])]
        case inspect.ListType() if steps:
            return _choices(kind.item_type, steps[1:])
        case inspect.LiteralType() if not steps:
            return [str(value) for value in kind.values]
        case _:
            return []


def _limit_sentence(kind: str, length: str | None, side: str, bound: str) -> str:
    verb = "be" if not length else "have" if kind == "str" else "hold"
    unit = "" if not length else " characters" if kind == "str" else " items"
    if bound == "1":
        unit = unit.removesuffix("s")
    return f"Must {verb} {'at least' if side == '>=' else 'at most'} {bound}{unit}."


class Fingerprints:
    """Makes fingerprints: the keyed hash of method, path and canonical JSON, by which a replay is told from a reuse."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def of(self, method: str, path: str, body: bytes) -> bytes:
        """The fingerprint of a request, whatever the order of its keys and its operation id."""
        content: Any = _generic.decode(body)
        if isinstance(content, dict):
            content.pop("operation_id", None)
        asked = f"{method}\n{path}\n".encode() + _sorted.encode(content)
        return hashlib.blake2b(asked, digest_size=32, key=self._key).digest()


def operation_id_of(body: Writing, header: str | None) -> str:
    """The operation id of the body or, where it has none, of the header Idempotency-Key."""
    if body.operation_id is not UNSET:
        return body.operation_id
    if header is None:
        raise operation_id_missing()
    if not _fits_operation_id(header):
        raise malformed([FieldError("/header/Idempotency-Key", "invalid_format", SENTENCES[OPERATION_ID])])
    return header
