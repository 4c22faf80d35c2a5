"""Where backups go in tests: folders, and a server that speaks S3 and checks signatures."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from uuid import uuid4

import pytest

from regulars_cli.backup.stores import Bucket, Folder, Store

ROOT = Path(__file__).parents[3]
BUCKET = "backups"


@pytest.fixture(scope="session")
def object_server() -> Iterator[Mapping[str, str]]:
    """The settings of an account on a server of object stores: that of `TEST_S3`, else moto, which checks signatures like a real one.

    TEST_S3="AWS_ENDPOINT_URL=… AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=…", with a bucket `backups`.
    """
    if given := os.environ.get("TEST_S3"):
        yield dict(each.split("=", 1) for each in given.split())
        return
    command = [sys.executable, "-m", "cli.tests.backup.object_server", BUCKET]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            yield dict(each.split("=", 1) for each in process.stdout.readline().split())
        finally:
            process.terminate()


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty one of either kind."""
    if request.param == "folder":
        return Folder(tmp_path / "backups")
    return Bucket(BUCKET, f"test-{uuid4().hex}", request.getfixturevalue("object_server"))
