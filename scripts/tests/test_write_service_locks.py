"""What each image is built from is cut from requirements.lock, whole and nothing else; whatever differs is named."""

from pathlib import Path

import pytest

from scripts.write_service_locks import PACKAGES, ROOT, Subset, closure_of_own, cut, entries, faults_of, subsets

WHOLE = entries((ROOT / "requirements.lock").read_text("utf-8"))
KIT = next(subset for subset in subsets(ROOT) if subset.path == "kit/requirements.lock")


def test_entries_are_kept_word_for_word_and_all_of_a_name_together() -> None:
    lock = (
        "# comment\nNumPy==2.4 ; os_name == 'nt' \\\n    --hash=sha256:a\nnumpy==2.5 \\\n    --hash=sha256:b\nzope_x==1 \\\n    --hash=c\n"
    )
    found = entries(lock)
    assert list(found) == ["numpy", "zope-x"]
    assert found["numpy"].count("--hash") == 2
    assert "# comment\n" + "".join(found.values()) == lock


@pytest.mark.parametrize(
    "package, made_of",
    [
        ("regulars-kit", ("regulars-kit",)),
        ("regulars-gateway", ("regulars-protos", "regulars-kit", "regulars-gateway")),
        ("regulars", ("regulars-protos", "regulars-kit", "regulars-member", "regulars")),
    ],
)
def test_a_package_is_made_of_ours_without_those_of_extras(package: str, made_of: tuple[str, ...]) -> None:
    assert closure_of_own(ROOT, package) == made_of


def faults_with(tmp_path: Path, text: str) -> list[str]:
    """What is said of kit's file with this text, beside the real pyproject.toml files."""
    for folder in PACKAGES.values():
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "pyproject.toml").write_bytes((ROOT / folder / "pyproject.toml").read_bytes())
    (tmp_path / KIT.path).write_text(text, "utf-8")
    return faults_of(tmp_path, KIT, WHOLE)


def test_the_file_of_the_kit_is_as_it_should_be(tmp_path: Path) -> None:
    assert faults_with(tmp_path, (ROOT / KIT.path).read_text("utf-8")) == []


@pytest.mark.parametrize(
    "changed, said",
    [
        (lambda names: names - {"cffi"}, "cffi is missing, which cryptography needs."),
        (lambda names: names - {"asyncpg"}, "asyncpg is missing, which our own code needs."),
        (lambda names: names | {"httptools"}, "httptools is there and nothing needs it."),
    ],
)
def test_what_is_missing_or_too_much_is_named(tmp_path: Path, changed: object, said: str) -> None:
    assert callable(changed)
    names = set(entries((ROOT / KIT.path).read_text("utf-8")))
    assert faults_with(tmp_path, cut(KIT, changed(names), WHOLE)) == [f"{KIT.path}: {said}"]


@pytest.mark.parametrize(
    "old, new",
    [("alembic==", "alembic==0."), ("--hash=sha256:", "--hash=sha256:0"), ("asyncpg==", "asyncpg[gssauth]==")],
)
def test_another_version_or_hash_is_refused(tmp_path: Path, old: str, new: str) -> None:
    text = (ROOT / KIT.path).read_text("utf-8").replace(old, new, 1)
    assert any("is not as in requirements.lock" in fault for fault in faults_with(tmp_path, text))


def test_a_line_of_ones_own_is_refused(tmp_path: Path) -> None:
    text = (ROOT / KIT.path).read_text("utf-8")
    assert faults_with(tmp_path, f"{text}--find-links somewhere\n") == [f"{KIT.path} has lines that `make lock` does not write."]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert faults_of(tmp_path, Subset("nowhere.lock", "", ()), WHOLE) == ["nowhere.lock is missing."]
