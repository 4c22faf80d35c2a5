"""Writes docs/topics.md from protos/topics.yaml and the messages named there.

Usage: `python scripts/write_topics_page.py`; with `--check`, only says whether the page is current.
"""

import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path

from google.protobuf.descriptor import Descriptor, FileDescriptor

from kit.bus.topics import Topic, all_specs, load_topics

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "topics.md"
_HEAD = """# Topics

What travels on the bus. Written from `protos/topics.yaml` by `scripts/write_topics_page.py`: change the registry, not this page.

An event is published once it is true, in the order of its key, at least once; it holds ids, amounts and codes, no personal data. Its id,
type, time and trace travel in headers (CloudEvents; `content-type: application/protobuf`). Consumers ignore fields they do not know, and
keep values of enumerations that they do not know.

| classification | what a message may say about people |
|---|---|
| impersonal | nothing, not even an id |
| pseudonymous | the id of a member, and what that member did |
| profile | coarse values besides: first year of a five-year age band, city, tier, date of joining |
"""


def main(arguments: list[str]) -> int:
    """Writes the page, or compares it; 1: it is not current."""
    page = page_of(load_topics((ROOT / "protos" / "topics.yaml").read_text(encoding="utf-8")))
    if arguments == ["--check"]:
        if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page:
            return 0
        print("docs/topics.md is not what protos/topics.yaml says: run `make protos` and commit.")
        return 1
    PAGE.write_text(page, encoding="utf-8")
    return 0


def page_of(topics: tuple[Topic, ...]) -> str:
    """The page as Markdown."""
    messages = event_messages()
    parts = [_HEAD]
    for topic in topics:
        rows = [
            ("owner", topic.owner),
            ("producers", ", ".join(topic.producers)),
            ("consumers", ", ".join(topic.consumers) or "none yet"),
            ("key", topic.key),
            ("partitions", topic.partitions),
            ("retention", f"{topic.retention_days} days"),
            ("classification", topic.classification),
        ]
        table = "".join(f"| {name} | {value} |\n" for name, value in rows)
        parts.append(f"\n## {topic.name}\n{topic.description}\n\n| | |\n|---|---|\n{table}\n")
        for name in topic.messages:
            message = messages[name]
            fields = ", ".join(f"`{field.name}`" for field in message.fields)
            parts.append(f"- [{message.name}](../protos/{message.file.name}) (`{name}`): {fields}\n")
    own = {topic.name for topic in topics}
    parts.append("\n## Dead letters\nWhat a consumer could not handle, one topic for each; see `regulars bus dead-letters`.\n\n")
    parts += [f"- `{spec.name}`: kept for {spec.retention.days} days\n" for spec in all_specs(topics) if spec.name not in own]
    return "".join(parts)


def event_messages() -> Mapping[str, Descriptor]:
    """Every message of every `*_events.proto`, by full name; those that are only parts of others too."""
    return {message.full_name: message for module in _modules() for message in module.message_types_by_name.values()}


def _modules() -> Iterator[FileDescriptor]:
    generated = ROOT / "protos" / "gen"
    for path in sorted(generated.glob("regulars/*/v*/*_events_pb2.py")):
        yield import_module(".".join(path.relative_to(generated).with_suffix("").parts)).DESCRIPTOR


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
