"""Key files: there, closed to others, fitting one another, and those that the databases were written with. No key is ever shown."""

import hmac
import stat
from collections.abc import Callable
from pathlib import Path

from kit.clock import Clock
from kit.crypto import KeyFileInvalid, PersonalDataKeys, proof_of
from kit.db import RawConnection
from kit.tokens import TokenInvalid, TokenMinter, TokenVerifier
from regulars_cli.doctor.databases import FAULTS, open_to_read
from regulars_cli.doctor.findings import Finding, failed, ok, warning
from regulars_cli.doctor.surroundings import Surroundings

PRIVATE, PUBLIC = "INTERNAL_TOKEN_PRIVATE_KEY_FILE", "INTERNAL_TOKEN_PUBLIC_KEY_FILE"
FINGERPRINT, PERSONAL = "FINGERPRINT_KEY_FILE", "PERSONAL_DATA_KEY_FILE"
_SECRET = (PRIVATE, FINGERPRINT, PERSONAL)

# Each key-encryption key that members were written with, found in steps over the index.
_UNKNOWN_KEK = """
WITH RECURSIVE used AS (
    SELECT min(kek_id) AS kek_id FROM members
    UNION ALL
    SELECT (SELECT min(m.kek_id) FROM members AS m WHERE m.kek_id > used.kek_id) FROM used WHERE used.kek_id IS NOT NULL
)
SELECT kek_id FROM used WHERE kek_id <> ALL($1::text[]) LIMIT 1
"""


async def check_keys(around: Surroundings) -> list[Finding]:
    """Every key file that the settings name."""
    contents: dict[str, bytes] = {}
    named = [setting for setting in (PRIVATE, PUBLIC, FINGERPRINT, PERSONAL) if around.get(setting)]
    found = [_readable(setting, Path(around.get(setting)), contents) for setting in named]
    if PRIVATE in contents and PUBLIC in contents:
        found.append(_pair(contents[PRIVATE], contents[PUBLIC], around.clock))
    if FINGERPRINT in contents:
        found += await _fingerprint(around, contents[FINGERPRINT])
    if PERSONAL in contents:
        found += await _personal(around, contents[PERSONAL])
    return found


def _readable(setting: str, path: Path, contents: dict[str, bytes]) -> Finding:
    try:
        contents[setting] = path.read_bytes()
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        advice = f"Put the file back from where keys are kept, or correct {setting}; `python -m kit.keys DIR` makes those of a new system."
        return failed("keys", setting, f"{path} cannot be read ({error.strerror}).", advice)
    if setting in _SECRET and mode & 0o007:
        said = f"{path} may be read by every user of this machine (mode {mode:o})."
        return warning("keys", setting, said, f"chmod 600 {path}; of a Kubernetes secret set defaultMode 0440.")
    return ok("keys", setting, f"{path} is there{' and closed to others' if setting in _SECRET else ''}.")


def _pair(private: bytes, public: bytes, clock: Clock) -> Finding:
    advice = "Give all services the pair that belongs together: the public half is made from the private one by `python -m kit.keys`."
    try:
        TokenVerifier(public, clock).verify(TokenMinter(private, clock).mint("doctor", (), frozenset()))
    except TokenInvalid:
        said = "The key pair of internal tokens does not belong together: member and reporting refuse the gateway."
        return failed("keys", "internal tokens", said, advice)
    except (ValueError, TypeError):
        return failed("keys", "internal tokens", "A key of internal tokens is no Ed25519 key in PEM.", advice)
    return ok("keys", "internal tokens", "The key pair of internal tokens belongs together.")


async def _fingerprint(around: Surroundings, content: bytes) -> list[Finding]:
    try:
        proof = proof_of(bytes.fromhex(content.decode("ascii")))
    except ValueError:
        said = "The fingerprint key is not 64 hex digits."
        return [failed("keys", "fingerprint", said, "Put back the file of the installation that made the database.")]
    return await _proven(around, "GATEWAY_DATABASE_URL", "gateway", "fingerprint", proof)


async def _personal(around: Surroundings, content: bytes) -> list[Finding]:
    try:
        keys = PersonalDataKeys.parse(content)
    except KeyFileInvalid as invalid:
        return [failed("keys", "personal data", str(invalid), "Put back the file of the installation that made the database.")]

    async def all_known(connection: RawConnection) -> Finding | None:
        unknown = await connection.fetchval(_UNKNOWN_KEK, keys.kek_ids)
        if unknown is None:
            return None
        said = f"The key file lacks the key-encryption key {unknown} of some members: their names and phones cannot be read."
        return failed("keys", "personal data", said, "Put the key under `retired_keks`.")

    return await _proven(around, "MEMBER_DATABASE_URL", "member", "index_key", keys.index_key_proof(), all_known)


async def _proven(
    around: Surroundings,
    setting: str,
    database: str,
    name: str,
    proof: bytes,
    more: Callable[..., object] | None = None,
) -> list[Finding]:
    """Whether the database knows the key by its proof. A database that does not answer was named already."""
    if not around.get(setting):
        return []
    try:
        connection = await open_to_read(around.get(setting))
    except FAULTS:
        return []
    try:
        kept = await connection.fetchval("SELECT proof FROM key_checks WHERE name = $1", name)
        if kept is None:
            return [ok("keys", name, f"The database {database} was not written with any key yet.")]
        if not hmac.compare_digest(bytes(kept), proof):
            said = f"The {name} key is not the one that the database {database} was written with: the service refuses to start."
            return [failed("keys", name, said, "Put back the key file of the installation that made this database.")]
        wrong = await more(connection) if more is not None else None  # type: ignore[misc]  # it is a coroutine function
        return [wrong] if isinstance(wrong, Finding) else [ok("keys", name, f"The {name} key is that of the database {database}.")]
    except FAULTS:
        # The tables are not there: the check of migrations says so.
        return []
    finally:
        connection.terminate()
