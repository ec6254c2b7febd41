"""Health, binding, tokens, problems and HTTP itself, on a real socket."""

from __future__ import annotations

import http.client
import io
import json
import socket
import time
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from .conftest import ROOT, Keys, PicoD, StartPicod, eventually, open_files

PROBLEM_MEMBERS = {
    "type",
    "title",
    "status",
    "detail",
    "instance",
    "code",
    "retryable",
    "request_id",
    "error",
}


def test_health_needs_no_token_and_tells_no_session(start_picod: StartPicod) -> None:
    picod = start_picod(bound=False)

    before = picod.call("GET", "/health").json()
    picod.bind()
    after = picod.call("GET", "/health", token="").json()

    assert (before["status"], before["service"], before["version"]) == ("ok", "PicoD", "test")
    assert before["sandbox_id"] == "sb-1"
    assert before["uptime"].endswith("s")
    assert (before["bound"], after["bound"]) == (False, True)
    assert "s-1" not in json.dumps(after)
    assert "command" not in after


# Binding


def test_nothing_is_served_before_the_binding(start_picod: StartPicod) -> None:
    picod = start_picod(bound=False)

    for token in ("", picod.keys.router("s-1")):
        for method, path in (("POST", "/api/execute"), ("GET", "/api/files"), ("GET", "/api/logs")):
            answer = picod.call(method, path, token=token)
            assert answer.status == (403 if token else 401)


def test_the_first_binding_is_final(start_picod: StartPicod) -> None:
    picod = start_picod(bound=False)

    assert picod.bind("s-1", env={"A": "1"}).json() == {"session_id": "s-1"}
    assert picod.bind("s-1", env={"A": "2"}).status == 200
    other = picod.call("POST", "/bind", {"token": picod.keys.binding("s-2")})
    assert other.status == 409
    assert other.json()["code"] == "conflict"
    assert picod.shell("echo $A")["stdout"] == "1\n"
    for token in (picod.keys.router("s-2"), picod.keys.router("s-1", aud="s-2"), picod.keys.binding("s-1")):
        assert picod.call("GET", "/api/files", token=token).status in (401, 403)


def foreign(keys: Keys, **claims: Any) -> str:
    return Keys(rsa.generate_private_key(public_exponent=65537, key_size=2048)).binding(**claims)


@pytest.mark.parametrize(
    ("make", "status"),
    [
        (lambda keys: keys.router(), 401),
        (lambda keys: keys.binding(aud="sb-2"), 401),
        (lambda keys: keys.binding(sandbox_id="sb-2"), 401),
        (lambda keys: keys.binding(session_id=""), 401),
        (lambda keys: keys.binding(session_id=5), 401),
        (lambda keys: keys.binding(exp=int(time.time()) - 60), 401),
        (foreign, 401),
        (lambda keys: "nonsense", 401),
        (lambda keys: 5, 400),
        (lambda keys: None, 400),
    ],
)
def test_a_bad_binding_binds_nothing(start_picod: StartPicod, make: Any, status: int) -> None:
    picod = start_picod(bound=False)

    answer = picod.call("POST", "/bind", {"token": make(picod.keys)})

    assert answer.status == status
    assert picod.call("GET", "/health").json()["bound"] is False


def test_a_session_can_be_given_at_the_start(start_picod: StartPicod) -> None:
    picod = start_picod(bound=False, session_id="s-9")

    assert picod.call("GET", "/api/files", token=picod.keys.router("s-9")).status == 200
    assert picod.call("GET", "/api/files", token=picod.keys.router("s-1")).status == 403


@pytest.mark.parametrize(
    ("claims", "status", "code"),
    [
        ({}, 200, None),
        ({"aud": "s-2"}, 403, "forbidden"),
        ({"session_id": "s-2"}, 403, "forbidden"),
        ({"sandbox_id": "sb-2"}, 403, "forbidden"),
        ({"iss": "agentcube-manager"}, 401, "unauthenticated"),
        ({"exp": 1}, 401, "unauthenticated"),
    ],
)
def test_calls_need_the_routers_token_for_this_session(
    picod: PicoD, claims: dict[str, Any], status: int, code: str | None
) -> None:
    token = picod.keys.router(**claims)
    for _ in range(2):  # the second time from memory
        answer = picod.call("GET", "/api/files", token=token)
        assert answer.status == status
        if code:
            assert answer.json()["code"] == code
            assert token not in answer.body.decode()


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer ", "Basic abc", "token", "Bearer a b"])
def test_other_credentials_are_401(picod: PicoD, value: str) -> None:
    answer = picod.call("GET", "/api/files", headers={"Authorization": value}, token="")
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"


# Problems


def test_problems_have_all_members_and_echo_the_request_id(picod: PicoD) -> None:
    answer = picod.call("GET", "/api/nothing?x=1", headers={"X-Request-Id": "req-7"})

    problem = answer.json()
    assert answer.status == problem["status"] == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"] == problem["request_id"] == "req-7"
    assert set(problem) == PROBLEM_MEMBERS
    assert problem["instance"] == "/api/nothing"
    assert problem["code"] == "not_found"
    assert problem["type"] == "https://agentcube.dev/problems/not-found"


def test_a_request_id_is_made_where_there_is_none_or_a_bad_one(picod: PicoD) -> None:
    first = picod.call("GET", "/health").headers["x-request-id"]
    second = picod.call("GET", "/health", headers={"X-Request-Id": "a b"}).headers["x-request-id"]
    assert first != second != "a b"
    assert len(first) == 24


def test_a_wrong_method_is_405_with_allow(picod: PicoD) -> None:
    answer = picod.call("DELETE", "/api/files")
    assert answer.status == 405
    assert answer.headers["allow"] == "POST, GET"


