from contextlib import suppress
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from member.programmes.rules import (
    HIGHEST_RATE_BP,
    Change,
    Combine,
    EarnRule,
    Expiry,
    Multiplier,
    ProgrammeBook,
    ProgrammeInvalid,
    ProgrammeVersion,
    SpendRule,
    changes_between,
    definition_of,
    is_same_definition,
    parse_programme,
    refusals_to_follow,
    warnings_about,
)

SHANGHAI = ZoneInfo("Asia/Shanghai")
DAY = date(2026, 11, 21)
# Clocks change at midnight in several of them; Apia left out a whole day, and Lord Howe changes by half an hour.
ZONES = [
    ZoneInfo(name)
    for name in (
        "UTC",
        "Asia/Shanghai",
        "Europe/London",
        "America/Sao_Paulo",
        "America/Havana",
        "Africa/Cairo",
        "Pacific/Apia",
        "Australia/Lord_Howe",
        "Asia/Beirut",
    )
]
zones = st.sampled_from(ZONES)
instants = st.datetimes(datetime(2005, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001  # the strategy adds UTC
expiries = st.builds(
    Expiry,
    years=st.integers(0, 5),
    months=st.integers(0, 30),
    days=st.integers(0, 400),
    round_to=st.sampled_from(["day", "month", "year"]),
)


def programme(**given: Any) -> ProgrammeVersion:
    fields: dict[str, Any] = {
        "programme_id": "demo",
        "version": 1,
        "effective_from": date(2010, 1, 1),
        "name": "Demo programme",
        "zone": SHANGHAI,
        "currency": "CNY",
        "earn": EarnRule(1, 100),
        "spend": SpendRule(1, 1),
        "expiry": Expiry(years=1, round_to="year"),
    }
    return ProgrammeVersion(**(fields | given))


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


@pytest.mark.parametrize(
    "expiry, zone, earned_at, expires_at",
    [
        # The demo programme: the end of next year.
        (Expiry(years=1, round_to="year"), "Asia/Shanghai", "2026-11-21T18:03:11+08:00", "2027-12-31T16:00:00+00:00"),
        (Expiry(years=1, round_to="year"), "Asia/Shanghai", "2026-12-31T23:59:59+08:00", "2027-12-31T16:00:00+00:00"),
        (Expiry(years=1, round_to="year"), "Asia/Shanghai", "2027-01-01T00:00:00+08:00", "2028-12-31T16:00:00+00:00"),
        # In the programme's zone, whatever the store's.
        (Expiry(years=1, round_to="year"), "Asia/Shanghai", "2026-12-31T16:00:00+00:00", "2028-12-31T16:00:00+00:00"),
        # The end of this very month, and of a month that is shorter.
        (Expiry(round_to="month"), "Europe/London", "2026-01-31T12:00:00+00:00", "2026-02-01T00:00:00+00:00"),
        (Expiry(months=1, round_to="month"), "Europe/London", "2026-01-31T12:00:00+00:00", "2026-03-01T00:00:00+00:00"),
        (Expiry(months=1, round_to="day"), "Europe/London", "2026-01-31T12:00:00+00:00", "2026-03-01T00:00:00+00:00"),
        # 29 February, a year on, is the 28th; four years on, itself.
        (Expiry(years=1, round_to="day"), "UTC", "2028-02-29T12:00:00+00:00", "2029-03-01T00:00:00+00:00"),
        (Expiry(years=4, round_to="day"), "UTC", "2028-02-29T12:00:00+00:00", "2032-03-01T00:00:00+00:00"),
        (Expiry(years=1), "UTC", "2028-02-29T12:34:56+00:00", "2029-02-28T12:34:56+00:00"),
        # London's summer begins between.
        (Expiry(days=1, round_to="day"), "Europe/London", "2026-03-28T12:00:00+00:00", "2026-03-29T23:00:00+00:00"),
        (Expiry(days=1), "Europe/London", "2026-03-28T12:00:00+00:00", "2026-03-29T11:00:00+00:00"),
        # A day that begins at 01:00, since the clocks go forward at midnight.
        (Expiry(round_to="day"), "America/Sao_Paulo", "2018-11-03T12:00:00-03:00", "2018-11-04T03:00:00+00:00"),
        # A midnight that comes twice: the day begins with the first.
        (Expiry(round_to="day"), "America/Havana", "2026-10-31T12:00:00-04:00", "2026-11-01T04:00:00+00:00"),
        # A day that never was.
        (Expiry(round_to="day"), "Pacific/Apia", "2011-12-29T12:00:00-10:00", "2011-12-30T10:00:00+00:00"),
    ],
)
def test_expiry_is_the_end_of_the_period_in_the_programmes_zone(expiry: Expiry, zone: str, earned_at: str, expires_at: str) -> None:
    assert programme(expiry=expiry, zone=ZoneInfo(zone)).expires_at(utc(earned_at)) == utc(expires_at)


def test_points_without_expiry_never_lapse() -> None:
    assert programme(expiry=None).expires_at(datetime(2026, 1, 1, tzinfo=UTC)) is None


@given(expiries, zones, instants)
def test_rounded_expiry_is_after_the_earning_and_begins_a_local_day(expiry: Expiry, zone: ZoneInfo, earned_at: datetime) -> None:
    expires_at = programme(expiry=expiry, zone=zone).expires_at(earned_at)
    assert expires_at is not None
    assert expires_at > earned_at
    last, first = (expires_at - timedelta(microseconds=1)).astimezone(zone), expires_at.astimezone(zone)
    assert last.date() < first.date() or zone.key == "America/Havana"
    if expiry.round_to != "day":
        assert last.month != first.month
    if expiry.round_to == "year":
        assert last.year != first.year


@given(expiries, zones, instants, st.timedeltas(timedelta(0), timedelta(days=500)))
def test_later_points_never_lapse_earlier(expiry: Expiry, zone: ZoneInfo, earned_at: datetime, later: timedelta) -> None:
    version = programme(expiry=expiry, zone=zone)
    earlier_expiry, later_expiry = version.expires_at(earned_at), version.expires_at(earned_at + later)
    assert earlier_expiry is not None
    assert later_expiry is not None
    assert earlier_expiry <= later_expiry
    # What a version remembers changes nothing.
    assert replace(version).expires_at(earned_at) == earlier_expiry == version.expires_at(earned_at)


def test_points_are_spendable_at_once_without_a_pending_period() -> None:
    earned_at = utc("2026-11-21T18:03:11+08:00")
    assert programme().available_at(earned_at) == earned_at


def test_pending_points_mature_at_the_start_of_a_day_in_the_programmes_zone() -> None:
    version = programme(pending_days=7)
    assert version.available_at(utc("2026-11-21T00:00:00+08:00")) == utc("2026-11-28T00:00:00+08:00")
    assert version.available_at(utc("2026-11-21T23:59:59+08:00")) == utc("2026-11-28T00:00:00+08:00")
    assert version.available_at(utc("2026-11-21T16:00:00+00:00")) == utc("2026-11-29T00:00:00+08:00")


DOUBLE_AUDIO = Multiplier("double-audio", 20_000, categories=frozenset({"audio"}))
STORE_WEEK = Multiplier("store-week", 15_000, stores=frozenset({"S1"}), from_day=date(2026, 11, 20), to_day=date(2026, 11, 26))
ONE_SKU = Multiplier("one-sku", 30_000, categories=frozenset({"audio"}), skus=frozenset({"A100"}))
NO_CARDS = Multiplier("no-gift-cards", 0, categories=frozenset({"gift-card"}))
ALL = (DOUBLE_AUDIO, STORE_WEEK, ONE_SKU, NO_CARDS)


@pytest.mark.parametrize(
    "combine, sku, category, store, day, expected",
    [
        ("highest", "X", "case", "S2", DAY, (10_000, "demo@1/base")),
        ("highest", "X", "audio", "S2", DAY, (20_000, "demo@1/double-audio")),
        ("highest", "X", "audio", "S1", DAY, (20_000, "demo@1/double-audio")),
        ("highest", "A100", "audio", "S1", DAY, (30_000, "demo@1/one-sku")),
        # All conditions of a multiplier must hold.
        ("highest", "A100", "case", "S2", DAY, (10_000, "demo@1/base")),
        ("highest", "X", "", "S1", date(2026, 11, 19), (10_000, "demo@1/base")),
        ("highest", "X", "", "S1", date(2026, 11, 20), (15_000, "demo@1/store-week")),
        ("highest", "X", "", "S1", date(2026, 11, 26), (15_000, "demo@1/store-week")),
        ("highest", "X", "", "S1", date(2026, 11, 27), (10_000, "demo@1/base")),
        # What is excluded earns nothing, whatever else holds.
        ("highest", "X", "gift-card", "S1", DAY, (0, "demo@1/no-gift-cards")),
        ("multiply", "X", "gift-card", "S1", DAY, (0, "demo@1/no-gift-cards")),
        ("multiply", "X", "audio", "S1", DAY, (30_000, "demo@1/double-audio+store-week")),
        ("multiply", "A100", "audio", "S1", DAY, (90_000, "demo@1/double-audio+store-week+one-sku")),
        ("multiply", "X", "audio", "S2", DAY, (20_000, "demo@1/double-audio")),
    ],
)
def test_the_multiplier_of_a_line(combine: Combine, sku: str, category: str, store: str, day: date, expected: tuple[int, str]) -> None:
    version = programme(earn=EarnRule(1, 100, multipliers=ALL, combine=combine))
    for _ in range(2):
        assert version.multiplier_for(sku=sku, category=category, store_code=store, day=day) == expected


def test_a_rate_below_the_ordinary_one_lessens() -> None:
    half = programme(earn=EarnRule(1, 100, multipliers=(Multiplier("half", 5_000),)))
    assert half.multiplier_for(sku="X", category="", store_code="S", day=DAY) == (5_000, "demo@1/half")


def test_multiplied_rates_are_cut_exactly_and_capped() -> None:
    thirds = tuple(Multiplier(name, 3_333) for name in ("a", "b"))
    version = programme(earn=EarnRule(1, 100, multipliers=thirds, combine="multiply"))
    assert version.multiplier_for(sku="X", category="", store_code="S", day=DAY)[0] == 3_333 * 3_333 // 10_000
    huge = programme(earn=EarnRule(1, 100, multipliers=(Multiplier("a", 900_000), Multiplier("b", 900_000)), combine="multiply"))
    assert huge.multiplier_for(sku="X", category="", store_code="S", day=DAY)[0] == HIGHEST_RATE_BP


def test_a_sale_is_judged_by_the_newest_version_in_effect_on_its_day() -> None:
    first, second, third = (
        programme(version=number, effective_from=day)
        for number, day in enumerate([date(2026, 1, 1), date(2026, 12, 1), date(2027, 1, 1)], start=1)
    )
    book = ProgrammeBook(3, {"demo": (first, second, third)})
    assert book.at("demo", date(2026, 11, 30)) is first
    assert book.at("demo", date(2026, 12, 1)) is second
    assert book.at("demo", date(2027, 6, 1)) is third
    # Before there was any: by the first.
    assert book.at("demo", date(2009, 1, 1)) is first
    assert book.at("other", DAY) is None
    assert book.latest("demo") is third
    assert book.latest("other") is None


def test_a_newer_version_that_begins_earlier_replaces_a_planned_one() -> None:
    planned, urgent = programme(version=1, effective_from=date(2027, 1, 1)), programme(version=2, effective_from=date(2026, 12, 1))
    assert ProgrammeBook(2, {"demo": (planned, urgent)}).at("demo", date(2027, 6, 1)) is urgent


def test_a_programmes_day_is_of_the_zone_in_effect_then_whatever_follows() -> None:
    first = programme(version=1, effective_from=date(2026, 1, 1), zone=ZoneInfo("Asia/Shanghai"))
    moved = programme(version=2, effective_from=date(2026, 7, 1), zone=ZoneInfo("America/New_York"))
    before, after = ProgrammeBook(1, {"demo": (first,)}), ProgrammeBook(2, {"demo": (first, moved)})
    for text, day in [("2025-12-31T15:59:59Z", date(2025, 12, 31)), ("2026-06-30T16:00:00Z", date(2026, 7, 1))]:
        assert before.day_of("demo", datetime.fromisoformat(text)) == day == after.day_of("demo", datetime.fromisoformat(text))
    assert after.day_of("demo", datetime.fromisoformat("2026-07-02T03:59:59Z")) == date(2026, 7, 1)
    assert after.day_of("none", datetime.fromisoformat("2026-07-02T23:59:59Z")) == date(2026, 7, 2)


slugs = st.from_regex(r"[a-z0-9][a-z0-9-]{0,10}", fullmatch=True)
names = st.text(st.characters(categories=("L", "N")), min_size=1, max_size=10)
days = st.dates(date(2000, 1, 1), date(2050, 1, 1))
multipliers = st.builds(
    lambda name, rate_bp, sets, span: Multiplier(name, rate_bp, *sets, *sorted(span)),
    slugs.filter(lambda name: name != "base"),
    st.integers(0, HIGHEST_RATE_BP),
    st.tuples(*[st.frozensets(names, max_size=3)] * 3),
    st.tuples(days, days),
)
programmes = st.builds(
    ProgrammeVersion,
    programme_id=slugs,
    version=st.just(0),
    effective_from=days,
    name=names,
    zone=zones,
    currency=st.sampled_from(["CNY", "GBP", "JPY"]),
    earn=st.builds(
        EarnRule,
        st.integers(1, 1000),
        st.integers(1, 100_000),
        st.sampled_from(["floor", "half_up", "ceil"]),
        st.lists(multipliers, max_size=3, unique_by=lambda each: each.name).map(tuple),
        st.sampled_from(["highest", "multiply"]),
    ),
    spend=st.none() | st.builds(SpendRule, st.integers(1, 1000), st.integers(1, 1000)),
    expiry=st.none() | expiries,
    pending_days=st.integers(0, 100),
    restore_grace_days=st.integers(0, 100),
    shortfall=st.sampled_from(["debt", "negative", "forgive"]),
    refund_tender_order=st.permutations(["cash", "card"]).map(tuple),
).filter(lambda version: version.expiry is None or version.pending_days < max(1, 365 * version.expiry.years + version.expiry.days))


@given(programmes)
def test_a_version_is_read_back_from_its_definition(version: ProgrammeVersion) -> None:
    assert parse_programme(definition_of(version)) == version
    assert is_same_definition(parse_programme(definition_of(version), version=7), version)


@given(programmes, programmes)
def test_there_are_changes_exactly_between_definitions_that_differ(one: ProgrammeVersion, other: ProgrammeVersion) -> None:
    assert (changes_between(one, other) == []) == is_same_definition(one, other)
    assert changes_between(one, one) == []


LEAST = {
    "programme_id": "demo",
    "name": "Demo",
    "effective_from": "2026-01-01",
    "zone": "Asia/Shanghai",
    "currency": "CNY",
    "earn": {"points": 1, "per_minor": 100},
    "expiry": "never",
}


def test_what_is_left_out_has_its_default() -> None:
    version = parse_programme(LEAST)
    assert version.earn == EarnRule(1, 100, "floor", (), "highest")
    assert (version.spend, version.expiry, version.pending_days, version.restore_grace_days, version.shortfall) == (
        None,
        None,
        0,
        30,
        "debt",
    )
    assert version.refund_tender_order == ("card", "wechat_pay", "alipay", "stored_value", "other", "cash")


def test_every_fault_is_named_with_its_place() -> None:
    with pytest.raises(ProgrammeInvalid) as caught:
        parse_programme(
            {
                "programme_id": "Demo!",
                "effective_from": "2026-02-30",
                "zone": "Mars/Olympus",
                "currency": "yuan",
                "earn": {
                    "points": 0,
                    "per_minor": True,
                    "rounding": "up",
                    "bonus": 3,
                    "multipliers": [
                        {"name": "a", "rate_bp": 1_000_001, "categories": "audio", "skus": [7]},
                        {"name": "a", "rate_bp": 1, "from": "2026-02-02", "to": "2026-02-01"},
                        {"name": "base", "rate_bp": 1.5},
                        "double",
                    ],
                },
                "spend": {"points": 1},
                "expiry": {"round_to": "week"},
                "pending_days": -1,
                "refund_tender_order": ["cash", "cash"],
                "colour/~": "red",
            }
        )
    assert {(fault.pointer, fault.code) for fault in caught.value.faults} == {
        ("/name", "missing"),
        ("/programme_id", "invalid_value"),
        ("/effective_from", "invalid_value"),
        ("/zone", "invalid_value"),
        ("/currency", "invalid_value"),
        ("/earn/points", "out_of_range"),
        ("/earn/per_minor", "wrong_type"),
        ("/earn/rounding", "invalid_value"),
        ("/earn/bonus", "unknown_field"),
        ("/earn/multipliers/0/rate_bp", "out_of_range"),
        ("/earn/multipliers/0/categories", "wrong_type"),
        ("/earn/multipliers/0/skus/0", "wrong_type"),
        ("/earn/multipliers/1/name", "duplicate"),
        ("/earn/multipliers/1/to", "out_of_range"),
        ("/earn/multipliers/2/name", "invalid_value"),
        ("/earn/multipliers/2/rate_bp", "wrong_type"),
        ("/earn/multipliers/3", "wrong_type"),
        ("/spend/minor", "missing"),
        ("/expiry/round_to", "invalid_value"),
        ("/pending_days", "out_of_range"),
        ("/refund_tender_order/1", "duplicate"),
        ("/colour~1~0", "unknown_field"),
    }


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*LEAST, "points", "per_minor", "multipliers", "x"]), inner, max_size=4)
    ),
)


