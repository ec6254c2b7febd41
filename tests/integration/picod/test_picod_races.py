"""A program swaps directories and links while calls work on them: nothing outside is read or changed."""

from __future__ import annotations

import http.client
import io
import os
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from .conftest import ROOT, Answer, Folder, eventually

SECONDS = 1.2  # of each call's loop: thousands of swaps
SECRET = b"nobody inside may see this"


def snapshot(folder: Path) -> dict[str, tuple[int, int, int, int, bytes]]:
    found = {}
    for where, dirs, files in os.walk(folder):
        for path in (Path(where), *(Path(where, name) for name in dirs + files)):
            stat = path.lstat()
            content = path.read_bytes() if path.is_file() else b""
            found[str(path)] = (stat.st_mode, stat.st_uid, stat.st_mtime_ns, stat.st_ino, content)
    return found


@pytest.fixture
def outside(folder: Folder) -> Iterator[Path]:
    """A directory beside the workspace that the user may change: only PicoD's care protects it."""
    path = folder.picod.workspace.parent / f"outside-{folder.name}"
    (path / "c/deep").mkdir(parents=True)
    (path / "secret").write_bytes(SECRET)
    (path / "f").write_bytes(SECRET)
    (path / "c/g").write_bytes(SECRET)
    if ROOT:
        for where, _, files in os.walk(path):
            for one in (where, *(os.path.join(where, name) for name in files)):
                os.chown(one, 1000, 1000)
    yield path
    shutil.rmtree(path)


@dataclass
class Attacked(Folder):
    """A folder in which an attacker is at work."""

    attacker: str = ""

    def stop(self) -> None:
        """End the attack. Idempotent."""
        assert self.picod.call("DELETE", self.attacker).status in (204, 404)


@pytest.fixture(params=["absolute", "relative"])
def attacked(folder: Folder, outside: Path, request: pytest.FixtureRequest) -> Iterator[Attacked]:
    script = Path(__file__).with_name("attacker.py").read_text()
    targets = [str(outside)] * 2
    if request.param == "relative":  # from the folder, and from tree/a
        targets = [f"../../{outside.name}", f"../../../../{outside.name}"]
    folder.shell("mkdir -p swap tree/a/b far/away wander/x/y spare; echo x > name")
    answer = folder.picod.call(
        "POST",
        "/api/processes",
        {"command": ["python3", "-c", script, *targets], "working_dir": folder.name, "background": True},
    )
    assert answer.status == 201, answer.body
    eventually(lambda: (folder.path / "l1").is_symlink() or (folder.path / "swap").is_symlink())
    attacked = Attacked(folder.picod, folder.name, f"/api/processes/{answer.json()['id']}")
    yield attacked
    attacked.stop()


def archive() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in ("b/", "b/c/"):
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o700
            tar.addfile(info)
        for name in ("b/f", "b/c/g", "b/secret", "b/new"):
            info = tarfile.TarInfo(name)
            info.size = 7
            tar.addfile(info, io.BytesIO(b"written"))
        info = tarfile.TarInfo("b/hard")
        info.type, info.linkname = tarfile.LNKTYPE, "b/secret"
        tar.addfile(info)
    return out.getvalue()


Call = Callable[[Folder, int], Answer]


