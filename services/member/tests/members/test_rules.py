from contextlib import suppress
from datetime import UTC, date, datetime
from typing import Any

import phonenumbers
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.problems import Refusal
from member.members.rules import (
    FieldInvalid,
    GivenFields,
    MemberFile,
    birth_year_from,
    birthday_key,
    card_key,
    changed_fields,
    changed_file,
    city_to_tell,
    name_key,
    read_birthday,
    read_card,
    read_phone,
    read_text,
)

NOW = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)
TODAY = date(2026, 11, 21)
EMPTY = MemberFile(joined_on=TODAY)
PHONE = "+8613800138000"


@pytest.mark.parametrize(
    "typed",
    [
        "13800138000",
        " 138 0013 8000 ",
        "138-0013-8000",
        "138—0013—8000",
        "(138) 0013.8000",
        "１３８００１３８０００",
        "＋８６　１３８　００１３　８０００",
        "+86 138 0013 8000",
        "+86(0)138 0013 8000",
        "8613800138000",
        "008613800138000",
        "00 86 138 0013 8000",
        "013800138000",
        "\u202a+86\u00a0138\u00a00013\u00a08000\u202c",
        "١٣٨٠٠١٣٨٠٠٠",
    ],
)
def test_what_people_type_is_one_phone(typed: str) -> None:
    assert read_phone(typed) == PHONE


@pytest.mark.parametrize(
    "typed, region, phone",
    [
        ("020 7946 0958", "GB", "+442079460958"),
        ("020 7946 0958", "gb", "+442079460958"),
        ("00 44 20 7946 0958", "CN", "+442079460958"),
        ("+44 (0)20 7946 0958", "CN", "+442079460958"),
        ("010-62345678", "CN", "+861062345678"),
        ("13800138000", "CN", PHONE),
        ("+8613800138000", "GB", PHONE),
        ("0912 345 678", "TW", "+886912345678"),
        # Leading zeros that belong to the number.
        ("06 698 12345", "IT", "+390669812345"),
        # A range that tables of numbers may not know yet.
        ("19700138000", "CN", "+8619700138000"),
    ],
)
def test_a_region_or_a_country_code_says_where_a_phone_is(typed: str, region: str, phone: str) -> None:
    assert read_phone(typed, region) == phone


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "1",
        "12345",
        "1380013800",
        "138001380000",
        "12800138000",
        "abc",
        "1380013800a",
        "13800138000 ext 5",
        "13800138000;13900139000",
        "+",
        "+999 123456",
        "0" * 60,
        "1-800-FLOWERS",
        "13800138000\x00",
    ],
)
def test_what_is_no_phone_is_refused_without_repeating_it(typed: str) -> None:
    with pytest.raises(FieldInvalid) as caught:
        read_phone(typed)
    assert len(typed) < 3 or typed not in str(caught.value)


def test_an_unknown_region_is_refused() -> None:
    with pytest.raises(FieldInvalid, match="region"):
        read_phone("13800138000", "ZZ")


def _example(region: str) -> str | None:
    number = phonenumbers.example_number_for_type(region, phonenumbers.PhoneNumberType.MOBILE)
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164) if number else None


@given(st.sampled_from([phone for region in sorted(phonenumbers.SUPPORTED_REGIONS) if (phone := _example(region))]))
def test_a_phone_in_e164_stays_itself_in_every_region(phone: str) -> None:
    assert read_phone(phone) == phone
    assert read_phone(phone, "GB") == phone


@given(
    digits=st.integers(13_000_000_000, 19_999_999_999).map(str),
    prefix=st.sampled_from(["", "+86", "0086", "86", "0", "+86 0"]),
    gaps=st.lists(st.sampled_from(["", " ", "-", ".", "\u3000"]), min_size=11, max_size=11),
    full_width=st.booleans(),
)
def test_every_way_of_typing_a_chinese_mobile_is_one_phone(digits: str, prefix: str, gaps: list[str], *, full_width: bool) -> None:
    typed = prefix + "".join(digit + gap for digit, gap in zip(digits, gaps, strict=True))
    if full_width:
        typed = typed.translate({ord("0") + n: 0xFF10 + n for n in range(10)})
    assert read_phone(typed) == f"+86{digits}"


