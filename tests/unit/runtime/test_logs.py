import io
import json
import logging

import pytest
import structlog

from agentcube.runtime import logs


@pytest.fixture(autouse=True)
def _as_it_was():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:], root.level = handlers, level


def lines(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_events_are_json_lines_with_their_facts() -> None:
    stream = io.StringIO()
    logs.configure(stream=stream)
    with structlog.contextvars.bound_contextvars(request_id="r1"):
        structlog.get_logger("x").info("session ends", session="s1", reason="idle")
    [line] = lines(stream)
    assert {k: line[k] for k in ("event", "level", "session", "reason", "request_id")} == {
        "event": "session ends",
        "level": "info",
        "session": "s1",
        "reason": "idle",
        "request_id": "r1",
    }
    assert line["timestamp"].endswith("Z")


@pytest.mark.parametrize("as_json", [True, False])
def test_secrets_and_what_users_wrote_never_appear(as_json) -> None:
    stream = io.StringIO()
    logs.configure(stream=stream, as_json=as_json)
    log = structlog.get_logger("x")
    log.info("odd", token="hunter2", code="hunter2", env={"A": "hunter2"}, authorization=b"hunter2")
    local = "hunter2"  # in scope of the traceback
    try:
        raise RuntimeError(f"failed on {len(local)} bytes")
    except RuntimeError:
        log.exception("failed")
    assert "hunter2" not in stream.getvalue()
    assert "RuntimeError" in stream.getvalue()


def test_the_standard_librarys_loggers_come_out_the_same_way() -> None:
    stream = io.StringIO()
    logs.configure(stream=stream)
    logging.getLogger("uvicorn.error").warning("odd %s", "thing")
    logging.getLogger("uvicorn.access").info("a full URL?with=query")
    [line] = lines(stream)
    assert (line["event"], line["level"]) == ("odd thing", "warning")


def test_what_is_below_the_level_is_not_written() -> None:
    stream = io.StringIO()
    logs.configure(stream=stream, level="warning")
    structlog.get_logger("x").info("quiet")
    assert stream.getvalue() == ""
