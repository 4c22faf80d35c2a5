"""The images, and the whole of docker-compose.yml, on a Docker Engine: `make test-compose`.

Tests that need no engine are a part of `make test`. Those that do are collected only where they are asked for, by TEST_COMPOSE, and then
an engine that is missing is a failure.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.ids import uuid7
from tests.compose.stack import Stack

REPOSITORY = Path(__file__).resolve().parents[2]
WITH_ENGINE = ["test_images.py", "test_stack.py"]
IMAGES = ("gateway", "member", "reporting", "cli")
# No two runs share images.
TAG = f"test-{uuid7()[-12:]}"

collect_ignore = [] if os.environ.get("TEST_COMPOSE") else WITH_ENGINE


@pytest.fixture(scope="session")
def engine() -> None:
    """A Docker Engine that answers."""
    docker = shutil.which("docker")
    if docker is None or subprocess.run((docker, "version"), capture_output=True, check=False).returncode != 0:
        pytest.fail("TEST_COMPOSE asks for tests in containers, and no Docker Engine answers: start one.")


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy of what is in the repository, or would be with a commit: no environment, no data, no caches."""
    folder = tmp_path_factory.mktemp("clone")
    command = ("git", "-C", str(REPOSITORY), "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    listed = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        source = REPOSITORY / name
        if source.is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, folder / name)
    return folder


@pytest.fixture(scope="session")
def images(engine: None, checkout: Path) -> Iterator[dict[str, str]]:  # noqa: ARG001  # without it there are none
    """The images of this checkout, by service."""
    subprocess.run((str(checkout / "scripts" / "build_images.sh"), TAG), check=True)
    made = {service: f"regulars/{service}:{TAG}" for service in IMAGES}
    yield made
    subprocess.run(("docker", "image", "rm", *made.values()), check=False, capture_output=True)


@pytest.fixture(scope="module")
def stack(images: dict[str, str], checkout: Path) -> Iterator[Stack]:  # noqa: ARG001  # it runs them
    """All of docker-compose.yml, started from the clean copy; gone at the end, with its volumes."""
    stack = Stack(checkout, TAG)
    try:
        stack.up()
        yield stack
    except BaseException:
        stack.tell()
        raise
    finally:
        stack.remove()
