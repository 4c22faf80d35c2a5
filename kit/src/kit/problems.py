"""Refusals, and the problem documents (RFC 9457) that callers see.

A refusal is an answer, not a fault: a stable `code` for programs and a `detail` that tells a person what to do. Neither carries
a stack, SQL or a personal value.
"""

from collections.abc import Iterable

import msgspec

CONTENT_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:regulars:problem:"


class FieldError(msgspec.Struct, frozen=True):
    """One fault of one field. `pointer` is a JSON pointer into the body, or `/query/…`, `/path/…`, `/header/…`."""

    pointer: str
    code: str
    detail: str


class Problem(msgspec.Struct, frozen=True):
    """The public form of a refusal."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[FieldError]


class Refusal(Exception):
    """What was asked is not done, and why.

    `status` is the HTTP status: 400 malformed, 401, 403, 404, 409 state or replay conflict, 422 a rule refuses, 429, 503.
    (Not a frozen dataclass: `contextlib` sets the traceback of an exception that passes through it.)
    """

    def __init__(self, code: str, status: int, title: str, detail: str, errors: Iterable[FieldError] = ()) -> None:
        super().__init__(code)
        self.code = code
        self.status = status
        self.title = title
        self.detail = detail
        self.errors = tuple(errors)

    def __repr__(self) -> str:
        return f"Refusal({self.code!r}, {self.status})"


_encoder = msgspec.json.Encoder()


def problem(refusal: Refusal) -> Problem:
    """The problem document of a refusal, for a place inside a larger answer."""
    return Problem(TYPE_PREFIX + refusal.code, refusal.title, refusal.status, refusal.detail, refusal.code, list(refusal.errors))


def render(refusal: Refusal) -> bytes:
    """The problem document of a refusal as JSON."""
    return _encoder.encode(problem(refusal))
