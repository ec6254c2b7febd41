"""Whatever is wrong is named, with the remedy; nothing is lost and nothing half-made."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.e2e import harness


@pytest.fixture
def http(server: harness.Server) -> Iterator[httpx2.Client]:
    headers = {"authorization": f"Bearer {server.api_key}"}
    with httpx2.Client(base_url=server.url, headers=headers, timeout=30) as client:
        yield client


def _problem(answer: httpx2.Response, status: int, code: str) -> dict[str, object]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/problem+json")
    body: dict[str, object] = answer.json()
    assert body["code"] == code, body
    assert body["status"] == status
    assert body["error"] == body["detail"]
    assert {"type", "title", "instance", "retryable", "request_id"} <= body.keys()
    return body


SESSION = {"kind": "CodeInterpreter", "namespace": "default", "name": "my-interpreter"}
TEMPLATE = "/v1/namespaces/default/code-interpreters/bad"


def _template(**spec: object) -> dict[str, object]:
    return {
        "apiVersion": "runtime.agentcube.volcano.sh/v1alpha1",
        "kind": "CodeInterpreter",
        "metadata": {"name": "bad", "namespace": "default"},
        "spec": {"template": {"image": "host"}, **spec},
    }


def test_wrong_credentials_are_refused(server: harness.Server) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic eDp5"}):
        answer = httpx2.get(f"{server.url}/v1/sessions", headers=headers)
        _problem(answer, 401, "unauthenticated")


@pytest.mark.parametrize(
    ("body", "status", "code", "names"),
    [
        ({**SESSION, "name": "nothing-here"}, 404, "template_not_found", "nothing-here"),
        ({**SESSION, "colour": "blue"}, 400, "invalid", "colour"),
        ({**SESSION, "kind": "Teapot"}, 400, "invalid", "kind"),
        ({**SESSION, "idle_timeout": "soon"}, 400, "invalid", "idle_timeout"),
        ({**SESSION, "name": "Not_A_Label"}, 400, "invalid", "name"),
        ({**SESSION, "ttl": -1}, 400, "invalid", "ttl"),
        ([], 400, "invalid", ""),
    ],
)
def test_bad_sessions(http: httpx2.Client, body: object, status: int, code: str, names: str) -> None:
    problem = _problem(http.post("/v1/sessions", json=body), status, code)
    assert names in json.dumps(problem)


def test_malformed_json(http: httpx2.Client) -> None:
    headers = {"content-type": "application/json"}
    _problem(http.post("/v1/sessions", content=b'{"kind": ', headers=headers), 400, "invalid")
    _problem(http.post("/v1/code-interpreter", content=b"\xff\xfe", headers=headers), 400, "invalid")


def test_malformed_yaml(http: httpx2.Client) -> None:
    answer = http.put(TEMPLATE, content=b"a: [1, 2", headers={"content-type": "application/yaml"})
    _problem(answer, 400, "invalid")


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ({"warmPoolSize": -1}, "warmPoolSize"),
        ({"warmPool": {"min": 3, "max": 1, "target": 2}}, "warmPool"),
        ({"sessionTimeout": "15 parsecs"}, "sessionTimeout"),
        ({"wormPoolSize": 1}, "wormPoolSize"),
        ({"template": {"image": "dir:/etc"}}, "--allow-host-path"),
        ({"template": {"image": "python:3.12"}}, "python:3.12"),
        ({"isolation": "microvm"}, "microvm"),
    ],
)
def test_bad_templates(http: httpx2.Client, spec: dict[str, object], names: str) -> None:
    problem = _problem(http.put(TEMPLATE, json=_template(**spec)), 400, "invalid")
    assert names in json.dumps(problem)
    assert http.get(TEMPLATE).status_code == 404, "half-made"


def test_unknown_session_and_phase(http: httpx2.Client) -> None:
    for method in ("GET", "DELETE"):
        _problem(http.request(method, "/v1/sessions/nobody"), 404, "session_not_found")
    _problem(http.patch("/v1/sessions/nobody", json={"ttl": 60}), 404, "session_not_found")
    _problem(http.get("/v1/sessions", params={"phase": "Sleepy"}), 400, "invalid")
    _problem(http.post("/v1/sessions/nobody/execute", json={"command": ["true"]}), 404, "session_not_found")


def test_body_over_the_limit(http: httpx2.Client) -> None:
    big = {**SESSION, "metadata": {"x": "y" * (5 << 20)}}
    _problem(http.post("/v1/sessions", json=big), 413, "body_too_large")


def test_paths_that_escape_stay_in_the_workspace(http: httpx2.Client) -> None:
    session = http.post("/v1/sessions", json=SESSION).json()
    base = f"/v1/sessions/{session['id']}"
    try:
        answer = http.post(f"{base}/files", json={"path": "../../etc/passwd", "content": "aGk="})
        assert answer.status_code in (200, 400), answer.text
        run = {"command": ["ln", "-s", "/etc", "door"]}
        assert http.post(f"{base}/execute", json=run).json()["exit_code"] == 0
        _problem(http.get(f"{base}/files/door/passwd"), 404, "file_not_found")
        assert http.get(f"{base}/files/%2e%2e/%2e%2e/etc/shadow").status_code in (400, 404)
    finally:
        assert http.delete(base).status_code == 204


def _fails(*argv: str, names: str, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        [*harness.CLI, *argv], capture_output=True, text=True, timeout=60, env={**os.environ, **(env or {})}
    )
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert names in done.stderr, done.stderr


def test_port_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        _fails("up", "--port", str(port), "--data-dir", str(tmp_path / "d"), names=str(port))


def test_data_directory_not_usable(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    _fails("up", "--data-dir", str(file), names=str(file))
    _fails("up", "--data-dir", "/proc/agentcube", names="/proc/agentcube")


def test_data_directory_of_a_newer_version(tmp_path: Path) -> None:
    (tmp_path / "version").write_text("99\n")
    _fails("up", "--port", "0", "--data-dir", str(tmp_path), names="99")


def test_second_up_on_the_same_data_directory(server: harness.Server) -> None:
    _fails("up", "--port", "0", "--data-dir", str(server.data_dir), names=str(server.process.pid))
    assert server.cli("session", "list").returncode == 0


def test_damaged_store_is_named_and_left_alone(tmp_path: Path) -> None:
    with harness.serving(tmp_path / "data", "--pool", "0"):
        pass
    store = next((tmp_path / "data").glob("store.sqlite3"))
    damaged = b"not a database, " * 4096
    store.write_bytes(damaged)
    for left in (tmp_path / "data").glob("store.sqlite3-*"):
        left.unlink()
    _fails("up", "--port", "0", "--data-dir", str(tmp_path / "data"), names="store.sqlite3")
    assert store.read_bytes() == damaged


def test_store_of_a_newer_version(tmp_path: Path) -> None:
    with harness.serving(tmp_path / "data", "--pool", "0"):
        pass
    store = tmp_path / "data" / "store.sqlite3"
    connection = sqlite3.connect(store)
    connection.execute("PRAGMA user_version = 99")
    connection.commit()
    connection.close()
    _fails("up", "--port", "0", "--data-dir", str(tmp_path / "data"), names="store.sqlite3")


def test_auth_none_only_on_loopback(tmp_path: Path) -> None:
    _fails("up", "--auth", "none", "--host", "0.0.0.0", "--data-dir", str(tmp_path / "d"), names="loopback")


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--tls-cert", "chain.pem"], "--tls-key"),
        (
            ["--tls-cert", "/nonexistent/chain.pem", "--tls-key", "/nonexistent/key.pem"],
            "/nonexistent/chain.pem",
        ),
        (["--trust-proxy", "proxy.example"], "proxy.example"),
        (["--proxy-protocol"], "--trust-proxy"),
        (["--ports-domain", "*.apps.test"], "*.apps.test"),
        (["--ports-domain", "apps.test:8080"], "apps.test:8080"),
        (["--proxy-protocol", "--trust-proxy", "::1", "--tls-cert", "a", "--tls-key", "b"], "--tls-cert"),
    ],
)
def test_an_edge_that_cannot_be_is_refused(options: list[str], names: str, tmp_path: Path) -> None:
    _fails("up", "--port", "0", "--data-dir", str(tmp_path / "data"), *options, names=names)


def test_a_setting_that_cannot_be_is_refused_by_name(tmp_path: Path) -> None:
    name = "AGENTCUBE_ROUTER_REQUESTS_PER_S"
    _fails("up", "--port", "0", "--data-dir", str(tmp_path / "data"), names=name, env={name: "fast"})


def test_auth_none_serves_programs_and_no_web_pages(tmp_path: Path) -> None:
    with harness.serving(tmp_path / "data", "--pool", "0", "--auth", "none") as server:
        execute = (
            f"{server.url}/v1/namespaces/default/code-interpreters/my-interpreter/invocations/api/execute"
        )
        page = {"origin": "http://evil.example", "content-type": "text/plain"}  # no browser asks first
        _problem(httpx2.post(execute, content='{"command": ["true"]}', headers=page), 403, "forbidden")
        rebound = httpx2.get(f"{server.url}/v1/sessions", headers={"host": "evil.example"})
        _problem(rebound, 403, "forbidden")
        assert httpx2.get(f"{server.url}/v1/sessions").json()["items"] == []


def test_data_directory_that_others_can_write(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d").chmod(0o777)
    _fails("up", "--auth", "none", "--data-dir", str(tmp_path / "d"), names="chmod go-w")


def test_no_user_namespaces_and_no_root(tmp_path: Path) -> None:
    """Inside a user namespace that may have no more of them, as on machines that forbid them."""
    probe = ["unshare", "--user", "--map-root-user", "true"]
    if subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("this machine has no user namespaces to take away")
    script = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    argv = [*harness.CLI, "up", "--port", "0", "--data-dir", str(tmp_path / "data")]
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh", *argv],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert "user namespaces" in done.stderr
    assert "doctor" in done.stderr
    assert "Traceback" not in done.stderr


def test_sigint_stops_cleanly(tmp_path: Path) -> None:
    server = harness.start(tmp_path / "data", "--pool", "0")
    server.process.send_signal(signal.SIGINT)
    assert server.stop() == 0
    assert not server.config_home.joinpath("agentcube", "local.json").exists()
