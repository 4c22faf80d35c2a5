"""Parameters that many routes take in their path or query, and the refusal of all others."""

from typing import Annotated, cast

from fastapi import Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import AfterValidator, BeforeValidator
from pydantic_core import PydanticCustomError

from gateway.bodies import OPERATION_ID, PROGRAMME_ID, SENTENCES, UUID
from gateway.http import refuse_unknown_parameters
from gateway.problems import malformed
from kit.problems import FieldError, Refusal

# Pydantic's engine knows no look-ahead and its `$` matches at the end only.
_END = r"(?!\n)"
_UUID = UUID.removesuffix(_END)
_PROGRAMME_ID = PROGRAMME_ID.removesuffix(_END)
_OPERATION_ID = OPERATION_ID.removesuffix(_END)
_UUIDS = f"^{_UUID[1:-1]}(,{_UUID[1:-1]})*$"
_CURSOR = "^[A-Za-z0-9._~=-]+$"
_CURSOR_SENTENCE = "Must be the `next_cursor` of the page before."
_SENTENCE_OF = {pattern.removesuffix(_END): sentence for pattern, sentence in SENTENCES.items()} | {
    _CURSOR: _CURSOR_SENTENCE,
    _UUIDS: "Must be ids (UUID), with commas between.",
}


def _digits(given: str) -> str:
    """Python reads `1_0` and `1.0` as numbers too."""
    if not (given.isascii() and given.isdigit()):
        raise PydanticCustomError("int_parsing", "Not a whole number")
    return given


Limit = Annotated[int, Query(ge=1, le=500, description="Items of a page"), BeforeValidator(_digits)]
Cursor = Annotated[str | None, Query(min_length=1, max_length=500, pattern=_CURSOR, description="`next_cursor` of the page before")]
MemberId = Annotated[str, Path(pattern=_UUID), AfterValidator(str.lower)]
SaleId = Annotated[str, Path(pattern=_UUID), AfterValidator(str.lower)]
StoreId = Annotated[str, Path(pattern=_UUID), AfterValidator(str.lower)]
OperationIdInPath = Annotated[str, Path(pattern=_OPERATION_ID)]
ProgrammeIdInPath = Annotated[str, Path(pattern=_PROGRAMME_ID)]
OfStore = Annotated[str | None, Query(pattern=_UUID, description="Only this store's")]
OfStores = Annotated[str | None, Query(max_length=10_000, pattern=_UUIDS, description="Only these stores' (ids, with commas between)")]
OfProgramme = Annotated[str | None, Query(pattern=_PROGRAMME_ID, description="The programme; the chain's default one where none is given")]

DEFAULT_LIMIT = 50


async def refuse_unknown(request: Request) -> None:
    """Dependency of every route: query parameters that it does not declare are refused."""
    route = cast("APIRoute", request.scope["route"])
    refuse_unknown_parameters(request.scope["query_string"], {parameter.alias for parameter in route.dependant.query_params})


def as_refusal(error: RequestValidationError) -> Refusal:
    """What FastAPI found wrong with a path or a query, in the form that bodies are refused in."""
    return malformed([_field_error(fault) for fault in error.errors()])


def _field_error(fault: dict[str, object]) -> FieldError:
    pointer = "/" + "/".join(str(step) for step in cast("tuple[object, ...]", fault["loc"]))
    match fault["type"]:
        case "string_pattern_mismatch":
            return FieldError(pointer, "invalid_format", _SENTENCE_OF[_bound(fault, "pattern")])
        case "string_too_short" | "string_too_long":
            # Only a cursor has a length.
            return FieldError(pointer, "out_of_range", _CURSOR_SENTENCE)
        case "missing":
            return FieldError(pointer, "missing", "This parameter is required.")
        case "int_parsing" | "int_parsing_size":
            return FieldError(pointer, "wrong_type", "Must be a whole number in digits.")
        case "greater_than_equal":
            return FieldError(pointer, "out_of_range", f"Must be at least {_bound(fault, 'ge')}.")
        case "less_than_equal":
            return FieldError(pointer, "out_of_range", f"Must be at most {_bound(fault, 'le')}.")
        case _:
            return FieldError(pointer, "out_of_range", f"{fault['msg']}.")


def _bound(fault: dict[str, object], name: str) -> str:
    return str(cast("dict[str, object]", fault["ctx"])[name])
