"""What the gateway acknowledged so far, kept beside the import so that a killed one goes on quickly.

The checkpoint only saves time. Without it every command is sent again, and the gateway answers each as it did the first time.
"""

import fcntl
from collections.abc import Iterable
from http import HTTPStatus
from pathlib import Path
from typing import IO

import msgspec

from regulars_cli.imports.faults import DiskFault, ImportStopped
from regulars_cli.imports.sending import Group
from regulars_cli.imports.wire import Outcome


class Scope(msgspec.Struct, frozen=True):
    """What a checkpoint holds for. Another file, mapping, chain or way to form groups makes it void."""

    file_digest: str
    mapping_digest: str
    store_id: str
    formation: str


class _Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One acknowledged group. Only outcomes that are not as planned are written out, by their place in the group."""

    group: int
    first: str
    size: int
    replayed: int
    unplanned: dict[int, Outcome] = {}


class Checkpoint:
    """An append-only file: the scope, then a line for each acknowledged group. A line torn by a crash is dropped.

    It is locked while open, so that one file is imported by one process at a time.
    """

    def __init__(self, path: Path, scope: Scope, *, afresh: bool = False) -> None:
        self.path = path
        self._entries: dict[int, _Entry] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = path.open("a+b")
        except OSError as error:
            raise DiskFault(f"The checkpoint {path} cannot be written: {error.strerror or error}.") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise ImportStopped("Another process is importing this file with this mapping: wait for it, or stop it.") from error
        self._file.seek(0)
        kept = 0 if afresh else self._load(self._file, scope)
        self._write(kept, b"" if kept else msgspec.json.encode(scope) + b"\n")

    def __len__(self) -> int:
        """Groups acknowledged so far."""
        return len(self._entries)

    def record(self, group: Group, outcomes: list[Outcome]) -> None:
        """Keeps an acknowledged group. Raises DiskFault."""
        unplanned = {
            index: outcome
            for index, (command, outcome) in enumerate(zip(group.commands, outcomes, strict=True))
            if not _as_planned(outcome, command.amount_minor)
        }
        replayed = sum(outcome.replayed for outcome in outcomes)
        entry = _Entry(group.index, group.commands[0].body.operation_id, len(group.commands), replayed, unplanned)
        self._write(None, msgspec.json.encode(entry) + b"\n")

    def recall(self, group: Group) -> list[Outcome] | None:
        """The outcomes of a group that an earlier run had acknowledged."""
        entry = self._entries.get(group.index)
        if entry is None or (entry.first, entry.size) != (group.commands[0].body.operation_id, len(group.commands)):
            return None
        return [
            entry.unplanned.get(index)
            or Outcome(command.body.operation_id, HTTPStatus.CREATED, replayed=True, amount_minor=command.amount_minor)
            for index, command in enumerate(group.commands)
        ]

    def remove(self) -> None:
        """Ends the checkpoint of a finished import: the next one of the same file asks the gateway again."""
        self.path.unlink(missing_ok=True)
        self._file.close()

    def close(self) -> None:
        self._file.close()

    def _load(self, lines: Iterable[bytes], scope: Scope) -> int:
        """Reads the entries of the same scope, and how many bytes of the file are whole."""
        whole = 0
        for number, line in enumerate(lines):
            try:
                if not line.endswith(b"\n"):
                    break
                if number == 0:
                    if msgspec.json.decode(line, type=Scope) != scope:
                        return 0
                else:
                    entry = msgspec.json.decode(line, type=_Entry)
                    self._entries[entry.group] = entry
            except msgspec.DecodeError:
                break
            whole += len(line)
        return whole

    def _write(self, keep_bytes: int | None, line: bytes) -> None:
        try:
            if keep_bytes is not None:
                self._file.truncate(keep_bytes)
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise DiskFault(
                f"The checkpoint {self.path} cannot be written: {error.strerror or error}. Nothing acknowledged is lost: "
                "make room and start the same command again."
            ) from error


def _as_planned(outcome: Outcome, amount_minor: int) -> bool:
    return outcome.status == HTTPStatus.CREATED and outcome.amount_minor == amount_minor
