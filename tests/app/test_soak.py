"""The soak test, in short: `python -m bench.soak` runs the same for a million requests."""

import json
from pathlib import Path

import pytest

from bench import soak
from bench.soak import Plan
from tests.app import artifacts


def test_every_answer_is_right_while_clients_leave_and_versions_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APP_FINETUNE_WORKERS", "0")
    monkeypatch.setenv("APP_MAX_WAIT_SECONDS", "3600")  # however busy the machine is
    for seed in range(3):
        artifacts.write(tmp_path / "models", "pets", seed, promote=seed == 0)
    plan = Plan(requests=3000, promotions=2, pictures=32)
    report = soak.run(tmp_path, "pets", "torchscript-f32", plan)
    assert report.broken(plan) == []
    assert json.loads(report.json(plan))["requests"] == 3000
    assert report.hung_up + report.statuses.total() == 3000
    assert set(report.statuses) == {200, 413, 415, 422}
