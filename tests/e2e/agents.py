"""Small agents for AgentRuntime tests, written into a directory that sandboxes may read."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import yaml

STREAMS = r"""
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
"""Answers with events, digests and an echo over WebSocket."""


def manifest(name: str, folder: Path, command: list[str], port: int = 8000) -> dict[str, object]:
    """An AgentRuntime whose code is `folder`, mounted at /agent."""
    return {
        "apiVersion": "runtime.agentcube.volcano.sh/v1alpha1",
        "kind": "AgentRuntime",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "targetPort": [{"pathPrefix": "/", "port": port, "protocol": "HTTP"}],
            "podTemplate": {
                "spec": {
                    "containers": [
                        {
                            "name": "agent",
                            "image": "host",
                            "command": command,
                            "volumeMounts": [{"name": "code", "mountPath": "/agent", "readOnly": True}],
                        }
                    ],
                    "volumes": [{"name": "code", "hostPath": {"path": str(folder)}}],
                }
            },
        },
    }


def write(folder: Path, name: str, code: str) -> Path:
    """Write agent `name` below `folder` and its manifest beside it; returns the manifest's path."""
    home = folder / name
    home.mkdir(exist_ok=True)
    home.chmod(0o755)
    (home / "agent.py").write_text(code)
    (home / "agent.py").chmod(0o644)
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(manifest(name, home, ["python3", "/agent/agent.py"])))
    return file


def write_parrot(folder: Path) -> Path:
    """The demo's agent."""
    code = (resources.files("agentcube.up") / "demo_files" / "agent" / "agent.py").read_text()
    return write(folder, "parrot", code)
