"""What is sealed opens whole, or not at all; and without any program of ours."""

from collections.abc import Iterator
from pathlib import Path

import pyrage  # type: ignore[import-untyped]  # ships no types
import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from regulars_cli.backup import CannotBackUp
from regulars_cli.backup.sealing import Opener, SealBroken, Sealer, new_identity
from regulars_cli.backup.stores import Folder

CONTENT = [b"points " * 200_000, b"", b"end"]


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    return tmp_path / "identity.txt"


@pytest.fixture
def recipient(identity: Path) -> str:
    return new_identity(identity)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "backups")


@pytest.mark.parametrize("encrypted", [False, True])
def test_content_comes_back_as_it_was(folder: Folder, identity: Path, recipient: str, encrypted: bool) -> None:  # noqa: FBT001
    name, size, digest = Sealer([recipient] if encrypted else []).put(folder, "a", CONTENT)
    assert name == ("a.zst.age" if encrypted else "a.zst")
    (stored,) = folder.list("")
    assert (stored.name, stored.size) == (name, size)
    assert size < 20_000
    assert b"".join(Opener(identity).get(folder, name, digest)) == b"".join(CONTENT)


@settings(max_examples=40, deadline=None)
@given(pieces=st.lists(st.binary(max_size=200_000), max_size=6))
def test_any_content_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]) -> None:
    root = tmp_path_factory.mktemp("sealing")
    folder = Folder(root)
    recipient = new_identity(root.with_name(root.name + ".key"))
    for name, _, digest in (Sealer([recipient]).put(folder, "a", pieces), Sealer().put(folder, "b", pieces)):
        assert b"".join(Opener(root.with_name(root.name + ".key")).get(folder, name, digest)) == b"".join(pieces)


def test_age_and_zstd_alone_open_it(folder: Folder, identity: Path, recipient: str) -> None:
    name, *_ = Sealer([recipient]).put(folder, "a", CONTENT)
    secret = pyrage.x25519.Identity.from_str(identity.read_text().splitlines()[1])
    assert zstd.decompress(pyrage.decrypt(b"".join(folder.get(name)), [secret])) == b"".join(CONTENT)


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("damage", ["cut", "changed", "longer"])
def test_what_was_damaged_does_not_pass_for_whole(
    tmp_path: Path,
    folder: Folder,
    identity: Path,
    recipient: str,
    damage: str,
    encrypted: bool,  # noqa: FBT001
) -> None:
    name, _, digest = Sealer([recipient] if encrypted else []).put(folder, "a", CONTENT)
    path = tmp_path / "backups" / name
    raw = bytearray(path.read_bytes())
    match damage:
        case "cut":
            del raw[-40:]
        case "changed":
            raw[len(raw) // 2] ^= 1
        case _:
            raw += b"more"
    path.write_bytes(raw)
    with pytest.raises(SealBroken, match=r"a\.zst"):
        b"".join(Opener(identity).get(folder, name, digest))


def test_another_identity_opens_nothing_and_none_is_asked_for(folder: Folder, tmp_path: Path, recipient: str) -> None:
    name, _, digest = Sealer([recipient]).put(folder, "a", CONTENT)
    new_identity(tmp_path / "other.txt")
    with pytest.raises(SealBroken, match="for another identity"):
        b"".join(Opener(tmp_path / "other.txt").get(folder, name, digest))
    with pytest.raises(CannotBackUp, match="--identity"):
        Opener().get(folder, name, digest)


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_source_that_fails_stores_nothing(folder: Folder, recipient: str, encrypted: bool) -> None:  # noqa: FBT001
    def failing() -> Iterator[bytes]:
        yield b"begun" * 100_000
        raise CannotBackUp("pg_basebackup failed")

    with pytest.raises(CannotBackUp, match="pg_basebackup failed"):
        Sealer([recipient] if encrypted else []).put(folder, "a", failing())
    assert folder.list("") == []


def test_an_identity_is_never_overwritten_and_closed_to_others(identity: Path, recipient: str) -> None:
    assert recipient.startswith("age1")
    assert identity.stat().st_mode & 0o777 == 0o600
    with pytest.raises(CannotBackUp, match="is there already"):
        new_identity(identity)


def test_recipients_and_identities_that_are_none_are_said_so(tmp_path: Path) -> None:
    with pytest.raises(CannotBackUp, match="no public key of age"):
        Sealer.given({"BACKUP_RECIPIENTS": "age1nonsense"})
    (tmp_path / "nonsense").write_text("AGE-SECRET-KEY-1NONSENSE\n")
    with pytest.raises(CannotBackUp, match="no identity of age") as refused:
        Opener(tmp_path / "nonsense")
    assert "NONSENSE" not in str(refused.value)
