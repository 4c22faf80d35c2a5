import gzip
from pathlib import Path

import pytest

from cli.tests.imports.history import HEADING, csv_text, line
from regulars_cli.imports.faults import SourceFault
from regulars_cli.imports.mapping import Mapping, load_mapping
from regulars_cli.imports.reader import Row, Source

MAPPING = load_mapping("online-retail")
TITLE = ",".join(HEADING) + "\n"


def rows_of(path: Path, content: bytes | str, mapping: Mapping = MAPPING) -> list[Row]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(Source(path, mapping).rows())


def test_plain_and_gzipped_files_are_told_by_their_content(tmp_path: Path) -> None:
    text = csv_text([line("1"), line("2")])
    plain = rows_of(tmp_path / "a.gz", text)
    assert plain == rows_of(tmp_path / "b.csv", gzip.compress(text.encode()))
    assert [row for row, _ in plain] == [2, 3]


def test_a_row_is_numbered_by_the_line_where_it_begins(tmp_path: Path) -> None:
    text = TITLE + '1,A,"TWO\nLINES",1,t,1,7,UK\n\n2,B,ONE,1,t,1,7,UK\r\n'
    assert [(row, fields[2]) for row, fields in rows_of(tmp_path / "f.csv", text)] == [(2, "TWO\nLINES"), (5, "ONE")]


def test_a_byte_order_mark_is_no_part_of_the_heading(tmp_path: Path) -> None:
    assert len(rows_of(tmp_path / "f.csv", b"\xef\xbb\xbf" + csv_text([line("1")]).encode())) == 1


def test_bytes_of_another_encoding_spoil_their_row_alone_and_are_kept(tmp_path: Path) -> None:
    text = csv_text([line("1", description="X"), line("2")]).encode().replace(b"X", b"\xa340")
    first, second = rows_of(tmp_path / "f.csv", text)
    assert first[1][2].encode("utf-8", "surrogateescape") == b"\xa340"
    assert second[1][0] == "2"


def test_a_line_whose_quotes_make_no_sense_is_a_row_of_one_field(tmp_path: Path) -> None:
    text = TITLE + '1,A,"7"INCH,1,t,1,7,UK\n2,B,ONE,1,t,1,7,UK\n'
    assert [fields if len(fields) == 1 else fields[0] for _, fields in rows_of(tmp_path / "f.csv", text)] == [
        ['1,A,"7"INCH,1,t,1,7,UK'],
        "2",
    ]


def test_a_quote_that_is_never_closed_ends_the_reading_with_its_line(tmp_path: Path) -> None:
    text = TITLE + '1,A,ONE,1,t,1,7,UK\n2,B,"ONE,1,t,1,7,UK\n' + "3,C,ONE,1,t,1,7,UK\n" * 3
    with pytest.raises(SourceFault, match=r"from line 3 on: a quoted field that begins there is never closed"):
        rows_of(tmp_path / "f.csv", text)


def test_a_field_without_end_ends_the_reading(tmp_path: Path) -> None:
    with pytest.raises(SourceFault, match=r"from line 2 on: a field is longer than 131,072 characters"):
        rows_of(tmp_path / "f.csv", TITLE + '1,A,"' + "x" * 200_000)


@pytest.mark.parametrize("cut", [12, 200, -5])
def test_a_damaged_gzip_file_is_one_sentence(tmp_path: Path, cut: int) -> None:
    whole = gzip.compress(csv_text([line(str(number)) for number in range(1000)]).encode())
    with pytest.raises(SourceFault, match="is not a whole gzip file"):
        rows_of(tmp_path / "f.csv.gz", whole[:cut])


def test_a_gzip_file_with_a_wrong_sum_is_one_sentence(tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(csv_text([line(str(number)) for number in range(1000)]).encode()))
    whole[-6] ^= 1
    with pytest.raises(SourceFault, match="is not a whole gzip file"):
        rows_of(tmp_path / "f.csv.gz", bytes(whole))


def test_missing_columns_are_named_with_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(SourceFault, match=r"lacks the columns StockCode, UnitPrice .* its first line has InvoiceNo, SKU"):
        rows_of(tmp_path / "f.csv", "InvoiceNo,SKU,Description,Quantity,InvoiceDate,CustomerID,Country\n")


@pytest.mark.parametrize("name", ["missing.csv", "."])
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceFault, match=r"cannot be read: (No such file|Is a directory)"):
        Source(tmp_path / name, MAPPING)


def test_an_empty_file_lacks_its_columns(tmp_path: Path) -> None:
    with pytest.raises(SourceFault, match="its first line has nothing"):
        rows_of(tmp_path / "f.csv", "")


def test_the_digest_is_the_files(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    rows_of(path, csv_text([line("1")]))
    first = Source(path, MAPPING).digest()
    assert Source(path, MAPPING).digest() == first
    rows_of(path, csv_text([line("2")]))
    assert Source(path, MAPPING).digest() != first
