"""The pure half of the SDK: requests, answers, errors, retries."""

from __future__ import annotations

import json
import pickle
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from agentcube import errors as domain
from agentcube.sdk._core import calls, requests, results
from agentcube.sdk._core.errors import (
    CommandExecutionError,
    InvalidArgument,
    NotConfigured,
    TimedOut,
    UnexpectedAnswer,
    error_of,
    is_retryable,
)
from agentcube.sdk._core.retry import Policy

WHERE = requests.place_of_session("http://h", "s-1")


# --- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(domain.BY_CODE.values(), key=lambda c: c.code), ids=lambda c: c.code)
def test_every_code_leads_back_to_its_class(kind: type[domain.AgentCubeError]) -> None:
    body = json.dumps({"code": kind.code, "detail": "why", "request_id": "r"}).encode()
    error = error_of(kind.status, {}, body, what="do it")
    assert type(error) is kind
    assert error.detail.startswith("do it: why")
    assert error.context == {"status": kind.status, "code": kind.code, "request_id": "r"}


@pytest.mark.parametrize(
    ("status", "body", "kind", "text"),
    [
        (404, b'{"error": "gone"}', domain.NotFound, "x: gone"),
        (401, b"", domain.Unauthenticated, "AGENTCUBE_API_KEY"),
        (418, b"teapot", domain.Invalid, "HTTP 418: teapot"),
        (500, b'{"code": "brand_new", "detail": "d"}', domain.AgentCubeError, "x: d"),
        (502, b"<html>\n <b>Bad\x00 Gateway" + b"x" * 9999, domain.SandboxUnavailable, "<html> <b>Bad"),
        (503, b"[1]", domain.Unavailable, "HTTP 503: [1]"),
        (504, b'{"detail": 7, "code": ["x"]}', domain.SandboxTimedOut, "HTTP 504"),
        (
            400,
            b'{"detail": "d", "errors": [{"pointer": "/a", "message": "m"}, 7]}',
            domain.Invalid,
            "d (/a: m)",
        ),
        (
            400,
            b'{"detail": "bad: /a: m", "errors": [{"pointer": "/a", "message": "m"}]}',
            domain.Invalid,
            "/a: m",
        ),
    ],
)
def test_other_answers_are_told_by_their_status(
    status: int, body: bytes, kind: type[domain.AgentCubeError], text: str
) -> None:
    error = error_of(status, {"x-request-id": "r"}, body, what="x")
    assert type(error) is kind
    assert text in error.detail
    assert error.detail.count("/a: m") <= 1
    assert len(error.detail) < 500
    assert error.context["request_id"] == "r"


def test_errors_are_also_the_builtin_kind_that_programs_catch() -> None:
    assert isinstance(NotConfigured("x"), ValueError)
    assert isinstance(TimedOut("slow"), TimeoutError)
    assert str(TimedOut("slow")) == "slow"
    error = pickle.loads(pickle.dumps(CommandExecutionError(3, "bad", ["x"])))
    assert (error.exit_code, error.stderr, error.command) == (3, "bad", ["x"])
    error = pickle.loads(pickle.dumps(CommandExecutionError(124, "", ["x"], timed_out=True)))
    assert (str(error), error.timed_out) == ("Command failed (exit 124, timed out): ", True)


# --- retries ----------------------------------------------------------------------------------------------


def test_only_what_cannot_happen_twice_is_repeated() -> None:
    policy = Policy(retries=2, base_s=1.0, max_s=1.5)
    assert policy.after_failure(0, sent=True, repeatable=False) is None
    assert policy.after_failure(0, sent=False, repeatable=False) is not None
    assert policy.after_failure(1, sent=True, repeatable=True) is not None
    assert policy.after_failure(2, sent=False, repeatable=True) is None
    assert all(0.5 <= policy.backoff(0) <= 1.0 and 0.75 <= policy.backoff(9) <= 1.5 for _ in range(100))


@pytest.mark.parametrize(
    ("status", "headers", "retryable", "repeatable", "again"),
    [
        (503, {}, True, True, True),
        (503, {}, True, False, False),
        (503, {"agentcube-error": "router"}, True, False, True),
        (502, {"agentcube-error": "router"}, True, False, False),
        (502, {}, True, True, True),
        (503, {}, False, True, False),
        (500, {}, True, True, False),
        (404, {}, True, True, False),
        (504, {}, True, True, False),
        (429, {"retry-after": "999"}, True, True, False),
    ],
)
def test_answers_are_final_unless_they_say_otherwise(
    status: int, headers: dict[str, str], retryable: bool, repeatable: bool, again: bool
) -> None:
    body = json.dumps({"retryable": retryable}).encode()
    delay = Policy().after_answer(0, status, headers, body, repeatable=repeatable)
    assert (delay is not None) is again
    assert Policy().after_answer(0, status, headers, body, repeatable=repeatable, can_resend=False) is None
    assert Policy().after_answer(2, status, headers, body, repeatable=repeatable) is None


