"""Settings come from environment variables into one frozen dataclass per service, all checked at the start.

Each field is declared as `database_url: str = env("MEMBER_DATABASE_URL")` or with a default, `env("MEMBER_POOL_SIZE", "8")`;
`load(Settings)` reads them all.
"""

import os
from collections.abc import Mapping
from dataclasses import field, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

T = TypeVar("T")


class SettingsInvalid(Exception):
    """Settings are missing or not of their kind; the text has one sentence for each."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def env(name: str, default: str | None = None) -> Any:  # noqa: ANN401  # stands for the value of any field
    """A setting read from the variable `name`, as text, `int`, `bool` or `Path` by its annotation; required without a default.

    An empty variable counts as absent.
    """
    return field(metadata={"env": name, "default": default})


def load(settings: type[T], environ: Mapping[str, str] | None = None) -> T:
    """The settings of the environment.

    Raises:
        SettingsInvalid: naming every fault at once.
    """
    source = os.environ if environ is None else environ
    kinds = get_type_hints(settings)
    values: dict[str, Any] = {}
    faults: list[str] = []
    for declared in fields(settings):  # type: ignore[arg-type]  # any dataclass
        name, default = declared.metadata["env"], declared.metadata["default"]
        text = source.get(name) or default
        if text is None:
            faults.append(f"Set {name}.")
            continue
        try:
            values[declared.name] = _READERS[kinds[declared.name]](text)
        except ValueError as error:
            faults.append(f"{name} must be {error}.")
    if faults:
        raise SettingsInvalid(faults)
    return settings(**values)


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("a whole number") from None


def _yes_or_no(text: str) -> bool:
    try:
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    except KeyError:
        raise ValueError("true or false") from None


_READERS: dict[type, Any] = {str: str, int: _whole_number, bool: _yes_or_no, Path: Path}