@given(st.text(max_size=60), st.sampled_from(["CN", "GB", "US", "XX"]))
def test_any_text_is_a_phone_in_e164_or_refused(typed: str, region: str) -> None:
    with suppress(FieldInvalid):
        phone = read_phone(typed, region)
        assert phone.startswith("+")
        assert phone[1:].isascii()
        assert phone[1:].isdecimal()
        assert read_phone(phone, "GB") == phone


@pytest.mark.parametrize(
    "typed, birthday",
    [
        ("1990-05-17", "1990-05-17"),
        ("05-17", "05-17"),
        ("02-29", "02-29"),
        ("2000-02-29", "2000-02-29"),
        ("１９９０-05-17", "1990-05-17"),
        ("2026-11-21", "2026-11-21"),
    ],
)
def test_a_birthday_is_a_plain_day_with_or_without_its_year(typed: str, birthday: str) -> None:
    assert read_birthday(typed, TODAY) == birthday


@pytest.mark.parametrize(
    "typed",
    ["2026-11-22", "1899-12-31", "1999-02-29", "02-30", "13-01", "1990-5-17", "17.05.1990", "19900517", "today", "1990-05-17T00:00"],
)
def test_a_birthday_that_is_none_is_refused(typed: str) -> None:
    with pytest.raises(FieldInvalid):
        read_birthday(typed, TODAY)


def test_a_birthday_is_of_today_wherever_it_is_today() -> None:
    # 23:00 UTC on the 21st is the 22nd in Shanghai.
    late = datetime(2026, 11, 21, 23, 0, tzinfo=UTC)
    assert changed_file(EMPTY, GivenFields(birthday="2026-11-22"), late).birthday == "2026-11-22"


@given(st.text(max_size=80))
def test_a_card_is_found_however_it_is_spaced_and_cased(typed: str) -> None:
    with suppress(FieldInvalid):
        card = read_card(typed)
        assert read_card(card) == card
        assert card_key(card) == card_key(f" {card} ".replace(" ", "-").strip("-"))


@pytest.mark.parametrize("typed", ["", " ", "-", "--- -", "x" * 65, "A\x00B", "A\x1bB"])
def test_a_card_without_letters_or_digits_is_refused(typed: str) -> None:
    with pytest.raises(FieldInvalid):
        read_card(typed)


@given(st.text(max_size=120))
def test_a_text_can_be_stored_and_read_again_or_is_refused(typed: str) -> None:
    with suppress(FieldInvalid):
        text = read_text(typed)
        assert 0 < len(text) <= 100
        assert "\x00" not in text
        text.encode()
        assert read_text(text) == text


@pytest.mark.parametrize("typed", ["Zoë Groß", "ZOË GROSS", " zoe\u0308\u3000 groß ", "Ｚｏë\tgross"])
def test_a_name_is_found_however_it_is_spaced_and_cased(typed: str) -> None:
    assert name_key(typed) == "zoë gross"


def test_a_birthday_is_found_by_its_day_of_the_year() -> None:
    assert birthday_key("1990-05-17") == birthday_key("05-17") == "05-17"


@pytest.mark.parametrize(
    "birthday,first_year", [("1990-05-17", 1990), ("1989-12-31", 1985), ("2000-02-29", 2000), ("1904-01-01", 1900), ("05-17", 0), (None, 0)]
)
def test_of_a_birthday_only_the_band_of_its_year_is_told(birthday: str | None, first_year: int) -> None:
    assert birth_year_from(birthday) == first_year


def test_names_keep_rare_characters() -> None:
    assert read_text(" 王　𱍊 ") == "王 𱍊"
    assert read_text("Zoë") == read_text("Zoe\u0308")


@pytest.mark.parametrize(
    "before, given_fields, phone, verified",
    [
        ({}, {"phone": "13800138000"}, PHONE, False),
        ({}, {"phone": "13800138000", "phone_verified": True}, PHONE, True),
        ({"phone": PHONE, "phone_verified": True}, {"phone": "138 0013 8000"}, PHONE, True),
        ({"phone": PHONE, "phone_verified": True}, {"phone": "13900139000"}, "+8613900139000", False),
        ({"phone": PHONE, "phone_verified": True}, {"phone": "13900139000", "phone_verified": True}, "+8613900139000", True),
        ({"phone": PHONE, "phone_verified": True}, {"name": "A"}, PHONE, True),
        ({"phone": PHONE, "phone_verified": True}, {"phone": ""}, None, False),
        ({"phone": PHONE}, {"phone_verified": True}, PHONE, True),
    ],
)
def test_a_new_phone_is_not_verified_unless_said(
    before: dict[str, Any], given_fields: dict[str, Any], phone: str | None, *, verified: bool
) -> None:
    after = changed_file(MemberFile(joined_on=TODAY, **before), GivenFields(**given_fields), NOW)
    assert (after.phone, after.phone_verified) == (phone, verified)


