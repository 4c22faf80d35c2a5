import resource
from pathlib import Path

import msgspec
import pytest

from cli.tests.imports.history import line, planned
from regulars_cli.imports.checkpoint import Checkpoint, Scope
from regulars_cli.imports.faults import DiskFault, ImportStopped
from regulars_cli.imports.sending import Group
from regulars_cli.imports.wire import Outcome, Problem

SCOPE = Scope("file", "mapping", "store", "groups")


@pytest.fixture
def groups() -> list[Group]:
    commands = planned([line(str(number)) for number in range(6)]).commands
    return [Group(index, 0, commands[index * 2 : index * 2 + 2], 2) for index in range(3)]


def outcomes(group: Group) -> list[Outcome]:
    refused = Outcome(group.commands[1].body.operation_id, 422, problem=Problem("no", "Not so."))
    return [Outcome(group.commands[0].body.operation_id, 201, amount_minor=100), refused]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "imports" / "checkpoint.jsonl"


def test_what_was_recorded_is_recalled_after_a_restart(path: Path, groups: list[Group]) -> None:
    first = Checkpoint(path, SCOPE)
    assert first.recall(groups[0]) is None
    first.record(groups[0], outcomes(groups[0]))
    first.record(groups[2], outcomes(groups[2]))
    first.close()
    again = Checkpoint(path, SCOPE)
    recalled = again.recall(groups[0])
    assert recalled is not None
    assert [(each.operation_id, each.status, each.amount_minor) for each in recalled] == [
        ("online-retail:0", 201, 100),
        ("online-retail:1", 422, 0),
    ]
    assert recalled[1].problem == Problem("no", "Not so.")
    assert again.recall(groups[1]) is None
    assert len(again) == 2
    again.close()


def test_a_torn_line_is_dropped_whatever_its_length(path: Path, groups: list[Group]) -> None:
    first = Checkpoint(path, SCOPE)
    first.record(groups[0], outcomes(groups[0]))
    whole = path.read_bytes()
    first.record(groups[1], outcomes(groups[1]))
    first.close()
    both = path.read_bytes()
    for cut in range(len(whole), len(both)):
        path.write_bytes(both[:cut])
        torn = Checkpoint(path, SCOPE)
        assert torn.recall(groups[0]) is not None
        assert torn.recall(groups[1]) is None
        torn.record(groups[1], outcomes(groups[1]))
        torn.close()
        assert path.read_bytes() == both


def test_a_torn_head_begins_anew(path: Path, groups: list[Group]) -> None:
    Checkpoint(path, SCOPE).close()
    path.write_bytes(path.read_bytes()[:10])
    again = Checkpoint(path, SCOPE)
    assert again.recall(groups[0]) is None
    again.close()


@pytest.mark.parametrize("field", Scope.__struct_fields__)
def test_another_scope_voids_it(path: Path, groups: list[Group], field: str) -> None:
    first = Checkpoint(path, SCOPE)
    first.record(groups[0], outcomes(groups[0]))
    first.close()
    other = Checkpoint(path, msgspec.structs.replace(SCOPE, **{field: "other"}))
    assert other.recall(groups[0]) is None
    other.close()


def test_another_group_under_the_same_number_is_not_recalled(path: Path, groups: list[Group]) -> None:
    checkpoint = Checkpoint(path, SCOPE)
    checkpoint.record(groups[0], outcomes(groups[0]))
    checkpoint.close()
    again = Checkpoint(path, SCOPE)
    assert again.recall(Group(0, 0, groups[1].commands, 2)) is None
    again.close()


def test_afresh_forgets(path: Path, groups: list[Group]) -> None:
    first = Checkpoint(path, SCOPE)
    first.record(groups[0], outcomes(groups[0]))
    first.close()
    afresh = Checkpoint(path, SCOPE, afresh=True)
    assert afresh.recall(groups[0]) is None
    afresh.close()


def test_one_file_is_imported_by_one_process_at_a_time(path: Path) -> None:
    first = Checkpoint(path, SCOPE)
    with pytest.raises(ImportStopped, match="Another process is importing this file"):
        Checkpoint(path, SCOPE)
    first.remove()
    assert not path.exists()
    Checkpoint(path, SCOPE).close()


def test_a_full_disk_is_one_sentence_and_loses_nothing(path: Path, groups: list[Group]) -> None:
    checkpoint = Checkpoint(path, SCOPE)
    checkpoint.record(groups[0], outcomes(groups[0]))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, before[1]))
    try:
        with pytest.raises(DiskFault, match=r"cannot be written: .*make room and start the same command again"):
            checkpoint.record(groups[1], outcomes(groups[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    checkpoint.close()
    again = Checkpoint(path, SCOPE)
    assert again.recall(groups[0]) is not None
    again.close()


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "imports").write_text("")
    with pytest.raises(DiskFault, match="cannot be written"):
        Checkpoint(tmp_path / "imports" / "checkpoint.jsonl", SCOPE)
