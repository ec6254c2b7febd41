"""PUT /api/files: a file is there whole or not at all, and an append is made once or taken back."""

from __future__ import annotations

import os

import pytest

from .conftest import ROOT, USER, Folder, eventually, problem

# Whole files


def test_put_tells_new_from_replaced_and_describes_the_file(folder: Folder) -> None:
    first = folder.put("a/b/data.bin", b"12345", "mode=0640")
    second = folder.put("a/b/data.bin", b"123")

    entry = first.json()
    assert (first.status, second.status) == (201, 200)
    assert entry["path"] == folder / "a/b/data.bin"
    assert (entry["name"], entry["type"], entry["size"]) == ("data.bin", "file", 5)
    assert (entry["mode"], entry["permissions"], entry["is_dir"]) == ("-rw-r-----", "0640", False)
    assert (entry["uid"], entry["gid"]) == (USER, 1000 if ROOT else os.getegid())
    assert entry["modified"].endswith("Z")
    assert "target" not in entry
    assert second.json()["permissions"] == "0644"
    assert (folder.path / "a/b/data.bin").read_bytes() == b"123"
    assert folder.path.joinpath("a/b").stat().st_uid == USER


def test_a_body_in_chunks_of_any_size(folder: Folder) -> None:
    connection = folder.picod.raw()
    head = f"PUT /api/files/{folder / 'chunked'} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {folder.picod.token}\r\n"
    connection.sendall(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n")
    for size in (1, 70_000, 300_000, 3):
        connection.sendall(b"%x\r\n" % size + b"z" * size + b"\r\n")
    connection.sendall(b"0\r\n\r\n")

    assert connection.recv(65536).startswith(b"HTTP/1.1 201")
    assert (folder.path / "chunked").read_bytes() == b"z" * 370_004


def test_exclusive_refuses_before_and_after_the_body_and_parents_are_optional(folder: Folder) -> None:
    assert folder.put("new", b"1", "exclusive=true").status == 201
    assert problem(folder.put("new", b"2", "exclusive=true")) == (409, "file_exists")
    (folder.path / "link").symlink_to("nowhere")
    assert problem(folder.put("link", b"2", "exclusive=true")) == (409, "file_exists")
    assert problem(folder.put("no/such/dir", b"2", "parents=false")) == (404, "file_not_found")
    assert folder.put("made/on/the/way", b"2").status == 201

    connection = folder.picod.raw()  # somebody else makes it while the body comes
    head = f"PUT /api/files/{folder / 'race'}?exclusive=true HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"
    connection.sendall(f"{head}Authorization: Bearer {folder.picod.token}\r\n\r\n1".encode())
    eventually(lambda: any(name.startswith(".agentcube-part-") for name in os.listdir(folder.path)))
    folder.shell("echo theirs > race")
    connection.sendall(b"2")
    assert connection.recv(65536).startswith(b"HTTP/1.1 409")
    assert (folder.path / "race").read_text() == "theirs\n"
    eventually(lambda: sorted(os.listdir(folder.path)) == ["link", "made", "new", "race"])


def test_an_upload_that_breaks_off_leaves_nothing(folder: Folder) -> None:
    folder.put("kept", b"old")
    connection = folder.picod.raw()
    head = f"PUT /api/files/{folder / 'kept'} HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n"
    connection.sendall(f"{head}Authorization: Bearer {folder.picod.token}\r\n\r\n".encode() + b"x" * 600_000)
    eventually(lambda: len(os.listdir(folder.path)) == 2)
    connection.close()

    eventually(lambda: os.listdir(folder.path) == ["kept"])
    assert (folder.path / "kept").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("path", "query", "code"),
    [
        ("", "", "invalid"),
        ("x/", "", "invalid"),
        ("x/.", "", "invalid"),
        ("%00", "", "invalid"),
        ("..%2f..%2fx", "", "invalid"),
        ("dir", "", "invalid"),
        ("file/below", "", "invalid"),
        ("x" * 300, "", "invalid"),
        ("a/" * 300 + "a", "", "invalid"),
        ("x", "mode=888", "invalid"),
        ("x", "mode=4755", "invalid"),
        ("x", "mode=", "invalid"),
        ("x", "append=yes", "invalid"),
        ("x", "offset=5", "invalid"),
        ("x", "append=true&offset=-1", "invalid"),
        ("x", "append=true&offset=1x", "invalid"),
        ("x", "appendd=true", "invalid"),
        ("fifo", "append=true", "invalid"),
        ("dir", "append=true", "invalid"),
    ],
)
def test_a_bad_put_is_a_clear_problem_and_leaves_nothing(
    folder: Folder, path: str, query: str, code: str
) -> None:
    folder.shell("mkdir dir; mkfifo fifo; touch file")
    answer = folder.put(path, b"x" * 100, query)
    assert problem(answer) == (400, code)
    assert len(answer.json()["detail"]) > 10
    eventually(lambda: sorted(os.listdir(folder.path)) == ["dir", "fifo", "file"])


# Appends


def test_append_adds_and_offset_makes_it_safe_to_repeat(folder: Folder) -> None:
    made = folder.put("log", b"one ", "append=true&mode=0600")
    assert (made.status, made.json()["permissions"]) == (201, "0600")
    assert folder.put("log", b"two ", "append=true&offset=4").status == 200
    again = folder.put("log", b"two ", "append=true&offset=4")
    assert problem(again) == (409, "conflict")
    assert again.json()["size"] == 8
    folder.shell("ln -s log link; echo -n 'three ' >> log")
    answer = folder.put("link", b"four", "append=true&offset=14")

    assert (answer.status, answer.json()["size"]) == (200, 18)
    assert (folder.path / "log").read_bytes() == b"one two three four"
    assert (folder.path / "link").is_symlink()
    assert problem(folder.put("log", b"", "append=true&exclusive=true")) == (409, "file_exists")


def test_an_append_that_breaks_off_is_taken_back(folder: Folder) -> None:
    folder.put("log", b"whole")
    for name in ("log", "fresh"):
        connection = folder.picod.raw()
        head = f"PUT /api/files/{folder / name}?append=true HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n"
        connection.sendall(f"{head}Authorization: Bearer {folder.picod.token}\r\n\r\nhalf".encode())
        expected = 9 if name == "log" else 4
        eventually(
            lambda n=name, e=expected: (folder.path / n).exists() and (folder.path / n).stat().st_size == e
        )
        assert problem(folder.put(name, b"x", "append=true")) == (409, "conflict")  # one at a time
        connection.close()

    eventually(
        lambda: (folder.path / "log").read_bytes() == b"whole" and not (folder.path / "fresh").exists()
    )
    assert folder.put("log", b"!", "append=true").status == 200


def test_what_others_wrote_behind_a_broken_append_stays(folder: Folder) -> None:
    connection = folder.picod.raw()
    head = f"PUT /api/files/{folder / 'log'}?append=true HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n"
    connection.sendall(f"{head}Authorization: Bearer {folder.picod.token}\r\n\r\nhalf".encode())
    eventually(lambda: (folder.path / "log").exists() and (folder.path / "log").stat().st_size == 4)
    folder.shell("echo -n theirs >> log")
    connection.close()

    eventually(lambda: folder.put("log", b"", "append=true").status == 200)
    assert (folder.path / "log").read_bytes() == b"halftheirs"