def test_no_phone_cannot_be_verified() -> None:
    with pytest.raises(Refusal) as caught:
        changed_file(EMPTY, GivenFields(phone_verified=True), NOW)
    assert caught.value.code == "phone_missing"


def test_what_is_not_given_stays_and_what_is_empty_goes() -> None:
    file = MemberFile(joined_on=TODAY, name="王小明", card="A-1", city="上海", gender="female", birthday="02-29", country="CN")
    after = changed_file(file, GivenFields(name="", card="", city="", gender="", birthday="", country="", joined_on="2020-01-01"), NOW)
    assert after == MemberFile(joined_on=date(2020, 1, 1))
    assert changed_file(file, GivenFields(), NOW) == file
    assert changed_fields(file, file) == []
    assert set(changed_fields(file, after)) == {"name", "card", "city", "gender", "birthday", "country", "joined_on"}


def test_every_field_at_fault_is_named() -> None:
    with pytest.raises(Refusal) as caught:
        changed_file(
            EMPTY,
            GivenFields(name="\x07", phone="12", card="-", birthday="1", gender="x", city="\x00", country="y" * 101, joined_on=""),
            NOW,
        )
    assert caught.value.code == "name_invalid"
    assert [error.pointer for error in caught.value.errors] == [
        "/name",
        "/phone",
        "/card",
        "/birthday",
        "/gender",
        "/city",
        "/country",
        "/joined_on",
    ]
    assert all(error.code == f"{error.pointer[1:]}_invalid" for error in caught.value.errors)


@pytest.mark.parametrize(
    "city",
    [
        "北京",
        "北京市",
        "三亚市",
        "七台河市",
        "五指山市",
        "乌鲁木齐",
        "乌鲁木齐市",
        "浙江省杭州市",
        "上海市浦东新区",
        "台州市路桥区",
        "香港特别行政区",
        "双江拉祜族佤族布朗族傣族自治县",
        "東京都",
        "さいたま市",
        "서울 강남구",
        "São Paulo",
        "Saint-Jean-d'Angély",
        "L’Aquila",
        "Nukuʻalofa",
        "St. John's",
        "Las Palmas de Gran Canaria",
        "Kaiser-Wilhelm-Koog",
        "Νέα Σμύρνη",
        "मुंबई",
        "القاهرة",
    ],
)
def test_a_citys_name_is_told_as_it_is(city: str) -> None:
    assert city_to_tell(city) == city


@pytest.mark.parametrize(
    "typed",
    [
        None,
        "",
        "-",
        "北京市朝阳区建国路88号 张三 13912349999",
        "北京市朝阳区建国路 张三",
        "北京市朝阳区建国路张三",
        "北京市朝阳区建国路八号",
        "朝阳区建国路张三小区",
        "三号张三区",
        "双江拉祜族佤族布朗族傣族自治县市",
        "张三\u3000上海",
        "13912349999",
        "１３９１２３４９９９９",
        "١٣٩١٢٣٤٩٩٩٩",
        "一三九一二三四九九九九",
        "一三九一二三四九九九九市",
        "〇",
        "上海①",
        "上海Ⅷ",
        "上海²",
        "Berlin, Anna Schmidt",
        "Main Street 12 Springfield",
        "anna@example.com",
        "At the house of Anna Schmidt",
        "A" * 41,
        "上海\n张三",
        "上海🙂",
    ],
)
def test_what_looks_like_more_than_a_citys_name_is_not_told(typed: str | None) -> None:
    assert city_to_tell(typed) == ""


@given(st.text(max_size=60), st.characters(categories=("Nd", "Nl", "No")), st.text(max_size=60))
def test_no_city_with_a_digit_of_any_script_is_told(before: str, digit: str, after: str) -> None:
    assert city_to_tell(before + digit + after) == ""