# HTTP


def exchange(picod: PicoD, data: bytes) -> bytes:
    """Send, and read until PicoD closes."""
    connection = picod.raw()
    connection.sendall(data)
    return b"".join(iter(lambda: connection.recv(65536), b""))


def answers(data: bytes, count: int) -> list[http.client.HTTPResponse]:
    class Source:
        def makefile(self, _: str) -> io.BytesIO:
            return stream

    stream = io.BytesIO(data)
    stream.close = lambda: None  # type: ignore[method-assign]
    found = []
    for _ in range(count):
        answer = http.client.HTTPResponse(Source())  # type: ignore[arg-type]
        answer.begin()
        answer.body = answer.read()  # type: ignore[attr-defined]
        found.append(answer)
    assert stream.read() == b""
    return found


def test_pipelined_requests_are_answered_in_order(picod: PicoD) -> None:
    one = b"GET /health HTTP/1.1\r\nHost: x\r\nX-Request-Id: %d\r\n\r\n"
    last = b"GET /health HTTP/1.1\r\nHost: x\r\nX-Request-Id: 3\r\nConnection: close\r\n\r\n"

    found = answers(exchange(picod, one % 1 + one % 2 + last), 3)

    assert [answer.headers["x-request-id"] for answer in found] == ["1", "2", "3"]


def test_head_has_no_body_and_the_connection_goes_on(picod: PicoD) -> None:
    data = exchange(
        picod,
        b"HEAD /health HTTP/1.1\r\nHost: x\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )
    head, _, rest = data.partition(b"\r\n\r\n")
    assert b"content-length: " in head
    assert rest.startswith(b"HTTP/1.1 200")


def test_http_1_0_closes_unless_asked(picod: PicoD) -> None:
    data = exchange(picod, b"GET /health HTTP/1.0\r\n\r\n")
    assert b"connection: close" in data
    data = exchange(
        picod, b"GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /health HTTP/1.0\r\n\r\n"
    )
    assert data.count(b"HTTP/1.1 200") == 2
    assert b"connection: keep-alive" in data


def test_a_chunked_body_and_100_continue(picod: PicoD) -> None:
    connection = picod.raw()
    body = json.dumps({"command": ["echo", "hi"]}).encode()
    head = f"POST /api/execute HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {picod.token}\r\n"
    connection.sendall(head.encode() + b"Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n")
    assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    for byte in body:
        connection.sendall(b"1\r\n%c\r\n" % byte)
    connection.sendall(b"0\r\n\r\n")
    assert b'"stdout": "hi\\n"' in connection.recv(65536)


def test_no_continue_for_what_is_refused(picod: PicoD) -> None:
    data = exchange(
        picod,
        b"POST /api/files HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n",
    )
    assert data.startswith(b"HTTP/1.1 401")
    assert b"connection: close" in data


def test_a_refusal_in_the_middle_of_an_upload_reaches_the_client(picod: PicoD) -> None:
    connection = picod.raw()
    connection.sendall(b"POST /api/files HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n")
    connection.sendall(b"x" * 3_000_000)
    data = b"".join(iter(lambda: connection.recv(65536), b""))
    assert data.startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /health\r\n\r\n", 400),
        (b"GET http://x/health HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", 400),
        (b"POST /bind HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST /bind HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400),
        (b"POST /bind HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST /bind HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 100_000, 431),
        (b"POST /bind HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n", 413),
    ],
)
def test_broken_requests_get_an_answer_and_a_close(picod: PicoD, request_bytes: bytes, status: int) -> None:
    data = exchange(picod, request_bytes)

    assert data.startswith(b"HTTP/1.1 %d " % status)
    assert b"connection: close" in data
    problem = json.loads(data.partition(b"\r\n\r\n")[2])
    assert set(problem) >= PROBLEM_MEMBERS
    assert picod.call("GET", "/health").status == 200


def test_a_body_that_ends_early_is_no_request(picod: PicoD) -> None:
    connection = picod.raw()
    connection.sendall(b"POST /bind HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    connection.shutdown(socket.SHUT_WR)
    assert connection.recv(100) == b""


def connections(picod: PicoD) -> int:
    return sum(target.startswith("socket:") for target in open_files(picod.pid))


@pytest.mark.skipif(not ROOT, reason="only root sees PicoD's descriptors")
def test_connections_are_let_go(picod: PicoD) -> None:
    for _ in range(50):
        picod.raw().sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    eventually(lambda: connections(picod) >= 50)
    picod.connections.close()
    eventually(lambda: connections(picod) < 10)


@pytest.mark.skipif(not ROOT, reason="only root sees PicoD's descriptors")
def test_more_connections_than_allowed_are_told_so(picod: PicoD) -> None:
    held = [picod.raw() for _ in range(512)]
    eventually(lambda: connections(picod) > 512)

    refused = picod.raw()
    data = b"".join(iter(lambda: refused.recv(65536), b""))

    assert data.startswith(b"HTTP/1.1 503 ")
    for connection in held:
        connection.close()
    eventually(lambda: connections(picod) < 100)
    assert picod.call("GET", "/health").status == 200


def test_junk_never_gets_a_traceback(picod: PicoD) -> None:
    for method, path in (
        ("GET", "/api/files?path=%00"),
        ("GET", "/api/files/%00"),
        ("GET", "/api/files/%ff%fe"),
    ):
        answer = picod.call(method, path)
        assert answer.status in (400, 404)
        assert "Traceback" not in answer.body.decode()
    assert picod.call("GET", "/ready?timeout=x").status == 400
    assert picod.call("GET", "/ready?" + "&".join(f"a{n}=1" for n in range(100))).status == 400
