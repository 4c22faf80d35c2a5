from pathlib import Path

import pytest

from regulars_cli.imports.faults import MappingFault
from regulars_cli.imports.mapping import load_mapping, parse_mapping, shipped_mappings

SMALL = """
format: 1
name: small
columns: {invoice: No, sku: SKU, quantity: Qty, sold_at: At, unit_price: Price}
sold_at_formats: ["%d/%m/%Y %H:%M"]
store: {code: S1, till: T1, zone: Asia/Shanghai, currency: CNY, programme: demo}
lines: [{is: sale}]
"""


def test_every_shipped_mapping_is_valid() -> None:
    assert "online-retail" in shipped_mappings()
    for name in shipped_mappings():
        assert load_mapping(name).name == name


def test_a_mapping_file_of_ones_own_is_given_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    assert load_mapping(str(path)).store.zone == "Asia/Shanghai"


def test_norway_is_no_boolean() -> None:
    assert load_mapping("online-retail").countries["Norway"] == "NO"


@pytest.mark.parametrize(
    "old,new,said",
    [
        ("format: 1", "format: 2", "format"),
        ("name: small", "name: Small Shop", "name"),
        ("zone: Asia/Shanghai", "zone: Asia/Peking", "Asia/Peking is not an IANA time zone such as Europe/London - at `$.store.zone`"),
        ("zone: Asia/Shanghai", "zone: ../etc", "../etc is not an IANA time zone"),
        ("currency: CNY", "currency: yuan", "currency"),
        ("sku: SKU", "sku: No", "two columns have the same heading"),
        ("sku: SKU, ", "", "missing required field `sku`"),
        ("sku: SKU", "sku: SKU, colour: Colour", "unknown field `colour`"),
        ('["%d/%m/%Y %H:%M"]', '["%d/%m/%Y %H:%M %z"]', "has no %z"),
        ("[{is: sale}]", "[{is: sale, when: {quantity: positive}}]", "the last rule must have no condition"),
        ("[{is: sale}]", "[{is: skipped}]", "has a code and a because"),
        ("[{is: sale}]", "[{is: sale, code: why, because: not}]", "has a code and a because"),
        ("format: 1", "format: 1\nencoding: klingon", "klingon is not a known text encoding"),
        ("format: 1", "format: [", "is not YAML"),
    ],
)
def test_a_wrong_mapping_is_one_sentence_that_names_the_key(old: str, new: str, said: str) -> None:
    with pytest.raises(MappingFault) as caught:
        parse_mapping(SMALL.replace(old, new), "small")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere", "../online-retail", "/no/such.yaml"])
def test_a_missing_mapping_says_what_there_is(name: str) -> None:
    with pytest.raises(MappingFault, match=r"online-retail|cannot be read"):
        load_mapping(name)


def test_every_value_is_text(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL + "countries: {Norway: NO}\n")
    assert load_mapping(str(path)).countries == {"Norway": "NO"}
    assert load_mapping(str(path)).columns.invoice == "No"
