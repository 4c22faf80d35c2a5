"""Keys are made once, kept, and readable by their owner only."""

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from kit.keys import KEY_BYTES, KeysUnusable, create_missing_keys, main


def test_every_key_is_made_for_its_owner_only(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    made = create_missing_keys(folder)
    assert {path.name for path in made} == {
        "internal_token_private.pem",
        "internal_token_public.pem",
        "fingerprint.key",
        "personal_data.json",
    }
    assert {path.name for path in folder.iterdir()} == {path.name for path in made}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in made)
    assert len(bytes.fromhex((folder / "fingerprint.key").read_text().strip())) == KEY_BYTES
    personal = json.loads((folder / "personal_data.json").read_text())
    assert [len(base64.b64decode(personal[name])) for name in ("kek", "index_key")] == [KEY_BYTES, KEY_BYTES]


def test_keys_that_exist_are_never_replaced(tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in create_missing_keys(tmp_path)}
    assert create_missing_keys(tmp_path) == []
    assert {path: path.read_bytes() for path in before} == before


def test_a_lost_public_key_is_derived_again(tmp_path: Path) -> None:
    create_missing_keys(tmp_path)
    public = tmp_path / "internal_token_public.pem"
    public.unlink()
    assert create_missing_keys(tmp_path) == [public]
    private = load_pem_private_key((tmp_path / "internal_token_private.pem").read_bytes(), password=None)
    assert public.read_bytes() == private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def test_a_lost_private_key_is_not_replaced_behind_the_public_one(tmp_path: Path) -> None:
    create_missing_keys(tmp_path)
    (tmp_path / "internal_token_private.pem").unlink()
    with pytest.raises(KeysUnusable, match="restore it"):
        create_missing_keys(tmp_path)


def test_the_command_names_what_it_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 0
    assert "fingerprint.key" in capsys.readouterr().out
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == ""
    assert main([]) == 2
