"""Request bodies: decoded into their type, or refused with a pointer and a sentence; and the fingerprint of what was asked.

Types are msgspec structs that forbid unknown fields. Their patterns end in `END`, since Python's `$` also matches before a last
newline; the OpenAPI document shows the plain `$`.
"""

import hashlib
import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gateway.problems import malformed, operation_id_missing
from kit.problems import FieldError

END = r"$(?!\n)"
NO_NUL = {"pattern": "^[^\\u0000]*$"}

OPERATION_ID = r"^[A-Za-z0-9._:-]{1,100}" + END
UUID = r"^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}" + END
QUANTITY = r"^(?!0+(\.0+)?$)(0|[1-9][0-9]{0,11})(\.[0-9]{1,6})?" + END
UNIT_PRICE = r"^(0|[1-9][0-9]{0,11})(\.[0-9]{1,6})?" + END
CURRENCY = r"^[A-Z]{3}" + END
CODE = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}" + END
TERM = r"^[a-z][a-z0-9_]{0,31}" + END
PROGRAMME_ID = r"^[a-z0-9][a-z0-9-]{0,62}" + END

SENTENCES = {
    OPERATION_ID: "Must be 1 to 100 letters, digits, dots, underscores, colons or dashes.",
    UUID: "Must be an id (UUID).",
    QUANTITY: 'Must be a decimal in a string, more than zero, with at most 12 digits before and 6 after the point, such as "1.250".',
    UNIT_PRICE: 'Must be a decimal in a string with at most 12 digits before and 6 after the point, such as "199.90".',
    CURRENCY: "Must be an ISO 4217 code, such as CNY.",
    CODE: "Must be a code of 1 to 32 letters, digits, dots, underscores or dashes.",
    TERM: "Must be a term of small letters, digits and underscores, such as wechat_pay.",
    PROGRAMME_ID: "Must be a programme's id: small letters, digits and dashes.",
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

_fits_operation_id = re.compile(OPERATION_ID).search
_generic = msgspec.json.Decoder()
_sorted = msgspec.json.Encoder(order="sorted")
_AT = re.compile(r" - at `\$(.*)`$")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")
_MISSING = re.compile(r"missing required field `(.*)`")
_UNKNOWN = re.compile(r"unknown field `(.*)`", re.DOTALL)
_SENTENCE_OF = {f"Expected `str` matching regex {pattern!r}": sentence for pattern, sentence in SENTENCES.items()}

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
            raise malformed([field_error(str(error), at)]) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise malformed([FieldError(at, "invalid_json", _json_fault(error))]) from None
        # NUL is text in JSON and none in a database.
        if b"\\u0000" in body:
            refuse_nul(_generic.decode(body), at)
        return value


def _json_fault(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "The body must be JSON in UTF-8."
    if isinstance(error, RecursionError):
        return "The body is nested too deeply."
    return f"The body must be JSON: {error}."


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


def field_error(sentence: str, at: str = "") -> FieldError:
    """What msgspec found, with a JSON pointer, a code and a sentence to act on."""
    if place := _AT.search(sentence):
        sentence = sentence[: place.start()]
        at += "".join("/" + (name or index) for name, index in _STEP.findall(place[1]))
    if missing := _MISSING.search(sentence):
        return FieldError(f"{at}/{escaped(missing[1])}", "missing", "This field is required.")
    if unknown := _UNKNOWN.search(sentence):
        return FieldError(f"{at}/{escaped(unknown[1][:100])}", "unknown_field", "This field is not known here.")
    if known := _SENTENCE_OF.get(sentence):
        return FieldError(at, "invalid_format", known)
    code = "wrong_type" if ", got " in sentence else "out_of_range"
    return FieldError(at, code, sentence.replace("`", "") + ".")


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
