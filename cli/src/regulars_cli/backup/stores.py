"""Where backups are kept: a folder, or a bucket that speaks S3. An object is there whole, or not at all.

`/path` or `file:///path` is a folder, `s3://bucket/prefix` a bucket, with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (or what the machine is
given by its cloud), AWS_REGION, and AWS_ENDPOINT_URL for any other server than Amazon's.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, unquote, urlsplit

from regulars_cli.backup import CannotBackUp

PIECE_BYTES = 8 * 1024 * 1024
# What a crash left half written; no object's name ends like this.
_UNDONE = ".undone"


class ObjectMissing(Exception):
    """There is no such object; the text is its name."""


@dataclass(frozen=True, order=True)
class Stored:
    """An object that is there."""

    name: str
    size: int
    changed_at: datetime


class Store(Protocol):
    """Names are paths with `/`."""

    @property
    def place(self) -> str:
        """Where it is, without secrets."""

    def put(self, name: str, pieces: Iterable[bytes]) -> None:
        """Writes an object, in the place of one that is there. When it returns it is durable; when it raises, or dies, nothing changed."""

    def get(self, name: str) -> Iterator[bytes]:
        """The object's bytes. Raises ObjectMissing, before the first piece."""

    def list(self, prefix: str) -> list[Stored]:
        """Those whose names begin with `prefix`, which ends with `/`, by name."""

    def delete(self, name: str) -> None:
        """Removes an object; one that is not there is no fault."""


def open_store(place: str, environ: Mapping[str, str] | None = None) -> Store:
    """Raises CannotBackUp for an address that is none."""
    environ = os.environ if environ is None else environ
    parts = urlsplit(place)
    if parts.scheme == "s3" and parts.netloc:
        return Bucket(parts.netloc, parts.path.strip("/"), environ)
    if parts.scheme == "file":
        return Folder(Path(unquote(parts.path)))
    if place and "://" not in place:
        return Folder(Path(place).absolute())
    raise CannotBackUp("Say where backups are kept: a folder, or s3://bucket/prefix (--to, --from or BACKUP_TO).")


