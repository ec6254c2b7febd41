"""/api/files and /api/fs: what is told, made, moved, copied, changed and removed; never outside, never half."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from .conftest import ROOT, USER, Folder, PicoD, StartPicod, problem

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


# All of them


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
