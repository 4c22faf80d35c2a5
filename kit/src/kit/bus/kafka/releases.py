"""Which release of Kafka a broker runs, as far as it says.

No answer names it. But a broker tells which levels of the cluster's metadata it knows, and every release since 3.3 knows a newer one than
the release before (`metadata.version`, of Kafka's `MetadataVersion`). It is in the form of the first answer on a connection that the
client does not ask for (version 3, KIP-584), so it is written down here.
"""

from io import BytesIO
from typing import Any

from aiokafka.protocol.admin import ApiVersionRequest_v0
from aiokafka.protocol.api import Request, RequestStruct, Response, ResponseHeader_v0
from aiokafka.protocol.types import CompactArray, CompactString, Int16, Int32, Schema, TaggedFields

_API_VERSIONS = ApiVersionRequest_v0.API_KEY
_FIRST_WITH_FEATURES = 3
_FEATURE = "metadata.version"
# Of the tagged fields of the answer, the one that says what the broker itself supports.
_SUPPORTED = 0
_FEATURES = CompactArray(("name", CompactString("utf-8")), ("least", Int16), ("most", Int16), ("tags", TaggedFields))

# The first level of each release, the newest first.
_RELEASES = (
    (28, "4.2 or later"),
    (26, "4.1"),
    (22, "4.0"),
    (21, "3.9"),
    (20, "3.8"),
    (15, "3.7"),
    (12, "3.6"),
    (9, "3.5"),
    (8, "3.4"),
    (4, "3.3"),
)


class _Answer(Response):  # type: ignore[misc]  # aiokafka has no types
    API_KEY = _API_VERSIONS
    API_VERSION = _FIRST_WITH_FEATURES
    SCHEMA = Schema(
        ("error_code", Int16),
        ("requests", CompactArray(("api_key", Int16), ("least", Int16), ("most", Int16), ("tags", TaggedFields))),
        ("throttle_time_ms", Int32),
        ("tags", TaggedFields),
    )


class _QuestionStruct(RequestStruct):  # type: ignore[misc]  # aiokafka has no types
    API_KEY = _API_VERSIONS
    API_VERSION = _FIRST_WITH_FEATURES
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _Answer
    SCHEMA = Schema(("software", CompactString("utf-8")), ("version", CompactString("utf-8")), ("tags", TaggedFields))

    def parse_response_header(self, read_buffer: BytesIO | bytes) -> Any:  # noqa: ANN401  # aiokafka has no types
        # As the answer to one who may not know the newer form, it has the header of the older one.
        return ResponseHeader_v0.decode(read_buffer)


class Question(Request[_QuestionStruct]):  # type: ignore[misc]  # aiokafka has no types
    """What the broker supports. A broker of before 2.4 does not know it, and `NotImplementedError` is raised."""

    API_KEY = _API_VERSIONS

    def build(self, request_struct_class: type[_QuestionStruct]) -> _QuestionStruct:
        return request_struct_class("regulars", "1", {})


def level_in(answer: Any) -> int:  # noqa: ANN401  # aiokafka has no types
    """The newest level of the metadata that a broker knows; 0: it names none, as Kafka with ZooKeeper and servers of others do not."""
    tagged = answer.tags.get(_SUPPORTED)
    supported = _FEATURES.decode(BytesIO(tagged)) if tagged else []
    return next((most for name, _, most, _ in supported if name == _FEATURE), 0)


def release_of(level: int) -> str:
    """The release that knows no newer level than this; empty where none has it."""
    return next((release for first, release in _RELEASES if level >= first), "")