@given(json_values)
def test_any_document_is_read_or_refused(document: object) -> None:
    for definition in (document, LEAST | document if isinstance(document, dict) else document):
        with suppress(ProgrammeInvalid):
            parse_programme(definition)


@pytest.mark.parametrize("value", [{}, {"years": 0, "months": 0}, "forever", 3, []])
def test_an_expiry_that_makes_points_worthless_or_means_nothing_is_refused(value: object) -> None:
    with pytest.raises(ProgrammeInvalid, match="/expiry"):
        parse_programme(LEAST | {"expiry": value})


@pytest.mark.parametrize(
    "expiry, shortest",
    [
        ({"days": 30}, 30),
        ({"months": 1}, 28),
        ({"months": 1, "round_to": "year"}, 28),
        ({"months": 6, "days": 3}, 184),
        ({"months": 12}, 365),
        ({"years": 1, "months": 2}, 424),
        ({"years": 8}, 2921),
    ],
)
def test_points_that_lapse_before_they_can_be_spent_are_refused(expiry: object, shortest: int) -> None:
    assert parse_programme(LEAST | {"expiry": expiry, "pending_days": shortest - 1}).pending_days == shortest - 1
    with pytest.raises(ProgrammeInvalid, match=f"/pending_days: Points may lapse {shortest} days after"):
        parse_programme(LEAST | {"expiry": expiry, "pending_days": shortest})


