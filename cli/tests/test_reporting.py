import pytest

from cli.tests.imports.fake_gateway import KEY, FakeGateway, Json, serving
from regulars_cli import reporting
from regulars_cli.main import main

REBUILD: Json = {"id": "r", "source": "events", "state": "running", "events": 0, "expected_events": 10, "poison": 0, "reason": None}


def rebuild(
    monkeypatch: pytest.MonkeyPatch, *states: Json, began: Json = REBUILD, arguments: tuple[str, ...] = ()
) -> tuple[int, list[Json]]:
    monkeypatch.setattr(reporting, "PAUSE_SECONDS", 0)
    gateway = FakeGateway(
        others={
            "POST /v1/reports:rebuild": [(202, began)],
            "GET /v1/reports/rebuilds/current": [(200, REBUILD | state) for state in states],
        }
    )
    with serving(gateway):
        code = main(["reporting", "rebuild", "--url", gateway.url, "--key", KEY, *arguments])
    return code, [body for call, body in gateway.sent if call.startswith("POST")]


def test_a_rebuild_is_followed_to_its_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert rebuild(monkeypatch, {}, {"state": "swapping", "events": 12}, {"state": "done", "events": 1234, "poison": 2}) == (0, [{}])
    assert capsys.readouterr().out.splitlines() == [
        "Making the facts anew from the events on the bus. Reports go on with those there are; stopping this command does not stop it.",
        "Done: 1,234 events are facts now.",
        "2 of them could not be: the log of reporting names them.",
    ]


def test_the_ledger_may_be_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    began = REBUILD | {"source": "ledger", "expected_events": None}
    ended = rebuild(monkeypatch, {"state": "waiting"}, {"state": "done"}, began=began, arguments=("--from-ledger",))
    assert ended == (0, [{"source": "ledger"}])
    assert capsys.readouterr().out.startswith("Making the facts anew from the ledger.")


def test_a_rebuild_that_failed_says_why(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert rebuild(monkeypatch, {"state": "failed", "reason": "ledger_unavailable"})[0] == 1
    assert capsys.readouterr().err == "The rebuild ended as failed (ledger_unavailable); the facts are those of before.\n"


def test_another_rebuild_is_not_taken_for_ones_own(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert rebuild(monkeypatch, {"id": "other", "state": "done"})[0] == 1
    assert "Another rebuild began" in capsys.readouterr().err
