"""The refusals that the edge itself decides. None of them is stored: the same request may succeed later."""

from kit.problems import FieldError, Refusal


def malformed(errors: list[FieldError]) -> Refusal:
    """400: the request is not of the documented form."""
    code = "unknown_field" if all(error.code == "unknown_field" for error in errors) else "malformed"
    return Refusal(code, 400, "The request is malformed", "Correct what `errors` names and send it again.", errors)


def operation_id_missing() -> Refusal:
    """400: a write without an operation id could not be repeated safely."""
    return Refusal(
        "operation_id_missing",
        400,
        "The operation id is missing",
        "Make an operation_id for this write and send it in the body (or as the header Idempotency-Key); repeat it on a retry.",
        [FieldError("/operation_id", "missing", "Required: 1 to 100 letters, digits, dots, underscores, colons or dashes.")],
    )


def unauthenticated() -> Refusal:
    """401: no key, or one that is not known or was revoked."""
    return Refusal("unauthenticated", 401, "Not authenticated", "Send a valid key as `Authorization: Bearer <key>`.")


def forbidden(role: str) -> Refusal:
    """403: the key is good, but not for this."""
    return Refusal("forbidden", 403, "Not allowed", f"This needs a key with the role `{role}`.")


def store_not_allowed() -> Refusal:
    """403: the key is for other stores."""
    return Refusal("store_not_allowed", 403, "Not allowed", "This key may not act in that store.")


def store_not_found() -> Refusal:
    """404: there is no store of this id."""
    return Refusal("store_not_found", 404, "No such store", "Check the store's id: GET /v1/stores lists them.")


def body_too_large(limit: int) -> Refusal:
    """413: the body is longer than the route takes."""
    return Refusal("body_too_large", 413, "The body is too large", f"Send at most {limit} bytes; split the request.")


def unsupported_media_type() -> Refusal:
    """415: bodies are JSON."""
    return Refusal("unsupported_media_type", 415, "The content type is not supported", "Send JSON as `Content-Type: application/json`.")


def unsupported_content_encoding() -> Refusal:
    """415: bodies are read as they come."""
    return Refusal(
        "unsupported_content_encoding", 415, "The content encoding is not supported", "Send the body as it is, without a Content-Encoding."
    )


def internal_error() -> Refusal:
    """500: a fault of ours."""
    return Refusal(
        "internal_error", 500, "Internal error", "Send it again under the same operation_id; report the X-Request-Id if it fails again."
    )


def too_busy() -> Refusal:
    """503: more writes are waiting than can be decided in time."""
    return Refusal("too_busy", 503, "Too busy", "Nothing was done. Send it again shortly, under the same operation_id.")


def member_away() -> Refusal:
    """503: the member service did not answer in time. Whether a write was decided is not known here."""
    return Refusal(
        "member_unavailable",
        503,
        "The member service is away",
        "Send it again shortly, a write under the same operation_id; GET /v1/operations/{operation_id} tells what became of a write.",
    )


def reporting_away() -> Refusal:
    """503: the reporting service did not answer in time. It only reads."""
    return Refusal("reporting_unavailable", 503, "The reporting service is away", "Nothing was lost. Send it again shortly.")


def too_many_streams() -> Refusal:
    """503: as many clients watch as one gateway serves."""
    return Refusal("too_many_streams", 503, "Too many streams", "End the streams that nobody looks at, or try again later.")


def database_away() -> Refusal:
    """503: the gateway's own database did not answer."""
    return Refusal("gateway_database_unavailable", 503, "The gateway's database is away", "Nothing was done. Send it again shortly.")
