"""The registry of topics as it is written in protos/topics.yaml, which installs as the resource `topics.yaml` of the package `regulars`."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Literal

import msgspec
import yaml
from msgspec import Meta, Struct

from kit.bus.interface import TopicSpec

# Longer than anyone leaves a dead letter lying; the topic is also the record of who replayed or discarded what.
DEAD_LETTERS_RETENTION = timedelta(days=3650)

Classification = Literal["impersonal", "pseudonymous", "profile"]
_Service = Annotated[str, Meta(pattern="^[a-z][a-z0-9-]*$")]
_MessageName = Annotated[str, Meta(pattern=r"^regulars\.[a-z0-9_]+\.v[1-9][0-9]*\.[A-Z][A-Za-z0-9]*$")]
_TopicName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]*\.[a-z][a-z0-9-]*\.v[1-9][0-9]*$")]
_Sentence = Annotated[str, Meta(min_length=1)]


class TopicsInvalid(Exception):
    """The registry is not as it must be; the sentence names the place."""


class _Entry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A topic as it is written, but for its name."""

    description: _Sentence
    owner: _Service
    producers: Annotated[tuple[_Service, ...], Meta(min_length=1)]
    consumers: tuple[_Service, ...]
    messages: Annotated[tuple[_MessageName, ...], Meta(min_length=1)]
    key: _Sentence
    partitions: Annotated[int, Meta(ge=1, le=1000)]
    retention_days: Annotated[int, Meta(ge=1, le=3650)]
    classification: Classification


class Topic(_Entry, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One topic. `messages` are full protobuf names; `classification` is what they may say about people."""

    name: _TopicName

    def spec(self) -> TopicSpec:
        """What a backend creates."""
        return TopicSpec(self.name, self.partitions, timedelta(days=self.retention_days))


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    topics: dict[_TopicName, _Entry]


def load_topics(text: str) -> tuple[Topic, ...]:
    """The topics of a registry, in the order in which they are written.

    Raises:
        TopicsInvalid: naming the first fault.
    """
    try:
        written = msgspec.convert(yaml.load(text, _Loader), _File)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise TopicsInvalid(f"topics.yaml, {line}{error.problem or error.context}.") from error
    except yaml.YAMLError as error:
        raise TopicsInvalid(f"topics.yaml is not YAML: {error}.") from error
    except msgspec.ValidationError as error:
        raise TopicsInvalid(f"topics.yaml: {error}.") from error
    topics = tuple(Topic(name=name, **msgspec.structs.asdict(entry)) for name, entry in written.topics.items())
    topic_of_message: dict[str, str] = {}
    for topic in topics:
        _check(topic)
        for message in topic.messages:
            other = topic_of_message.setdefault(message, topic.name)
            if other != topic.name:
                raise TopicsInvalid(f"topics.yaml: {message} is a message of both {other} and {topic.name}.")
    return topics


def all_specs(topics: Sequence[Topic]) -> tuple[TopicSpec, ...]:
    """What a backend creates: the topics, and one of dead letters for each of their consumers."""
    consumers = sorted({consumer for topic in topics for consumer in topic.consumers})
    dead_letters = (TopicSpec(dead_letters_topic(consumer), 1, DEAD_LETTERS_RETENTION) for consumer in consumers)
    return (*(topic.spec() for topic in topics), *dead_letters)


def dead_letters_topic(consumer: str) -> str:
    """The topic of what a consumer could not handle."""
    return f"dead-letters.{consumer}.v1"


def _check(topic: Topic) -> None:
    """Raises TopicsInvalid unless the parts of a topic fit one another."""
    service, _, version = topic.name.split(".")
    if topic.owner != service:
        raise TopicsInvalid(f"topics.yaml: {topic.name} is named after {service} and owned by {topic.owner}.")
    package = f"regulars.{service.replace('-', '_')}.{version}."
    for message in topic.messages:
        if not message.startswith(package):
            raise TopicsInvalid(f"topics.yaml: {message} of {topic.name} is not in the package {package[:-1]}.")
    for field in ("producers", "consumers", "messages"):
        values = getattr(topic, field)
        if len(set(values)) != len(values):
            raise TopicsInvalid(f"topics.yaml: {topic.name} names one of its {field} twice.")


class _Loader(yaml.SafeLoader):
    """YAML in which a key given twice is a fault; otherwise the second silently takes the place of the first."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[object, object]:
    found: dict[object, object] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in found:
            raise yaml.MarkedYAMLError(problem=f"the key {key!r} is given twice", problem_mark=key_node.start_mark)
        found[key] = loader.construct_object(value_node, deep=True)
    return found


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
