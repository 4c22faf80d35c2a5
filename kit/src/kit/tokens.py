"""Internal tokens: who acts, with which roles, in which stores; signed by the gateway and checked by every service.

Ed25519 JWTs that live for minutes and name no request, so that one is minted per client and verified once until it expires.
"""

import hashlib
from dataclasses import dataclass
from datetime import timedelta

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key, load_pem_public_key

from kit.clock import Clock, SystemClock

ALGORITHM = "EdDSA"
ISSUER = "regulars-gateway"
LIFETIME = timedelta(minutes=5)
RENEW_BEFORE = timedelta(minutes=1)
# A verifier's clock may be behind or ahead of the minter's by this much.
LEEWAY = timedelta(seconds=30)
CACHED_TOKENS = 10_000
CERTIFICATE_MARK = b"-----BEGIN CERTIFICATE-----"


class TokenInvalid(Exception):
    """The token is not one of ours, was altered, or is over."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Whoever a request acts for."""

    subject: str
    roles: frozenset[str]
    # Ids of the stores it may act in; None: all of them.
    stores: frozenset[str] | None

    def may_act_in(self, store_id: str) -> bool:
        """Whether the store is within the actor's scope."""
        return self.stores is None or store_id in self.stores


class TokenMinter:
    """Mints tokens with the private key (PEM, Ed25519). A token is given again until a minute before it expires."""

    def __init__(self, private_pem: bytes, clock: Clock | None = None) -> None:
        key = load_pem_private_key(private_pem, password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise TypeError("The key of internal tokens must be an Ed25519 private key.")
        self._key = key
        self._headers = {"kid": _key_id(key.public_key())}
        self._clock = clock or SystemClock()
        self._minted: dict[tuple[str, tuple[str, ...], frozenset[str] | None], tuple[int, str]] = {}

    def mint(self, subject: str, roles: tuple[str, ...], stores: frozenset[str] | None) -> str:
        """A token for the actor, valid for at least another minute."""
        now = int(self._clock.now().timestamp())
        actor = (subject, roles, stores)
        held = self._minted.get(actor)
        # Also when the clock went back: a token from the future would be refused elsewhere.
        if held is not None and held[0] - LIFETIME.seconds <= now < held[0] - RENEW_BEFORE.seconds:
            return held[1]
        expires = now + LIFETIME.seconds
        claims = {
            "iss": ISSUER,
            "sub": subject,
            "roles": list(roles),
            "stores": "*" if stores is None else sorted(stores),
            "iat": now,
            "exp": expires,
        }
        token = jwt.encode(claims, self._key, algorithm=ALGORITHM, headers=self._headers)
        if len(self._minted) >= CACHED_TOKENS:
            self._minted.clear()
        self._minted[actor] = (expires, token)
        return token


class TokenVerifier:
    """Checks tokens with the public key (PEM, Ed25519; bare, or in a certificate). A token once checked is remembered until it expires."""

    def __init__(self, public_pem: bytes, clock: Clock | None = None) -> None:
        key = _public_key_in(public_pem)
        if not isinstance(key, Ed25519PublicKey):
            raise TypeError("The key of internal tokens must be an Ed25519 public key.")
        self._key = key
        self._clock = clock or SystemClock()
        self._verified: dict[str, tuple[int, Actor]] = {}

    def verify(self, token: str) -> Actor:
        """The actor whom the token names.

        Raises:
            TokenInvalid: the signature, the form or the time is wrong.
        """
        now = int(self._clock.now().timestamp())
        held = self._verified.get(token)
        if held is None:
            held = self._check(token, now)
            if len(self._verified) >= CACHED_TOKENS:
                self._verified.clear()
            self._verified[token] = held
        expires, actor = held
        if now >= expires + LEEWAY.seconds:
            del self._verified[token]
            raise TokenInvalid("The token has expired.")
        return actor

    def _check(self, token: str, now: int) -> tuple[int, Actor]:
        try:
            claims = jwt.decode(
                token,
                self._key,
                algorithms=[ALGORITHM],
                issuer=ISSUER,
                # Times are judged here, by our own clock.
                options={"verify_exp": False, "verify_iat": False, "verify_nbf": False, "require": ["sub", "iat", "exp"]},
            )
            issued, expires = claims["iat"], claims["exp"]
            stores = claims["stores"]
            actor = Actor(claims["sub"], frozenset(claims["roles"]), None if stores == "*" else frozenset(stores))
        except (jwt.InvalidTokenError, KeyError, TypeError) as error:
            raise TokenInvalid("The token is not a valid internal token.") from error
        if not isinstance(issued, int) or not isinstance(expires, int) or issued > now + LEEWAY.seconds:
            raise TokenInvalid("The token's times are not valid.")
        return expires, actor


def _public_key_in(pem: bytes) -> object:
    """The key itself, of whatever kind. A certificate is only its wrapping here: who issued it, and until when, is not asked."""
    if CERTIFICATE_MARK in pem:
        # Loaded by those who have one.
        from cryptography.x509 import load_pem_x509_certificate  # noqa: PLC0415

        return load_pem_x509_certificate(pem).public_key()
    return load_pem_public_key(pem)


def _key_id(key: Ed25519PublicKey) -> str:
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]