def test_retry_after_is_seconds_or_a_date_and_else_ignored() -> None:
    def delay(value: str) -> float | None:
        return Policy().after_answer(0, 503, {"retry-after": value}, b"", repeatable=True)

    assert delay("7") == 7.0
    soon = delay(format_datetime(datetime.now(UTC) + timedelta(seconds=10), usegmt=True))
    assert soon is not None
    assert 7 < soon <= 10
    assert delay("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert delay("soon") is not None
    assert delay("3600") is None


def test_without_a_problem_document_the_status_decides() -> None:
    assert is_retryable(503, b"oops")
    assert is_retryable(429, b"")
    assert not is_retryable(502, b"")
    assert not is_retryable(503, b'{"retryable": false}')


# --- requests ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"), [(30, "30s"), (30.0, "30s"), (1.5, "1500ms"), (0.0001, "1ms"), (1e6, "1000000s")]
)
def test_durations_are_text_with_units(seconds: float, text: str) -> None:
    assert requests.duration(seconds) == text


def test_commands_are_argument_lists() -> None:
    assert calls.argv_of("a 'b c' \"d\"") == ["a", "b c", "d"]
    assert calls.argv_of(("a", "b")) == ["a", "b"]
    for bad in ("", "'open", []):
        with pytest.raises(InvalidArgument):
            calls.argv_of(bad)


def test_execute_waits_longer_than_the_command_may_take() -> None:
    request = calls.execute(WHERE, "x", timeout_s=5, stdin="text")
    assert request.json == {"command": ["x"], "timeout": "5s", "stdin": "text"}
    assert request.timeout_s > 5
    assert not request.repeatable
    for bad in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InvalidArgument):
            calls.execute(WHERE, "x", timeout_s=bad)


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("a/b.txt", "a/b.txt"),
        ("/a//b", "a/b"),
        ("../../x", "x"),
        ("a/../../x", "x"),
        ("ä b?#%2e", "%C3%A4%20b%3F%23%252e"),
    ],
)
def test_download_paths_stay_below_files(path: str, url: str) -> None:
    assert calls.download_file(WHERE, path).url == f"http://h/v1/sessions/s-1/files/{url}"


@pytest.mark.parametrize("path", ["", "/", ".", "..", "a\0b"])
def test_paths_that_name_no_file_are_refused(path: str) -> None:
    with pytest.raises(InvalidArgument):
        calls.download_file(WHERE, path)


@pytest.mark.parametrize("ttl", [0, -1, 1.5, True, "9"])
def test_ttl_is_whole_seconds(ttl: Any) -> None:
    with pytest.raises(InvalidArgument, match="ttl"):
        requests.create_compat("http://h", "CodeInterpreter", name="n", namespace="d", ttl_s=ttl, metadata={})


def test_manifests_have_an_address() -> None:
    manifest: dict[str, Any] = {"kind": "AgentRuntime", "metadata": {"name": "n"}}
    assert requests.address_of(manifest) == ("AgentRuntime", "default", "n")
    assert requests.address_of(manifest, "team")[1] == "team"
    manifest["metadata"]["namespace"] = "own"
    assert requests.address_of(manifest, "team")[1] == "own"
    for bad in ({}, {"kind": []}, {"kind": "AgentRuntime", "metadata": []}):
        with pytest.raises(InvalidArgument):
            requests.address_of(bad)


# --- answers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'"x"', b"\xff"])
def test_an_answer_that_is_no_object_is_not_ours(body: bytes) -> None:
    with pytest.raises(UnexpectedAnswer, match="do it"):
        results.object_of(body, "do it")


def test_a_result_keeps_bytes_and_shows_text() -> None:
    body = {"stdout_base64": "/w==", "stderr": "t", "exit_code": 0, "duration": 1, "end_time": "bad"}
    result = results.command_result(json.dumps(body).encode(), "x", ["c"])
    assert (result.stdout_bytes, result.stdout, result.stderr) == (b"\xff", "\ufffd", "t")
    assert result.check() is result
    assert result.ended_at is None
    for bad in ({"exit_code": "0"}, {"stdout_base64": "*", "exit_code": 0}):
        with pytest.raises(UnexpectedAnswer):
            results.command_result(json.dumps(bad).encode(), "x", [])


def test_answers_of_newer_servers_are_read_too() -> None:
    value = {
        "id": "s",
        "phase": "Dreaming",
        "new": 1,
        "sandbox": {"isolation": "vm"},
        "ttl": 5,
        "metadata": None,
    }
    info = results.session_info(value, "x")
    assert (info.phase, info.isolation, info.ttl_s, info.metadata, info.raw["new"]) == (
        "Dreaming",
        "vm",
        5.0,
        {},
        1,
    )
    with pytest.raises(UnexpectedAnswer, match="no id"):
        results.session_info({"phase": "Ready"}, "x")
    with pytest.raises(UnexpectedAnswer, match="items"):
        results.page(b'{"items": [1]}', "x")
