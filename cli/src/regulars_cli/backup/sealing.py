"""How an object is written: compressed by zstd, then, where recipients are given, encrypted in the format of age.

Both formats are everybody's: `age -d -i KEY FILE | zstd -d` opens what is here without any program of ours. Who writes needs the
recipients only, which are public keys; the identity that opens is needed for a restore, and belongs where the backups are not.
"""

import hashlib
import os
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import pyrage  # type: ignore[import-untyped]  # ships no types
from backports.zstd import CompressionParameter, ZstdCompressor, ZstdDecompressor, ZstdError

from regulars_cli.backup import CannotBackUp
from regulars_cli.backup.stores import PIECE_BYTES, Store

COMPRESSED, ENCRYPTED = ".zst", ".zst.age"
# Little work for most of the effect: a base backup is read at the speed of a disk.
LEVEL = 1


class SealBroken(CannotBackUp):
    """An object does not open: it was changed or cut off, or the identity is another."""


class Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class Sealer:
    """Writes objects for the recipients; without any, not encrypted."""

    def __init__(self, recipients: Sequence[str] = ()) -> None:
        try:
            self._recipients = [pyrage.x25519.Recipient.from_str(each) for each in recipients]
        except pyrage.RecipientError:
            raise CannotBackUp("A recipient is no public key of age (age1…).") from None

    @classmethod
    def given(cls, environ: Mapping[str, str]) -> "Sealer":
        """For those that BACKUP_RECIPIENTS names, separated by commas or blanks."""
        return cls(environ.get("BACKUP_RECIPIENTS", "").replace(",", " ").split())

    @property
    def suffix(self) -> str:
        return ENCRYPTED if self._recipients else COMPRESSED

    @property
    def encrypts(self) -> bool:
        return bool(self._recipients)

    def put(self, store: Store, name: str, content: Iterable[bytes]) -> tuple[str, int, str]:
        """Stores the content as `name` with the suffix. Returns the object's name, its size, and the SHA-256 of what is stored."""
        counted = _Counted(_encrypted(_compressed(content), self._recipients) if self._recipients else _compressed(content))
        store.put(name + self.suffix, counted)
        return name + self.suffix, counted.size, counted.digest.hexdigest()


class Opener:
    """Reads objects, with the identities of a file where they are encrypted."""

    def __init__(self, identity_file: Path | None = None) -> None:
        self._identities: list[Any] = []
        if identity_file is None:
            return
        try:
            lines = identity_file.read_text("ascii").splitlines()
            self._identities = [
                pyrage.x25519.Identity.from_str(line.strip()) for line in lines if line.strip() and not line.startswith("#")
            ]
        except OSError as error:
            raise CannotBackUp(f"{identity_file} cannot be read: {error.strerror}.") from error
        except (UnicodeDecodeError, pyrage.IdentityError):
            # The cause would quote it.
            raise CannotBackUp(f"{identity_file} holds no identity of age (AGE-SECRET-KEY-…).") from None

    def can_open(self, name: str) -> bool:
        """Whether there is what it takes."""
        return not name.endswith(ENCRYPTED) or bool(self._identities)

    @staticmethod
    def compared(store: Store, name: str, sha256: str) -> Iterator[bytes]:
        """An object as it is stored, unopened. Raises SealBroken after the last piece if it is not what was stored."""
        return _compared(store.get(name), sha256, name)

    def get(self, store: Store, name: str, sha256: str | None = None) -> Generator[bytes]:
        """The content of an object, compared with what was stored where `sha256` is given: an error may come after the last piece.

        Who may not read all of it closes it: a thread of it waits else for ever for somebody to read on, and the process for the thread.

        Raises:
            ObjectMissing: there is none.
            SealBroken: it is not whole, or not for this identity.
        """
        if not self.can_open(name):
            raise CannotBackUp(f"{name} is encrypted: give the file of the identity that opens it (--identity or BACKUP_IDENTITY_FILE).")
        stored = _compared(store.get(name), sha256, name)
        opened = _decrypted(stored, self._identities, name) if name.endswith(ENCRYPTED) else stored
        return _decompressed(opened, name)


