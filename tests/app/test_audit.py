"""The audit log: one whole line for each change, whatever happens around it."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest

from app import audit
from app.errors import StorageError


def lines(data_dir: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (data_dir / audit.FILE).read_text().splitlines()]


def test_line_says_who_did_what_when(tmp_path: Path) -> None:
    audit.append(tmp_path / "new" / "folder", "10.0.0.5", "promote", "pets", None, 2, reason="because")
    (line,) = lines(tmp_path / "new" / "folder")
    assert datetime.fromisoformat(str(line.pop("when"))).tzinfo
    assert line == {"who": "10.0.0.5", "what": "promote", "model": "pets", "from": None, "to": 2, "reason": "because"}


def test_text_of_others_cannot_forge_a_line(tmp_path: Path) -> None:
    audit.append(tmp_path, 'me\n{"who": "you"}', "promote", "pets", 1, 2)
    assert [line["who"] for line in lines(tmp_path)] == ['me\n{"who": "you"}']


def test_half_a_line_swallows_no_other(tmp_path: Path) -> None:
    audit.append(tmp_path, "first", "promote", "pets", 1, 2)
    with (tmp_path / audit.FILE).open("a") as file:
        file.write('{"when": "2026-')
    audit.append(tmp_path, "second", "promote", "pets", 2, 3)
    text = (tmp_path / audit.FILE).read_text().splitlines()
    assert [json.loads(text[0])["who"], text[1], json.loads(text[2])["who"]] == ["first", '{"when": "2026-', "second"]


def test_what_a_log_holds(tmp_path: Path) -> None:
    assert not audit.holds(tmp_path, "me", "promote", "pets")
    (tmp_path / audit.FILE).write_text('{"when": "2026-')
    audit.append(tmp_path, "me", "promote", "pets", None, 1)
    assert audit.holds(tmp_path, "me", "promote", "pets")
    for other in (("you", "promote", "pets"), ("me", "rollback", "pets"), ("me", "promote", "birds")):
        assert not audit.holds(tmp_path, *other)


def test_lines_written_at_once_stay_whole(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: audit.append(tmp_path, "x" * 5000, "promote", "m", number, 0), range(64)))
    assert sorted(int(str(line["from"])) for line in lines(tmp_path)) == list(range(64))


def test_log_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file, not a folder")
    with pytest.raises(StorageError, match=r"audit.jsonl cannot be written .* nothing was changed"):
        audit.append(tmp_path / "data", "me", "promote", "pets", 1, 2)
