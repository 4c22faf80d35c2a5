"""Exact arithmetic on integer minor units. No binary float comes near."""

from collections.abc import Sequence
from decimal import Decimal

# The active codes of ISO 4217 in which money is paid: no funds, metals, units of account or test codes.
_CODES = """
AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BHD BIF BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CLP CNY COP CRC CUP CVE CZK
DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD HKD HNL HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS
KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD
OMR PAB PEN PGK PHP PKR PLN PYG QAR RON RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP
TRY TTD TWD TZS UAH UGX USD UYU UZS VED VES VND VUV WST XAF XCD XCG XOF XPF YER ZAR ZMW ZWG
"""
CURRENCIES = frozenset(_CODES.split())
# ISO 4217 currencies whose minor unit is not a hundredth.
_EXPONENTS = {
    **dict.fromkeys(("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "VND", "VUV", "XAF", "XOF", "XPF"), 0),
    **dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3),
}


def is_currency(code: str) -> bool:
    """Whether this is the ISO 4217 code of a currency that money is paid in today."""
    return code in CURRENCIES


def minor_exponent(currency: str) -> int:
    """How many decimals the minor unit of an ISO 4217 currency has."""
    return _EXPONENTS.get(currency, 2)


def line_amount_minor(quantity: str, unit_price: str, currency: str) -> int:
    """Quantity × unit price in minor units, rounded half up (away from zero).

    Both are decimal text of at most 18 digits, so the product is exact in the default context of 28 digits only up to that; it is
    computed on scaled integers, which have no limit.
    """
    quantity_digits, quantity_scale = scaled(quantity)
    price_digits, price_scale = scaled(unit_price)
    scale = quantity_scale + price_scale - minor_exponent(currency)
    product = quantity_digits * price_digits
    if scale <= 0:
        return int(product * 10**-scale)
    return rounded_half_up(product, 10**scale)


def scaled(text: str) -> tuple[int, int]:
    """Decimal text as (digits, scale): "1.250" is (1250, 3). Raises ValueError for anything else."""
    whole, point, fraction = text.partition(".")
    return (int(whole + fraction), len(fraction)) if point else (int(whole), 0)


def rounded_half_up(numerator: int, denominator: int) -> int:
    """numerator ÷ denominator to the nearest integer, halves away from zero."""
    if numerator < 0:
        return -((-2 * numerator + denominator) // (2 * denominator))
    return (2 * numerator + denominator) // (2 * denominator)


def shares(total: int, weights: Sequence[int]) -> list[int]:
    """Shares `total` over `weights` by largest remainder; ties go to the lower index (mall#356: the shares must add up).

    The shares sum to `total` exactly, and none exceeds its weight as long as `total` does not exceed their sum. Weights and total
    are not negative. With nothing to share, or weights that are all zero, every share is zero.
    """
    whole = sum(weights)
    if total == 0 or whole == 0:
        return [0] * len(weights)
    floors = [total * weight // whole for weight in weights]
    left = total - sum(floors)
    if left:
        by_remainder = sorted(range(len(weights)), key=lambda i: (-(total * weights[i] % whole), i))
        for i in by_remainder[:left]:
            floors[i] += 1
    return floors


def first_part(total: int, part: Decimal, whole: Decimal) -> int:
    """What the first `part` of `whole` units has of `total`: floor(total × part ÷ whole).

    Differences of it over growing parts always add up to the total, whatever the parts are.
    """
    if part == whole:
        return total
    part_numerator, part_denominator = part.as_integer_ratio()
    whole_numerator, whole_denominator = whole.as_integer_ratio()
    return total * part_numerator * whole_denominator // (part_denominator * whole_numerator)
