"""A folder and a bucket behave alike: whole objects, or none."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from regulars_cli.backup import CannotBackUp
from regulars_cli.backup.stores import PIECE_BYTES, Bucket, Folder, ObjectMissing, Store, open_store


def names(store: Store, prefix: str) -> list[str]:
    return [each.name for each in store.list(prefix)]


def test_what_was_put_is_there_whole_and_listed_by_name(store: Store) -> None:
    large = [bytes([number]) * PIECE_BYTES for number in range(3)] + [b"end"]
    store.put("base/b/large", large)
    store.put("base/a/small", [b"sm", b"all"])
    store.put("wal/1/empty", [])
    assert b"".join(store.get("base/b/large")) == b"".join(large)
    assert b"".join(store.get("base/a/small")) == b"small"
    assert b"".join(store.get("wal/1/empty")) == b""
    assert names(store, "base/") == ["base/a/small", "base/b/large"]
    assert [each.size for each in store.list("base/")] == [5, 3 * PIECE_BYTES + 3]
    assert names(store, "nothing/") == []


def test_an_object_takes_the_place_of_one_that_is_there(store: Store) -> None:
    store.put("archive.json", [b"before"])
    store.put("archive.json", [b"after"])
    assert b"".join(store.get("archive.json")) == b"after"


@pytest.mark.parametrize("pieces", [0, 1, 3])
def test_one_that_is_not_finished_is_none_and_leaves_the_one_before(store: Store, pieces: int) -> None:
    store.put("base/a/base.tar", [b"before"])

    def cut_off() -> Iterator[bytes]:
        yield from [b"-" * PIECE_BYTES] * pieces
        raise RuntimeError("cut off")

    for name in ("base/a/base.tar", "base/b/base.tar"):
        with pytest.raises(Exception, match="cut off"):
            store.put(name, cut_off())
    assert names(store, "base/") == ["base/a/base.tar"]
    assert b"".join(store.get("base/a/base.tar")) == b"before"


def test_what_is_not_there_is_said_to_be_missing_and_deleted_twice(store: Store) -> None:
    store.put("wal/1/a", [b"a"])
    for _ in range(2):
        store.delete("wal/1/a")
    with pytest.raises(ObjectMissing, match="wal/1/a"):
        store.get("wal/1/a")
    assert names(store, "wal/") == []


def test_a_folder_is_closed_to_others_and_a_killed_writer_leaves_nothing_in_it(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "to" / "backups")
    folder.put("wal/1/a", [b"a"])
    assert (tmp_path / "to" / "backups").stat().st_mode & 0o077 == 0
    assert (tmp_path / "to" / "backups" / "wal" / "1" / "a").stat().st_mode & 0o077 == 0
    (tmp_path / "to" / "backups" / "wal" / "1" / "b.4711.undone").write_bytes(b"hal")
    assert names(folder, "wal/") == ["wal/1/a"]


def test_a_bucket_with_a_wrong_secret_is_refused_and_the_secret_is_not_told(object_server: Mapping[str, str]) -> None:
    bucket = Bucket("backups", "refused", {**object_server, "AWS_SECRET_ACCESS_KEY": "wrong-secret"})
    with pytest.raises(CannotBackUp) as refused:
        bucket.put("a", [b"a"])
    assert "s3://backups/refused/a cannot be written" in str(refused.value)
    assert "wrong-secret" not in str(refused.value)


def test_the_secret_may_come_from_a_file(object_server: Mapping[str, str], tmp_path: Path) -> None:
    given = dict(object_server)
    (tmp_path / "secret").write_text(given.pop("AWS_SECRET_ACCESS_KEY") + "\n")
    store = open_store("s3://backups/by-file", {**given, "AWS_SECRET_ACCESS_KEY_FILE": str(tmp_path / "secret")})
    store.put("a", [b"a"])
    assert b"".join(store.get("a")) == b"a"


@pytest.mark.parametrize("place", ["", "ftp://host/folder", "s3://"])
def test_an_address_that_is_none_is_said_so(place: str) -> None:
    with pytest.raises(CannotBackUp, match="s3://bucket/prefix"):
        open_store(place, {})
