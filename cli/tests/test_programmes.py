import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from regulars_cli.main import main

DEMO = Path(__file__).parents[2] / "programmes" / "demo.yaml"
PROPOSAL: dict[str, Any] = {
    "programme_id": "demo",
    "version": 2,
    "effective_from": "2027-01-01",
    "is_new": True,
    "changes": [
        {"pointer": "/earn/points", "from": 1, "to": 2},
        {"pointer": "/earn/multipliers/0", "from": None, "to": {"name": "audio", "rate_bp": 20000, "skus": [], "from": None}},
        {"pointer": "/spend", "from": {"points": 1, "minor": 1}, "to": None},
    ],
    "warnings": ["Multiplier audio has no condition: it is on every line."],
}


class Gateway:
    """Answers as the gateway would, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str, bytes]] = []
        self.answers: dict[str, tuple[int, Any]] = {
            "/v1/programmes:check": (200, PROPOSAL),
            "/v1/programmes:apply": (201, PROPOSAL),
        }
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                gateway.asked.append((self.command, self.path, self.headers["Authorization"], body))
                status, document = gateway.answers[self.path]
                answer = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST = handle_any  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @property
    def paths(self) -> list[str]:
        return [path for _, path, _, _ in self.asked]


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    made = Gateway()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def run(gateway: Gateway, *arguments: str) -> int:
    return main(["programme", *arguments, "--url", gateway.url, "--key", "secret"])


def test_what_changes_is_said_in_words_before_it_is_applied(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(gateway, "apply", str(DEMO), "--yes") == 0
    assert gateway.paths == ["/v1/programmes:check", "/v1/programmes:apply"]
    assert {(method, key) for method, _, key, _ in gateway.asked} == {("POST", "Bearer secret")}
    assert json.loads(gateway.asked[1][3])["effective_from"] == "2010-01-01"
    assert capsys.readouterr().out.splitlines()[1:] == [
        "Version 2 of demo, from 2027-01-01, changes:",
        "  earn points: 1 → 2",
        "  earn multipliers 1: name audio, rate_bp 20000",
        "  spend: no longer points 1, minor 1",
        "  Note: Multiplier audio has no condition: it is on every line.",
        "demo is at version 2.",
    ]


def test_a_dry_run_applies_nothing(gateway: Gateway) -> None:
    assert run(gateway, "apply", str(DEMO), "--dry-run") == 0
    assert gateway.paths == ["/v1/programmes:check"]


def test_nothing_is_applied_where_nobody_can_be_asked(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(gateway, "apply", str(DEMO)) == 1
    assert gateway.paths == ["/v1/programmes:check"]
    assert "give --yes" in capsys.readouterr().err


@pytest.mark.parametrize("answer, code, applied", [("y", 0, 1), ("YES ", 0, 1), ("", 1, 0), ("n", 1, 0)])
def test_a_person_is_asked(gateway: Gateway, monkeypatch: pytest.MonkeyPatch, answer: str, code: int, applied: int) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _prompt: answer)
    assert run(gateway, "apply", str(DEMO)) == code
    assert gateway.paths.count("/v1/programmes:apply") == applied


def test_the_same_definition_is_nothing_to_do(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.answers["/v1/programmes:check"] = (200, PROPOSAL | {"is_new": False, "changes": [], "warnings": []})
    assert run(gateway, "apply", str(DEMO), "--yes") == 0
    assert gateway.paths == ["/v1/programmes:check"]
    assert "Nothing to do: version 2 of demo says the same." in capsys.readouterr().out


def test_a_refusal_names_every_fault(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    errors = [{"pointer": "/effective_from", "code": "too_early", "detail": "Later, please."}]
    gateway.answers["/v1/programmes:check"] = (422, {"detail": "Correct it.", "code": "programme_invalid", "errors": errors})
    assert run(gateway, "apply", str(DEMO), "--yes") == 1
    assert capsys.readouterr().err == f"{DEMO} is not valid:\n  effective_from: Later, please.\n"


def test_a_file_at_fault_is_not_sent(gateway: Gateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(DEMO.read_text().replace("rounding: floor", "rounding: up"))
    assert run(gateway, "apply", str(file), "--yes") == 1
    assert gateway.asked == []
    assert "  earn rounding: Give one of floor, half_up, ceil." in capsys.readouterr().err


def test_a_file_is_checked_without_a_system(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["programme", "check", str(DEMO)]) == 0
    assert main(["programme", "check", str(tmp_path / "none.yaml")]) == 1
    assert "none.yaml cannot be read" in capsys.readouterr().err


def test_a_programme_is_shown_with_its_versions(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    applied = {
        "applied_at": "2026-11-21T00:00:00Z",
        "applied_by": "admin",
        "definition": {"earn": {"points": 1, "multipliers": []}, "spend": None},
    }
    gateway.answers["/v1/programmes/demo"] = (
        200,
        {
            "id": "demo",
            "name": "Demo programme",
            "currency": "CNY",
            "zone": "Asia/Shanghai",
            "current_version": 1,
            "versions": [
                {"version": 2, "effective_from": "2027-01-01", **applied},
                {"version": 1, "effective_from": "2010-01-01", **applied},
            ],
        },
    )
    assert run(gateway, "show", "demo") == 0
    assert capsys.readouterr().out.splitlines() == [
        "Demo programme (demo)",
        "  version 2, from 2027-01-01 (applied 2026-11-21T00:00:00Z by admin)",
        "  version 1, from 2010-01-01, in effect (applied 2026-11-21T00:00:00Z by admin)",
        "  earn points: 1",
    ]
    assert run(gateway, "show", "demo", "--json") == 0
    assert json.loads(capsys.readouterr().out)["current_version"] == 1


def test_a_missing_programme_or_gateway_is_one_sentence(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.answers["/v1/programmes/none"] = (404, {"detail": "Check the programme's id.", "code": "programme_not_found", "errors": []})
    assert run(gateway, "show", "none") == 1
    assert main(["programme", "show", "demo", "--url", "http://127.0.0.1:1", "--key", "k"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "Check the programme's id. (programme_not_found)",
        "The gateway at http://127.0.0.1:1 does not answer (ConnectError): is the system up?",
    ]
