"""The keys of an installation: `python -m kit.keys DIR` makes those that are missing and leaves the others alone.

| file | holds |
|---|---|
| `internal_token_private.pem` | Ed25519 key with which the gateway signs internal tokens (PKCS 8) |
| `internal_token_public.pem` | its public half, for the services that verify them |
| `fingerprint.key` | 64 hex digits: the key of request fingerprints |
| `personal_data.json` | `{"kek", "index_key"}`, base64 of 32 bytes each: wraps the members' data keys; keys the blind indexes |

Losing `personal_data.json` loses every name, phone and birthday: back it up apart from the database.
"""

import os
import secrets
import sys
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat, load_pem_private_key

from kit.crypto import generate

KEY_BYTES = 32


class KeysUnusable(Exception):
    """A key file cannot be read, or a part of a pair is missing that cannot be made again."""


def create_missing_keys(folder: Path) -> list[Path]:
    """Make what is missing in `folder` (each file 0600, complete or absent) and return the files made."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    private, public = folder / "internal_token_private.pem", folder / "internal_token_public.pem"
    made = []
    if public.exists() and not private.exists():
        raise KeysUnusable(f"{private} is missing while {public} is there; restore it, or remove both to make a new pair.")
    if _create(private, _new_private_key()):
        made.append(private)
    if _create(public, _public_half(private)):
        made.append(public)
    fingerprint = folder / "fingerprint.key"
    if _create(fingerprint, secrets.token_hex(KEY_BYTES).encode() + b"\n"):
        made.append(fingerprint)
    personal = folder / "personal_data.json"
    if _create(personal, generate()):
        made.append(personal)
    return made


def _new_private_key() -> bytes:
    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _public_half(private: Path) -> bytes:
    try:
        key = load_pem_private_key(private.read_bytes(), password=None)
    except ValueError as error:
        raise KeysUnusable(f"{private} is not a private key.") from error
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _create(path: Path, content: bytes) -> bool:
    """Write `content` unless `path` is there; two at once agree on one file, and a crash leaves none or a whole one."""
    if path.exists():
        return False
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        Path(temporary).unlink()
    return True


def main(arguments: list[str]) -> int:
    """Command line: one argument, the folder."""
    if len(arguments) != 1:
        print("usage: python -m kit.keys DIR", file=sys.stderr)
        return 2
    try:
        made = create_missing_keys(Path(arguments[0]))
    except KeysUnusable as error:
        print(error, file=sys.stderr)
        return 1
    for path in made:
        print(f"made {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
