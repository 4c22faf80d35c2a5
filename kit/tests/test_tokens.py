"""Internal tokens say who acts, cannot be altered, and end."""

from datetime import UTC, datetime, timedelta

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

from kit.clock import HeldClock
from kit.tokens import LEEWAY, LIFETIME, RENEW_BEFORE, Actor, TokenInvalid, TokenMinter, TokenVerifier

NOW = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)


def key_pair() -> tuple[bytes, bytes]:
    key = Ed25519PrivateKey.generate()
    return (
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    )


@pytest.fixture
def clock() -> HeldClock:
    return HeldClock(NOW)


@pytest.fixture
def both(clock: HeldClock) -> tuple[TokenMinter, TokenVerifier]:
    private, public = key_pair()
    return TokenMinter(private, clock), TokenVerifier(public, clock)


def test_a_token_names_its_actor(both: tuple[TokenMinter, TokenVerifier]) -> None:
    minter, verifier = both
    assert verifier.verify(minter.mint("c1", ("till",), frozenset({"s1"}))) == Actor("c1", frozenset({"till"}), frozenset({"s1"}))
    everywhere = verifier.verify(minter.mint("c2", ("admin",), None))
    assert everywhere == Actor("c2", frozenset({"admin"}), None)
    assert everywhere.may_act_in("s9")


def test_an_actor_acts_only_in_its_stores() -> None:
    actor = Actor("c1", frozenset({"till"}), frozenset({"s1"}))
    assert actor.may_act_in("s1")
    assert not actor.may_act_in("s2")


def test_a_token_is_given_again_until_a_minute_before_its_end(both: tuple[TokenMinter, TokenVerifier], clock: HeldClock) -> None:
    minter, _ = both
    first = minter.mint("c1", ("till",), None)
    clock.advance(LIFETIME - RENEW_BEFORE - timedelta(seconds=1))
    assert minter.mint("c1", ("till",), None) == first
    clock.advance(timedelta(seconds=1))
    assert minter.mint("c1", ("till",), None) != first
    assert minter.mint("c1", ("admin",), None) != first


def test_an_expired_token_is_refused_also_when_it_was_verified_before(both: tuple[TokenMinter, TokenVerifier], clock: HeldClock) -> None:
    minter, verifier = both
    token = minter.mint("c1", ("till",), None)
    verifier.verify(token)
    clock.advance(LIFETIME + LEEWAY)
    with pytest.raises(TokenInvalid):
        verifier.verify(token)
    with pytest.raises(TokenInvalid):
        verifier.verify(token)


def test_a_clock_that_goes_back_still_mints_valid_tokens(both: tuple[TokenMinter, TokenVerifier], clock: HeldClock) -> None:
    minter, verifier = both
    minter.mint("c1", ("till",), None)
    clock.advance(timedelta(hours=-1))
    assert verifier.verify(minter.mint("c1", ("till",), None)).subject == "c1"


def test_foreign_and_altered_tokens_are_refused(both: tuple[TokenMinter, TokenVerifier], clock: HeldClock) -> None:
    minter, verifier = both
    other = TokenMinter(key_pair()[0], clock)
    good = minter.mint("c1", ("till",), None)
    unsigned = jwt.encode({"sub": "c1", "iss": "regulars-gateway", "iat": 0, "exp": 4_000_000_000}, key="", algorithm="none")
    for token in ("", "x", good[:-4] + "AAAA", other.mint("c1", ("till",), None), unsigned):
        with pytest.raises(TokenInvalid):
            verifier.verify(token)


def test_a_token_from_the_future_is_refused(both: tuple[TokenMinter, TokenVerifier], clock: HeldClock) -> None:
    minter, verifier = both
    token = minter.mint("c1", ("till",), None)
    clock.advance(-LEEWAY - timedelta(seconds=1))
    with pytest.raises(TokenInvalid):
        verifier.verify(token)


def test_a_certificate_serves_as_the_public_key_also_after_it_expired(clock: HeldClock) -> None:
    key = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "regulars")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - timedelta(days=2))
        .not_valid_after(NOW - timedelta(days=1))
        .sign(key, None)
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    token = TokenMinter(private, clock).mint("c1", ("till",), None)
    assert TokenVerifier(certificate.public_bytes(Encoding.PEM), clock).verify(token).subject == "c1"
    with pytest.raises(TokenInvalid):
        TokenVerifier(key_pair()[1], clock).verify(token)
