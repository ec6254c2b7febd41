"""Files of a session, as any HTTP client sees them: through the server, in a real sandbox."""

from __future__ import annotations

import io
import json
import os
import socket
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.e2e import harness

INTERPRETER = {"kind": "CodeInterpreter", "namespace": "default", "name": "my-interpreter"}
ATTACKER = Path(__file__).parents[1] / "integration" / "picod" / "attacker.py"
MIB = 1 << 20


class Session:
    """A session and its files."""

    def __init__(self, http: httpx2.Client, server: harness.Server, id: str) -> None:
        self.http = http
        self.server = server
        self.path = f"/v1/sessions/{id}"

    def call(self, method: str, target: str, content: Any = None, **more: Any) -> httpx2.Response:
        return self.http.request(method, f"{self.path}/{target}", content=content, **more)

    def shell(self, script: str) -> str:
        body = {"command": ["bash", "-c", script]}
        answer = self.http.post(f"{self.path}/execute", json=body).json()
        assert answer["exit_code"] == 0, answer
        return str(answer["stdout"])

    def connected(self, method: str, target: str, more: str) -> socket.socket:
        """A socket to the Router with the head of a request sent."""
        url = urlsplit(self.server.url)
        connection = socket.create_connection((url.hostname, url.port), timeout=60)
        head = f"{method} {self.path}/{target} HTTP/1.1\r\nHost: {url.netloc}\r\n{more}"
        connection.sendall(f"{head}Authorization: Bearer {self.server.api_key}\r\n\r\n".encode())
        return connection


@pytest.fixture(scope="module")
def session(server: harness.Server) -> Iterator[Session]:
    headers = {"authorization": f"Bearer {server.api_key}"}
    with httpx2.Client(base_url=server.url, headers=headers, timeout=120) as http:
        id = http.post("/v1/sessions", json=INTERPRETER).json()["id"]
        yield Session(http, server, id)
        assert http.delete(f"/v1/sessions/{id}").status_code == 204


