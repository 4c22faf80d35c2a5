"""Settings are read from the environment, and every fault is named at once."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from kit.settings import SettingsInvalid, env, load


@dataclass(frozen=True, slots=True)
class Settings:
    url: str = env("X_URL")
    size: int = env("X_SIZE", "8")
    verbose: bool = env("X_VERBOSE", "false")
    key: Path = env("X_KEY", "keys/a")


def test_settings_are_read_by_their_kind() -> None:
    assert load(Settings, {"X_URL": "a", "X_SIZE": "9", "X_VERBOSE": "true"}) == Settings("a", 9, True, Path("keys/a"))


def test_every_fault_is_named() -> None:
    with pytest.raises(SettingsInvalid) as raised:
        load(Settings, {"X_URL": "", "X_SIZE": "many", "X_VERBOSE": "perhaps"})
    assert raised.value.faults == ["Set X_URL.", "X_SIZE must be a whole number.", "X_VERBOSE must be true or false."]
