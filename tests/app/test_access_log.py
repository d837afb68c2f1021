"""The access log: every line is written, soon, and whole where it is not absurdly long."""

import asyncio
import io
import logging
import re

import pytest

from app.access_log import AccessLog

Log = tuple[AccessLog, io.StringIO]

_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO access: (.*)\n")


@pytest.fixture
def log() -> Log:
    stream = io.StringIO()
    return AccessLog("access", stream), stream


def _messages(stream: io.StringIO) -> list[str]:
    return _LINE.findall(stream.getvalue())


def test_lines_of_an_event_loop_are_written_together(log: Log) -> None:
    access, stream = log

    async def answers() -> None:
        written = asyncio.Event()
        access.info("%s %d", "one", 200)
        access.info("two")
        assert not stream.getvalue()
        asyncio.get_running_loop().call_later(0.2, written.set)
        await written.wait()
        assert _messages(stream) == ["one 200", "two"]
        access.info("three")

    asyncio.run(answers())
    assert _messages(stream) == ["one 200", "two"]


def test_what_waits_is_written_at_the_end(log: Log) -> None:
    access, stream = log

    async def answer() -> None:
        access.info("last")

    asyncio.run(answer())
    access.flush()
    assert _messages(stream) == ["last"]


def test_without_a_loop_a_line_is_written_at_once(log: Log) -> None:
    access, stream = log
    access.info("now")
    assert _messages(stream) == ["now"]


def test_a_line_that_cannot_be_made_does_not_end_the_answer(log: Log) -> None:
    access, stream = log
    access.info("%d", "no number")
    assert _messages(stream) == ["%d ('no number',)"]


def test_lines_look_as_those_of_other_loggers_do(log: Log) -> None:
    access, stream = log
    usual = io.StringIO()
    handler = logging.StreamHandler(usual)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.emit(logging.LogRecord("access", logging.INFO, "", 0, "%s %d", ("one", 200), None))
    access.info("%s %d", "one", 200)
    digits = re.compile(r"\d")
    assert digits.sub("0", stream.getvalue()) == digits.sub("0", usual.getvalue())


def test_address_without_an_end_does_not_fill_the_disk(log: Log) -> None:
    access, stream = log
    access.info('%s - "POST %s HTTP/1.1" %d', "198.51.100.1:5", "/" + "x" * 100_000, 404)
    (line,) = _messages(stream)
    assert line.startswith('198.51.100.1:5 - "POST /xxx')
    assert line.endswith('xxx HTTP/1.1" 404')
    assert len(line) < 1100