def test_points_that_are_pending_need_a_period_to_live_in() -> None:
    assert parse_programme(LEAST | {"expiry": {"round_to": "year"}}).pending_days == 0
    assert parse_programme(LEAST | {"pending_days": 3650}).pending_days == 3650
    with pytest.raises(ProgrammeInvalid, match="/pending_days"):
        parse_programme(LEAST | {"expiry": {"round_to": "year"}, "pending_days": 1})


@given(
    st.integers(0, 9),
    st.integers(0, 30),
    st.integers(0, 400),
    st.sampled_from([None, "day", "month", "year"]),
    st.integers(1, 3650),
    instants,
)
def test_points_of_an_accepted_programme_can_be_spent_some_day(
    years: int, months: int, days: int, round_to: Any, pending_days: int, earned_at: datetime
) -> None:
    expiry = {"years": years, "months": months, "days": days, "round_to": round_to}
    with suppress(ProgrammeInvalid):
        version = parse_programme(LEAST | {"expiry": expiry, "pending_days": pending_days})
        expires_at = version.expires_at(earned_at)
        assert expires_at is not None
        assert version.available_at(earned_at) < expires_at


def test_changes_are_named_by_pointer() -> None:
    before = programme(earn=EarnRule(1, 100, multipliers=(DOUBLE_AUDIO,)))
    after = programme(earn=EarnRule(2, 100, multipliers=(replace(DOUBLE_AUDIO, rate_bp=30_000),)), spend=None)
    assert changes_between(before, after) == [
        Change("/earn/points", 1, 2),
        Change("/earn/multipliers/0/rate_bp", 20_000, 30_000),
        Change("/spend", {"points": 1, "minor": 1}, None),
    ]
    assert changes_between(after, before)[-2:] == [Change("/spend/points", None, 1), Change("/spend/minor", None, 1)]


