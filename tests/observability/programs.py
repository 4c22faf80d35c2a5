"""Prometheus' own programs, `promtool` and `prometheus`: those on PATH, else those of Debian's package, unpacked into the user's cache.

Nothing is installed, and nobody need be root: apt fetches the package and checks its signature.
"""

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

_HOW = "install Prometheus 2.42 or later, so that promtool and prometheus are on PATH (Debian: apt install prometheus)"


def program(name: str) -> str:
    """The path of `promtool` or `prometheus`. Skips the test, saying what to do, where it cannot be had: a failure where CI is set."""
    if found := shutil.which(name):
        return found
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "regulars" / "prometheus"
    unpacked = folder / "usr" / "bin" / name
    if not unpacked.exists():
        if not (shutil.which("apt-get") and shutil.which("dpkg")):
            pytest.skip(f"{name} is not there, and no Debian package can be unpacked here: {_HOW}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_name("prometheus.lock").open("a") as lock:
            # Several processes may want it at once.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not unpacked.exists():
                _unpack_debian_package(folder)
    return str(unpacked)


def _unpack_debian_package(folder: Path) -> None:
    """Fills `folder`, which appears whole or not at all."""
    fresh = Path(tempfile.mkdtemp(prefix="prometheus-", dir=folder.parent))
    try:
        # The machine's lists of packages may be missing, as in a small image, or too old: then with lists of our own.
        own = (f"-oDir::State::lists={fresh}/lists", f"-oDir::Cache={fresh}/cache")
        (fresh / "lists" / "partial").mkdir(parents=True)
        (fresh / "cache" / "archives" / "partial").mkdir(parents=True)
        if _apt(fresh, "download", "prometheus") and (
            _apt(fresh, *own, "-oAPT::Sandbox::User=root", "-oAcquire::Languages=none", "update")
            or _apt(fresh, *own, "download", "prometheus")
        ):
            pytest.skip(f"Debian's package of Prometheus could not be downloaded: {_HOW}")
        (package,) = fresh.glob("prometheus_*.deb")
        subprocess.run(("dpkg", "-x", package, fresh / "whole"), check=True, capture_output=True)  # noqa: S607
        (fresh / "whole").rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _apt(folder: Path, *arguments: str) -> int:
    return subprocess.run(("apt-get", "--quiet", *arguments), cwd=folder, check=False, capture_output=True, timeout=100).returncode  # noqa: S607
