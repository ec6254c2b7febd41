"""/api/files: up, down, listed; whole or not at all; never outside."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import ROOT, PicoD, StartPicod, eventually, open_files


def form(*parts: tuple[str, bytes]) -> tuple[bytes, dict[str, str]]:
    body = b""
    for name, content in parts:
        named = f'name="{name}"' + ('; filename="f"' if name == "file" else "")
        body += f"--B\r\nContent-Disposition: form-data; {named}\r\n\r\n".encode() + content + b"\r\n"
    return body + b"--B--\r\n", {"Content-Type": "multipart/form-data; boundary=B"}


def test_a_file_comes_back_as_it_went_in(picod_both: PicoD) -> None:
    content = bytes(range(256)) * 10

    stored = picod_both.write("/dir/sub/data.bin", content, mode="0640")
    answer = picod_both.call("GET", "/api/files/dir/sub/data.bin")

    described = stored.json()
    assert (described["path"], described["size"], described["mode"]) == (
        "dir/sub/data.bin",
        2560,
        "-rw-r-----",
    )
    assert described["modified"].endswith("Z")
    assert answer.body == content
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == 'attachment; filename="data.bin"'
    assert answer.headers["content-length"] == "2560"
    made = (picod_both.workspace / "dir/sub").stat()
    assert made.st_uid == (1000 if picod_both.workspace.stat().st_uid == 1000 else os.geteuid())
    assert made.st_mode & 0o777 == 0o755


def test_an_empty_file_and_the_default_mode(picod: PicoD) -> None:
    assert picod.write("empty", b"").json()["mode"] == "-rw-r--r--"
    assert picod.call("POST", "/api/files", {"path": "no-content"}).json()["size"] == 0
    answer = picod.call("GET", "/api/files/empty")
    assert (answer.status, answer.body) == (200, b"")


def test_writing_again_replaces_content_and_mode_also_behind_a_link(picod: PicoD) -> None:
    picod.write("a", b"old old", mode="0755")
    (picod.workspace / "link").symlink_to("/etc/hostname")

    assert picod.write("a", b"new").json()["mode"] == "-rw-r--r--"
    picod.write("link", b"mine")

    assert picod.call("GET", "/api/files/a").body == b"new"
    assert not (picod.workspace / "link").is_symlink()


@pytest.mark.parametrize(
    "order", [("path", "mode", "file"), ("file", "path", "mode"), ("file", "mode", "path")]
)
def test_a_form_in_any_order(picod_both: PicoD, order: tuple[str, ...]) -> None:
    values = {"path": b"d/up.txt", "mode": b"0600", "file": b"content\r\n--Ax"}
    body, headers = form(*((name, values[name]) for name in order))

    stored = picod_both.call("POST", "/api/files", body, headers).json()

    assert (stored["path"], stored["size"], stored["mode"]) == ("d/up.txt", 13, "-rw-------")
    assert picod_both.call("GET", "/api/files/d/up.txt").body == values["file"]
    assert sorted(os.listdir(picod_both.workspace)) == ["d"]


def test_a_large_upload_and_download_stream_in_flat_memory(picod: PicoD) -> None:
    size, digest = 200 << 20, hashlib.sha256()
    block = os.urandom(1 << 20)
    connection = picod.raw()
    start = b'--B\r\nContent-Disposition: form-data; name="path"\r\n\r\nbig\r\n'
    start += b'--B\r\nContent-Disposition: form-data; name="file"; filename="big"\r\n\r\n'
    end = b"\r\n--B--\r\n"
    head = f"POST /api/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {picod.token}\r\n"
    head += f"Content-Type: multipart/form-data; boundary=B\r\nContent-Length: {len(start) + size + len(end)}\r\n\r\n"
    connection.sendall(head.encode() + start)
    for _ in range(size >> 20):
        connection.sendall(block)
        digest.update(block)
    connection.sendall(end)
    assert b'"size": %d' % size in connection.recv(65536)

    connection.sendall(
        f"GET /api/files/big HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {picod.token}\r\n\r\n".encode()
    )
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    data = data.partition(b"\r\n\r\n")[2]
    received, total = hashlib.sha256(data), len(data)
    while total < size:
        data = connection.recv(1 << 20)
        received.update(data)
        total += len(data)

    assert received.digest() == digest.digest()
    status = Path(f"/proc/{picod.pid}/status").read_text()
    peak = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    assert peak < 80 << 10  # KiB


def test_an_upload_that_breaks_off_leaves_nothing(picod: PicoD) -> None:
    picod.write("kept", b"old")
    start = b'--B\r\nContent-Disposition: form-data; name="path"\r\n\r\nkept\r\n'
    start += b'--B\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' + b"x" * 600_000
    head = f"POST /api/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {picod.token}\r\n"
    head += "Content-Type: multipart/form-data; boundary=B\r\nContent-Length: 9000000\r\n\r\n"
    connection = picod.raw()
    connection.sendall(head.encode() + start)
    eventually(lambda: len(os.listdir(picod.workspace)) == 2)

    names = [entry["name"] for entry in picod.call("GET", "/api/files").json()["files"]]
    assert names == ["kept"]  # what is not finished is not shown
    connection.close()

    eventually(lambda: os.listdir(picod.workspace) == ["kept"])
    assert picod.call("GET", "/api/files/kept").body == b"old"
    if ROOT:
        below = f"{picod.workspace}/"
        eventually(lambda: not any(target.startswith(below) for target in open_files(picod.pid)))


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([("path", b"a")], "file"),
        ([("file", b"x")], "path"),
        ([("path", b""), ("file", b"x")], "path"),
        ([("path", b"a"), ("path", b"b"), ("file", b"x")], "more than one"),
        ([("path", b"a"), ("file", b"x"), ("file", b"y")], "more than one"),
        ([("path", b"a"), ("mode", b"888"), ("file", b"x")], "888"),
        ([("path", b"../a"), ("file", b"x")], "leads out"),
        ([("file", b"x"), ("path", b"../a")], "leads out"),
        ([("path", b"a" * 10_000), ("file", b"x")], "too long"),
    ],
)
def test_a_bad_form_is_a_clear_400_and_leaves_nothing(
    picod: PicoD, parts: list[tuple[str, bytes]], why: str
) -> None:
    body, headers = form(*parts)
    answer = picod.call("POST", "/api/files", body, headers)

    assert answer.status == 400
    assert why in answer.json()["detail"]
    eventually(lambda: os.listdir(picod.workspace) == [])


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({}, "path"),
        ({"path": ""}, "path"),
        ({"path": 5}, "path"),
        ({"path": "/"}, "name a file"),
        ({"path": "a/"}, "directory"),
        ({"path": "a", "content": 1}, "base64"),
        ({"path": "a", "content": "!!"}, "base64"),
        ({"path": "a", "content": "YQ"}, "base64"),
        ({"path": "a", "mode": 644}, "mode"),
        ({"path": "a", "mode": "4755"}, "4755"),
        ({"path": "a", "mode": "rw"}, "rw"),
        ({"path": "a\x00b"}, "NUL"),
        ({"path": "\ud800"}, "surrogate"),
        ({"path": "../x"}, "leads out"),
        ({"path": "/../x"}, "leads out"),
        ({"path": "a/../../x"}, "leads out"),
        ({"path": "x" * 300}, "too long"),
        ({"path": "a", "contents": ""}, "contents"),
        ({"path": "dir"}, "directory"),
        ({"path": "file/below"}, "Not a directory"),
    ],
)
def test_a_bad_write_is_a_clear_400(picod: PicoD, body: object, why: str) -> None:
    (picod.workspace / "dir").mkdir()
    (picod.workspace / "file").touch()

    answer = picod.call("POST", "/api/files", body)

    assert answer.status == 400, answer.body
    assert why.lower() in answer.json()["detail"].lower()
    eventually(lambda: sorted(os.listdir(picod.workspace)) == ["dir", "file"])


def test_json_over_the_limit_is_413_with_the_remedy(picod: PicoD) -> None:
    answer = picod.call("POST", "/api/files", b" " * (33 << 20), {"Content-Type": "application/json"})
    assert answer.status == 413
    assert "multipart" in answer.json()["detail"]


# Listing


def test_a_listing_has_names_sizes_modes_and_kinds(picod: PicoD) -> None:
    picod.write("d/b.txt", b"12345", mode="0600")
    (picod.workspace / "d/a").mkdir(mode=0o755)
    (picod.workspace / "d/link").symlink_to("nowhere")

    for path in ("d", "/d", "d/", "./d", str(picod.workspace / "d")):
        found = picod.call("GET", f"/api/files?path={path}").json()["files"]
        assert [entry["name"] for entry in found] == ["a", "b.txt", "link"]
    assert [entry["is_dir"] for entry in found] == [True, False, False]
    assert [entry["mode"] for entry in found] == ["drwxr-xr-x", "-rw-------", "lrwxrwxrwx"]
    assert found[1]["size"] == 5
    assert [entry["name"] for entry in picod.call("GET", "/api/files").json()["files"]] == ["d"]


def test_listing_what_is_not_there_or_no_directory(picod: PicoD) -> None:
    picod.write("file", b"")
    answer = picod.call("GET", "/api/files?path=absent")
    assert (answer.status, answer.json()["code"]) == (404, "file_not_found")
    assert picod.call("GET", "/api/files?path=file").status == 400
    assert picod.call("GET", "/api/files?path=../..").status == 400


def test_names_of_any_bytes_survive(picod: PicoD) -> None:
    odd = b"\xff\xfe \"'%.txt"
    (picod.workspace / os.fsdecode(odd)).write_bytes(b"odd")

    (entry,) = picod.call("GET", "/api/files").json()["files"]
    assert entry["name"].encode("utf-8", "surrogateescape") == odd
    answer = picod.call("GET", "/api/files/%ff%fe%20%22'%25.txt")
    assert answer.body == b"odd"
    assert answer.headers["content-disposition"] == (
        "attachment; filename=\"__ _'%.txt\"; filename*=UTF-8''%FF%FE%20%22%27%25.txt"
    )


# Downloads


def test_what_is_no_regular_file_is_refused(picod: PicoD) -> None:
    (picod.workspace / "dir").mkdir()
    os.mkfifo(picod.workspace / "fifo")
    picod.execute("python3", "-c", "import socket; socket.socket(socket.AF_UNIX).bind('sock')")

    for path, status in (
        ("dir", 400),
        ("fifo", 400),
        ("sock", 400),
        ("", 400),
        ("absent", 404),
        ("a/b", 404),
    ):
        answer = picod.call("GET", f"/api/files/{path}")
        assert (path, answer.status) == (path, status)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.txt", "text/plain; charset=utf-8"),
        ("a.csv", "text/csv; charset=utf-8"),
        ("a.png", "image/png"),
        ("a.json", "application/json"),
        ("a.tar.gz", "application/octet-stream"),
        ("a.unknown", "application/octet-stream"),
    ],
)
def test_the_content_type_goes_by_the_name(picod: PicoD, name: str, kind: str) -> None:
    picod.write(name, b"x")
    assert picod.call("GET", f"/api/files/{name}").headers["content-type"] == kind


@pytest.mark.parametrize(
    ("wanted", "status", "content", "said"),
    [
        ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
        ("bytes=4-", 206, b"456789", "bytes 4-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=-99", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=8-99", 206, b"89", "bytes 8-9/10"),
        ("bytes=0-0", 206, b"0", "bytes 0-0/10"),
        ("bytes=10-", 416, None, "bytes */10"),
        ("bytes=-0", 416, None, "bytes */10"),
        ("bytes=5-3", 200, b"0123456789", None),
        ("bytes=0-1,3-4", 200, b"0123456789", None),
        ("bytes=-", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
    ],
)
def test_ranges(picod: PicoD, wanted: str, status: int, content: bytes | None, said: str | None) -> None:
    picod.write("ten", b"0123456789")

    answer = picod.call("GET", "/api/files/ten", headers={"Range": wanted})

    assert answer.status == status
    assert answer.headers.get("content-range") == said
    if content is not None:
        assert answer.body == content
    else:
        assert answer.json()["code"] == "range_not_satisfiable"


def test_if_range_and_head(picod: PicoD) -> None:
    picod.write("f", b"0123456789")
    whole = picod.call("HEAD", "/api/files/f")
    assert (whole.body, whole.headers["content-length"]) == (b"", "10")
    for value, status in ((whole.headers["etag"], 206), (whole.headers["last-modified"], 206), ('"x"', 200)):
        answer = picod.call("GET", "/api/files/f", headers={"Range": "bytes=0-1", "If-Range": value})
        assert answer.status == status


def test_a_file_that_shrinks_breaks_the_download_off(picod: PicoD) -> None:
    (picod.workspace / "f").write_bytes(b"x" * (64 << 20))
    connection = picod.raw()
    connection.sendall(
        f"GET /api/files/f HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {picod.token}\r\n\r\n".encode()
    )
    connection.recv(1000)
    os.truncate(picod.workspace / "f", 10)

    total = 0
    try:
        while data := connection.recv(1 << 20):
            total += len(data)
    except ConnectionResetError:
        pass
    assert total < 64 << 20
    assert picod.call("GET", "/health").status == 200


# The edge of the workspace


@pytest.mark.parametrize(
    "target", ["/etc/hostname", "../../../../etc/hostname", "/proc/self/environ", "../s"]
)
def test_links_lead_nowhere_outside(picod: PicoD, target: str) -> None:
    (picod.workspace / "link").symlink_to(target)
    (picod.workspace / "dir").symlink_to("/etc")

    assert picod.call("GET", "/api/files/link").status in (400, 404)
    assert picod.call("GET", "/api/files/dir/hostname").status in (400, 404)
    assert picod.call("GET", "/api/files?path=dir").status == 404
    answer = picod.write("dir/made", b"x")
    assert answer.status in (200, 400, 404)
    assert not Path("/etc/made").exists()


def test_an_absolute_link_into_the_workspace_is_followed(picod: PicoD) -> None:
    picod.write("data/f", b"here")
    picod.shell("ln -s $PWD/data/f link")

    assert picod.call("GET", "/api/files/link").body == b"here"
    assert picod.call("GET", f"/api/files/{picod.workspace}/data/f").body == b"here"


@pytest.mark.skipif(not ROOT, reason="another user's file needs root")
def test_file_work_is_done_as_the_user(picod: PicoD) -> None:
    (picod.workspace / "theirs").write_text("root's")
    (picod.workspace / "theirs").chmod(0o600)
    (picod.workspace / "closed").mkdir(mode=0o755)

    assert (picod.call("GET", "/api/files/theirs").status) == 403
    answer = picod.write("closed/x", b"x")
    assert (answer.status, answer.json()["code"]) == (403, "forbidden")


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "full"
    path.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,uid=1000", "full", path], capture_output=True
    )
    if made.returncode != 0:
        pytest.skip("mounting needs root")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def test_a_full_workspace_is_507_and_leaves_no_half_file(start_picod: StartPicod, full: Path) -> None:
    full.parent.parent.chmod(0o755)
    full.parent.chmod(0o755)
    for parent in full.parents:
        if not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    picod = start_picod(workspace=str(full))
    body, headers = form(("path", b"big"), ("file", b"x" * (4 << 20)))

    for answer in (picod.write("big", b"x" * (4 << 20)), picod.call("POST", "/api/files", body, headers)):
        assert answer.status == 507
        assert answer.json()["code"] == "workspace_full"
        assert (
            os.strerror(errno.ENOSPC).lower() in answer.json()["detail"].lower()
            or "no space" in answer.json()["detail"]
        )
    eventually(lambda: os.listdir(full) == [])
    assert picod.write("small", b"x").status == 200


def test_base64_of_large_json_is_exact(picod: PicoD) -> None:
    content = os.urandom(3 << 20)
    body = json.dumps({"path": "big", "content": base64.b64encode(content).decode()}).encode()
    assert picod.call("POST", "/api/files", body, {"Content-Type": "application/json"}).status == 200
    assert (picod.workspace / "big").read_bytes() == content