class Folder:
    """Each object is a file, closed to others."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def place(self) -> str:
        return str(self._root)

    def put(self, name: str, pieces: Iterable[bytes]) -> None:
        path = self._root / name
        undone = path.with_name(f"{path.name}.{os.getpid()}{_UNDONE}")
        try:
            self._make(path.parent)
            with suppress(FileNotFoundError):
                undone.unlink()
            with os.fdopen(os.open(undone, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.writelines(pieces)
                file.flush()
                os.fsync(file.fileno())
            undone.replace(path)
            _sync(path.parent)
        except OSError as error:
            with suppress(OSError):
                undone.unlink()
            raise CannotBackUp(f"{path} cannot be written: {error.strerror or type(error).__name__}.") from error
        except BaseException:
            with suppress(OSError):
                undone.unlink()
            raise

    def get(self, name: str) -> Iterator[bytes]:
        path = self._root / name
        if not path.is_file():
            raise ObjectMissing(name)

        def pieces() -> Iterator[bytes]:
            try:
                with path.open("rb") as file:
                    yield from iter(lambda: file.read(PIECE_BYTES), b"")
            except FileNotFoundError:
                raise ObjectMissing(name) from None
            except OSError as error:
                raise CannotBackUp(f"{path} cannot be read: {error.strerror}.") from error

        return pieces()

    def list(self, prefix: str) -> list[Stored]:
        found = []
        for folder, _, names in os.walk(self._root / prefix):
            for name in names:
                path = Path(folder) / name
                if not name.endswith(_UNDONE):
                    with suppress(FileNotFoundError):
                        state = path.stat()
                        changed = datetime.fromtimestamp(state.st_mtime, UTC)
                        found.append(Stored(path.relative_to(self._root).as_posix(), state.st_size, changed))
        return sorted(found)

    def delete(self, name: str) -> None:
        path = self._root / name
        with suppress(FileNotFoundError):
            path.unlink()
            _sync(path.parent)
        # What is empty now is not needed.
        with suppress(OSError):
            while path.parent != self._root:
                path = path.parent
                path.rmdir()

    def _make(self, folder: Path) -> None:
        if not folder.is_dir():
            self._make(folder.parent)
            folder.mkdir(mode=0o700, exist_ok=True)
            _sync(folder.parent)


class Bucket:
    """A bucket of any server that speaks S3, or a part of it that `prefix` names."""

    def __init__(self, bucket: str, prefix: str, environ: Mapping[str, str]) -> None:
        # Loaded by those who have one.
        from obstore.store import S3Store  # noqa: PLC0415

        endpoint = environ.get("AWS_ENDPOINT_URL", "")
        given: dict[str, Any] = {"region": _region(environ)}
        if endpoint:
            given["endpoint"] = endpoint
        for name in ("access_key_id", "secret_access_key", "session_token"):
            if value := _given(environ, f"AWS_{name.upper()}"):
                given[name] = value
        self._prefix = prefix
        self._place = f"s3://{bucket}/{prefix}".rstrip("/")
        self._store = S3Store(
            bucket,
            prefix=prefix or None,
            client_options={"allow_http": endpoint.startswith("http://"), "timeout": "120s"},
            retry_config={"max_retries": 5},
            **given,
        )

    @property
    def place(self) -> str:
        return self._place

    def put(self, name: str, pieces: Iterable[bytes]) -> None:
        import obstore  # noqa: PLC0415

        given = iter(pieces)
        # One request for what is small. Of what is large the parts become an object when all are there.
        first = next(given, b"")
        second = next(given, None)
        try:
            if second is None:
                obstore.put(self._store, name, first, use_multipart=False)
            else:
                obstore.put(self._store, name, chain((first, second), given), use_multipart=True, chunk_size=PIECE_BYTES)
        except obstore.exceptions.BaseError as error:
            raise CannotBackUp(self._said(name, "written", error)) from error

    def get(self, name: str) -> Iterator[bytes]:
        import obstore  # noqa: PLC0415

        try:
            found = obstore.get(self._store, name)
        except (obstore.exceptions.NotFoundError, FileNotFoundError):
            raise ObjectMissing(name) from None
        except obstore.exceptions.BaseError as error:
            raise CannotBackUp(self._said(name, "read", error)) from error

        def pieces() -> Iterator[bytes]:
            try:
                for piece in found.stream(min_chunk_size=PIECE_BYTES):
                    yield bytes(piece)
            except obstore.exceptions.BaseError as error:
                raise CannotBackUp(self._said(name, "read", error)) from error

        return pieces()

    def list(self, prefix: str) -> list[Stored]:
        import obstore  # noqa: PLC0415

        try:
            return sorted(
                Stored(each["path"], each["size"], each["last_modified"])
                for page in obstore.list(self._store, prefix.rstrip("/") or None)
                for each in page
            )
        except obstore.exceptions.BaseError as error:
            raise CannotBackUp(self._said(prefix, "listed", error)) from error

    def delete(self, name: str) -> None:
        import obstore  # noqa: PLC0415

        try:
            obstore.delete(self._store, name)
        except (obstore.exceptions.NotFoundError, FileNotFoundError):
            return
        except obstore.exceptions.BaseError as error:
            raise CannotBackUp(self._said(name, "deleted", error)) from error

    def _said(self, name: str, done: str, error: Exception) -> str:
        """The library's own text quotes requests; the kind of the error says enough."""
        return f"{self._place}/{name} cannot be {done} ({type(error).__name__}): check the address, the keys and their rights."


def address_for_others(place: str, environ: Mapping[str, str]) -> list[str]:
    """What another program is told to reach `s3://bucket/prefix`: its URL, and the two keys, unless it has a role of its own.

    Raises CannotBackUp for keys that only serve together with a token.
    """
    parts = urlsplit(place)
    region = _region(environ)
    # Amazon's in China are another cloud.
    amazon = f"https://s3.{region}.amazonaws.com{'.cn' if region.startswith('cn-') else ''}"
    url = f"{(environ.get('AWS_ENDPOINT_URL') or amazon).rstrip('/')}/{parts.netloc}{quote(parts.path)}"
    keys = [_given(environ, "AWS_ACCESS_KEY_ID"), _given(environ, "AWS_SECRET_ACCESS_KEY")]
    if _given(environ, "AWS_SESSION_TOKEN"):
        raise CannotBackUp("ClickHouse cannot be handed AWS_SESSION_TOKEN: give its server a role of its own, or keys without a token.")
    return [url, *keys] if all(keys) else [url]


def _region(environ: Mapping[str, str]) -> str:
    return environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def _given(environ: Mapping[str, str], name: str) -> str:
    """A secret: the variable's value, or what the file of `NAME_FILE` holds."""
    if value := environ.get(name):
        return value
    if file := environ.get(f"{name}_FILE"):
        try:
            return Path(file).read_text("utf-8").strip()
        except OSError as error:
            raise CannotBackUp(f"{name}_FILE cannot be read: {error.strerror}.") from error
    return ""


def _sync(folder: Path) -> None:
    """A name is durable only when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
