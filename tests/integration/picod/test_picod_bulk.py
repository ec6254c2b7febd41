"""Much of everything: large files, deep trees, many files. Memory stays flat and other calls are answered."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .conftest import ROOT, Folder, PicoD, _UnixConnection, eventually, open_files

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _nothing_stays_open(shared_picod: PicoD) -> Iterator[None]:
    yield
    if ROOT:
        below = f"{shared_picod.workspace}/"
        eventually(lambda: not [name for name in open_files(shared_picod.pid) if name.startswith(below)])


@contextlib.contextmanager
def request(folder: Folder, method: str, target: str, body: Any = None) -> Iterator[http.client.HTTPResponse]:
    """A request whose answer the caller reads."""
    with contextlib.closing(_UnixConnection(folder.picod.path)) as connection:
        connection.request(method, target, body, {"Authorization": f"Bearer {folder.picod.token}"})
        with connection.getresponse() as answer:
            yield answer


def test_a_large_file_goes_up_and_down_in_flat_memory(folder: Folder, peak: Callable[[], int]) -> None:
    folder.put("warm", b"x" * MIB)
    folder.get("files/{}/warm")
    before, block, digest = peak(), os.urandom(MIB), hashlib.sha256()

    def pieces() -> Iterator[bytes]:
        for i in range(256):
            piece = i.to_bytes(4, "big") + block
            digest.update(piece)
            yield piece

    with request(folder, "PUT", f"/api/files/{folder / 'big'}", pieces()) as answer:
        assert answer.status == 201
    received = hashlib.sha256()
    with request(folder, "GET", f"/api/files/{folder / 'big'}") as answer:
        while data := answer.read(MIB):
            received.update(data)
    assert received.digest() == digest.digest()
    assert peak() - before < 8 * MIB
    folder.shell("rm big")


def others_are_answered_during(folder: Folder, call: Callable[[], object]) -> int:
    """How many other calls begin and end while `call` is under way."""
    done = threading.Event()
    thread = threading.Thread(target=lambda: (call(), done.set()))
    thread.start()
    count = 0
    while not done.is_set():
        assert folder.picod.call("GET", "/health").status == 200
        assert folder.get("fs/stat?path={}").status == 200
        count += not done.is_set()
    thread.join()
    return count


DEEP = (
    "import os\nfor i in range({}):\n os.mkdir('d'); os.chdir('d')\n"
    " if i % 1000 == 0: open('f', 'w').close(); os.symlink('/', 'link')"
)


def test_a_tree_of_any_depth_is_removed(folder: Folder, peak: Callable[[], int]) -> None:
    before = peak()
    folder.picod.execute("python3", "-c", DEEP.format(6000), working_dir=folder.name)
    assert others_are_answered_during(
        folder, lambda: folder.picod.call("DELETE", f"/api/files/{folder / 'd'}?recursive=true")
    )
    assert os.listdir(folder.path) == []
    assert peak() - before < 8 * MIB


def test_trees_that_are_too_deep_are_refused_or_cut_and_nothing_breaks(folder: Folder) -> None:
    folder.picod.execute("python3", "-c", DEEP.format(400), working_dir=folder.name)
    copied = folder.post("copy", source=folder / "d", destination=folder / "e")
    assert (copied.status, copied.json()["code"]) == (400, "invalid")
    assert "256" in copied.json()["detail"]
    assert os.listdir(folder.path) == ["d"]
    assert folder.get("fs/tar?path={}").status == 400
    changed = folder.picod.call(
        "PATCH", f"/api/files/{folder / 'd'}", {"permissions": "0700", "recursive": True}
    )
    assert changed.status == 400
    listed = folder.get("files?path={}&recursive=true").json()["files"]
    assert max(entry["path"].count("/") for entry in listed) == 255
    moved = folder.post("move", source=folder / "d", destination=folder / "m")
    assert moved.status == 200
    assert folder.picod.call("DELETE", f"/api/files/{folder / 'm'}?recursive=true").status == 204


MANY = (
    "import os\nfor i in range(12):\n os.makedirs(f'many/{i}')\n"
    " for j in range(1000): os.close(os.open(f'many/{i}/{j:05}', os.O_CREAT))"
)


@pytest.fixture(scope="module")
def many(shared_picod: PicoD) -> Folder:
    """A folder with `many/…`: 12,000 files."""
    assert shared_picod.call("POST", "/api/fs/mkdir", {"path": "bulk"}).status == 201
    shared_picod.execute("python3", "-c", MANY, working_dir="bulk")
    return Folder(shared_picod, "bulk")


def test_many_files_are_listed_packed_copied_and_removed_beside_other_calls(
    many: Folder, peak: Callable[[], int]
) -> None:
    before = peak()
    pages: list[dict[str, str]] = []

    def listing() -> None:
        cursor = ""
        while True:
            answer = many.get("files?path={}&recursive=true" + cursor).json()
            pages.extend(answer["files"])
            if "next_cursor" not in answer:
                return
            cursor = "&cursor=" + answer["next_cursor"]

    size = [0]

    def pack() -> None:
        with request(many, "GET", f"/api/fs/tar?path={many.name}/many") as answer:
            while data := answer.read(MIB):
                size[0] += len(data)

    def copy() -> None:
        assert many.post("copy", source=many / "many", destination=many / "copy").status == 200

    def remove() -> None:
        assert many.picod.call("DELETE", f"/api/files/{many / 'copy'}?recursive=true").status == 204

    for call in (listing, pack, copy, remove):
        assert others_are_answered_during(many, call), call.__name__
    assert len(pages) == len({entry["path"] for entry in pages}) == 12_013
    assert size[0] > 12_000 * 512
    assert sorted(os.listdir(many.path)) == ["many"]
    assert peak() - before < 32 * MIB  # a page of 10,000 entries


def test_who_leaves_ends_the_work_and_what_it_had_made_goes(many: Folder) -> None:
    def begun() -> list[str]:
        return [name for name in os.listdir(many.path) if name.startswith(".agentcube-part-")]

    connection = many.picod.raw()
    body = b'{"source": "bulk/many", "destination": "bulk/left"}'
    head = f"POST /api/fs/copy HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {many.picod.token}\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    eventually(begun)
    assert "bulk/left" not in str(many.get("files?path={}").json())
    connection.close()
    eventually(lambda: not begun())
    assert os.listdir(many.path) == ["many"]


def test_who_does_not_read_or_send_slows_only_itself(folder: Folder, many: Folder) -> None:
    """Sixteen of each, more than there are threads for files."""
    folder.shell("truncate -s 1G sparse")
    heads = [
        f"GET /api/files/{folder / 'sparse'} HTTP/1.1\r\nHost: x\r\n",
        f"GET /api/fs/tar?path={many.name} HTTP/1.1\r\nHost: x\r\n",
        f"PUT /api/files/{folder / 'slow'} HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n",
        f"PUT /api/fs/tar?path={folder / 'slow-tar'} HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n",
    ]
    slow = [folder.picod.raw() for _ in range(16) for _ in heads]
    for number, connection in enumerate(slow):
        head = heads[number % len(heads)] + f"Authorization: Bearer {folder.picod.token}\r\n\r\n"
        connection.sendall(head.encode())
    eventually(lambda: len([name for name in os.listdir(folder.path) if name.startswith(".agentcube")]) == 16)
    begin = time.monotonic()
    assert folder.put("quick", b"x" * MIB).status == 201
    assert folder.get("files/{}/quick").body == b"x" * MIB
    assert time.monotonic() - begin < 20
    for connection in slow:
        connection.close()
    eventually(lambda: not [name for name in os.listdir(folder.path) if name.startswith(".agentcube")])
    folder.shell("rm sparse")
