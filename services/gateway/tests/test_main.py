"""The command line: migrate, seed, keys; and one sentence where it cannot start."""

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.main import main, open_services
from gateway.settings import Settings
from kit.health import Health
from kit.keys import create_missing_keys
from kit.settings import load


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """The command line sends the logs of the process where this test's standard error is."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, make_database: Callable[..., str], database: str, tmp_path: Path) -> None:
    create_missing_keys(tmp_path)
    # A database of its own: it belongs to these keys from now on.
    monkeypatch.setenv("GATEWAY_DATABASE_URL", make_database(database))
    monkeypatch.setenv("INTERNAL_TOKEN_PRIVATE_KEY_FILE", str(tmp_path / "internal_token_private.pem"))
    monkeypatch.setenv("FINGERPRINT_KEY_FILE", str(tmp_path / "fingerprint.key"))


@pytest.mark.usefixtures("environment")
def test_a_chain_is_set_up_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate"]) == 0
    capsys.readouterr()
    assert main(["seed-demo", "--new-keys"]) == 0
    demo = json.loads(capsys.readouterr().out)
    assert demo["till_key"].startswith("rk_")
    assert main(["issue-key", "--name", "desk", "--role", "till", "--store", "S001"]) == 0
    issued = json.loads(capsys.readouterr().out)
    assert main(["revoke-key", issued["client_id"]]) == 0
    assert json.loads(capsys.readouterr().out) == {"revoked": True}
    assert main(["issue-key", "--name", "desk", "--role", "till", "--store", "S999"]) == 1
    assert capsys.readouterr().err.endswith("There is no store with the code S999.\n")


@pytest.mark.usefixtures("environment")
def test_a_folder_with_other_keys_revokes_no_api_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["migrate"]) == 0
    assert main(["seed-demo", "--new-keys"]) == 0
    capsys.readouterr()
    other = tmp_path / "other.key"
    other.write_text("ab" * 32)
    monkeypatch.setenv("FINGERPRINT_KEY_FILE", str(other))
    assert main(["seed-demo", "--new-keys"]) == 1
    captured = capsys.readouterr()
    assert not captured.out
    assert "are not the ones this database was written with" in captured.err


@pytest.mark.usefixtures("environment")
def test_a_pod_waits_until_the_database_is_at_its_release(
    monkeypatch: pytest.MonkeyPatch, postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["migrate"]) == 0
    assert main(["await-migrated", "--seconds", "0"]) == 0
    monkeypatch.setenv("GATEWAY_DATABASE_URL", postgres_url)
    assert main(["await-migrated", "--seconds", "0"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("The database is at revision none, and this release needs ")


def test_missing_settings_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("GATEWAY_DATABASE_URL", raising=False)
    assert main(["serve"]) == 2
    assert capsys.readouterr().err == "Set GATEWAY_DATABASE_URL.\n"


@pytest.mark.usefixtures("environment")
def test_a_database_without_tables_is_said_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GATEWAY_DATABASE_URL", postgres_url)
    assert main(["serve"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "The gateway's tables cannot be read: run `python -m gateway migrate`."


@pytest.mark.usefixtures("environment")
def test_a_missing_key_file_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FINGERPRINT_KEY_FILE", "/nowhere")
    assert main(["serve"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("A key file cannot be read")


@pytest.mark.usefixtures("environment")
def test_another_installations_fingerprint_key_is_refused_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
    make_database: Callable[..., str],
    database: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("GATEWAY_DATABASE_URL", make_database(database))

    async def start() -> None:
        async with open_services(load(Settings), Health()):
            pass

    for _ in range(2):
        asyncio.run(start())
    file = tmp_path / "fingerprint.key"
    file.write_text("ab" * 32)
    assert main(["serve"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"The keys in {file} are not the ones this database was written with: "
        "put back the fingerprint.key of the installation that made it."
    )
