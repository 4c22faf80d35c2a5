"""The rejects file: every line that was not imported, with the reason and as it stood in the original, in the order of the file."""

import csv
import heapq
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from regulars_cli.imports.faults import DiskFault
from regulars_cli.imports.rules import Reject


class RejectsFile:
    """Written aside and put in place when finished, so that what stands at `path` is always whole."""

    def __init__(self, path: Path, heading: list[str]) -> None:
        self.path = path
        self._heading = ["row", "code", "reason", *heading]
        self._late: list[Reject] = []
        self._judged = path.with_name(path.name + ".judged")
        with self._faults():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._judged.open("w", encoding="utf-8", errors="surrogateescape", newline="")
            self._writer = csv.writer(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        """What is not finished is thrown away."""
        with suppress(OSError):
            self._file.close()
            self._judged.unlink(missing_ok=True)

    def add(self, reject: Reject) -> None:
        """A line rejected as it was read. Raises DiskFault."""
        with self._faults():
            self._writer.writerow(_record(reject))

    def add_late(self, reject: Reject) -> None:
        """A line of a command that the gateway refused, long after it was read."""
        self._late.append(reject)

    def finish(self) -> None:
        """Puts the whole file in place. Raises DiskFault."""
        late = (_record(reject) for reject in sorted(self._late, key=lambda reject: reject.row[0]))
        part = self.path.with_name(self.path.name + ".part")
        with self._faults():
            self._file.close()
            with (
                self._judged.open(encoding="utf-8", errors="surrogateescape", newline="") as judged,
                part.open("w", encoding="utf-8", errors="surrogateescape", newline="") as whole,
            ):
                writer = csv.writer(whole)
                writer.writerow(self._heading)
                writer.writerows(heapq.merge(csv.reader(judged), late, key=_row_of))
            part.replace(self.path)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DiskFault(
                f"The rejects file {self.path} cannot be written: {error.strerror or error}. "
                "What was acknowledged stays imported: make room and start the same command again."
            ) from error


def _row_of(record: Iterable[str]) -> int:
    return int(next(iter(record)))


def _record(reject: Reject) -> list[str]:
    return [str(reject.row[0]), reject.code, reject.because, *reject.row[1]]
