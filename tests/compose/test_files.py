"""What docker-compose.yml, the Dockerfile and their scripts say, without an engine: they fit one another and the repository."""

import json
import re
import runpy
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text("utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text("utf-8")
VERSION = tomllib.loads((REPOSITORY / "kit" / "pyproject.toml").read_text("utf-8"))["project"]["version"]
PARTS = {"gateway-serve", "member-serve", "member-relay", "reporting-serve", "reporting-consume"}
OBJECT_STORE = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL")
ARCHIVERS = ("cli", "backup-wal")
OURS = re.compile(rf"regulars/(gateway|member|reporting|cli):\$\{{TAG:-{re.escape(VERSION)}\}}")


def test_all_parts_run_apart() -> None:
    assert set(SERVICES) >= PARTS


@pytest.mark.parametrize("service", SERVICES)
def test_every_image_is_ours_of_this_version_or_of_a_pinned_one(service: str) -> None:
    image = SERVICES[service]["image"]
    if image.startswith("regulars/"):
        assert OURS.fullmatch(image)
    else:
        assert re.fullmatch(r"[\w./-]+:v?\d[\w.-]*", image), f"{image} is not pinned"


def test_the_dockerfile_s_version_is_the_packages() -> None:
    assert set(re.findall(r"ARG VERSION=(\S+)", DOCKERFILE)) == {VERSION}
    assert COMPOSE["x-build"]["args"]["VERSION"] == f"${{TAG:-{VERSION}}}"


def test_each_image_is_built_in_each_profile_that_runs_it_and_from_a_target_that_there_is() -> None:
    built = {service: each["build"]["target"] for service, each in SERVICES.items() if "build" in each}
    assert set(built.values()) == {"cli", "gateway", "member", "reporting"}
    for each in SERVICES.values():
        profile, image = each.get("profiles"), each["image"]
        builders = [built[name] for name, other in SERVICES.items() if name in built and other.get("profiles") in (None, profile)]
        assert not image.startswith("regulars/") or re.split("[/:]", image)[1] in builders, f"{image} may be missing in {profile}"
    assert {f"FROM runtime AS {target}" for target in built.values()} <= set(DOCKERFILE.splitlines())


@pytest.mark.parametrize("service", SERVICES)
def test_everything_has_limits_and_no_service_starts_before_what_it_needs(service: str) -> None:
    assert "mem_limit" in SERVICES[service]
    for needed, how in SERVICES[service].get("depends_on", {}).items():
        is_job = SERVICES[needed]["restart"] == "no"
        assert how["condition"] == ("service_completed_successfully" if is_job else how["condition"])
        assert how["condition"] != "service_healthy" or "test" in SERVICES[needed]["healthcheck"]


def mounts() -> list[tuple[str, str, str]]:
    return [(service, *mount.split(":")[:2]) for service, each in SERVICES.items() for mount in each.get("volumes", [])]


def test_what_is_mounted_from_the_repository_is_there() -> None:
    files = {source for _, source, _ in mounts() if source.startswith("./")}
    assert len(files) >= 6
    assert {source for source in files if not (REPOSITORY / source).exists()} == set()


def test_what_mounts_a_script_can_run_it() -> None:
    for script in ("postgres.sh", "clickhouse.sh"):
        assert (REPOSITORY / "deploy" / "compose" / script).stat().st_mode & stat.S_IXUSR


def test_each_service_has_the_keys_that_are_handed_to_it_and_only_the_job_has_all() -> None:
    handed_out = {
        "gateway-serve": "gateway",
        "member-serve": "member",
        "member-relay": "relay",
        "reporting-serve": "reporting",
        "reporting-consume": "consume",
        "postgres": "postgres",
        "clickhouse": "clickhouse",
        "cli": "cli",
        "backup-wal": "backup",
        "grafana": "grafana",
    }
    held = {service: source.removeprefix("keys-") for service, source, to in mounts() if to == "/run/keys"}
    assert {service: held[service] for service in handed_out} == handed_out
    assert [service for service, source, _ in mounts() if source == "keys"] == ["keys"]


def test_files_that_settings_name_are_handed_to_the_service() -> None:
    """Also of the jobs: each `/run/keys/NAME` in an environment is in the folder that its container sees."""
    readers: dict[str, tuple[int, tuple[str, ...]]] = script("keys")["READERS"]
    held = {service: source.removeprefix("keys-") for service, source, to in mounts() if to == "/run/keys"}
    named = 0
    for service, each in SERVICES.items():
        for value in each.get("environment", {}).values():
            if str(value).startswith("/run/keys/"):
                assert str(value).removeprefix("/run/keys/") in readers[held[service]][1], f"{service} is not given {value}"
                named += 1
    assert named > 15


def test_a_setting_that_opens_something_is_the_name_of_a_file() -> None:
    """No password, token or key stands in the file itself, nor comes through an environment.

    But for the account of an object store, which is none of ours: whoever calls the tools hands it on, or names files (`…_FILE`).
    """
    for service, each in SERVICES.items():
        for name, value in each.get("environment", {}).items():
            assert not re.search(r"://[^/@]*:[^/@]*@", str(value)), f"{service}: {name} holds a password"
            if re.search("PASSWORD|SECRET|TOKEN|_KEY", name) and not (service in ARCHIVERS and name in OBJECT_STORE and value is None):
                assert name.endswith("_FILE"), f"{service}: {name}"


def script(name: str) -> dict[str, Any]:
    return runpy.run_path(str(REPOSITORY / "deploy" / "compose" / f"{name}.py"))


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folders of the volumes, empty; whoever runs the tests owns what is handed out."""
    monkeypatch.setattr("os.chown", lambda *_: None)
    monkeypatch.setattr("os.fchown", lambda *_: None)
    for name in ("all", *script("keys")["READERS"], *script("keys")["WRITTEN"]):
        (tmp_path / name).mkdir()
    return tmp_path


def hand_out(keys: Path) -> None:
    main = script("keys")["main"]
    main.__globals__["KEYS"] = keys
    # Readers' folders are closed to them for writing; the job is root.
    for folder in keys.iterdir():
        folder.chmod(0o700)
    assert main() == 0


def contents(keys: Path) -> dict[str, bytes]:
    for folder in keys.iterdir():
        folder.chmod(0o700)
    return {str(path.relative_to(keys)): path.read_bytes() for path in keys.rglob("*") if path.is_file()}


def test_each_folder_gets_what_its_container_reads_and_a_second_run_changes_nothing(keys: Path) -> None:
    hand_out(keys)
    first = contents(keys)
    assert sorted(path.name for path in (keys / "gateway").iterdir()) == ["fingerprint.key", "gateway.pgpass", "internal_token_private.pem"]
    private = "internal_token_private.pem"
    assert {path for path in first if path.endswith(private)} == {f"all/{private}", f"gateway/{private}"}
    assert first["gateway/gateway.pgpass"] == b"*:*:*:gateway:" + first["postgres/gateway.password"]
    assert len(first["cli/operator.pgpass"].splitlines()) == 3
    (keys / "relay" / "left-by-an-earlier-release").write_text("x")
    hand_out(keys)
    assert contents(keys) == first


def test_files_are_for_their_reader_alone(keys: Path) -> None:
    hand_out(keys)
    for folder in keys.iterdir():
        for file in folder.iterdir():
            assert not file.stat().st_mode & 0o077, file


def test_a_lost_half_of_a_pair_stops_the_start(keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hand_out(keys)
    (keys / "all" / "internal_token_private.pem").unlink()
    main = script("keys")["main"]
    main.__globals__["KEYS"] = keys
    assert main() == 1
    assert "restore it" in capsys.readouterr().err


class Chain:
    """`seed-demo`, whose database keeps the hashes of keys only."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, *options: str) -> dict[str, Any]:
        ids = {"store_id": "s", "till_id": "t"}
        if self.made and "--new-keys" not in options:
            return {"till_key": None, "admin_key": None, **ids}
        self.made += 1
        return {"till_key": f"till-{self.made}", "admin_key": f"admin-{self.made}", **ids}


def test_keys_of_the_demo_are_kept_and_made_anew_only_when_nobody_has_them(tmp_path: Path) -> None:
    welcome = script("welcome")
    seeded, note = welcome["seeded"], welcome["note"]
    names: dict[str, Any] = seeded.__globals__
    names["seed"], names["NOTES"] = Chain(), tmp_path / "up.json"
    first = seeded()
    note(first)
    assert stat.S_IMODE((tmp_path / "up.json").stat().st_mode) == 0o600
    assert seeded() == first
    (tmp_path / "up.json").unlink()
    assert seeded()["till_key"] == "till-2"


def test_the_line_to_try_is_a_whole_sale(tmp_path: Path) -> None:
    line = script("welcome")["curl_line"]("http://127.0.0.1:1", "$(key)", {"store_id": "s", "till_id": "t"})
    sale = json.loads(line.partition("-d '")[2].rstrip("'"))
    assert sum(each["amount_minor"] for each in sale["lines"]) == sum(each["amount_minor"] for each in sale["tenders"])
    assert '"Authorization: Bearer $(key)"' in line
    assert list(tmp_path.iterdir()) == []


def test_an_object_store_and_recipients_are_handed_on_to_who_backs_up_and_are_in_no_file() -> None:
    for service in ARCHIVERS:
        assert {name for name, value in SERVICES[service]["environment"].items() if value is None} >= {*OBJECT_STORE, "BACKUP_RECIPIENTS"}


def test_the_pod_that_restores_is_of_this_version_and_runs_as_the_server_does() -> None:
    pod = yaml.safe_load((REPOSITORY / "deploy" / "backup" / "restore-pod.yaml").read_text("utf-8"))["spec"]
    (container,) = pod["containers"]
    assert container["image"] == f"regulars/cli:{VERSION}"
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsNonRoot"]) == (999, True)
    mounted = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert container["args"][:3] == ["restore", "--to", f"{mounted['data']}/18/docker"]
    assert {each["name"] for each in pod["volumes"]} == set(mounted)
