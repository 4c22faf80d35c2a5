from pathlib import Path

import pytest

from member.programmes.files import ProgrammeFileUnreadable, read_definition
from member.programmes.rules import parse_programme

PROGRAMMES = Path(__file__).parents[4] / "programmes"


@pytest.mark.parametrize("path", sorted(PROGRAMMES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_programmes_of_the_repository_are_valid(path: Path) -> None:
    assert parse_programme(read_definition(path)).programme_id == path.stem


def test_a_date_stays_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("day: 2026-01-01\nmoment: 2026-01-01 10:00:00\n")
    assert read_definition(file) == {"day": "2026-01-01", "moment": "2026-01-01 10:00:00"}


def test_json_is_read_too(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    file.write_text('{"earn": {"points": 1, "stores": ["001"]}}')
    assert read_definition(file) == {"earn": {"points": 1, "stores": ["001"]}}


@pytest.mark.parametrize(
    "content, complaint",
    [
        (b"earn:\n  points: 1\n  points: 2\n", r"p\.yaml:3: the key 'points' is given twice"),
        (b"1: one\n", r"p\.yaml:1: the key 1 is not a text"),
        (b"earn: [1\n", r"p\.yaml:2: expected"),
        (b"earn: !!python/object/apply:os.system [ls]\n", r"p\.yaml:1: could not determine a constructor"),
        (b"name: \xff\n", "is not UTF-8 text"),
        (b"name: \x07\n", "is not YAML"),
        (b"# " + b"x" * (4 * 1024 * 1024), "is not a programme"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_line(tmp_path: Path, content: bytes, complaint: str) -> None:
    file = tmp_path / "p.yaml"
    file.write_bytes(content)
    with pytest.raises(ProgrammeFileUnreadable, match=complaint):
        read_definition(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProgrammeFileUnreadable, match=r"p\.yaml cannot be read: No such file"):
        read_definition(tmp_path / "p.yaml")
