"""Mapping files: a YAML document that says what the columns and lines of a shop's export mean (docs/import.md)."""

import re
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

import msgspec
import yaml

from regulars_cli.imports.faults import MappingFault

Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]
# As the gateway takes them.
Code = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$")]
Term = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
ReasonCode = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A misspelt key is a fault, never ignored."""


class Columns(_Part, frozen=True):
    """The heading of each column. Optional ones may be absent from the mapping, not from a file that is mapped to have them."""

    invoice: Text
    sku: Text
    quantity: Text
    sold_at: Text
    unit_price: Text
    customer: Text | None = None
    description: Text | None = None
    category: Text | None = None
    country: Text | None = None

    def named(self) -> dict[str, str]:
        """Role and heading of every mapped column."""
        return {role: heading for role in self.__struct_fields__ if (heading := getattr(self, role)) is not None}


class Store(_Part, frozen=True):
    """Where everything in the file was sold. With `name` the import opens the store when the chain has none of this code."""

    code: Code
    till: Code
    zone: Text
    currency: Annotated[str, msgspec.Meta(pattern="^[A-Z]{3}$")]
    programme: Name
    name: Text | None = None


class SaleDefaults(_Part, frozen=True):
    channel: Term | None = None
    tender: Term = "other"


Sign = Literal["negative", "zero", "positive"]


class Conditions(_Part, frozen=True):
    """All that are given must hold."""

    invoice_begins: Text | None = None
    quantity: Sign | None = None
    unit_price: Sign | None = None


class LineRule(_Part, frozen=True):
    """What a line is. A skipped one goes to the rejects file with `code` and `because`."""

    kind: Literal["sale", "credit_note", "skipped"] = msgspec.field(name="is")
    when: Conditions = Conditions()
    code: ReasonCode | None = None
    because: Text | None = None


class Mapping(_Part, frozen=True):
    """A mapping file of format 1."""

    format: Literal["1"]
    name: Name
    columns: Columns
    sold_at_formats: Annotated[list[Text], msgspec.Meta(min_length=1)]
    store: Store
    lines: Annotated[list[LineRule], msgspec.Meta(min_length=1)]
    sale: SaleDefaults = SaleDefaults()
    encoding: Text = "utf-8"
    delimiter: Annotated[str, msgspec.Meta(min_length=1, max_length=1)] = ","
    countries: dict[str, Annotated[str, msgspec.Meta(pattern="^[A-Z]{2}$")]] = {}

    def operation_id(self, *parts: object) -> str:
        """`name:part:part…`: the same for the same line of business whenever and from whichever file it is imported."""
        return ":".join((self.name, *map(str, parts)))

    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.store.zone)


def shipped_mappings() -> list[str]:
    """Names that `--mapping` takes without a path."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _shelf().iterdir() if entry.name.endswith(".yaml"))


def load_mapping(name: str) -> Mapping:
    """The shipped mapping of this name, or the one in the YAML file at this path. Raises MappingFault."""
    if name.endswith((".yaml", ".yml")):
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise MappingFault(f"The mapping file {name} cannot be read: {_reason(error)}.") from error
    elif re.fullmatch("[a-z0-9-]+", name) and (shipped := _shelf() / f"{name}.yaml").is_file():
        text = shipped.read_text(encoding="utf-8")
    else:
        raise MappingFault(f"There is no mapping {name}: give one of {', '.join(shipped_mappings())}, or the path of a .yaml file.")
    return parse_mapping(text, name)


def parse_mapping(text: str, name: str) -> Mapping:
    """A mapping from its YAML text, checked whole. Raises MappingFault naming the key at fault."""
    try:
        # Every value is text: to YAML itself, NO is false, whether it is Norway or a column.
        mapping = msgspec.convert(yaml.load(text, Loader=yaml.BaseLoader), Mapping)  # noqa: S506  makes texts, lists and mappings only
    except yaml.YAMLError as error:
        raise MappingFault(f"The mapping {name} is not YAML: {' '.join(str(error).split())}.") from error
    except msgspec.ValidationError as error:
        raise MappingFault(f"The mapping {name} is not valid: {error}.") from error
    _check(mapping, name)
    return mapping


def _check(mapping: Mapping, name: str) -> None:
    def refuse(key: str, why: str) -> None:
        raise MappingFault(f"The mapping {name} is not valid: {why} - at `$.{key}`.")

    try:
        mapping.zone()
    except (KeyError, ValueError, OSError):
        refuse("store.zone", f"{mapping.store.zone} is not an IANA time zone such as Europe/London")
    try:
        "".encode(mapping.encoding)
    except LookupError:
        refuse("encoding", f"{mapping.encoding} is not a known text encoding")
    if any("%z" in form for form in mapping.sold_at_formats):
        refuse("sold_at_formats", "times are local to the store's zone, so a form has no %z")
    headings = list(mapping.columns.named().values())
    if len(set(headings)) != len(headings):
        refuse("columns", "two columns have the same heading")
    for index, rule in enumerate(mapping.lines):
        if (rule.kind == "skipped") != (rule.code is not None and rule.because is not None):
            refuse(f"lines[{index}]", "a skipped line, and only that, has a code and a because")
    if mapping.lines[-1].when != Conditions():
        refuse(f"lines[{len(mapping.lines) - 1}]", "the last rule must have no condition, so that every line is something")


def _shelf() -> resources.abc.Traversable:
    return resources.files("regulars_cli.imports") / "mappings"


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror or "it is unreadable" if isinstance(error, OSError) else "it is not UTF-8"
