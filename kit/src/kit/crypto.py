"""Personal data at rest: sealed under a key of each person's own, found by a keyed index, erased by destroying that key.

    key file ── KEK ──wraps──> data key of a member ──seals──> name, phone, birthday, answers
         └───── index key ──HMAC──> blind index of a phone or card

All sealing is AES-256-GCM with a random nonce: `version | nonce | ciphertext and tag`. What is sealed is bound to its member and its
field, so that a value copied to another row or column does not open. A backup without the key file holds no personal data, and a
member whose wrapped key is gone is gone from the backups of everything else too.

The KEK is rotated by putting the old one under `retired_keks` and a new one in its place: old keys open as before, new ones are wrapped
under the new KEK, and `rewrap` moves the rest over. The index key is for ever: every look-up depends on it.
"""

import base64
import binascii
import hashlib
import hmac
import json
import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
NONCE_BYTES = 12
VERSION = b"\x01"


class KeyFileInvalid(Exception):
    """The key file cannot be read or does not hold what it should; the sentence says what to do, and quotes no key."""


class SealBroken(Exception):
    """What was sealed does not open: it was changed, belongs elsewhere, or is sealed under another key."""


class KeyUnknown(Exception):
    """A data key is wrapped under a KEK that the key file does not hold."""

    def __init__(self, kek_id: str) -> None:
        super().__init__(f"No key-encryption key {kek_id} in the key file: put it under `retired_keks`.")
        self.kek_id = kek_id


def generate() -> bytes:
    """The content of a new key file."""
    fresh = {name: base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode() for name in ("kek", "index_key")}
    return json.dumps(fresh, indent=2).encode() + b"\n"


def proof_of(key: bytes) -> bytes:
    """What a database keeps to know a key again (kit.key_checks); it tells nothing of the key."""
    return hmac.digest(key, b"regulars key check", "sha256")


class DataKey:
    """The key of one member's personal data, in memory."""

    __slots__ = ("_cipher", "_member")

    def __init__(self, member_id: str, key: bytes) -> None:
        self._member = member_id.encode() + b"\0"
        self._cipher = AESGCM(key)

    def seal(self, field: str, value: bytes) -> bytes:
        """`value` sealed for `field` of this member. The same value seals differently every time."""
        return _seal(self._cipher, value, self._member + field.encode())

    def open(self, field: str, sealed: bytes) -> bytes:
        """What was sealed for `field` of this member. Raises SealBroken."""
        return _open(self._cipher, sealed, self._member + field.encode())


class PersonalDataKeys:
    """The key file: the KEKs, and the key of the blind indexes."""

    def __init__(self, kek: bytes, index_key: bytes, retired: tuple[bytes, ...] = ()) -> None:
        self._index_key = index_key
        self._keks = {_kek_id(each): AESGCM(each) for each in (*retired, kek)}
        self.kek_id = _kek_id(kek)
        self.retired_kek_ids = tuple(_kek_id(each) for each in retired)
        self.kek_ids = tuple(self._keks)

    @classmethod
    def parse(cls, content: bytes) -> "PersonalDataKeys":
        """The keys in `{"kek", "index_key", "retired_keks"?}`, base64 of 32 bytes each. Raises KeyFileInvalid."""
        try:
            found = json.loads(content)
            retired = tuple(_key(each) for each in found.get("retired_keks", []))
            return cls(_key(found["kek"]), _key(found["index_key"]), retired)
        except (ValueError, KeyError, TypeError, AttributeError):
            # The cause would quote what it could not read.
            raise KeyFileInvalid(
                "The file of personal data keys must be JSON with `kek` and `index_key`, base64 of 32 bytes each."
            ) from None

    @classmethod
    def load(cls, path: Path) -> "PersonalDataKeys":
        """The keys in a file. Raises KeyFileInvalid."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise KeyFileInvalid(f"{path} cannot be read: {error.strerror}.") from error
        return cls.parse(content)

    def new_data_key(self, member_id: str) -> tuple[DataKey, bytes]:
        """A new key for a member, and its form for storing, wrapped under the KEK `kek_id`."""
        key = secrets.token_bytes(KEY_BYTES)
        return DataKey(member_id, key), self._wrap(member_id, key)

    def data_key(self, member_id: str, kek_id: str, wrapped: bytes) -> DataKey:
        """A member's key from its stored form. Raises KeyUnknown and SealBroken."""
        return DataKey(member_id, self._unwrap(member_id, kek_id, wrapped))

    def rewrap(self, member_id: str, kek_id: str, wrapped: bytes) -> bytes:
        """The stored form of the same key under the present KEK. Raises KeyUnknown and SealBroken."""
        return self._wrap(member_id, self._unwrap(member_id, kek_id, wrapped))

    def blind_index(self, kind: str, value: str) -> bytes:
        """What a value of one kind is found by: equal for equal values, and telling nothing without the key."""
        return hmac.digest(self._index_key, f"{kind}\0{value}".encode(), "sha256")

    def index_key_proof(self) -> bytes:
        """What a database keeps to know the index key again."""
        return proof_of(self._index_key)

    def _wrap(self, member_id: str, key: bytes) -> bytes:
        return _seal(self._keks[self.kek_id], key, _wrapping(member_id, self.kek_id))

    def _unwrap(self, member_id: str, kek_id: str, wrapped: bytes) -> bytes:
        if kek_id not in self._keks:
            raise KeyUnknown(kek_id)
        return _open(self._keks[kek_id], wrapped, _wrapping(member_id, kek_id))


def _wrapping(member_id: str, kek_id: str) -> bytes:
    return f"data-key\0{kek_id}\0{member_id}".encode()


def _kek_id(kek: bytes) -> str:
    return hashlib.sha256(b"regulars kek id\0" + kek).hexdigest()[:16]


def _key(text: str) -> bytes:
    key = base64.b64decode(text, validate=True)
    if len(key) != KEY_BYTES:
        raise binascii.Error
    return key


def _seal(cipher: AESGCM, value: bytes, bound_to: bytes) -> bytes:
    nonce = os.urandom(NONCE_BYTES)
    return VERSION + nonce + cipher.encrypt(nonce, value, bound_to)


def _open(cipher: AESGCM, sealed: bytes, bound_to: bytes) -> bytes:
    start = len(VERSION) + NONCE_BYTES
    if sealed[: len(VERSION)] != VERSION or len(sealed) < start:
        raise SealBroken
    try:
        return cipher.decrypt(sealed[len(VERSION) : start], sealed[start:], bound_to)
    except InvalidTag:
        raise SealBroken from None
