"""Inside a session: how late output is, how fast files are, what PicoD holds. Cells: see `kernels`.

`python -m benchmarks.inside [ROUNDS]` starts a real server and prints tables. Files are compared with a plain
`http.server` in the same run, moving the same bytes with the same client; processes with their like on the host.
Latencies are taken at the bare socket: from the clock that the program reads just before its write to the clock read
here when the bytes have come.
"""

from __future__ import annotations

import json
import os
import platform
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx2
from tests.e2e import harness
from tests.soak.vitals import picod_of, vitals

from benchmarks.kernels import cell, own
from benchmarks.sessions import create, delete, percentile, report, timed

PIECE = 1 << 20
TRANSFER = 256 << 20
KERNELS = 10
TICKS = 1000
TICK_S = 0.004

# Says the time, again and again; nothing of it waits in a buffer.
TICKER = f"""
import os, time
for n in range({TICKS}):
    time.sleep({TICK_S})
    os.write(1, b"%d\\n" % time.monotonic_ns())
"""

PLAIN_SERVER = """
import http.server, os, shutil, sys

class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self):
        left = int(self.headers["content-length"])
        with open(self.translate_path(self.path), "wb") as file:
            while left:
                data = self.rfile.read(min(left, 1 << 16))
                file.write(data)
                left -= len(data)
        self.send_response(201)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


def row(name: str, *figures: object) -> None:
    print(f"| {name} | {' | '.join(map(str, figures))} |", flush=True)


# --- streams ----------------------------------------------------------------------------------------------


@contextmanager
def raw_stream(running: harness.Server, path: str, body: object) -> Iterator[socket.socket]:
    """A POST whose answer is read from the bare socket, so that no client library's time is in it."""
    data = json.dumps(body).encode()
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {running.api_key}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        sock.sendall(head.encode() + data)
        yield sock


def events(sock: socket.socket) -> Iterator[tuple[int, dict[str, object]]]:
    """Events with the time at which their last byte was here. Chunk framing is skipped: events are lines of JSON."""
    waiting = b""
    while True:
        data = sock.recv(1 << 16)
        now = time.monotonic_ns()
        assert data, "the stream broke off"
        *lines, waiting = (waiting + data).split(b"\n")
        for line in lines:
            if line.startswith(b"{"):
                event = json.loads(line)
                yield now, event
                if event["event"] == "exit":
                    return


def stream_latency(running: harness.Server, id: str) -> list[float]:
    late = []
    command = {"command": ["python3", "-c", TICKER]}
    with raw_stream(running, f"/v1/sessions/{id}/processes", command) as sock:
        for now, event in events(sock):
            if event["event"] == "stdout":
                late += [(now - int(said)) / 1e9 for said in str(event["data"]).split()]
    assert len(late) == TICKS, len(late)
    return late


