"""The rules of a loyalty programme (会员计划): what a sale earns, what points are worth, when they lapse.

A programme is a series of dated versions that are never edited. A sale is judged by the version of its business day for ever after.
Pure: no I/O, no clock; the caches inside a version hold only what its own fields determine.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from math import prod
from typing import Literal, TypeVar, cast, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

Rounding = Literal["floor", "half_up", "ceil"]
Combine = Literal["highest", "multiply"]
RoundTo = Literal["day", "month", "year"]
Shortfall = Literal["debt", "negative", "forgive"]

FULL_RATE_BP = 10_000
HIGHEST_RATE_BP = 1_000_000
REFUND_TENDER_ORDER = ("card", "wechat_pay", "alipay", "stored_value", "other", "cash")
NEVER = "never"

# A version remembers what it derived for this many store days; more is a history being loaded, and starts anew.
CACHED_DAYS = 4096


@dataclass(frozen=True, slots=True)
class Multiplier:
    """Earns more, less or nothing on the lines that meet every condition given; an empty set or None is no condition.

    `rate_bp` 20000 is double, 0 excludes. Both days are included, and are the store's business days.
    """

    name: str
    rate_bp: int
    categories: frozenset[str] = frozenset()
    skus: frozenset[str] = frozenset()
    stores: frozenset[str] = frozenset()
    from_day: date | None = None
    to_day: date | None = None

    def covers(self, store_code: str, day: date) -> bool:
        """Whether its store and date conditions hold."""
        return (
            (not self.stores or store_code in self.stores)
            and (self.from_day is None or self.from_day <= day)
            and (self.to_day is None or day <= self.to_day)
        )

    def concerns(self, sku: str, category: str) -> bool:
        """Whether its goods conditions hold."""
        return (not self.categories or category in self.categories) and (not self.skus or sku in self.skus)


@dataclass(frozen=True, slots=True)
class EarnRule:
    """`points` for each `per_minor` of cash-equivalent paid on the whole sale, rounded once."""

    points: int
    per_minor: int
    rounding: Rounding = "floor"
    multipliers: tuple[Multiplier, ...] = ()
    # Of several multipliers on one line: the highest alone, or all multiplied up to 100 times. One with rate 0 excludes the line.
    combine: Combine = "highest"


@dataclass(frozen=True, slots=True)
class SpendRule:
    """`points` pay `minor` units; only multiples of `points` can be spent."""

    points: int
    minor: int


@dataclass(frozen=True, slots=True)
class Expiry:
    """How long points live, counted from the day they were earned; then to the end of that day, month or year, if `round_to` says so.

    A day that a month does not have becomes its last. Without `round_to` they lapse at the time of day at which they were earned.
    """

    years: int = 0
    months: int = 0
    days: int = 0
    round_to: RoundTo | None = None


@dataclass(frozen=True, slots=True)
class ProgrammeVersion:
    """One dated version of a programme: all that decides about points."""

    programme_id: str
    version: int
    effective_from: date
    name: str
    zone: ZoneInfo
    # The money that `earn.per_minor` and `spend.minor` count in.
    currency: str
    earn: EarnRule
    spend: SpendRule | None
    expiry: Expiry | None
    # 0: spendable at once. n: from the start of the nth day after the sale's, in the programme's zone.
    pending_days: int = 0
    restore_grace_days: int = 30
    shortfall: Shortfall = "debt"
    refund_tender_order: tuple[str, ...] = REFUND_TENDER_ORDER
    _covering: dict[tuple[str, date], tuple[Multiplier, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _expiries: dict[date, datetime] = field(default_factory=dict, init=False, repr=False, compare=False)

    def multiplier_for(self, *, sku: str, category: str, store_code: str, day: date) -> tuple[int, str]:
        """The rate in basis points for a line sold on the business day `day`, and the rule that gave it, such as `demo@1/base`."""
        covering = self._covering.get((store_code, day))
        if covering is None:
            covering = tuple(each for each in self.earn.multipliers if each.covers(store_code, day))
            _remember(self._covering, (store_code, day), covering)
        meeting = [each for each in covering if each.concerns(sku, category)] if covering else covering
        if not meeting:
            return FULL_RATE_BP, f"{self.programme_id}@{self.version}/base"
        lowest, highest = min(meeting, key=_rate), max(meeting, key=_rate)
        if self.earn.combine == "highest" or lowest.rate_bp == 0:
            decisive = lowest if lowest.rate_bp == 0 else highest
            return decisive.rate_bp, f"{self.programme_id}@{self.version}/{decisive.name}"
        product = prod(each.rate_bp for each in meeting) // FULL_RATE_BP ** (len(meeting) - 1)
        return min(product, HIGHEST_RATE_BP), f"{self.programme_id}@{self.version}/{'+'.join(each.name for each in meeting)}"

    def expires_at(self, earned_at: datetime) -> datetime | None:
        """The first instant (UTC) at which points earned at `earned_at` are gone; None: never."""
        if self.expiry is None:
            return None
        local = earned_at.astimezone(self.zone)
        if self.expiry.round_to is None:
            wall = datetime.combine(_add(local.date(), self.expiry), local.time())
            return wall.replace(tzinfo=self.zone, fold=local.fold).astimezone(UTC)
        day = local.date()
        found = self._expiries.get(day)
        if found is None:
            found = self.day_start(_day_after(_add(day, self.expiry), self.expiry.round_to))
            _remember(self._expiries, day, found)
        return found

    def available_at(self, earned_at: datetime) -> datetime:
        """The instant (UTC) from which points earned at `earned_at` can be spent."""
        if not self.pending_days:
            return earned_at
        return self.day_start(earned_at.astimezone(self.zone).date() + timedelta(days=self.pending_days))

    def day_start(self, day: date) -> datetime:
        """The first instant (UTC) of a day in the programme's zone, also where the clocks change at midnight."""
        # Of a midnight that a change of clocks skips or repeats, fold 0 is the instant of the skip, and the first of the two.
        return datetime.combine(day, time(), tzinfo=self.zone).astimezone(UTC)


