"""The registry of topics holds what there is, and no event holds personal data: neither a field that could, nor a value that does."""

import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from kit.bus.topics import Topic, load_topics
from regulars.member.v1 import member_service_pb2
from scripts.write_topics_page import event_messages
from tests.topics.examples import SECRETS, examples

ROOT = Path(__file__).parents[2]
TOPICS = load_topics((ROOT / "protos" / "topics.yaml").read_text(encoding="utf-8"))
MESSAGES = event_messages()

# Parts of a name that say that a person is told of, whatever the type.
PERSONAL = {
    "name", "phone", "mobile", "tel", "email", "mail", "card", "birthday", "birthdate", "born", "age", "address", "street", "postcode",
    "gender", "sex", "passport", "identity", "wechat", "openid", "unionid", "ip", "imei", "serial", "serials", "face", "photo", "latitude",
    "longitude",
}  # fmt: skip
# Parts of a name that say that somebody types what they like.
FREE_TEXT = {
    "reason",
    "description",
    "note",
    "notes",
    "comment",
    "remark",
    "text",
    "message",
    "title",
    "detail",
    "reference",
    "label",
    "body",
}

# What a text may be: its field says which, and its value must look like it. Anything else needs a decision, here.
UUID = r"([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})?"
CODE = r"[\w .:/-]{0,64}"
TEXTS = {
    r".*_id": UUID,
    r"programme_id": r"[a-z0-9-]{1,40}",
    r"day|business_day|joined_on": r"\d{4}-\d{2}-\d{2}",
    r"currency": r"[A-Z]{3}",
    r"quantity": r"\d+(\.\d+)?",
    r"channel|staff_code|sku|category": CODE,
    r"kind|changed_fields": r"[a-z_]+",
    r"city": r"\w*",
}
# What may be told of people, by classification.
OF_MEMBERS = {"member_id", "staff_code"}
PROFILE = {"birth_year_from", "city", "tier", "joined_on", "changed_fields"}
ALLOWED = {"impersonal": set[str](), "pseudonymous": OF_MEMBERS, "profile": OF_MEMBERS | PROFILE}


def parts_of(message: Descriptor) -> Iterator[Descriptor]:
    """The message and those that it holds."""
    yield message
    for field in message.fields:
        if field.message_type is not None:
            yield from parts_of(field.message_type)


def fields_of(topic: Topic) -> Iterator[FieldDescriptor]:
    for name in topic.messages:
        for part in parts_of(MESSAGES[name]):
            yield from part.fields


def faults_of(field: FieldDescriptor, classification: str) -> Iterator[str]:
    """Why a field may not be in an event of a topic."""
    words = set(field.name.split("_"))
    if words & PERSONAL:
        yield f"{field.full_name} is named like a personal value"
    if words & FREE_TEXT:
        yield f"{field.full_name} is named like free text"
    if field.name in (OF_MEMBERS | PROFILE) - ALLOWED[classification]:
        yield f"{field.full_name} says more about people than a topic that is {classification} may"
    if field.type == FieldDescriptor.TYPE_BYTES:
        yield f"{field.full_name} may hold anything"
    if field.message_type is not None and field.message_type.full_name.startswith("google.protobuf."):
        yield f"{field.full_name} may hold anything"
    if field.type == FieldDescriptor.TYPE_STRING and not any(re.fullmatch(pattern, field.name) for pattern in TEXTS):
        yield f"{field.full_name} is a text of no known kind"


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.name)
def test_no_field_could_hold_personal_data(topic: Topic) -> None:
    assert [fault for field in fields_of(topic) for fault in faults_of(field, topic.classification)] == []


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.name)
def test_every_message_has_an_example_that_is_decoded_and_holds_none(topic: Topic) -> None:
    made = examples()
    for name in topic.messages:
        for event in made[name]:
            assert event.topic == topic.name
            assert re.fullmatch(UUID, event.key)
            message = message_factory.GetMessageClass(MESSAGES[name]).FromString(event.payload)
            assert message.SerializeToString() == event.payload
            assert message.ListFields()
            for field, value in texts_of(message):
                patterns = [TEXTS[pattern] for pattern in TEXTS if re.fullmatch(pattern, field)]
                assert re.fullmatch(patterns[-1], value), f"{name}: {field} is {value!r}"
            for secret in SECRETS:
                assert secret.encode() not in event.payload
                assert secret not in str(message)


def texts_of(message: Any) -> Iterator[tuple[str, str]]:
    """Every text in a message, with its field."""
    for field, value in message.ListFields():
        for each in value if field.is_repeated else [value]:
            if field.message_type is not None:
                yield from texts_of(each)
            elif isinstance(each, str):
                yield field.name, each


def test_every_event_is_in_the_registry_and_every_message_of_the_registry_exists() -> None:
    named = {name for topic in TOPICS for name in topic.messages}
    assert named <= set(MESSAGES)
    parts = {part.full_name for name in named for part in parts_of(MESSAGES[name])}
    assert parts == set(MESSAGES), "an event that no topic names, or a message that no event holds"


def test_producers_and_consumers_are_services() -> None:
    services = {path.parent.name for path in (ROOT / "services").glob("*/pyproject.toml")}
    for topic in TOPICS:
        assert {topic.owner, *topic.producers, *topic.consumers} <= services
        assert topic.owner in topic.producers


def test_the_installed_registry_is_the_one_in_protos() -> None:
    installed = files("regulars").joinpath("topics.yaml").read_text(encoding="utf-8")
    assert load_topics(installed) == TOPICS


@pytest.mark.parametrize(
    "field,classification,says",
    [
        ("phone", "profile", "personal value"),
        ("name", "profile", "personal value"),
        ("phone_verified", "profile", "personal value"),
        ("body", "profile", "free text"),
        ("member_id", "impersonal", "more about people"),
        ("city", "pseudonymous", "more about people"),
        ("request_id", "profile", None),
        ("path", "profile", "no known kind"),
        ("fingerprint", "profile", "may hold anything"),
    ],
)
def test_a_field_that_could_hold_personal_data_is_refused(field: str, classification: str, says: str | None) -> None:
    """Fields of messages that are no events."""
    every = {each.name: each for message in member_service_pb2.DESCRIPTOR.message_types_by_name.values() for each in message.fields}
    faults = list(faults_of(every[field], classification))
    assert (says is None and not faults) or any(says is not None and says in fault for fault in faults)
