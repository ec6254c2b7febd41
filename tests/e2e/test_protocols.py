"""Streams and upgraded connections between a client and an agent in a sandbox."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from websockets.sync.client import connect

from tests.e2e import harness
from tests.e2e.agents import STREAMS, write

BASE = "/v1/namespaces/default/agent-runtimes/streams/invocations"


@pytest.fixture(scope="module")
def client(server: harness.Server, agents_dir: Path) -> Iterator[httpx2.Client]:
    assert server.cli("apply", "-f", str(write(agents_dir, "streams", STREAMS))).returncode == 0
    headers = {"authorization": f"Bearer {server.api_key}"}
    with httpx2.Client(base_url=server.url, headers=headers, timeout=30) as http:
        first = http.head(f"{BASE}/")
        http.headers["x-agentcube-session-id"] = first.headers["x-agentcube-session-id"]
        yield http
        assert http.delete(f"/v1/sessions/{http.headers['x-agentcube-session-id']}").status_code == 204


def test_events_arrive_one_by_one(client: httpx2.Client) -> None:
    with client.stream("GET", f"{BASE}/events") as answer:
        assert answer.headers.get_list("set-cookie") == ["a=1", "b=2"]
        arrivals = [(line, time.monotonic()) for line in answer.iter_lines() if line]
    assert [line for line, _ in arrivals] == ["data: 0", "data: 1", "data: 2"]
    assert arrivals[2][1] - arrivals[0][1] > 0.5, "events were held back"


def test_websocket_echo(client: httpx2.Client, server: harness.Server) -> None:
    headers = {name: client.headers[name] for name in ("authorization", "x-agentcube-session-id")}
    url = server.url.replace("http://", "ws://") + f"{BASE}/socket"
    with connect(url, additional_headers=headers) as socket:
        for text in ("hello", "again"):
            socket.send(text)
            assert socket.recv(timeout=10) == text


def test_large_bodies_any_method_and_raw_paths(client: httpx2.Client) -> None:
    body = bytes(1 << 20) * 20
    answer = client.request("PURGE", f"{BASE}/a%2Fb?q=%20x", content=body)
    assert answer.text == hashlib.sha256(body).hexdigest()
    assert answer.headers["x-saw-path"] == "/a%2Fb?q=%20x"


def test_the_clients_key_never_reaches_the_sandbox(client: httpx2.Client, server: harness.Server) -> None:
    answer = client.post(f"{BASE}/", content=b"x")
    seen = answer.headers["x-authorization"]
    assert seen.startswith("Bearer ")
    assert server.api_key not in seen