def new_identity(path: Path) -> str:
    """Makes a file with a new identity, as `age-keygen` does, and returns its recipient. Raises CannotBackUp if the file is there."""
    identity = pyrage.x25519.Identity.generate()
    recipient = str(identity.to_public())
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(f"# public key: {recipient}\n{identity}\n")
    except FileExistsError:
        raise CannotBackUp(f"{path} is there already, and may be what opens old backups: choose another name.") from None
    except OSError as error:
        raise CannotBackUp(f"{path} cannot be written: {error.strerror}.") from error
    return recipient


class _Counted:
    """Passes pieces on, and knows afterwards how many bytes and which digest they had."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces
        self.size = 0
        self.digest = hashlib.sha256()

    def __iter__(self) -> Iterator[bytes]:
        for piece in _gathered(self._pieces):
            self.size += len(piece)
            self.digest.update(piece)
            yield piece


def _gathered(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of a good size to send."""
    held = bytearray()
    for piece in pieces:
        held += piece
        if len(held) >= PIECE_BYTES:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)


def _compressed(content: Iterable[bytes]) -> Iterator[bytes]:
    compressor = ZstdCompressor(options={CompressionParameter.compression_level: LEVEL, CompressionParameter.checksum_flag: 1})
    for piece in content:
        yield compressor.compress(piece)
    yield compressor.flush()


def _decompressed(pieces: Iterable[bytes], name: str) -> Generator[bytes]:
    opened = ZstdDecompressor()
    try:
        for piece in pieces:
            given = piece
            while not opened.eof and (given or not opened.needs_input):
                yield opened.decompress(given, max_length=PIECE_BYTES)
                given = b""
    except ZstdError as error:
        raise SealBroken(f"{name} is damaged: it does not decompress.") from error
    if not opened.eof:
        raise SealBroken(f"{name} is damaged: it ends too early.")


def _encrypted(pieces: Iterable[bytes], recipients: Sequence[Any]) -> Iterator[bytes]:
    return _through(lambda source, target: pyrage.encrypt_io(source, target, recipients), pieces)


def _decrypted(pieces: Iterable[bytes], identities: Sequence[Any], name: str) -> Iterator[bytes]:
    def decrypt(source: Readable, target: BinaryIO) -> None:
        try:
            pyrage.decrypt_io(source, target, identities)
        except (pyrage.DecryptError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            raise SealBroken(f"{name} does not open: it is damaged, or for another identity.") from error

    return _through(decrypt, pieces)


def _through(work: Any, pieces: Iterable[bytes]) -> Iterator[bytes]:  # noqa: ANN401  # a function of the library, which has no types
    """What `work(source, target)` writes of the pieces, which it does in a thread of its own."""
    source = _Source(pieces)
    outlet, inlet = os.pipe()
    fault: list[BaseException] = []

    def run() -> None:
        try:
            with os.fdopen(inlet, "wb", buffering=1024 * 1024) as target:
                work(source, target)
                target.flush()
        except BaseException as error:  # noqa: BLE001  # it is raised below, where the pieces are read
            fault.append(source.fault or error)

    thread = threading.Thread(target=run, name="sealing")
    thread.start()
    try:
        with os.fdopen(outlet, "rb", buffering=0) as made:
            yield from iter(lambda: made.read(1024 * 1024), b"")
    finally:
        thread.join()
    if fault:
        raise fault[0]


class _Source:
    """Pieces as a file, which the library reads; what went wrong with them is kept, since the library tells it in its own words."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._held = memoryview(b"")
        self.fault: BaseException | None = None

    def read(self, size: int = -1, /) -> bytes:
        try:
            while not self._held:
                self._held = memoryview(next(self._pieces))
        except StopIteration:
            return b""
        except BaseException as error:
            self.fault = error
            raise
        given = self._held if size < 0 else self._held[:size]
        self._held = self._held[len(given) :]
        return bytes(given)


def _compared(pieces: Iterator[bytes], sha256: str | None, name: str) -> Iterator[bytes]:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
        yield piece
    if sha256 is not None and digest.hexdigest() != sha256:
        raise SealBroken(f"{name} is not what was stored: its checksum differs.")
