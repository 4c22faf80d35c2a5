"""Cuts what each package needs, and nothing else, from requirements.lock, into `kit/requirements.lock` and the like.

An image is built from the subset of its service, so that the reporting image has no web framework and the gateway no ClickHouse client.
Without an option (`make lock`), uv works out which packages each needs, with all versions held by requirements.lock; the entries are then
cut from there, so that they have its versions and hashes. `--check` proves this without a network: every entry stands in
requirements.lock word for word, and all that the installed packages say they need is there.
"""

import argparse
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
WHOLE = "requirements.lock"
# Our own packages, each after those that it is made of.
PACKAGES = {
    "regulars-protos": "protos",
    "regulars-kit": "kit",
    "regulars-member": "services/member",
    "regulars-gateway": "services/gateway",
    "regulars-reporting": "services/reporting",
    "regulars": "cli",
}
# What makes wheels of them: cut from the group `dev`.
BUILD = "scripts/build.lock.txt"
BUILD_PACKAGE = "hatchling"


@dataclass(frozen=True)
class Subset:
    """One file: where it is, what it is for, our own packages whose dependencies it covers, and others by name."""

    path: str
    title: str
    own: tuple[str, ...]
    others: tuple[str, ...] = ()


def entries(lock: str) -> dict[str, str]:
    """Each entry of a lock, version, marker and hashes, as it is written, by the package's name; all of them where a name has several."""
    found: dict[str, str] = {}
    for entry in re.findall(r"^[A-Za-z0-9].*\n(?:[ \t]+.*\n?)*", lock, re.MULTILINE):
        name = canonicalize_name(re.split(r"[=\[ ;]", entry, maxsplit=1)[0])
        found[name] = found.get(name, "") + entry.rstrip("\n") + "\n"
    return found


def own_needs(root: Path, package: str) -> tuple[list[Requirement], list[str]]:
    """What a package of ours names as needed, without extras: others' packages, and our own."""
    project = tomllib.loads((root / PACKAGES[package] / "pyproject.toml").read_text("utf-8"))["project"]
    needs = [Requirement(line) for line in project.get("dependencies", [])]
    own: list[str] = [name for name in (canonicalize_name(need.name) for need in needs) if name in PACKAGES]
    return [need for need in needs if canonicalize_name(need.name) not in PACKAGES], own


def closure_of_own(root: Path, package: str) -> tuple[str, ...]:
    """The package and all of our own that it is made of, in the order of `PACKAGES`."""
    found, waiting = set(), [package]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += own_needs(root, name)[1]
    return tuple(name for name in PACKAGES if name in found)


def subsets(root: Path) -> list[Subset]:
    """Every file that is written. `protos` alone is no image, nor a layer of one."""
    made = [
        Subset(f"{folder}/requirements.lock", f"What {package} needs", closure_of_own(root, package))
        for package, folder in PACKAGES.items()
        if folder != "protos"
    ]
    return [*made, Subset(BUILD, "What makes wheels of our packages", (), (BUILD_PACKAGE,))]


def cut(subset: Subset, names: Iterable[str], whole: Mapping[str, str]) -> str:
    """The text of the file: the entries of these names, as they stand in `whole`."""
    title = f"# {subset.title}: cut from requirements.lock by `make lock`. Do not edit.\n"
    return title + "".join(whole[name] for name in sorted(names))


def write(root: Path, uv: str) -> None:
    """Writes every file."""
    whole_path = root / WHOLE
    whole = entries(whole_path.read_text("utf-8"))
    for subset in subsets(root):
        inputs = [f"-e ./{PACKAGES[package]}" for package in subset.own] + list(subset.others)
        options = ["--universal", "--python-version", "3.11", "--no-emit-index-url", "--no-header", "--no-annotate"]
        done = subprocess.run(
            (uv, "pip", "compile", "--quiet", *options, "--constraints", str(whole_path), "-"),
            input="\n".join(inputs),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            cwd=root,
        )
        names = set(entries(done.stdout)) - set(PACKAGES)
        (root / subset.path).write_text(cut(subset, names, whole), "utf-8")


def faults(root: Path) -> list[str]:
    """What is wrong with the files, one sentence each."""
    whole = entries((root / WHOLE).read_text("utf-8"))
    return [fault for subset in subsets(root) for fault in faults_of(root, subset, whole)]


def faults_of(root: Path, subset: Subset, whole: Mapping[str, str]) -> list[str]:
    """What is wrong with one file, held against requirements.lock and the installed packages."""
    try:
        text = (root / subset.path).read_text("utf-8")
    except OSError:
        return [f"{subset.path} is missing."]
    there = entries(text)
    foreign = sorted(name for name, entry in there.items() if whole.get(name) != entry)
    found = [f"{subset.path}: {name} is not as in requirements.lock." for name in foreign]
    direct = [need for package in subset.own for need in own_needs(root, package)[0]] + [Requirement(name) for name in subset.others]
    needed = closure(direct)
    found += [f"{subset.path}: {name} is missing, which {by} needs." for name, by in sorted(needed.items()) if name not in there]
    # What only another system or another Python needs is not installed here, and nobody here can tell who needs it.
    surplus = sorted(name for name in there if name not in needed and ";" not in there[name].partition("\n")[0])
    found += [f"{subset.path}: {name} is there and nothing needs it." for name in surplus]
    if text != cut(subset, [name for name in there if name in whole], whole):
        found.append(f"{subset.path} has lines that `make lock` does not write.")
    return found


def closure(direct: Sequence[Requirement]) -> dict[str, str]:
    """Every package that these need, by the installed packages' own word, and who needs it.

    Raises:
        PackageNotFoundError: one is not installed.
    """
    needed: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(need, "our own code", "") for need in direct]
    while waiting:
        need, by, extra = waiting.pop()
        if need.marker is not None and not need.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(need.name)
        needed.setdefault(name, by)
        for wanted in ("", *need.extras):
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                waiting += [(Requirement(line), name, wanted) for line in requires(name) or ()]
    return needed


def main(arguments: Sequence[str]) -> int:
    """Exit code 1 if a file is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; say what is wrong")
    parser.add_argument("--uv", default=".venv/bin/uv", help="the uv that works it out (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    if not chosen.check:
        write(ROOT, chosen.uv)
        return 0
    try:
        found = faults(ROOT)
    except PackageNotFoundError as missing:
        found = [f"{missing.name} is not installed: run `make setup`."]
    for fault in found:
        print(fault)
    if found:
        print("Run `make lock` and commit.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
