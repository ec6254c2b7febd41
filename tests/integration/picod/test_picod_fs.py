"""/api/files and /api/fs: what is made, told, moved, copied, changed and removed; never outside, never half."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from .conftest import ROOT, Folder, PicoD, StartPicod, eventually

USER = 1000 if ROOT else os.geteuid()


def problem(answer: Any) -> tuple[int, str]:
    return answer.status, answer.json()["code"]


# Writing: PUT


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


# Writing: append


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


# Reading


def test_a_known_file_is_304_and_a_range_of_a_sparse_one_is_cheap(folder: Folder) -> None:
    folder.put("f", b"0123456789")
    whole = folder.get("files/{}/f")
    etag = whole.headers["etag"]
    for condition, status in ((etag, 304), (f'"x", W/{etag}', 304), ("*", 304), ('"x"', 200)):
        answer = folder.get("files/{}/f", **{"If-None-Match": condition})
        assert (answer.status, answer.body) == (status, b"" if status == 304 else b"0123456789")
        assert answer.headers["etag"] == etag
    folder.put("f", b"0123456780")
    assert folder.get("files/{}/f", **{"If-None-Match": etag}).status == 200

    folder.shell("truncate -s 8E big 2>/dev/null || truncate -s 15T big; printf end >> big")
    size = (folder.path / "big").stat().st_size
    answer = folder.get("files/{}/big", Range="bytes=-5")
    assert (answer.status, answer.body) == (206, b"\0\0end")
    assert answer.headers["content-range"] == f"bytes {size - 5}-{size - 1}/{size}"


def test_stat_of_everything_and_links_followed_or_not(folder: Folder) -> None:
    folder.shell(
        "mkdir d; echo hello > f; chmod 4711 f; ln -s f good; ln -s gone bad; mkfifo p; ln -s / out;"
        "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"s\")'"
    )

    def told(path: str, query: str = "") -> Any:
        return folder.get("fs/stat?path={}/" + path + query).json()

    kinds = {name: told(name)["type"] for name in ("d", "f", "good", "p", "s")}
    assert kinds == {"d": "directory", "f": "file", "good": "file", "p": "fifo", "s": "socket"}
    link = told("good", "&follow=false")
    assert (link["type"], link["target"], link["name"]) == ("symlink", "f", "good")
    assert (told("f")["permissions"], told("f")["mode"]) == ("4711", "-rws--x--x")
    assert told("bad")["code"] == "file_not_found"
    assert told("bad", "&follow=false")["target"] == "gone"
    assert told("out")["type"] == "directory"  # the workspace: absolute links start there
    assert folder.get("fs/stat").json()["type"] == "directory"
    assert problem(folder.get("fs/stat?path=..")) == (400, "invalid")
    assert problem(folder.get("fs/stat?path=x&follow=maybe")) == (400, "invalid")


def test_names_that_are_no_utf8_go_through_every_call(folder: Folder) -> None:
    odd = b"\xff\xfe \"'%"
    escaped = quote(odd)
    assert folder.put(escaped, b"odd").status == 201
    (entry,) = folder.get("files?path={}&recursive=true").json()["files"]
    assert os.fsencode(entry["name"]) == odd
    path = entry["path"]
    assert folder.get("fs/stat?path={}/" + escaped).json()["name"] == entry["name"]
    assert folder.post("copy", source=path, destination=path + "2").json()["path"] == path + "2"
    assert folder.post("move", source=path + "2", destination=path + "3").status == 200
    assert folder.picod.call("DELETE", f"/api/files/{folder.name}/{escaped}3").status == 204
    assert os.listdir(os.fsencode(folder.path)) == [odd]
    assert problem(folder.post("mkdir", path="\ud800")) == (400, "invalid")


# Directories


def test_mkdir(folder: Folder) -> None:
    made = folder.post("mkdir", path=folder / "a/b", mode="0777")
    assert (made.status, made.json()["permissions"], made.json()["type"]) == (201, "0777", "directory")
    assert stat.S_IMODE((folder.path / "a").stat().st_mode) == 0o755
    assert folder.post("mkdir", path=folder / "a/b").status == 200
    assert folder.post("mkdir", path="").status == 400
    assert folder.post("mkdir", path="/").status == 200
    assert problem(folder.post("mkdir", path=folder / "a/b", exist_ok=False)) == (409, "file_exists")
    assert problem(folder.post("mkdir", path=folder / "x/y", parents=False)) == (404, "file_not_found")
    folder.put("file", b"")
    assert problem(folder.post("mkdir", path=folder / "file")) == (409, "file_exists")
    assert problem(folder.post("mkdir", path=folder / "file/x")) == (400, "invalid")
    assert folder.shell("touch a/b/mine && echo yes") == "yes\n"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"path": 5},
        {"path": "a", "mode": 755},
        {"path": "a", "mode": "999"},
        {"path": "a", "parents": "true"},
        {"path": "a", "exist_ok": 1},
        {"path": "a", "pearents": True},
        {"path": "a\x00"},
        [],
    ],
)
def test_a_bad_body_is_a_clear_400(folder: Folder, body: object) -> None:
    answer = folder.picod.call("POST", "/api/fs/mkdir", body)
    assert problem(answer) == (400, "invalid")


# Moving


def test_move_of_files_links_and_directories(folder: Folder) -> None:
    folder.shell("mkdir d; echo 1 > d/f; ln -s d/f link; echo other > there")
    moved = folder.post("move", source=folder / "d", destination=folder / "new/place")
    assert (moved.status, moved.json()["path"]) == (200, folder / "new/place")
    assert (folder.path / "new/place/f").read_text() == "1\n"
    assert folder.post("move", source=folder / "link", destination=folder / "l2").json()["target"] == "d/f"
    refused = folder.post("move", source=folder / "l2", destination=folder / "there")
    assert problem(refused) == (409, "file_exists")
    assert (folder.path / "there").read_text() == "other\n"
    assert (
        folder.post("move", source=folder / "l2", destination=folder / "there", overwrite=True).status == 200
    )
    assert (folder.path / "there").is_symlink()
    assert folder.post("move", source=folder / "there", destination=folder / "there").status == 200


@pytest.mark.parametrize(
    ("source", "destination", "overwrite", "expected"),
    [
        ("absent", "x", False, (404, "file_not_found")),
        ("d", "d/below", False, (400, "invalid")),
        ("d", "loop/below", False, (400, "invalid")),
        ("f", "d", True, (400, "invalid")),
        ("d", "full", True, (409, "not_empty")),
        ("d", "f", True, (400, "invalid")),
        ("f", "f/x", False, (400, "invalid")),
        ("/", "x", False, (400, "invalid")),
        ("f", "../../x", False, (400, "invalid")),
    ],
)
def test_a_bad_move_changes_nothing(
    folder: Folder, source: str, destination: str, overwrite: bool, expected: tuple[int, str]
) -> None:
    folder.shell("mkdir d full; echo 1 > f; echo 2 > full/f; ln -s d loop")
    before = folder.shell("find . | sort")
    full = "/" if source == "/" else folder / source
    answer = folder.post("move", source=full, destination=folder / destination, overwrite=overwrite)
    assert problem(answer) == expected
    assert folder.shell("find . | sort") == before


# Copying


def test_copy_keeps_modes_times_links_and_holes(folder: Folder) -> None:
    folder.shell(
        "mkdir -p d/sub d/ro; echo x > d/sub/f; chmod 0751 d/sub/f; ln -s ../absent d/sub/link; mkfifo d/pipe;"
        "truncate -s 1G d/sparse; printf end >> d/sparse; echo y > d/ro/g; touch -d '2001-02-03 04:05:06.789' d/sub/f;"
        "touch -h -d 2001-02-04 d/sub/link; chmod 0555 d/ro; touch -d 2001-02-05 d/sub d/ro d"
    )
    answer = folder.post("copy", source=folder / "d", destination=folder / "new/e")

    assert (answer.status, answer.json()["type"]) == (200, "directory")
    listing = (
        "find . -type d -printf '%P d %m %T@\\n' -o -printf '%P %y %m %s %T@ %l\\n' | grep -v pipe | sort"
    )
    assert folder.shell(f"cd new/e; {listing}") == folder.shell(f"cd d; {listing}")
    assert folder.shell("tail -c 3 new/e/sparse") == "end"
    assert (folder.path / "new/e/sparse").stat().st_blocks * 512 < 1 << 20
    assert not (folder.path / "new/e/pipe").exists()
    assert (folder.path / "new/e/sub/f").stat().st_uid == USER
    folder.shell("chmod -R u+w d new")


def test_copy_of_one_file_and_of_a_link(folder: Folder) -> None:
    folder.shell("echo x > f; chmod 600 f; ln -s f l; echo old > there; mkdir dir")
    assert folder.post("copy", source=folder / "f", destination=folder / "g").json()["permissions"] == "0600"
    assert folder.post("copy", source=folder / "l", destination=folder / "m").json()["target"] == "f"
    answer = folder.post("copy", source=folder / "f", destination=folder / "there")
    assert problem(answer) == (409, "file_exists")
    assert (
        folder.post("copy", source=folder / "f", destination=folder / "there", overwrite=True).status == 200
    )
    assert (folder.path / "there").read_text() == "x\n"
    answer = folder.post("copy", source=folder / "f", destination=folder / "dir", overwrite=True)
    assert problem(answer) == (400, "invalid")


def test_copy_with_overwrite_merges(folder: Folder) -> None:
    folder.shell(
        "mkdir -p a/x b/x; echo new > a/x/f; echo old > b/x/f; echo kept > b/x/g; ln -s /etc b/x/h; echo h > a/x/h"
    )
    answer = folder.post("copy", source=folder / "a", destination=folder / "b")
    assert problem(answer) == (409, "file_exists")
    assert folder.post("copy", source=folder / "a", destination=folder / "b", overwrite=True).status == 200
    assert folder.shell("cat b/x/f b/x/g b/x/h") == "new\nkept\nh\n"
    assert not (folder.path / "b/x/h").is_symlink()


@pytest.mark.parametrize(
    ("source", "destination", "more", "expected"),
    [
        ("absent", "x", {}, (404, "file_not_found")),
        ("d", "d/in", {}, (400, "invalid")),
        ("d", "d", {}, (400, "invalid")),
        ("d", "loop/in", {}, (200, "")),
        ("d", "x", {"recursive": False}, (400, "invalid")),
        ("pipe", "x", {}, (400, "invalid")),
        ("d", "f", {"overwrite": True}, (400, "invalid")),
        ("f", "x", {"recursive": None, "owerwrite": True}, (400, "invalid")),
    ],
)
def test_odd_copies(
    folder: Folder, source: str, destination: str, more: dict[str, Any], expected: tuple[int, str]
) -> None:
    folder.shell("mkdir d; echo 1 > d/f; echo 1 > f; ln -s d loop; mkfifo pipe")
    before = folder.shell("find . | sort")
    answer = folder.post("copy", source=folder / source, destination=folder / destination, **more)
    if expected[0] == 200:
        assert (folder.path / "d/in/f").exists()
        assert not (folder.path / "d/in/in").exists()
        return
    assert problem(answer) == expected
    assert folder.shell("find . | sort") == before


@pytest.mark.skipif(not ROOT, reason="a file that its reader may not read needs another user's")
def test_a_copy_that_fails_leaves_nothing(folder: Folder) -> None:
    folder.shell("mkdir -p d/sub; for i in 1 2 3 4 5; do echo $i > d/sub/$i; done")
    (folder.path / "d/sub/secret").write_text("root's")
    (folder.path / "d/sub/secret").chmod(0o600)
    answer = folder.post("copy", source=folder / "d", destination=folder / "e")
    assert problem(answer) == (403, "forbidden")
    assert "secret" in answer.json()["detail"]
    assert os.listdir(folder.path) == ["d"]


# Changing


def test_permissions_and_times(folder: Folder) -> None:
    folder.shell("echo x > f; chmod 000 f; ln -s f l")
    url = f"/api/files/{folder / 'l'}"
    answer = folder.picod.call(
        "PATCH", url, {"permissions": "0755", "modified": "2001-02-03T04:05:06.123456789+02:00"}
    )
    entry = answer.json()
    assert (answer.status, entry["permissions"]) == (200, "0755")
    assert entry["modified"] == "2001-02-03T02:05:06.123457Z"
    assert (folder.path / "f").stat().st_mtime_ns == 981165906_123456789
    assert (folder.path / "l").is_symlink()
    for bad in (
        {},
        {"permissions": "0999"},
        {"permissions": 5},
        {"permissions": "04755"},
        {"modified": "yesterday"},
        {"modified": "2001-02-30T00:00:00Z"},
        {"modified": "2001-02-03T04:05:06"},
        {"modified": 5},
        {"permissions": "0755", "recursive": "yes"},
        {"mode": "0755"},
    ):
        assert problem(folder.picod.call("PATCH", url, bad)) == (400, "invalid")
    assert problem(folder.picod.call("PATCH", url + "x", {"permissions": "0755"})) == (404, "file_not_found")


def test_permissions_of_a_whole_tree_also_where_it_was_closed(folder: Folder) -> None:
    folder.shell("mkdir -p d/a/b; touch d/a/b/f; ln -s /etc/passwd d/a/link; chmod 000 d/a/b/f d/a/b d/a d")
    url = f"/api/files/{folder / 'd'}"
    answer = folder.picod.call("PATCH", url, {"permissions": "0750", "recursive": True})
    assert answer.status == 200, answer.body
    assert (answer.status, answer.json()["permissions"]) == (200, "0750")
    assert folder.shell("find d -not -type l -printf '%m '").split() == ["750"] * 4
    closed = folder.picod.call("PATCH", url, {"permissions": "0400", "recursive": True})
    assert closed.status == 200
    folder.picod.call("PATCH", url, {"permissions": "0700", "recursive": True})
    assert folder.shell("find d -not -type l -printf '%m '").split() == ["700"] * 4


@pytest.mark.skipif(not ROOT, reason="another user's file needs root")
def test_what_is_not_the_users_own_is_not_theirs_to_change(folder: Folder) -> None:
    (folder.path / "theirs").write_text("root's")
    answer = folder.picod.call("PATCH", f"/api/files/{folder / 'theirs'}", {"permissions": "0777"})
    assert problem(answer) == (403, "forbidden")
    # Removing it is the right of who owns the directory.
    assert folder.picod.call("DELETE", f"/api/files/{folder / 'theirs'}").status == 204


# Removing


def test_delete(folder: Folder) -> None:
    folder.shell(
        "mkdir -p full/of/things empty; echo 1 > full/of/f; ln -s full link; mkfifo pipe; ln -s gone bad; touch f"
    )

    def delete(path: str, query: str = "") -> Any:
        return folder.picod.call("DELETE", f"/api/files/{folder / path}{query}")

    for path in ("link", "pipe", "bad", "f", "empty"):
        answer = delete(path)
        assert (answer.status, answer.body) == (204, b"")
        assert "content-length" not in answer.headers
    assert problem(delete("full")) == (409, "not_empty")
    assert (folder.path / "full/of/f").exists()
    assert delete("full", "?recursive=true").status == 204
    assert os.listdir(folder.path) == []
    assert problem(delete("full")) == (404, "file_not_found")
    assert problem(delete("../" * 9 + "x")) == (400, "invalid")
    assert problem(delete("x", "?recursive=1")) == (400, "invalid")
    assert problem(folder.picod.call("DELETE", "/api/files/?recursive=true")) == (400, "invalid")


def test_links_in_a_tree_are_removed_and_what_they_lead_to_is_not(folder: Folder) -> None:
    folder.shell(
        "mkdir -p d/sub kept; echo 1 > kept/f; ln -s ../kept d/dir; ln -s ../../kept/f d/sub/file; ln -s / d/root"
    )
    assert folder.picod.call("DELETE", f"/api/files/{folder / 'd'}?recursive=true").status == 204
    assert folder.shell("cat kept/f; ls") == "1\nkept\n"


# Listings


@pytest.fixture(scope="module")
def tree(shared_picod: PicoD) -> Folder:
    """A tree that only listings look at."""
    assert shared_picod.call("POST", "/api/fs/mkdir", {"path": "tree"}).status == 201
    tree = Folder(shared_picod, "tree")
    tree.shell(
        "mkdir -p src/pkg/deep .git/objects docs; touch a.py b.txt src/c.py src/pkg/d.py src/pkg/deep/e.py"
        " src/pkg/deep/f.txt .git/config.py .git/objects/x.py docs/.hidden.py docs/g.md; ln -s src/c.py link.py"
    )
    return tree


def names(tree: Folder, query: str) -> list[str]:
    answer = tree.get("files?path={}&" + query)
    assert answer.status == 200, answer.body
    return [entry["path"].removeprefix("tree/") for entry in answer.json()["files"]]


def test_a_whole_tree_in_order(tree: Folder) -> None:
    every = names(tree, "recursive=true")
    assert every == sorted(every, key=lambda path: path.split("/"))
    assert len(every) == 17
    assert names(tree, "depth=1") == [".git", "a.py", "b.txt", "docs", "link.py", "src"]
    assert names(tree, "limit=100") == names(tree, "depth=1") == names(tree, "recursive=false")
    assert "src/pkg/deep" in names(tree, "depth=3")
    assert "src/pkg/deep/e.py" not in names(tree, "depth=3")
    (link,) = [e for e in tree.get("files?path={}&depth=1").json()["files"] if e["name"] == "link.py"]
    assert (link["type"], link["target"]) == ("symlink", "src/c.py")


@pytest.mark.parametrize(
    ("glob", "found"),
    [
        ("*.py", ["a.py", "link.py"]),
        ("**/*.py", ["a.py", "link.py", "src/c.py", "src/pkg/d.py", "src/pkg/deep/e.py"]),
        ("src/**/*.txt", ["src/pkg/deep/f.txt"]),
        ("src/*/d.py", ["src/pkg/d.py"]),
        ("**/deep", ["src/pkg/deep"]),
        (
            "src/pkg/**",
            ["src/pkg", "src/pkg/d.py", "src/pkg/deep", "src/pkg/deep/e.py", "src/pkg/deep/f.txt"],
        ),
        (".git/**/*.py", [".git/config.py", ".git/objects/x.py"]),
        ("**/.*.py", ["docs/.hidden.py"]),
        ("?.[pt]*", ["a.py", "b.txt"]),
        ("[!a].*", ["b.txt"]),
        ("nothing/**", []),
    ],
)
def test_globs(tree: Folder, glob: str, found: list[str]) -> None:
    assert names(tree, "glob=" + quote(glob)) == found


def test_pages_give_everything_once(tree: Folder) -> None:
    for query in ("recursive=true", "glob=" + quote("**/*.py"), "depth=2"):
        whole, pages, cursor = names(tree, query), [], ""
        for _ in range(30):
            answer = tree.get("files?path={}&limit=2&" + query + cursor).json()
            pages += [entry["path"].removeprefix("tree/") for entry in answer["files"]]
            if "next_cursor" not in answer:
                break
            assert len(answer["files"]) == 2
            cursor = "&cursor=" + quote(answer["next_cursor"])
        assert pages == whole


@pytest.mark.parametrize(
    "query",
    [
        "limit=0", "limit=10001", "limit=x", "depth=0", "depth=1e3", "cursor=!!", "cursor=", "cursor=Ly8v",
        "glob=", "glob=..%2Fx", "glob=%00", "recursive=1", "recursive=true&x=y", "recursive=true&path=..",
        "recursive=true&path=tree/a.py",
    ],
)  # fmt: skip
def test_a_bad_listing_is_a_clear_400(tree: Folder, query: str) -> None:
    assert problem(tree.picod.call("GET", f"/api/files?{query}")) == (400, "invalid")


def test_a_pattern_that_is_hard_to_match_is_no_trap(tree: Folder, folder: Folder) -> None:
    folder.shell("touch " + "a" * 250)
    assert folder.get("files?path={}&glob=" + "*a" * 120 + "b").json()["files"] == []


def test_plain_listings_are_as_they_were(tree: Folder) -> None:
    ((first, *_),) = tree.get("files?path={}").json().values()
    assert sorted(first) == ["is_dir", "mode", "modified", "name", "size"]


def test_calls_on_files_need_the_sessions_token(shared_picod: PicoD) -> None:
    for method, target in (("PUT", "files/x"), ("DELETE", "files/x"), ("GET", "fs/watch"), ("GET", "fs/tar")):
        assert shared_picod.call(method, f"/api/{target}", token="").status == 401


def test_one_uid_for_all_does_the_same(start_picod: StartPicod) -> None:
    picod = start_picod(single_uid=True)
    assert picod.call("PUT", "/api/files/a/f?mode=0600", b"x").json()["uid"] == os.geteuid()
    assert picod.call("POST", "/api/fs/copy", {"source": "a", "destination": "b"}).status == 200
    assert picod.call("PATCH", "/api/files/b", {"permissions": "0700", "recursive": True}).status == 200
    assert picod.call("DELETE", "/api/files/a?recursive=true").status == 204
    found = picod.call("GET", "/api/files?recursive=true").json()["files"]
    assert [(entry["path"], entry["permissions"]) for entry in found] == [("b", "0700"), ("b/f", "0700")]
    assert json.loads(picod.call("GET", "/api/fs/stat?path=b/f").body)["size"] == 1
    assert Path(picod.workspace / "b/f").read_bytes() == b"x"