def test_a_file_there_and_back_with_all_that_http_knows(session: Session) -> None:
    content = os.urandom(300_000)
    made = session.call("PUT", "files/d/f.bin?mode=0600", content)
    assert (made.status_code, made.json()["permissions"], made.json()["path"]) == (201, "0600", "d/f.bin")
    assert session.call("PUT", "files/d/f.bin", content).status_code == 200
    whole = session.call("GET", "files/d/f.bin")
    assert whole.content == content
    part = session.call("GET", "files/d/f.bin", headers={"range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, content[10:20])
    known = session.call("GET", "files/d/f.bin", headers={"if-none-match": whole.headers["etag"]})
    assert (known.status_code, known.content) == (304, b"")
    head = session.call("HEAD", "files/d/f.bin")
    assert (head.headers["content-length"], head.content) == ("300000", b"")
    beyond = session.call("GET", "files/d/f.bin", headers={"range": "bytes=300000-"})
    assert (beyond.status_code, beyond.json()["code"]) == (416, "range_not_satisfiable")
    assert session.shell("stat -c '%U:%a' d/f.bin; id -un").split()[0].endswith(":644")
    assert (
        session.call("PATCH", "files/d/f.bin", json={"permissions": "0700"}).json()["permissions"] == "0700"
    )
    assert session.call("DELETE", "files/d?recursive=true").status_code == 204


def test_every_call_on_directories_works_inside(session: Session) -> None:
    """The walls allow what it takes: renameat2, copy_file_range, links, times."""

    def post(call: str, **body: str) -> httpx2.Response:
        return session.call("POST", f"fs/{call}", json={k: f"all/{v}" for k, v in body.items()})

    assert post("mkdir", path="a/b").status_code == 201
    session.shell(
        "cd all/a; echo 1 > b/f; ln b/f b/g; ln -s f b/l; truncate -s 3G b/sparse; touch -d 2001-01-01 b"
    )
    assert post("copy", source="a", destination="c").status_code == 200
    moved = post("move", source="a", destination="c")
    assert (moved.status_code, moved.json()["code"]) == (409, "file_exists")
    assert post("move", source="a", destination="e/a").status_code == 200
    listing = "find . -printf '%P %m %s %T@ %l\\n' | sort | tail -n +2"
    assert session.shell(f"cd all/c; {listing}") == session.shell(f"cd all/e/a; {listing}") != ""
    found = session.call("GET", "files?path=all&glob=**/[fl]").json()["files"]
    assert [entry["path"][4:] for entry in found] == ["c/b/f", "c/b/l", "e/a/b/f", "e/a/b/l"]
    assert session.call("GET", "fs/stat?path=all/c/b/l&follow=false").json()["target"] == "f"
    assert session.call("DELETE", "files/all?recursive=true").status_code == 204


def test_archives_both_ways(session: Session) -> None:
    session.shell("mkdir -p t/x; echo hello > t/x/f; ln -s /etc/passwd t/link")
    for query in ("", "&gzip=true"):
        answer = session.call("GET", f"fs/tar?path=t{query}")
        assert answer.status_code == 200
        with tarfile.open(fileobj=io.BytesIO(answer.content)) as tar:
            file = tar.extractfile("x/f")
            assert file is not None
            assert file.read() == b"hello\n"
        back = session.call("PUT", "fs/tar?path=back", answer.content)
        assert back.status_code == 200
        assert session.shell("cat back/x/f; readlink back/link") == "hello\n/etc/passwd\n"
    with session.http.stream("GET", f"{session.path}/fs/tar") as answer:
        assert answer.status_code == 200  # all of the workspace can be read
    info = tarfile.TarInfo("../evil")
    refused = session.call("PUT", "fs/tar?path=back", info.tobuf() + bytes(1024))
    assert (refused.status_code, refused.json()["code"], refused.json()["entries"]) == (400, "invalid", 0)
    assert "../evil" in refused.json()["detail"]
    session.call("DELETE", "files/back?recursive=true")


def test_a_watch_tells_as_it_happens(session: Session) -> None:
    session.shell("mkdir -p watched/old")
    with session.http.stream("GET", f"{session.path}/fs/watch?path=watched&recursive=true") as answer:
        lines = (json.loads(line) for line in answer.iter_lines())
        events = (event for event in lines if event["event"] != "ping")
        assert next(events)["event"] == "ready"
        session.shell(
            "cd watched; mkdir new; echo 1 > new/f; mv new/f old/g; rm old/g; rmdir old; mkdir mark"
        )
        seen = []
        for event in events:
            if event["event"] != "modify":
                seen.append((event["event"], event["path"].removeprefix("watched/"), event.get("from")))
            if event["path"] == "watched/mark":
                break
    assert seen[0] == ("create", "new", None)
    assert seen[-3:] == [("delete", "old/g", None), ("delete", "old", None), ("create", "mark", None)]
    assert {("rename", "old/g", "watched/new/f"), ("create", "old/g", None)} & set(seen)


def test_an_upload_that_breaks_off_leaves_nothing(session: Session) -> None:
    session.shell("mkdir broken; cd broken; echo old > kept")
    for target in ("files/broken/kept", "files/broken/kept?append=true"):
        connection = session.connected("PUT", target, "Content-Length: 100000000\r\n")
        connection.sendall(b"x" * 500_000)
        harness.eventually(lambda: int(session.shell("du -sb broken").split()[0]) > 500_000, within=60)
        connection.close()
        harness.eventually(lambda: session.shell("ls -A broken; cat broken/kept") == "kept\nold\n", within=60)


def test_a_full_workspace_is_told_and_room_comes_back(session: Session) -> None:
    session.shell("fallocate -l $(($(df --output=avail -B1 . | tail -1) - (20 << 20))) filler")
    answer = session.call("PUT", "files/too-big", (bytes(MIB) for _ in range(64)))
    assert (answer.status_code, answer.json()["code"]) == (507, "workspace_full")
    session.shell("rm filler")
    harness.eventually(lambda: "agentcube-part" not in session.shell("ls -A"), within=60)
    assert session.call("PUT", "files/small", b"x" * MIB).status_code == 201
    assert session.call("DELETE", "files/small").status_code == 204


def test_what_is_nobodys_is_refused(session: Session) -> None:
    for method, target in (("GET", "files/x"), ("PUT", "files/x"), ("GET", "fs/stat"), ("GET", "fs/watch")):
        url = f"{session.server.url}{session.path}/{target}"
        assert httpx2.request(method, url).status_code == 401
    assert session.call("GET", "files/..%2f..%2fetc%2fpasswd").status_code == 400
    assert session.call("GET", "fs/tar?path=../..").status_code == 400
    session.shell("ln -s /etc out; ln -s /proc/1 init; ln -s ../../../../etc up")
    for target in ("files/out/passwd", "files/init/environ", "fs/stat?path=up/passwd", "fs/tar?path=init"):
        assert session.call("GET", target).status_code == 404
    session.shell("rm out init up")
    assert session.call("POST", "files", b"{}").status_code == 400


def test_swapped_links_do_not_lead_out_of_the_workspace(session: Session) -> None:
    """/tmp is the user's own to write: only care keeps calls on the workspace from it."""
    snapshot = "cd /tmp/out && find . -printf '%P %m %s %T@ %i\\n' | sort && cat secret f c/g"
    session.shell(
        "mkdir -p /tmp/out/c/deep race; cd /tmp/out; for f in secret f c/g; do echo mine > $f; done"
    )
    before = session.shell(snapshot)
    session.shell("cd race; mkdir -p swap tree/a/b far/away wander/x/y spare; echo x > name")
    command = ["python3", "-c", ATTACKER.read_text(), "/tmp/out", "../../../../tmp/out"]
    body = {"command": command, "working_dir": "race", "background": True}
    id = session.call("POST", "processes", json=body).json()["id"]
    calls: list[tuple[str, str, Any]] = [
        ("PUT", "files/race/swap/f", b"evil"),
        ("PUT", "files/race/name?append=true", b"evil"),
        ("DELETE", "files/race/swap?recursive=true", None),
        ("DELETE", "files/race/tree?recursive=true", None),
        ("GET", "files/race/name", None),
        ("GET", "files/race/tree/a/b/c/g", None),
        ("PATCH", "files/race/swap", b'{"permissions": "0777"}'),
        ("PATCH", "files/race/tree", b'{"permissions": "0777", "recursive": true}'),
        ("POST", "fs/copy", b'{"source": "race/tree", "destination": "race/spare/t", "overwrite": true}'),
        ("POST", "fs/move", b'{"source": "race/name", "destination": "race/swap/f", "overwrite": true}'),
        ("GET", "fs/tar?path=race/tree", None),
    ]
    statuses = set()
    end = time.monotonic() + 4
    while time.monotonic() < end:
        for method, target, content in calls:
            try:
                answer = session.call(method, target, content)
            except (httpx2.RemoteProtocolError, httpx2.ReadError):
                continue  # an archive of what became another meanwhile: broken off, which may be seen as a reset
            statuses.add(answer.status_code)
            assert b"mine" not in answer.content
    assert session.call("DELETE", f"processes/{id}").status_code == 204
    assert session.shell(snapshot) == before
    assert statuses <= {200, 201, 204, 400, 404, 409}
    assert {200, 204} <= statuses
    session.shell("rm -rf race")


def test_large_files_cost_the_server_no_memory(session: Session) -> None:
    def peak() -> int:
        lines = Path(f"/proc/{session.server.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))

    session.call("PUT", "files/warm", bytes(8 * MIB))
    assert len(session.call("GET", "files/warm").content) == 8 * MIB
    before = peak()
    assert session.call("PUT", "files/large", (bytes(MIB) for _ in range(80))).status_code == 201
    session.shell("rm large warm; truncate -s 120M sparse")
    size = 0
    with session.http.stream("GET", f"{session.path}/files/sparse") as answer:
        for piece in answer.iter_raw():
            size += len(piece)
    assert size == 120 * MIB
    session.shell("rm sparse")
    assert peak() - before < 32 * MIB


def test_a_watch_whose_client_leaves_ends(session: Session) -> None:
    """More of them than may be open at once, one after the other."""
    for _ in range(20):
        connection = session.connected("GET", "fs/watch?path=", "")
        answer = connection.recv(65536)
        while b"ready" not in answer and b"429" not in answer:
            answer += connection.recv(65536)
        connection.close()

    def free() -> bool:
        with session.http.stream("GET", f"{session.path}/fs/watch?path=") as answer:
            return bool(answer.status_code == 200)

    harness.eventually(free, within=60)
    assert threading.active_count() < 50
