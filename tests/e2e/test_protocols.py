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
from tests.e2e.agents import write

AGENT = r"""
import base64, hashlib, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Agent(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.headers.get("upgrade", "").lower() == "websocket":
            return self.websocket()
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.send_header("set-cookie", "a=1")
        self.send_header("set-cookie", "b=2")
        self.end_headers()
        for number in range(3):
            event = b"data: %d\n\n" % number
            self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
            self.wfile.flush()
            time.sleep(0.4)
        self.wfile.write(b"0\r\n\r\n")
    def do_HEAD(self):
        self.send_response(200)
        self.send_header("content-length", "5")
        self.end_headers()
    def do_POST(self):
        length = int(self.headers.get("content-length", 0))
        digest, left = hashlib.sha256(), length
        while left:
            piece = self.rfile.read(min(left, 65536))
            digest.update(piece)
            left -= len(piece)
        body = digest.hexdigest().encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.send_header("x-authorization", self.headers.get("authorization", ""))
        self.send_header("x-saw-path", self.path)
        self.end_headers()
        self.wfile.write(body)
    do_PURGE = do_POST
    def websocket(self):
        key = self.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        self.send_response(101)
        self.send_header("upgrade", "websocket")
        self.send_header("connection", "Upgrade")
        self.send_header("sec-websocket-accept", accept)
        self.end_headers()
        while True:
            head = self.rfile.read(2)
            length = head[1] & 127
            mask = self.rfile.read(4)
            data = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(length)))
            if head[0] & 15 == 8:
                self.wfile.write(bytes([0x88, len(data)]) + data)
                self.close_connection = True
                return
            self.wfile.write(bytes([head[0], len(data)]) + data)
    def log_message(self, *args): pass

ThreadingHTTPServer(("127.0.0.1", 8000), Agent).serve_forever()
"""
BASE = "/v1/namespaces/default/agent-runtimes/streams/invocations"


@pytest.fixture(scope="module")
def client(server: harness.Server, agents_dir: Path) -> Iterator[httpx2.Client]:
    assert server.cli("apply", "-f", str(write(agents_dir, "streams", AGENT))).returncode == 0
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
