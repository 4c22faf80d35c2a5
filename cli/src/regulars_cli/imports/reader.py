"""Streams the rows of a CSV file, plain or gzipped, in bounded memory."""

import csv
import gzip
import zlib
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import IO

from regulars_cli.imports.faults import SourceFault
from regulars_cli.imports.mapping import Mapping

GZIP_MAGIC = b"\x1f\x8b"

# The line of the file where the row begins (the heading is on line 1), and its fields.
Row = tuple[int, list[str]]


class Source:
    """A file that can be read more than once, each time the same.

    Bytes that are not of the mapping's encoding come as lone surrogates, so that only their row is at fault and its rejects entry is
    the original to the byte.
    """

    def __init__(self, path: Path, mapping: Mapping) -> None:
        self.path = path
        self._mapping = mapping
        with self._faults(), path.open("rb") as file:
            if not file.seekable():
                raise SourceFault(f"{path} can be read only once: import from a file, not from a pipe.")
            self._gzipped = file.read(2) == GZIP_MAGIC
        self.heading = self._read_heading()

    def digest(self) -> str:
        """The file's identity for the checkpoint: a hash of its bytes as they lie on disk."""
        with self._faults(), self.path.open("rb") as file:
            hashed = blake2b(digest_size=16)
            while chunk := file.read(1 << 20):
                hashed.update(chunk)
        return hashed.hexdigest()

    def rows(self) -> Iterator[Row]:
        """Every row below the heading; blank lines are none. A line whose quotes make no sense comes as a row of one field, the line.

        Raises SourceFault where the file cannot be read on: nothing after that point can be trusted.
        """
        with self._faults(), self._open() as text:
            last = ""

            def lines() -> Iterator[str]:
                nonlocal last
                for last in text:  # noqa: UP028  `last` is kept, for the row at fault
                    yield last

            reader = csv.reader(lines(), delimiter=self._mapping.delimiter, strict=True)
            at = 0
            while True:
                try:
                    for fields in reader:
                        if fields and at:
                            yield at, fields
                        at = reader.line_num + 1
                except csv.Error as error:
                    if "expected after" not in str(error):
                        raise SourceFault(f"{self.path} cannot be read from line {at} on: {_csv_reason(error)}.") from error
                    yield at, [last.rstrip("\r\n")]
                    at = reader.line_num + 1
                else:
                    return

    def _read_heading(self) -> list[str]:
        with self._faults(), self._open() as text:
            try:
                heading = next(csv.reader(text, delimiter=self._mapping.delimiter, strict=True), [])
            except csv.Error as error:
                raise SourceFault(f"{self.path} cannot be read from line 1 on: {_csv_reason(error)}.") from error
        missing = [column for column in self._mapping.columns.named().values() if column not in heading]
        if missing:
            have = ", ".join(heading) or "nothing"
            raise SourceFault(
                f"{self.path} lacks the column{'s' if missing[1:] else ''} {', '.join(missing)} that the mapping {self._mapping.name} "
                f"names; its first line has {have}."
            )
        return heading

    def _open(self) -> IO[str]:
        encoding = self._mapping.encoding.lower().replace("_", "-")
        if encoding in {"utf-8", "utf8"}:
            encoding = "utf-8-sig"
        if self._gzipped:
            return gzip.open(self.path, "rt", encoding=encoding, errors="surrogateescape", newline="")
        return self.path.open(encoding=encoding, errors="surrogateescape", newline="")

    def _faults(self) -> "_Faults":
        return _Faults(self.path)


class _Faults:
    """Turns what the operating system and the decompressor raise into one sentence."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, gzip.BadGzipFile | EOFError | zlib.error):
            raise SourceFault(f"{self._path} is not a whole gzip file: it is damaged or was cut off; fetch it again.") from error
        if isinstance(error, UnicodeError):
            raise SourceFault(f"{self._path} is not text in the mapping's encoding ({error}).") from error
        if isinstance(error, OSError):
            raise SourceFault(f"{self._path} cannot be read: {error.strerror or error}.") from error


def _csv_reason(error: csv.Error) -> str:
    match str(error):
        case "unexpected end of data":
            return "a quoted field that begins there is never closed"
        case text if "field larger than" in text:
            return "a field is longer than 131,072 characters, as if a quote were not closed"
        case text:
            return text
