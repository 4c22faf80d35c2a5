import base64
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.crypto import KeyFileInvalid, KeyUnknown, PersonalDataKeys, SealBroken, generate
from kit.keys import create_missing_keys

ALICE = "01890000-0000-7000-8000-00000000000a"
BOB = "01890000-0000-7000-8000-00000000000b"
NAME = "王小明".encode()

keys = PersonalDataKeys.parse(generate())


@given(st.binary(max_size=300), st.text(max_size=20))
def test_what_is_sealed_opens_again_and_does_not_show(value: bytes, field: str) -> None:
    key, wrapped = keys.new_data_key(ALICE)
    sealed = key.seal(field, value)
    assert keys.data_key(ALICE, keys.kek_id, wrapped).open(field, sealed) == value
    assert len(value) < 4 or value not in sealed


def test_the_same_value_never_seals_the_same() -> None:
    key, _ = keys.new_data_key(ALICE)
    assert key.seal("name", NAME) != key.seal("name", NAME)


def test_every_changed_bit_is_noticed() -> None:
    key, _ = keys.new_data_key(ALICE)
    sealed = key.seal("name", NAME)
    for index in range(len(sealed)):
        changed = sealed[:index] + bytes([sealed[index] ^ 1]) + sealed[index + 1 :]
        with pytest.raises(SealBroken):
            key.open("name", changed)


@pytest.mark.parametrize("length", [0, 1, 12, 13, 20])
def test_what_is_cut_off_is_noticed(length: int) -> None:
    key, _ = keys.new_data_key(ALICE)
    with pytest.raises(SealBroken):
        key.open("name", key.seal("name", NAME)[:length])


def test_a_value_moved_to_another_field_or_member_does_not_open() -> None:
    key, wrapped = keys.new_data_key(ALICE)
    with pytest.raises(SealBroken):
        key.open("city", key.seal("name", NAME))
    with pytest.raises(SealBroken):
        keys.data_key(BOB, keys.kek_id, wrapped)


def test_another_key_file_opens_nothing() -> None:
    other = PersonalDataKeys.parse(generate())
    _, wrapped = keys.new_data_key(ALICE)
    with pytest.raises(KeyUnknown):
        other.data_key(ALICE, keys.kek_id, wrapped)
    with pytest.raises(SealBroken):
        other.data_key(ALICE, other.kek_id, wrapped)


def test_destroying_the_wrapped_key_erases_a_member_and_nobody_else() -> None:
    alice, _ = keys.new_data_key(ALICE)
    sealed = alice.seal("name", NAME)
    bob, bobs = keys.new_data_key(BOB)
    bobs_name = bob.seal("name", b"Bob")
    # With Alice's wrapped key gone, all that is left are other members' keys and new ones.
    for key in (keys.new_data_key(ALICE)[0], keys.data_key(BOB, keys.kek_id, bobs)):
        with pytest.raises(SealBroken):
            key.open("name", sealed)
    assert keys.data_key(BOB, keys.kek_id, bobs).open("name", bobs_name) == b"Bob"


def test_a_rotated_kek_opens_old_keys_and_rewraps_them() -> None:
    before = json.loads(generate())
    old = PersonalDataKeys.parse(json.dumps(before).encode())
    key, wrapped = old.new_data_key(ALICE)
    sealed = key.seal("name", NAME)
    fresh = json.loads(generate())["kek"]
    rotated = PersonalDataKeys.parse(json.dumps({**before, "kek": fresh, "retired_keks": [before["kek"]]}).encode())
    moved = rotated.rewrap(ALICE, old.kek_id, wrapped)
    retired = PersonalDataKeys.parse(json.dumps({**before, "kek": fresh}).encode())
    assert retired.data_key(ALICE, retired.kek_id, moved).open("name", sealed) == NAME
    with pytest.raises(KeyUnknown, match=old.kek_id):
        retired.data_key(ALICE, old.kek_id, wrapped)
    assert retired.blind_index("phone", "+8613800138000") == old.blind_index("phone", "+8613800138000")


def test_a_blind_index_is_equal_for_equal_values_of_one_kind_under_one_key() -> None:
    assert keys.blind_index("phone", "1") == keys.blind_index("phone", "1")
    different = [keys.blind_index("phone", "1"), keys.blind_index("phone", "2"), keys.blind_index("card", "1")]
    different.append(PersonalDataKeys.parse(generate()).blind_index("phone", "1"))
    assert len(set(different)) == len(different)


def test_the_file_that_kit_keys_makes_is_read(tmp_path: Path) -> None:
    create_missing_keys(tmp_path)
    assert PersonalDataKeys.load(tmp_path / "personal_data.json").kek_id


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"kek": 1, "index_key": 2}',
        json.dumps({"kek": base64.b64encode(b"s" * 31).decode(), "index_key": base64.b64encode(b"s" * 32).decode()}).encode(),
        json.dumps({"kek": "c2VjcmV0!!", "index_key": "c2VjcmV0"}).encode(),
    ],
)
def test_a_bad_key_file_is_refused_without_quoting_it(content: bytes) -> None:
    with pytest.raises(KeyFileInvalid) as caught:
        PersonalDataKeys.parse(content)
    assert "c2Vj" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_missing_key_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileInvalid, match=r"personal_data\.json cannot be read"):
        PersonalDataKeys.load(tmp_path / "personal_data.json")
