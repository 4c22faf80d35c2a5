"""Problem documents say what to do, in the public form."""

import contextlib
from collections.abc import Iterator

import msgspec
import pytest

from kit.problems import FieldError, Refusal, render


def test_a_refusal_renders_as_an_rfc_9457_document() -> None:
    refusal = Refusal(
        "phone_invalid", 422, "The phone is not valid", "Check the number.", [FieldError("/phone", "invalid", "Not a number.")]
    )
    assert msgspec.json.decode(render(refusal)) == {
        "type": "urn:regulars:problem:phone_invalid",
        "title": "The phone is not valid",
        "status": 422,
        "detail": "Check the number.",
        "code": "phone_invalid",
        "errors": [{"pointer": "/phone", "code": "invalid", "detail": "Not a number."}],
    }


def test_a_refusal_passes_through_context_managers() -> None:
    @contextlib.contextmanager
    def block() -> Iterator[None]:
        yield

    with pytest.raises(Refusal, match="not_there"), block():
        raise Refusal("not_there", 404, "Not there", "Look elsewhere.")
