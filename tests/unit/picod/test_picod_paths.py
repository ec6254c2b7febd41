"""Paths never leave the workspace, by openat2 and by the walk alike."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentcube.picod.paths import PathRefused, Workspace


@pytest.fixture(params=[True, False], ids=["openat2", "walk"])
def workspace(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Workspace]:
    (tmp_path / "ws").mkdir()
    (tmp_path / "outside").write_text("secret")
    found = Workspace(str(tmp_path / "ws"), openat2=request.param)
    yield found
    found.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "ws"


def read(workspace: Workspace, path: str) -> bytes:
    fd = workspace.open(workspace.clean(path.encode()), os.O_RDONLY)
    try:
        return os.read(fd, 100)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("", ()),
        (".", ()),
        ("/", ()),
        ("a", (b"a",)),
        ("/a", (b"a",)),
        ("//a//./b/", (b"a", b"b")),
        ("a/../b", (b"b",)),
        ("a/b/../../c", (b"c",)),
        ("/etc/passwd", (b"etc", b"passwd")),
        ("WS/x", (b"x",)),
        ("WS", ()),
        ("WSx", None),
        ("..", None),
        ("/..", None),
        ("a/../..", None),
        ("../ws/a", None),
        ("a\x00b", None),
        ("a" * 5000, None),
        ("a/" * 300, None),
    ],
)
def test_text_is_cleaned_or_refused(
    workspace: Workspace, root: Path, path: str, names: tuple[bytes, ...] | None
) -> None:
    if path == "WSx":  # a sibling whose name begins alike is no part of the workspace
        assert workspace.clean(f"{root}x".encode()) == tuple(f"{root}x".encode().strip(b"/").split(b"/"))
        return
    path = path.replace("WS", str(root))
    if names is None:
        with pytest.raises(PathRefused):
            workspace.clean(path.encode())
    else:
        assert workspace.clean(path.encode()) == names


LINKS = {
    "absolute": "/outside",
    "up": "../outside",
    "far-up": "../../../../../../outside",
    "true-path": "TMP/outside",
    "proc": "/proc/self/root/TMP/outside",
    "loop": "loop",
    "dangling": "nowhere",
}


@pytest.mark.parametrize("name", LINKS)
def test_no_link_leads_out(workspace: Workspace, root: Path, tmp_path: Path, name: str) -> None:
    target = LINKS[name].replace("/TMP", str(tmp_path)).replace("TMP", str(tmp_path))
    (root / name).symlink_to(target)

    with pytest.raises(OSError):
        read(workspace, name)


def test_no_linked_directory_leads_out(workspace: Workspace, root: Path, tmp_path: Path) -> None:
    (root / "dir").symlink_to(tmp_path)
    (root / "up").symlink_to("..")

    with pytest.raises(OSError):
        read(workspace, "dir/outside")
    with pytest.raises(OSError):
        read(workspace, "up/outside")
    fd = workspace.open((b"up",), os.O_RDONLY)  # `..` of the root is the root
    assert os.path.samestat(os.fstat(fd), root.stat())
    os.close(fd)


def test_links_inside_work_relative_and_absolute(workspace: Workspace, root: Path) -> None:
    (root / "a/b").mkdir(parents=True)
    (root / "a/b/file").write_text("in")
    (root / "relative").symlink_to("a/b")
    (root / "a/sibling").symlink_to("../a/b/file")
    (root / "rooted").symlink_to("/a/b/file")
    (root / "spelled-out").symlink_to(root / "a/b/file")

    for path in ("relative/file", "a/sibling", "rooted", "spelled-out", f"{root}/relative/file"):
        assert read(workspace, path) == b"in"


def test_making_directories_does_not_go_through_links_out(
    workspace: Workspace, root: Path, tmp_path: Path
) -> None:
    (root / "out").symlink_to(tmp_path)
    (root / "dangling").symlink_to("nowhere")

    os.close(workspace.make_directories((b"a", b"b", b"c")))
    assert (root / "a/b/c").is_dir()
    with pytest.raises(OSError):
        workspace.make_directories((b"dangling", b"x"))
    try:
        os.close(workspace.make_directories((b"out", b"made")))
    except OSError:
        pass
    assert not (tmp_path / "made").exists()


def test_a_file_as_a_directory_and_a_fifo_do_not_hang(workspace: Workspace, root: Path) -> None:
    (root / "file").write_text("x")
    os.mkfifo(root / "fifo")

    with pytest.raises(NotADirectoryError):
        read(workspace, "file/x")
    os.close(workspace.open((b"fifo",), os.O_RDONLY))


def test_a_directory_that_becomes_a_link_meanwhile_leads_nowhere(
    workspace: Workspace, root: Path, tmp_path: Path
) -> None:
    (root / "dir").mkdir()
    (root / "dir/outside").write_text("inside")
    (root / "link").symlink_to(tmp_path)
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            os.rename(root / "dir", root / "other")
            os.rename(root / "link", root / "dir")
            os.rename(root / "dir", root / "link")
            os.rename(root / "other", root / "dir")

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        seen = set()
        for number in range(1_000_000):
            if number >= 3000 and seen:  # on a busy machine the right moment may be a while in coming
                break
            try:
                seen.add(read(workspace, "dir/outside"))
            except OSError:
                continue
        assert seen == {b"inside"}
    finally:
        stop.set()
        thread.join()


@settings(max_examples=200)
@given(st.lists(st.sampled_from(["..", ".", "a", "l", "", "up", "abs", "x"]), max_size=8))
def test_openat2_and_the_walk_agree(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    root = tmp_path_factory.getbasetemp() / "agree"
    if not root.exists():
        (root / "a/a").mkdir(parents=True)
        (root / "x").write_text("x")
        (root / "a/x").write_text("ax")
        (root / "l").symlink_to("a")
        (root / "a/l").symlink_to("../l/a")
        (root / "up").symlink_to("../..")
        (root / "a/up").symlink_to("../../../../a")
        (root / "abs").symlink_to("/a")
    results = []
    for openat2 in (True, False):
        workspace = Workspace(str(root), openat2=openat2)
        try:
            fd = workspace.open(tuple(part.encode() for part in parts if part not in ("", ".")), os.O_RDONLY)
            results.append(os.fstat(fd).st_ino)
            os.close(fd)
        except OSError as exc:
            results.append(exc.errno)
        finally:
            workspace.close()
    assert results[0] == results[1]
