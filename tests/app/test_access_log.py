"""The access log: every line is written, soon and whole."""

import asyncio
import io
import logging

import pytest

from app.access_log import AccessLog


@pytest.fixture
def log() -> tuple[logging.Logger, AccessLog, io.StringIO]:
    handler = AccessLog()
    stream = io.StringIO()
    handler.setStream(stream)
    logger = logging.Logger("access")
    logger.addHandler(handler)
    return logger, handler, stream


def test_lines_of_an_event_loop_are_written_together(log: tuple[logging.Logger, AccessLog, io.StringIO]) -> None:
    logger, _, stream = log

    async def answers() -> None:
        written = asyncio.Event()
        logger.info("%s %d", "one", 200)
        logger.info("two")
        assert not stream.getvalue()
        asyncio.get_running_loop().call_later(0.2, written.set)
        await written.wait()
        assert stream.getvalue() == "one 200\ntwo\n"
        logger.info("three")

    asyncio.run(answers())
    assert stream.getvalue() == "one 200\ntwo\n"


def test_what_waits_is_written_at_the_end(log: tuple[logging.Logger, AccessLog, io.StringIO]) -> None:
    logger, handler, stream = log

    async def answer() -> None:
        logger.info("last")

    asyncio.run(answer())
    handler.flush()  # as `logging.shutdown` does
    assert stream.getvalue() == "last\n"


def test_without_a_loop_a_line_is_written_at_once(log: tuple[logging.Logger, AccessLog, io.StringIO]) -> None:
    logger, _, stream = log
    logger.info("now")
    assert stream.getvalue() == "now\n"


def test_a_line_that_cannot_be_made_does_not_end_the_answer(
    log: tuple[logging.Logger, AccessLog, io.StringIO], capsys: pytest.CaptureFixture[str]
) -> None:
    logger, _, stream = log
    logger.info("%d", "no number")
    assert "no number" in capsys.readouterr().err
    assert not stream.getvalue()
