"""What is imported early is whole for whoever imports it later."""

import importlib
import sys
from pathlib import Path

import pytest

from training.preload import preload


def test_an_import_meanwhile_waits_until_the_module_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needed_late.py").write_text("begun = True\nimport slow_part\nwhole = True\n", encoding="utf-8")
    (tmp_path / "slow_part.py").write_text("total = sum(range(3_000_000))\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    preload("needed_late", "slow_part")
    assert importlib.import_module("needed_late").whole
    assert sys.modules["slow_part"].total
    monkeypatch.delitem(sys.modules, "needed_late")
    monkeypatch.delitem(sys.modules, "slow_part")
