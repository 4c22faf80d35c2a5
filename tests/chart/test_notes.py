"""What Helm prints after an install. `helm template` leaves it out, so it is rendered as a ConfigMap of a copy of the chart."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from scripts.check_chart import CHART, HELM

UNSAVED = "Nothing is known to back up PostgreSQL"
SCALE = "scale deploy/regulars-operator --replicas=1"


@pytest.fixture
def chart(tmp_path: Path) -> Path:
    copy = tmp_path / "regulars"
    shutil.copytree(CHART, copy)
    notes = copy / "templates" / "NOTES.txt"
    text = notes.read_text(encoding="utf-8")
    head = json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "notes"}})[:-1]
    wrapped = '{{- define "notes" }}' + text + "{{ end }}\n" + head + ', "data": {"notes": {{ include "notes" . | toJson }}}}\n'
    (copy / "templates" / "notes.yaml").write_text(wrapped, encoding="utf-8")
    return copy


def notes(chart: Path, profile: str, *settings: str) -> str:
    more = [word for each in settings for word in ("--set", each)]
    command = [HELM, "template", "regulars", str(chart), "-n", "regulars", "-f", str(chart / profile), "-s", "templates/notes.yaml", *more]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return str(yaml.safe_load(done.stdout)["data"]["notes"])


def test_a_release_without_backups_is_told_so_until_it_is_said_what_makes_them(chart: Path) -> None:
    assert UNSAVED in notes(chart, "values-private.yaml")
    assert UNSAVED not in notes(chart, "values-private.yaml", "backup.external=ScheduledBackup")
    own = ("backup.enabled=true", "backup.to=s3://backups/regulars", "backup.database.existingSecret=backup")
    assert UNSAVED not in notes(chart, "values-private.yaml", *own)
    # A trial says of its servers that there are none.
    assert "no backups" in notes(chart, "values-trial.yaml")


def test_the_way_to_the_doctor_is_told(chart: Path) -> None:
    resting, running = notes(chart, "values-private.yaml"), notes(chart, "values-trial.yaml")
    assert "exec deploy/regulars-operator -- regulars doctor" in resting
    assert "exec deploy/regulars-operator -- regulars doctor" in running
    assert SCALE in resting
    assert SCALE not in running


def test_images_of_which_only_some_are_pinned_are_told_of(chart: Path) -> None:
    pinned = [f"image.digests.{image}=sha256:{'0' * 64}" for image in ("cli", "gateway", "member", "reporting")]
    assert "and member, reporting by tag" in notes(chart, "values-trial.yaml", *pinned[:2])
    for settings in (pinned, []):
        assert "by tag" not in notes(chart, "values-trial.yaml", *settings)
