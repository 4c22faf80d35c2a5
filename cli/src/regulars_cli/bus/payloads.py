"""What an event says, for a person: its message as JSON where this release knows it."""

import base64
from importlib import import_module
from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.message import DecodeError


def readable(type_: str, payload: bytes) -> Any:  # noqa: ANN401  # JSON of any message
    """The fields of a message; for one that cannot be decoded here, its bytes in base64."""
    try:
        package = type_.rpartition(".")[0]
        for entry in files(package).iterdir():
            if entry.name.endswith("_events_pb2.py"):
                import_module(f"{package}.{entry.name.removesuffix('.py')}")
        message = message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(type_)).FromString(payload)
    except (ImportError, KeyError, ValueError, DecodeError):
        return {"base64": base64.b64encode(payload).decode()}
    return json_format.MessageToDict(message, preserving_proto_field_name=True)