def test_a_new_version_begins_tomorrow_at_the_earliest() -> None:
    latest = programme()
    for effective_from, codes in [(DAY, ["too_early"]), (DAY + timedelta(days=1), [])]:
        draft = programme(effective_from=effective_from, pending_days=3)
        assert [fault.code for fault in refusals_to_follow(latest, draft, DAY)] == codes
    assert refusals_to_follow(None, programme(), DAY) == []


def test_a_programme_keeps_its_currency() -> None:
    draft = programme(effective_from=date(2027, 1, 1), currency="GBP")
    assert [fault.pointer for fault in refusals_to_follow(programme(), draft, DAY)] == ["/currency"]


def test_what_is_probably_not_meant_is_warned_of() -> None:
    planned = programme(version=2, effective_from=date(2027, 6, 1))
    multipliers = (Multiplier("over", 20_000, to_day=date(2026, 1, 1)), Multiplier("everywhere", 20_000))
    draft = programme(effective_from=date(2027, 1, 1), zone=ZoneInfo("UTC"), earn=EarnRule(1, 100, multipliers=multipliers))
    found = warnings_about([programme(), planned], draft)
    assert [each.split(",")[0] for each in found] == [
        "Version 2",
        "Multiplier over ends on 2026-01-01",
        "Multiplier everywhere has no condition: it is on every line.",
        "The zone changes: points earned from then on expire and mature by the new zone's days",
    ]
