import pytest

from regulars_cli.imports.progress import describe as describe_progress
from regulars_cli.imports.report import amount


@pytest.mark.parametrize(
    "minor,currency,text",
    [(-89681249, "GBP", "-896,812.49"), (5, "GBP", "0.05"), (0, "CNY", "0.00"), (-1234, "JPY", "-1,234"), (1234567, "KWD", "1,234.567")],
)
def test_amounts_are_written_in_major_units(minor: int, currency: str, text: str) -> None:
    assert amount(minor, currency) == text


def test_progress_in_words_has_rate_and_time_left() -> None:
    assert describe_progress("Importing", 120_000, 541_909, 10.0) == "Importing: 120,000 of 541,909 lines (22 %), 12,000 lines/s, 35 s left"
    assert describe_progress("Reading", 100, None, 2.0) == "Reading: 100 lines, 50 lines/s"
    assert describe_progress("Importing", 0, 10, 0.0).endswith("time left unknown")
