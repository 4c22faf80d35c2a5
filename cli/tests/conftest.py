"""Folders and ports for tests that start real processes."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def reachable_path() -> Iterator[Path]:
    """A new folder that other users may pass through: root's database runs as one, and `tmp_path` is closed to them."""
    folder = Path(tempfile.mkdtemp(prefix="regulars-test-"))
    folder.chmod(0o711)
    yield folder
    for link in folder.rglob("*"):
        if link.is_symlink() and link.resolve().is_relative_to("/var/lib/regulars/"):
            shutil.rmtree(link.resolve().parent)
    shutil.rmtree(folder)