def pipe_latency() -> list[float]:
    """The same program, read through a pipe on this machine."""
    late = []
    with subprocess.Popen([sys.executable, "-c", TICKER], stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        while data := os.read(program.stdout.fileno(), 1 << 16):
            now = time.monotonic_ns()
            late += [(now - int(said)) / 1e9 for said in data.split()]
    return late


def first_output(running: harness.Server, id: str) -> float:
    began = time.monotonic_ns()
    path = f"/v1/sessions/{id}/processes"
    with raw_stream(running, path, {"command": ["echo", "hello"]}) as sock:
        return next((now - began) / 1e9 for now, event in events(sock) if event["event"] == "stdout")


def first_output_here() -> float:
    began = time.monotonic_ns()
    with subprocess.Popen(["echo", "hello"], stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        os.read(program.stdout.fileno(), 100)
        return (time.monotonic_ns() - began) / 1e9


def streams(running: harness.Server, id: str, rounds: int) -> None:
    print("\n| what | n | p50 / p95 / p99 ms | ratio of p50 to reference |\n|---|---|---|---|")
    here = pipe_latency()
    report("a write to a pipe, read on the host (reference)", here)
    report("a program's write to the client's socket", stream_latency(running, id), percentile(here, 0.5))
    here = [first_output_here() for _ in range(rounds)]
    report("start of `echo` to its output on the host (reference)", here)
    there = [first_output(running, id) for _ in range(rounds)]
    report("start of `echo` to its output", there, percentile(here, 0.5))


# --- files ------------------------------------------------------------------------------------------------


def pieces(block: bytes) -> Iterator[bytes]:
    for _ in range(TRANSFER // PIECE):
        yield block


def put(client: httpx2.Client, url: str, block: bytes) -> None:
    answer = client.put(url, content=pieces(block), headers={"content-length": str(TRANSFER)})
    assert answer.status_code in (200, 201), answer.text


def get(client: httpx2.Client, url: str) -> None:
    with client.stream("GET", url) as answer:
        assert answer.status_code == 200
        assert sum(len(data) for data in answer.iter_raw(PIECE)) == TRANSFER


@contextmanager
def plain_server() -> Iterator[httpx2.Client]:
    with tempfile.TemporaryDirectory(prefix="agentcube-bench-") as folder:
        program = subprocess.Popen(
            [sys.executable, "-c", PLAIN_SERVER], cwd=folder, stdout=subprocess.PIPE, text=True
        )
        assert program.stdout is not None
        try:
            port = int(program.stdout.readline())
            with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
                yield client
        finally:
            program.kill()
            program.wait()
            program.stdout.close()


def files(client: httpx2.Client, id: str, rounds: int) -> None:
    block = random.Random(1).randbytes(PIECE)
    inside = f"/v1/sessions/{id}/files/big.bin"
    with plain_server() as plain:
        acts = {
            ("upload", "AgentCube"): partial(put, client, inside, block),
            ("upload", "http.server"): partial(put, plain, "/big.bin", block),
            ("download", "AgentCube"): partial(get, client, inside),
            ("download", "http.server"): partial(get, plain, "/big.bin"),
        }
        speeds: dict[tuple[str, str], list[float]] = {name: [] for name in acts}
        for _ in range(max(3, rounds // 12)):
            for name, act in acts.items():
                speeds[name].append(TRANSFER / 1e6 / timed(act))
    print(
        f"\n| {TRANSFER >> 20} MiB, median of {len(speeds['upload', 'AgentCube'])} | MB/s | http.server, MB/s | ratio |"
    )
    print("|---|---|---|---|")
    for way in ("upload", "download"):
        ours, theirs = (percentile(speeds[way, who], 0.5) for who in ("AgentCube", "http.server"))
        row(way, f"{ours:.0f}", f"{theirs:.0f}", f"{ours / theirs:.2f}")


# --- memory -----------------------------------------------------------------------------------------------


def memory(running: harness.Server, client: httpx2.Client) -> None:
    session = create(client)
    id, sandbox = str(session["id"]), session["sandbox"]
    assert isinstance(sandbox, dict)
    picod = picod_of(running, str(sandbox["id"]))
    print(
        "\n| PicoD | PSS / own / page tables, KiB | descriptors | processes in the sandbox |\n|---|---|---|---|"
    )
    for name, count in (("idle", 0), (f"with {KERNELS} kernels that have imported pandas", KERNELS)):
        for number in range(count):
            cell(client, id, "import pandas", f"k{number}")
        held = vitals(picod)
        row(name, " / ".join(map(str, own(picod))), held.descriptors, held.processes)
    delete(client, id)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    print(
        f"machine: {os.cpu_count()} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}"
    )
    with (
        tempfile.TemporaryDirectory(prefix="agentcube-bench-") as folder,
        harness.serving(Path(folder) / "data") as running,
        httpx2.Client(
            base_url=running.url,
            headers={"authorization": f"Bearer {running.api_key}"},
            timeout=60,
            trust_env=False,
        ) as client,
    ):
        id = str(create(client)["id"])
        streams(running, id, rounds)
        files(client, id, rounds)
        delete(client, id)
        memory(running, client)


if __name__ == "__main__":
    main()
