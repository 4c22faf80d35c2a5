"""Opaque cursors: where the next page begins, in a form that callers cannot build on."""

import base64
import binascii
from typing import Any, TypeVar

import msgspec

from kit.problems import FieldError, Refusal

T = TypeVar("T")

DEFAULT_PAGE = 50
LARGEST_PAGE = 500


def page_size(asked: int) -> int:
    """The number of items of a page: the default when none was asked for, at most the largest."""
    return min(asked, LARGEST_PAGE) if asked > 0 else DEFAULT_PAGE


def cursor(*position: object) -> str:
    """The cursor of a position in a list."""
    return base64.urlsafe_b64encode(msgspec.json.encode(position)).decode().rstrip("=")


def position_of(text: str, kind: type[T]) -> T | None:
    """The position in a cursor, as a tuple of the given type; None for the first page. Raises Refusal `cursor_invalid`."""
    if not text:
        return None
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), type=kind)
    except (binascii.Error, msgspec.DecodeError, ValueError):
        detail = "Send the next_cursor of the page before, or none to begin."
        raise Refusal("cursor_invalid", 400, "Cursor not valid", detail, [FieldError("/query/cursor", "cursor_invalid", detail)]) from None


def page(items: list[Any], next_cursor: str | None) -> dict[str, Any]:
    """A page of a list as the API gives it."""
    return {"items": items, "next_cursor": next_cursor}