def _calls() -> dict[str, Call]:
    tar = archive()

    def json(method: str, target: str, **body: object) -> Call:
        return lambda f, i: f.picod.call(
            method,
            target.format(f.name),
            {k: v.format(f.name, i) if isinstance(v, str) else v for k, v in body.items()},
        )

    def plain(method: str, target: str, body: bytes | None = None) -> Call:
        return lambda f, i: f.picod.call(method, target.format(f.name, i), body)

    return {
        "put": plain("PUT", "/api/files/{}/swap/f", b"written"),
        "put below": plain("PUT", "/api/files/{}/tree/a/b/c/g", b"written"),
        "append": plain("PUT", "/api/files/{}/name?append=true", b"written"),
        "append below": plain("PUT", "/api/files/{}/swap/f?append=true", b"written"),
        "get": plain("GET", "/api/files/{}/swap/f"),
        "get name": plain("GET", "/api/files/{}/name"),
        "stat": plain("GET", "/api/fs/stat?path={}/swap/secret"),
        "delete": plain("DELETE", "/api/files/{}/swap?recursive=true"),
        "delete below": plain("DELETE", "/api/files/{}/tree?recursive=true"),
        "delete what wanders": plain("DELETE", "/api/files/{}/wander/x?recursive=true"),
        "delete in": plain("DELETE", "/api/files/{}/swap/f"),
        "mkdir": json("POST", "/api/fs/mkdir", path="{}/swap/made/{}", mode="0777"),
        "chmod": json("PATCH", "/api/files/{}/swap", permissions="0777", modified="2001-01-01T00:00:00Z"),
        "chmod in": json("PATCH", "/api/files/{}/swap/f", permissions="0777"),
        "chmod tree": json("PATCH", "/api/files/{}/tree", permissions="0777", recursive=True),
        "chmod what wanders": json("PATCH", "/api/files/{}/wander", permissions="0777", recursive=True),
        "move in": json("POST", "/api/fs/move", source="{}/name", destination="{}/swap/f", overwrite=True),
        "move out": json(
            "POST", "/api/fs/move", source="{}/swap/f", destination="{}/spare/f", overwrite=True
        ),
        "copy from": json(
            "POST", "/api/fs/copy", source="{}/tree", destination="{}/spare/t{}", overwrite=True
        ),
        "copy in": json("POST", "/api/fs/copy", source="{}/name", destination="{}/swap/f", overwrite=True),
        "copy over": json("POST", "/api/fs/copy", source="{}/far", destination="{}/tree/a/b", overwrite=True),
        "list": plain("GET", "/api/files?path={}&recursive=true"),
        "list in": plain("GET", "/api/files?path={}/swap"),
        "pack": plain("GET", "/api/fs/tar?path={}/tree"),
        "pack in": plain("GET", "/api/fs/tar?path={}/swap"),
        "unpack": plain("PUT", "/api/fs/tar?path={}/tree/a", tar),
        "unpack in": plain("PUT", "/api/fs/tar?path={}/swap", tar),
    }


CALLS = _calls()


def test_nothing_outside_is_read_or_changed(attacked: Attacked, outside: Path) -> None:
    before = snapshot(outside)
    worked: dict[str, set[int]] = {name: set() for name in CALLS}
    end = time.monotonic() + SECONDS * 4

    def loop(names: list[str]) -> None:
        count = 0
        while time.monotonic() < end:
            for name in names:
                count += 1
                try:
                    answer = CALLS[name](attacked, count)
                except http.client.IncompleteRead:
                    assert name.startswith("pack")  # what it had begun to pack became another
                    continue
                assert SECRET not in answer.body, name
                assert answer.status < 500, (name, answer.body)
                worked[name].add(answer.status)

    names = sorted(CALLS)
    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(loop, names[n::3] + names[: n * 3]) for n in range(3)]:
            done.result()

    attacked.stop()
    assert snapshot(outside) == before
    for folder, _, files in os.walk(attacked.path):
        for name in files:
            path = Path(folder, name)
            assert path.is_symlink() or SECRET not in path.read_bytes()
    succeeded = [name for name, found in worked.items() if any(status < 300 for status in found)]
    assert len(succeeded) > len(CALLS) // 2, worked  # they were not just all refused
    assert attacked.picod.call("GET", "/health").status == 200


def test_the_attacker_beats_who_checks_first(attacked: Attacked) -> None:
    """The attack is a real one: it leads out whoever looks where a path leads, and then opens it."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        path = str(attacked.path / "name")
        try:
            if os.path.realpath(path).startswith(os.path.realpath(attacked.picod.workspace)):
                with open(path, "rb") as file:
                    if SECRET in file.read():
                        return
        except OSError:
            pass
    raise AssertionError("the attacker is not fast enough to prove anything")
