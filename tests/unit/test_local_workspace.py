"""Workspaces without a mount: copies of templates, and what is said where there is no disk mechanism."""

import os
import random
from pathlib import Path

import pytest

from agentcube.drivers.local.workspace import SIZE_MIN, Workspaces, copy_sparse


@pytest.mark.parametrize("layout", ["", "d", "h", "dh", "hd", "hdhdh", "ddh"])
def test_a_sparse_copy_has_the_same_bytes_and_the_same_holes(tmp_path: Path, layout: str) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    content = random.Random(1)
    with source.open("wb") as file:
        for part in layout:
            if part == "d":
                file.write(content.randbytes(1 << 20))
            else:
                file.seek(8 << 20, os.SEEK_CUR)
        file.truncate(file.tell())
    copy_sparse(source, target)
    assert source.read_bytes() == target.read_bytes()
    assert target.stat().st_blocks <= source.stat().st_blocks + 64


def test_a_copy_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"new")
    (tmp_path / "b").write_bytes(b"somebody's")
    with pytest.raises(FileExistsError):
        copy_sparse(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"somebody's"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may have loop devices")
def test_without_loop_devices_workspaces_are_in_memory_and_say_why(tmp_path: Path) -> None:
    workspaces = Workspaces(tmp_path / "templates")
    assert workspaces.mechanism == "memory"
    assert workspaces.reason
    made = workspaces.create(tmp_path, 1, 1000, 1000)
    assert (made.mechanism, made.size_bytes, made.mount_fd) == ("memory", SIZE_MIN, None)
    assert workspaces.used_bytes(tmp_path) is None
    workspaces.destroy(tmp_path)
    workspaces.destroy(tmp_path)


def test_where_templates_cannot_be_kept_workspaces_are_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert Workspaces(tmp_path / "file" / "templates").mechanism == "memory"
