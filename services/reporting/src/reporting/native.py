"""Rows in ClickHouse's Native format, column by column: a batch of facts as it goes over the wire.

The client library makes it as well, five times slower, and that would be most of what a fact costs. LowCardinality columns are sent
as plain text; the server makes their dictionaries.
"""

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any

NO_ID = "00000000-0000-0000-0000-000000000000"
_DASHES = (8, 13, 18, 23)
_EPOCH = date(1970, 1, 1)
# What Date32 can hold.
_FIRST_DAY, _LAST_DAY = date(1900, 1, 1), date(2299, 12, 31)
_DECIMALS = 6
_DECIMAL_LIMIT = 10**18


class ValueInvalid(ValueError):
    """A value does not fit its column."""


@lru_cache(100_000)
def millionths(text: str) -> int:
    """A decimal text, in units of its sixth decimal.

    Raises:
        ValueInvalid: it is none, or has more than 12 digits before the point or 6 after it.
    """
    try:
        scaled = Decimal(text).scaleb(_DECIMALS)
        whole = int(scaled)
    except (ArithmeticError, ValueError) as error:
        raise ValueInvalid("decimal") from error
    if whole != scaled or abs(whole) >= _DECIMAL_LIMIT:
        raise ValueInvalid("decimal")
    return whole


def block(columns: Mapping[str, str], data: Mapping[str, Sequence[Any]]) -> bytes:
    """One block of rows. `columns`: the type of each column by name; `data`: its values, of every column equally many.

    Values are, by type: ids as text (empty: none), days as YYYY-MM-DD, decimals as `millionths`, instants as Unix microseconds.

    Raises:
        ValueInvalid: a value of the column that it names does not fit.
    """
    rows = len(data[next(iter(columns))])
    parts = [_length(len(columns)), _length(rows)]
    for name, kind in columns.items():
        wire, encode = _WIRE[kind]
        values = data[name]
        if len(values) != rows:
            raise ValueError(f"{name} has {len(values)} values, not {rows}.")
        try:
            parts += [_text(name), _text(wire), encode(values)]
        except (OverflowError, ValueError) as error:
            raise ValueInvalid(name) from error
    return b"".join(parts)


def rows_in(made: bytes) -> int:
    """How many rows a block has that `block` made."""
    numbers: list[int] = []
    number = shift = 0
    for byte in made:
        number |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            numbers.append(number)
            number = shift = 0
            if len(numbers) == 2:
                break
    return numbers[1]


def _length(number: int) -> bytes:
    """Unsigned LEB128."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return _length(len(raw)) + raw


def _texts(values: Sequence[str | bytes]) -> bytes:
    known = {value: _text(value) for value in set(values)}
    return b"".join(map(known.__getitem__, values))


def _ids(values: Sequence[str]) -> bytes:
    """Two little-endian halves each. The digits of all are read at once, after a look at where their dashes are."""
    joined = "".join([value or NO_ID for value in values])
    many = len(values)
    digits = joined.replace("-", "")
    if (
        set(map(len, values)) - {0, len(NO_ID)}
        or any(joined[at :: len(NO_ID)] != "-" * many for at in _DASHES)
        or len(raw := bytes.fromhex(digits)) != 16 * many
    ):
        raise ValueError("not an id")
    halves = array("Q", raw)
    halves.byteswap()
    return halves.tobytes()


@lru_cache(10_000)
def _day(text: str) -> int:
    day = date.fromisoformat(text)
    if not _FIRST_DAY <= day <= _LAST_DAY:
        raise ValueError("out of range")
    return (day - _EPOCH) // timedelta(days=1)


def _numbers(code: str) -> Callable[[Iterable[int]], bytes]:
    return lambda values: array(code, values).tobytes()


_WIRE: dict[str, tuple[str, Callable[[Sequence[Any]], bytes]]] = {
    "UUID": ("UUID", _ids),
    "String": ("String", _texts),
    "LowCardinality(String)": ("String", _texts),
    "Date32": ("Date32", lambda values: array("i", map(_day, values)).tobytes()),
    "SimpleAggregateFunction(min, Date32)": ("Date32", lambda values: array("i", map(_day, values)).tobytes()),
    "DateTime64(6, 'UTC')": ("DateTime64(6, 'UTC')", _numbers("q")),
    "Decimal(18, 6)": ("Decimal(18, 6)", _numbers("q")),
    "Int64": ("Int64", _numbers("q")),
    "UInt64": ("UInt64", _numbers("Q")),
    "UInt32": ("UInt32", _numbers("I")),
    "UInt16": ("UInt16", _numbers("H")),
}
