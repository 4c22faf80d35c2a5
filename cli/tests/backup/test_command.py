"""What the commands say, where no server is needed to know it."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from regulars_cli.backup import command
from regulars_cli.backup.archive import Backup, Covered, Server, write_json
from regulars_cli.backup.sealing import Sealer
from regulars_cli.backup.stores import Folder
from regulars_cli.backup.wal import Progress
from regulars_cli.main import main

NOW = datetime(2026, 11, 22, 14, 15, tzinfo=UTC)
SEGMENT = 16 * 1024 * 1024


@pytest.mark.parametrize("seconds", ["0", "-5", "0.9", "nan", "inf", "often"])
def test_wal_is_fetched_every_second_at_most(seconds: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["backup", "wal", "--every", seconds, "--to", str(tmp_path)])
    assert ended.value.code == 2
    assert "argument --every: a number of seconds, at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("base_of", [None, 1, 2])
def test_wal_that_no_base_backup_leads_to_is_not_praised(
    base_of: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A restore began the timeline 2."""
    store, covered = Folder(tmp_path / "backups"), Covered(NOW, "0/3000100", 2)
    write_json(store, "archive.json", Server(1, "7", SEGMENT))
    if base_of is not None:
        base = Backup(
            format=1,
            id="20261122T141400Z",
            system_identifier="7",
            started_at=NOW,
            ended_at=NOW,
            timeline=base_of,
            start_lsn="0/3000028",
            end_lsn="0/3000100",
            segment_bytes=SEGMENT,
            server_version="18",
            release="1",
            parts=[],
        )
        write_json(store, f"base/{base.id}/backup.json", base)
    for timeline in (1, 2):
        store.put(f"wal/{timeline:08X}/{timeline:08X}0000000000000003.partial.zst", [b"wal"])
        write_json(store, f"wal/{timeline:08X}/covered.json", Covered(NOW, "0/3000100", timeline))

    async def fetch_once(*_: object) -> Progress:
        return Progress(covered, 1)

    monkeypatch.setattr(command, "fetch_once", fetch_once)
    monkeypatch.setattr(command, "find_server", lambda *_: None)
    monkeypatch.setattr(Sealer, "given", lambda _: Sealer())
    assert main(["backup", "wal", "--once", "--to", store.place, "--var", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "Everything that was committed by 2026-11-22 14:15:00+00:00 is in" in said
    assert ("no base backup leads to it, so none of it can be restored yet: take one with `regulars backup run`" in said) is (base_of != 2)


def test_definitions_that_cannot_be_written_are_told_of_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("there already", "utf-8")
    monkeypatch.setattr("regulars_cli.definitions.export", lambda _: {"stores.yaml": b"stores: []\n"})
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        assert main(["definitions", "export", str(folder), "--url", "http://127.0.0.1:9", "--key", "key"]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{folder} cannot be written to (")
    assert main(["definitions", "export", str(tmp_path / "new"), "--url", "http://127.0.0.1:9", "--key", "key"]) == 0
    assert (tmp_path / "new" / "stores.yaml").read_bytes() == b"stores: []\n"
