"""What a member file (会员档案) may hold, and the form in which it is kept. Pure."""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from functools import lru_cache

import phonenumbers

from kit.problems import FieldError, Refusal

DEFAULT_REGION = "CN"
GENDERS = ("female", "male", "other")
LONGEST_TEXT = 100
LONGEST_CARD = 64
LONGEST_TYPED_PHONE = 50
EARLIEST_YEAR = 1900
# What a city's name comes to at most: Las Palmas de Gran Canaria has five words. In Chinese the names of prefectures and counties go
# up to fifteen characters (双江拉祜族佤族布朗族傣族自治县), and to four without the word for their level (乌鲁木齐).
LONGEST_CITY = 40
MOST_CITY_WORDS = 5
LONGEST_HAN_CITY = 15
LONGEST_BARE_HAN_CITY = 4
# 三亚 and 五指山 have a numeral; a house number or a phone spelled out has more.
MOST_HAN_NUMERALS = 2
# A leap year, for a birthday without a year.
ANY_LEAP_YEAR = 2000

_PHONE_CHARACTERS = re.compile(r"[0-9+()./ -]+")
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_MONTH_AND_DAY = re.compile(r"[0-9]{2}-[0-9]{2}")
# Number plans grow before their tables do: every number of this form is a mobile of mainland China.
_CHINESE_MOBILE = re.compile(r"\+861[3-9][0-9]{9}")
# Marks that steer the direction of text and take no room: they come with what is pasted from a contact list.
_INVISIBLE = dict.fromkeys([0x200B, 0x200E, 0x200F, 0x2060, 0xFEFF, *range(0x202A, 0x202F), *range(0x2066, 0x206A)])
_HAN = re.compile("[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_ENDS_IN_A_LEVEL = re.compile(r"(?:(?<![小社])[区區]|[市县縣県州盟旗省都府町])\Z")
# Of a house, a stair or a room: in the name of no county.
_SIGN_OF_A_HOUSE = re.compile("[号號室弄幢栋棟]")
_DASHES = re.compile(r"[\u2010-\u2015\u2212\u30fc]")


@dataclass(frozen=True, slots=True)
class GivenFields:
    """What a request says about a member, as typed. None: nothing; an empty text: remove it."""

    name: str | None = None
    phone: str | None = None
    phone_verified: bool | None = None
    phone_region: str | None = None
    card: str | None = None
    birthday: str | None = None
    gender: str | None = None
    city: str | None = None
    country: str | None = None
    joined_on: str | None = None


@dataclass(frozen=True, slots=True)
class MemberFile:
    """A member file in plain, as it is kept. None: not known."""

    joined_on: date
    name: str | None = None
    # E.164.
    phone: str | None = None
    phone_verified: bool = False
    card: str | None = None
    # YYYY-MM-DD, or MM-DD without the year.
    birthday: str | None = None
    gender: str | None = None
    city: str | None = None
    country: str | None = None


class FieldInvalid(ValueError):
    """A value is not what its field may hold. The text tells what to do, and does not quote the value."""


def changed_file(file: MemberFile, given: GivenFields, now: datetime) -> MemberFile:
    """The file with what is given in it.

    A new phone is not verified unless the request says so. Raises Refusal (422) with every field that is at fault; its code is the
    first one's, such as `phone_invalid`.
    """
    faults: list[FieldError] = []
    # Whatever the member's zone: tomorrow's date has begun somewhere.
    latest = (now + timedelta(hours=14)).date()
    readers: dict[str, Callable[[str], object]] = {
        "name": read_text,
        "phone": lambda typed: read_phone(typed, given.phone_region or DEFAULT_REGION),
        "card": read_card,
        "birthday": lambda typed: read_birthday(typed, latest),
        "gender": _read_gender,
        "city": read_text,
        "country": read_text,
        "joined_on": lambda typed: _read_day(typed, latest),
    }
    changes: dict[str, object] = {}
    for field, read in readers.items():
        typed = getattr(given, field)
        if typed is None:
            continue
        try:
            changes[field] = read(typed) if typed.strip() or field == "joined_on" else None
        except FieldInvalid as invalid:
            faults.append(FieldError(f"/{field}", f"{field}_invalid", str(invalid)))
    if given.phone_verified is not None:
        changes["phone_verified"] = given.phone_verified
    elif "phone" in changes and changes["phone"] != file.phone:
        changes["phone_verified"] = False
    changed = replace(file, **changes)  # type: ignore[arg-type]  # the names are the fields', the values their readers'
    if changed.phone_verified and changed.phone is None and not faults:
        faults.append(FieldError("/phone_verified", "phone_missing", "Send the phone that was verified."))
    if faults:
        raise Refusal(faults[0].code, 422, faults[0].code.replace("_", " ").capitalize(), faults[0].detail, faults)
    return changed


def changed_fields(before: MemberFile, after: MemberFile) -> list[str]:
    """The names of the fields that differ."""
    return [name for name in MemberFile.__slots__ if getattr(before, name) != getattr(after, name)]


@lru_cache(maxsize=256)
def _is_region(region: str) -> bool:
    return region in phonenumbers.SUPPORTED_REGIONS


def read_phone(typed: str, region: str = DEFAULT_REGION) -> str:
    """A phone as people type it, in E.164: full-width digits, spaces, dashes, 0086, a leading 0. Raises FieldInvalid.

    `region` (ISO 3166-1 alpha-2) is where a number without a country code is taken to be.
    """
    region = region.strip().upper()
    if not _is_region(region):
        raise FieldInvalid("The phone region must be a two-letter country code such as CN.")
    text = _DASHES.sub("-", unicodedata.normalize("NFKC", typed).translate(_INVISIBLE))
    text = "".join(str(unicodedata.decimal(each)) if each.isdecimal() else each for each in text).strip()
    text = " ".join(text.split())
    if len(text) <= LONGEST_TYPED_PHONE and _PHONE_CHARACTERS.fullmatch(text):
        try:
            number = phonenumbers.parse(text, region)
        except phonenumbers.NumberParseException:
            pass
        else:
            found = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
            if _CHINESE_MOBILE.fullmatch(found) or phonenumbers.is_valid_number(number):
                return found
    raise FieldInvalid("This is not a complete phone number. Check the digits, or add the country code, such as +86.")


def read_card(typed: str) -> str:
    """A member card's number as it is shown: trimmed, full-width forms made plain. Raises FieldInvalid."""
    text = " ".join(unicodedata.normalize("NFKC", typed).split())
    if not text.isprintable() or len(text) > LONGEST_CARD or not card_key(text):
        raise FieldInvalid(f"A card number has 1 to {LONGEST_CARD} letters, digits or signs.")
    return text


def card_key(card: str) -> str:
    """What a card is found by: case, spaces and dashes make no difference."""
    return card.replace(" ", "").replace("-", "").upper()


def name_key(name: str) -> str:
    """What a name is found by: case, width and spacing make no difference."""
    # Folding the case may leave a form that is not composed.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return " ".join(folded.split())


def birth_year_from(birthday: str | None) -> int:
    """The first of the five years that the year of a birthday lies in; 0 without a year: what may be told without telling the age."""
    if birthday is None or not _DAY.fullmatch(birthday):
        return 0
    year = int(birthday[: len("YYYY")])
    return year - year % 5


def city_to_tell(city: str | None) -> str:
    """The city of a file if it looks like a city's name and nothing more; else empty, not known: what may be told outside of the file.

    The field is free text, and people put addresses, names and phones into it, which events must not carry. So no digit of any script,
    no comma, nothing as long as an address. Chinese is written without spaces: a space there parts a place from a person; and what is
    longer than a bare name has to end in a level such as 市 or 县, for else it may end in a person. Somebody's name alone looks like
    a city's: only a list of all the world's cities would tell them apart.
    """
    text = city or ""
    kinds = {unicodedata.category(each)[0] for each in text if each not in " .'’-·"}
    if len(text) > LONGEST_CITY or "L" not in kinds or kinds - {"L", "M"}:
        return ""
    if not _HAN.search(text):
        return text if len(text.split()) <= MOST_CITY_WORDS else ""
    looks_so = (
        " " not in text
        and len(text) <= LONGEST_HAN_CITY
        and (len(text) <= LONGEST_BARE_HAN_CITY or _ENDS_IN_A_LEVEL.search(text))
        and not _SIGN_OF_A_HOUSE.search(text)
        and sum(each.isnumeric() for each in text) <= MOST_HAN_NUMERALS
    )
    return text if looks_so else ""


def birthday_key(birthday: str) -> str:
    """What a birthday is found by: its month and day, MM-DD."""
    return birthday[-len("MM-DD") :]


def read_birthday(typed: str, latest: date) -> str:
    """A birthday: YYYY-MM-DD up to `latest`, or MM-DD; 29 February where there is one. Raises FieldInvalid."""
    text = unicodedata.normalize("NFKC", typed).strip()
    if _MONTH_AND_DAY.fullmatch(text):
        try:
            date.fromisoformat(f"{ANY_LEAP_YEAR}-{text}")
        except ValueError:
            raise FieldInvalid("There is no such day of the year: send MM-DD.") from None
        return text
    return _read_day(text, latest).isoformat()


def _read_day(typed: str, latest: date) -> date:
    text = typed.strip()
    if not _DAY.fullmatch(text):
        raise FieldInvalid("Send a date as YYYY-MM-DD.")
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise FieldInvalid("There is no such day in the calendar.") from None
    if day > latest:
        raise FieldInvalid("This date is in the future.")
    if day.year < EARLIEST_YEAR:
        raise FieldInvalid(f"This date is before {EARLIEST_YEAR}.")
    return day


def read_text(typed: str) -> str:
    """A line of text of at most 100 characters, in composed form, with single spaces. Raises FieldInvalid."""
    text = " ".join(unicodedata.normalize("NFC", typed).translate(_INVISIBLE).split())
    if not text or len(text) > LONGEST_TEXT or any(unicodedata.category(each) in ("Cc", "Cs") for each in text):
        raise FieldInvalid(f"Send a text of 1 to {LONGEST_TEXT} characters, without control characters.")
    return text


def _read_gender(typed: str) -> str:
    if typed not in GENDERS:
        raise FieldInvalid(f"Send one of {', '.join(GENDERS)}.")
    return typed