def _rate(multiplier: Multiplier) -> int:
    return multiplier.rate_bp


K = TypeVar("K")
V = TypeVar("V")


def _remember(cache: dict[K, V], key: K, value: V) -> None:
    if len(cache) >= CACHED_DAYS:
        cache.clear()
    cache[key] = value


def _add(day: date, expiry: Expiry) -> date:
    months = day.year * 12 + day.month - 1 + expiry.years * 12 + expiry.months
    first = date(months // 12, months % 12 + 1, 1)
    last = _day_after(first, "month") - timedelta(days=1)
    return first.replace(day=min(day.day, last.day)) + timedelta(days=expiry.days)


def _day_after(day: date, unit: RoundTo) -> date:
    """The day after the last of the day, month or year that `day` is in."""
    match unit:
        case "day":
            return day + timedelta(days=1)
        case "month":
            return date(day.year + day.month // 12, day.month % 12 + 1, 1)
        case "year":
            return date(day.year + 1, 1, 1)


@dataclass(frozen=True, slots=True)
class ProgrammeBook:
    """All versions of all programmes, each programme's in order of version. `seq` tells one state of the book from the next."""

    seq: int = 0
    versions: Mapping[str, tuple[ProgrammeVersion, ...]] = field(default_factory=dict)

    def at(self, programme_id: str, day: date) -> ProgrammeVersion | None:
        """The version by which a sale of business day `day` is judged: the newest in effect, or the first if none was yet.

        None: there is no such programme.
        """
        versions = self.versions.get(programme_id)
        if not versions:
            return None
        for version in reversed(versions):
            if version.effective_from <= day:
                return version
        return versions[0]

    def day_of(self, programme_id: str, at: datetime) -> date:
        """The programme's own day of an instant: the date in the zone of the version in effect then, whatever follows it."""
        zone: tzinfo = UTC
        for version in reversed(self.versions.get(programme_id, ())):
            zone = version.zone
            day = at.astimezone(zone).date()
            if version.effective_from <= day:
                return day
        return at.astimezone(zone).date()

    def latest(self, programme_id: str) -> ProgrammeVersion | None:
        """The newest version, in effect or not yet."""
        versions = self.versions.get(programme_id)
        return versions[-1] if versions else None


# --- Definitions: the file or JSON document that a version is made from --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong in a definition: where (JSON pointer), a stable code, and what to do."""

    pointer: str
    code: str
    detail: str


class ProgrammeInvalid(Exception):
    """A definition has faults; all of them are named."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("; ".join(f"{fault.pointer or '/'}: {fault.detail}" for fault in faults))
        self.faults = tuple(faults)


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between two definitions; None on a side where there is nothing."""

    pointer: str
    before: object
    after: object


def parse_programme(definition: object, *, version: int = 0) -> ProgrammeVersion:
    """The version that a definition describes. Raises ProgrammeInvalid with every fault found, not only the first."""
    reader = _Reader()
    parsed = reader.programme(definition, version)
    if reader.faults or parsed is None:
        raise ProgrammeInvalid(reader.faults)
    return parsed


def definition_of(version: ProgrammeVersion) -> dict[str, object]:
    """The canonical definition: every setting spelled out, sets in order. `parse_programme` reads it back to the same version."""
    expiry = version.expiry
    return {
        "programme_id": version.programme_id,
        "name": version.name,
        "effective_from": version.effective_from.isoformat(),
        "zone": version.zone.key,
        "currency": version.currency,
        "earn": {
            "points": version.earn.points,
            "per_minor": version.earn.per_minor,
            "rounding": version.earn.rounding,
            "combine": version.earn.combine,
            "multipliers": [
                {
                    "name": each.name,
                    "rate_bp": each.rate_bp,
                    "categories": sorted(each.categories),
                    "skus": sorted(each.skus),
                    "stores": sorted(each.stores),
                    "from": each.from_day.isoformat() if each.from_day else None,
                    "to": each.to_day.isoformat() if each.to_day else None,
                }
                for each in version.earn.multipliers
            ],
        },
        "spend": {"points": version.spend.points, "minor": version.spend.minor} if version.spend else None,
        "expiry": {"years": expiry.years, "months": expiry.months, "days": expiry.days, "round_to": expiry.round_to} if expiry else NEVER,
        "pending_days": version.pending_days,
        "restore_grace_days": version.restore_grace_days,
        "shortfall": version.shortfall,
        "refund_tender_order": list(version.refund_tender_order),
    }


def changes_between(before: ProgrammeVersion | None, after: ProgrammeVersion) -> list[Change]:
    """What `after` changes, as JSON pointers into the canonical definition; against nothing, every setting is new."""
    return list(_differences("", definition_of(before) if before else None, definition_of(after)))


def is_same_definition(one: ProgrammeVersion, other: ProgrammeVersion) -> bool:
    """Whether both say the same, whatever their numbers."""
    return replace(one, version=0) == replace(other, version=0)


def refusals_to_follow(latest: ProgrammeVersion | None, draft: ProgrammeVersion, today: date) -> list[Fault]:
    """Why `draft` cannot be the next version. `today` is the date in the draft's zone.

    A version begins tomorrow or later, so that no sale already decided is judged anew; only a programme's first may begin on any day.
    """
    if latest is None:
        return []
    faults = []
    if draft.effective_from <= today:
        tomorrow = today + timedelta(days=1)
        faults.append(Fault("/effective_from", "too_early", f"A new version takes effect from {tomorrow} at the earliest."))
    if draft.currency != latest.currency:
        faults.append(Fault("/currency", "fixed", f"Points of this programme count in {latest.currency}; start another programme instead."))
    return faults


def warnings_about(versions: Sequence[ProgrammeVersion], draft: ProgrammeVersion) -> list[str]:
    """What is allowed but probably not meant."""
    found = [
        f"Version {each.version}, planned from {each.effective_from}, will never take effect: this newer one begins no later."
        for each in versions
        if each.effective_from >= draft.effective_from
    ]
    found += [
        f"Multiplier {each.name} ends on {each.to_day}, before this version begins."
        for each in draft.earn.multipliers
        if each.to_day is not None and each.to_day < draft.effective_from
    ]
    found += [
        f"Multiplier {each.name} has no condition: it is on every line."
        for each in draft.earn.multipliers
        if each == Multiplier(each.name, each.rate_bp)
    ]
    if versions and versions[-1].zone != draft.zone:
        found.append(
            "The zone changes: points earned from then on expire and mature by the new zone's days, earlier ones keep their times."
        )
    return found


def _differences(pointer: str, before: object, after: object) -> Iterator[Change]:
    if isinstance(after, dict) and (before is None or isinstance(before, dict)):
        for key in {**(before or {}), **after}:
            yield from _differences(f"{pointer}/{_escape(str(key))}", before.get(key) if before else None, after.get(key))
    elif isinstance(after, list) and isinstance(before, list) and any(isinstance(each, dict) for each in [*before, *after]):
        for index in range(max(len(before), len(after))):
            old, new = (each[index] if index < len(each) else None for each in (before, after))
            yield from _differences(f"{pointer}/{index}", old, new)
    elif before != after:
        yield Change(pointer, before, after)


def _escape(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
CURRENCY = re.compile(r"[A-Z]{3}")
DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
LONGEST_TEXT = 100
LONGEST_LIST = 10_000
MOST_MULTIPLIERS = 200

# Every span of months is at its shortest from here: February comes first, and the next leap day is seven years away.
SHORTEST_FROM = date(2097, 2, 1)

_REQUIRED = ("programme_id", "name", "effective_from", "zone", "currency", "earn", "expiry")
_OPTIONAL = ("spend", "pending_days", "restore_grace_days", "shortfall", "refund_tender_order")


class _Reader:
    """Reads a definition and gathers the faults; what is at fault reads as a harmless value, since nothing is made of it."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def programme(self, definition: object, version: int) -> ProgrammeVersion | None:
        found = self.mapping(definition, "", _REQUIRED, _OPTIONAL)
        if found is None:
            return None
        expiry = self.expiry(found)
        return ProgrammeVersion(
            programme_id=self.matching(found, "", "programme_id", SLUG, "lower case letters, digits and hyphens, at most 40"),
            version=version,
            effective_from=self.day(found, "", "effective_from") or date.min,
            name=self.text(found, "", "name"),
            zone=self.zone(found),
            currency=self.matching(found, "", "currency", CURRENCY, "an ISO 4217 code such as CNY"),
            earn=self.earn(found),
            spend=self.spend(found),
            expiry=expiry,
            pending_days=self.pending_days(found, expiry),
            restore_grace_days=self.integer(found, "", "restore_grace_days", (0, 3650), 30),
            shortfall=cast("Shortfall", self.choice(found, "", "shortfall", get_args(Shortfall), "debt")),
            refund_tender_order=self.tender_order(found),
        )

    def earn(self, found: Mapping[str, object]) -> EarnRule:
        at = "/earn"
        if (given := self.mapping(found.get("earn", _ABSENT), at, ("points", "per_minor"), ("rounding", "combine", "multipliers"))) is None:
            return EarnRule(1, 1)
        listed = given.get("multipliers", [])
        if not isinstance(listed, list) or len(listed) > MOST_MULTIPLIERS:
            self.fault(f"{at}/multipliers", "wrong_type", f"Give a list of at most {MOST_MULTIPLIERS}.")
            listed = []
        multipliers = [self.multiplier(each, f"{at}/multipliers/{index}") for index, each in enumerate(listed)]
        names: set[str] = set()
        for index, each in enumerate(multipliers):
            if each.name in names:
                self.fault(f"{at}/multipliers/{index}/name", "duplicate", f"{each.name} is taken by an earlier multiplier.")
            names.add(each.name)
        return EarnRule(
            points=self.integer(given, at, "points", (1, 1_000_000), 1),
            per_minor=self.integer(given, at, "per_minor", (1, 1_000_000_000), 1),
            rounding=cast("Rounding", self.choice(given, at, "rounding", get_args(Rounding), "floor")),
            multipliers=tuple(multipliers),
            combine=cast("Combine", self.choice(given, at, "combine", get_args(Combine), "highest")),
        )

    def multiplier(self, value: object, at: str) -> Multiplier:
        given = self.mapping(value, at, ("name", "rate_bp"), ("categories", "skus", "stores", "from", "to"))
        if given is None:
            return Multiplier(at, 0)
        from_day, to_day = self.day(given, at, "from"), self.day(given, at, "to")
        if from_day and to_day and to_day < from_day:
            self.fault(f"{at}/to", "out_of_range", f"It ends before it begins on {from_day}.")
        name = self.matching(given, at, "name", SLUG, "lower case letters, digits and hyphens, at most 40")
        if name == "base":
            self.fault(f"{at}/name", "invalid_value", "`base` is the name of the rule without a multiplier.")
        return Multiplier(
            name=name,
            rate_bp=self.integer(given, at, "rate_bp", (0, HIGHEST_RATE_BP), FULL_RATE_BP),
            categories=frozenset(self.texts(given, at, "categories")),
            skus=frozenset(self.texts(given, at, "skus")),
            stores=frozenset(self.texts(given, at, "stores")),
            from_day=from_day,
            to_day=to_day,
        )

    def spend(self, found: Mapping[str, object]) -> SpendRule | None:
        if found.get("spend") is None or (given := self.mapping(found["spend"], "/spend", ("points", "minor"), ())) is None:
            return None
        return SpendRule(
            self.integer(given, "/spend", "points", (1, 1_000_000), 1), self.integer(given, "/spend", "minor", (1, 1_000_000), 1)
        )

    def expiry(self, found: Mapping[str, object]) -> Expiry | None:
        value, at = found.get("expiry", _ABSENT), "/expiry"
        if value == NEVER or value is _ABSENT:
            return None
        if not isinstance(value, dict):
            self.fault(at, "wrong_type", "Give `never`, or any of `years`, `months`, `days` and `round_to`.")
            return None
        if (given := self.mapping(value, at, (), ("years", "months", "days", "round_to"))) is None:
            return None
        round_to = None if given.get("round_to") is None else self.choice(given, at, "round_to", get_args(RoundTo), "day")
        expiry = Expiry(
            years=self.integer(given, at, "years", (0, 100), 0),
            months=self.integer(given, at, "months", (0, 1200), 0),
            days=self.integer(given, at, "days", (0, 36_500), 0),
            round_to=cast("RoundTo | None", round_to),
        )
        if expiry == Expiry():
            self.fault(at, "invalid_value", "Points that lapse at once are never of use: give a period or `round_to`, or `never`.")
        return expiry

    def pending_days(self, found: Mapping[str, object], expiry: Expiry | None) -> int:
        days = self.integer(found, "", "pending_days", (0, 3650), 0)
        if days and expiry is not None:
            # Rounding may give more, but next to nothing to points earned at the end of a period.
            shortest = (_add(SHORTEST_FROM, expiry) - SHORTEST_FROM).days
            if days >= shortest:
                detail = f"Points may lapse {shortest} days after the sale, before they can be spent: give fewer, or a longer expiry."
                self.fault("/pending_days", "out_of_range", detail)
        return days

    def tender_order(self, found: Mapping[str, object]) -> tuple[str, ...]:
        if found.get("refund_tender_order") is None:
            return REFUND_TENDER_ORDER
        order = self.texts(found, "", "refund_tender_order")
        for index, each in enumerate(order):
            if each in order[:index]:
                self.fault(f"/refund_tender_order/{index}", "duplicate", f"{each} is listed before.")
        return tuple(order)

    def zone(self, found: Mapping[str, object]) -> ZoneInfo:
        name = found.get("zone", _ABSENT)
        if name is _ABSENT:
            return ZoneInfo("UTC")
        try:
            return ZoneInfo(str(name))
        except (ZoneInfoNotFoundError, ValueError, OSError):
            self.fault("/zone", "invalid_value", "Give an IANA zone such as Asia/Shanghai.")
            return ZoneInfo("UTC")

    # The kinds of value. Each is reported once, at its own place.

    def fault(self, pointer: str, code: str, detail: str) -> None:
        self.faults.append(Fault(pointer, code, detail))

    def mapping(self, value: object, at: str, required: Sequence[str], optional: Sequence[str]) -> Mapping[str, object] | None:
        if value is _ABSENT:
            return None
        if not isinstance(value, dict):
            self.fault(at, "wrong_type", "Give a mapping of " + ", ".join((*required, *optional)) + ".")
            return None
        for key in value:
            if key not in required and key not in optional:
                self.fault(
                    f"{at}/{_escape(str(key))}",
                    "unknown_field",
                    "There is no such setting; there are " + ", ".join((*required, *optional)) + ".",
                )
        for key in required:
            if value.get(key) is None:
                self.fault(f"{at}/{key}", "missing", "It is needed.")
        return {str(key): each for key, each in value.items() if each is not None or key not in required}

    def integer(self, given: Mapping[str, object], at: str, key: str, span: tuple[int, int], default: int) -> int:
        value = given.get(key)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool):
            self.fault(f"{at}/{key}", "wrong_type", "Give a whole number.")
            return default
        low, high = span
        if not low <= value <= high:
            self.fault(f"{at}/{key}", "out_of_range", f"Give a number from {low} to {high}.")
            return default
        return value

    def choice(self, given: Mapping[str, object], at: str, key: str, choices: Sequence[str], default: str) -> str:
        value = given.get(key)
        if value is None:
            return default
        if not isinstance(value, str) or value not in choices:
            self.fault(f"{at}/{key}", "invalid_value", "Give one of " + ", ".join(choices) + ".")
            return default
        return value

    def matching(self, given: Mapping[str, object], at: str, key: str, form: re.Pattern[str], meaning: str) -> str:
        value = given.get(key)
        if value is not None and not (isinstance(value, str) and form.fullmatch(value)):
            self.fault(f"{at}/{key}", "invalid_value", f"Give {meaning}.")
        return value if isinstance(value, str) else ""

    def text(self, given: Mapping[str, object], at: str, key: str) -> str:
        value = given.get(key)
        if value is not None and not _is_text(value):
            self.fault(f"{at}/{key}", "wrong_type", f"Give a text of 1 to {LONGEST_TEXT} characters.")
        return value if isinstance(value, str) else ""

    def texts(self, given: Mapping[str, object], at: str, key: str) -> list[str]:
        value = given.get(key)
        if value is None:
            return []
        if not isinstance(value, list) or len(value) > LONGEST_LIST:
            self.fault(f"{at}/{key}", "wrong_type", f"Give a list of at most {LONGEST_LIST} texts.")
            return []
        for index, each in enumerate(value):
            if not _is_text(each):
                self.fault(
                    f"{at}/{key}/{index}",
                    "wrong_type",
                    f"Give a text of 1 to {LONGEST_TEXT} characters, in quotes if it looks like a number.",
                )
        return [each for each in value if isinstance(each, str)]

    def day(self, given: Mapping[str, object], at: str, key: str) -> date | None:
        value = given.get(key)
        if value is None:
            return None
        if isinstance(value, str) and DAY.fullmatch(value):
            try:
                return date.fromisoformat(value)
            except ValueError:
                pass
        self.fault(f"{at}/{key}", "invalid_value", "Give a date as YYYY-MM-DD.")
        return None


_ABSENT = object()


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_TEXT and value.isprintable() and value.strip() == value
