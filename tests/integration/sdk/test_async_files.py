"""Files, directories and watches, against a server that speaks the wire."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agentcube import AsyncSandbox, ConnectionLost, InvalidArgument, TransferIncomplete
from agentcube.errors import Conflict, FileExists, FileNotFound, NotEmpty
from agentcube.events import FileChanged
from agentcube.sdk._async.file import AsyncFileWriter
from tests.integration.sdk.wire_answers import Answer
from tests.integration.sdk.wire_processes import pattern
from tests.integration.sdk.wire_server import DROP, WireServer

# [async
pytestmark = pytest.mark.anyio
# async]

DATA = pattern(300_000)


async def test_files_are_written_and_read_whole(server: WireServer) -> None:
    async with AsyncSandbox(url=server.url) as box:
        made = await box.files.write("a/b.txt", "grüße", mode=0o600)
        assert (made.path, made.name, made.type, made.size) == ("a/b.txt", "b.txt", "file", 7)
        assert (made.permissions, made.uid, made.is_dir) == ("0600", 1000, False)
        assert await box.files.read_text("a/b.txt") == "grüße"
        await box.files.append("a/b.txt", b"!")
        assert await box.files.read("a/b.txt") == "grüße!".encode()
        with pytest.raises(Conflict, match="8 bytes"):
            await box.files.append("a/b.txt", b"?", offset=7)
        assert await box.files.read("a/b.txt", offset=2, length=3) == "grüße".encode()[2:5]
        assert await box.files.read("a/b.txt", offset=100) == b""
        assert await box.files.read("a/b.txt", length=0) == b""
        with pytest.raises(FileExists):
            await box.files.write("a/b.txt", b"", exclusive=True)
        await box.files.write("empty", b"")
        assert await box.files.read("empty") == b""
        with pytest.raises(FileNotFound):
            await box.files.read("nothing")
        with pytest.raises(InvalidArgument):
            await box.files.write("/", b"x")


async def test_content_comes_from_memory_files_and_pieces(server: WireServer, tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(DATA)
    read, write = os.pipe()
    os.write(write, b"piped")
    os.close(write)

    def pieces() -> Iterator[bytes]:
        yield from (b"one ", b"", b"two")

    async with AsyncSandbox(url=server.url) as box:
        with (tmp_path / "local").open("rb") as file, os.fdopen(read, "rb") as pipe:
            await box.files.write("file", file)
            await box.files.write("pipe", pipe)
        await box.files.write("bytesio", io.BytesIO(b"in memory"))
        await box.files.write("pieces", pieces())
        await box.files.write("array", bytearray(b"array"))
        files = server.files[box.session_id]
    assert files == {
        "file": DATA,
        "pipe": b"piped",
        "bytesio": b"in memory",
        "pieces": b"one two",
        "array": b"array",
    }


async def test_names_are_made_moved_copied_and_deleted(server: WireServer) -> None:
    async with AsyncSandbox(url=server.url) as box:
        files = box.files
        assert (await files.mkdir("d")).is_dir
        assert await files.exists("d")
        assert not await files.exists("d/x")
        await files.write("d/x", b"1")
        with pytest.raises(NotEmpty):
            await files.delete("d")
        assert (await files.copy("d/x", "d/y")).path == "d/y"
        assert (await files.move("d/y", "z")).path == "z"
        with pytest.raises(FileExists):
            await files.move("z", "d/x")
        await files.move("z", "d/x", overwrite=True)
        assert (await files.chmod("d/x", "755")).permissions == "0755"
        assert (await files.stat("d/x")).size == 1
        await files.utime("d/x", datetime(2026, 1, 2, tzinfo=UTC))
        assert server.requests("PATCH", ".*")[-1].json == {"modified": "2026-01-02T00:00:00+00:00"}
        with pytest.raises(InvalidArgument, match="time zone"):
            await files.utime("d/x", datetime(2026, 1, 2))
        await files.delete("d", recursive=True)
        await files.delete("d", missing_ok=True)
        with pytest.raises(FileNotFound):
            await files.delete("d")


async def test_listings_are_fetched_a_page_at_a_time(server: WireServer) -> None:
    async with AsyncSandbox(url=server.url) as box:
        for name in ("a.py", "b.txt", "d/c.py", "d/e/f.py"):
            await box.files.write(name, b"")
        server.workspaces[box.session_id].page_size = 2
        assert [f.path for f in await box.files.list()] == ["a.py", "b.txt", "d"]
        assert [f.path for f in await box.files.glob("**/*.py")] == ["a.py", "d/c.py", "d/e/f.py"]
        assert [f.path for f in await box.files.list("d", recursive=True)] == ["d/c.py", "d/e/f.py"]
        pages = [s.query for s in server.requests("GET", ".*/files")]
        assert pages[0] == {"path": ".", "limit": "1000"}
        assert pages[1] == {"path": ".", "limit": "1000", "cursor": "2"}


async def test_a_file_is_read_piece_by_piece_and_sought_in(server: WireServer) -> None:
    async with AsyncSandbox(url=server.url) as box:
        await box.files.write("big", DATA)
        async with await box.files.reader("big") as file:
            assert file.size == len(DATA)
            assert await file.read(10) == DATA[:10]
            assert file.tell() == 10
            assert await file.read(100_000) == DATA[10:100_010]
            assert await file.seek(-5, io.SEEK_END) == len(DATA) - 5
            assert await file.read() == DATA[-5:]
            assert await file.read() == b""
            await file.seek(7)
            assert await file.seek(3, io.SEEK_CUR) == 10
            assert b"".join([piece async for piece in file]) == DATA[10:]
            with pytest.raises(InvalidArgument):
                await file.seek(-1)
        with pytest.raises(FileNotFound):
            await box.files.reader("nothing")


async def test_a_file_that_is_written_to_appears_when_the_block_ends_well(server: WireServer) -> None:
    async with AsyncSandbox(url=server.url) as box:
        async with box.files.writer("made", mode=0o640) as file:
            assert await file.write("ä") == 2
            await file.write(b"b")
            assert not await box.files.exists("made")
        assert file.info is not None
        assert (file.info.size, file.info.permissions) == (3, "0640")
        async with box.files.writer("made", append=True) as file:
            await file.write("c")
        assert await box.files.read_text("made") == "äbc"
        never = box.files.writer("never")
        with pytest.raises(KeyError):
            await _write_and_raise(never)
        assert not await box.files.exists("never")
        with pytest.raises(ValueError, match="closed"):
            await never.write("x")


async def _write_and_raise(file: AsyncFileWriter) -> None:
    async with file:
        await file.write("x")
        raise KeyError


async def test_a_file_that_changes_while_it_is_read_is_not_mixed(server: WireServer) -> None:
    async with AsyncSandbox(url=server.url) as box:
        await box.files.write("big", DATA)
        half = Answer(200, DATA[:100_000], {"etag": '"1"'}, promise=len(DATA))
        server.script("GET", ".*/files/big", half)
        await box.files.write("big", b"new")
        with pytest.raises(Conflict, match="changed"):
            await box.files.read("big")


async def test_a_lost_append_is_said_and_not_repeated(server: WireServer) -> None:
    async with AsyncSandbox(url=server.url) as box:
        await box.files.write("log", b"a")
        server.drop_after("PUT", ".*/files/log")
        with pytest.raises(ConnectionLost):
            await box.files.append("log", b"b")
        assert await box.files.read("log") == b"ab"
        server.script("PUT", ".*/files/log", DROP)
        await box.files.write("log", b"whole")
        assert await box.files.read("log") == b"whole"


async def test_files_go_up_and_down_with_their_permissions(server: WireServer, tmp_path: Path) -> None:
    local = tmp_path / "run.sh"
    local.write_bytes(DATA)
    local.chmod(0o755)
    moved: list[tuple[int, int | None]] = []

    def progress(done: int, total: int | None) -> None:
        moved.append((done, total))

    async with AsyncSandbox(url=server.url) as box:
        up = await box.files.upload(local, "bin/run.sh", progress=progress)
        assert (up.files, up.size) == (1, len(DATA))
        assert moved[-1] == (len(DATA), len(DATA))
        assert (await box.files.stat("bin/run.sh")).permissions == "0755"
        await box.files.upload(io.BytesIO(b"x"), "x")
        moved.clear()
        down = await box.files.download("bin/run.sh", tmp_path / "new" / "copy", progress=progress)
        assert (down.files, down.size) == (1, len(DATA))
        assert moved[-1] == (len(DATA), len(DATA))
        assert (tmp_path / "new" / "copy").read_bytes() == DATA
        with pytest.raises(FileNotFoundError):
            await box.files.upload(tmp_path / "nothing", "x")
        with pytest.raises(FileNotFound):
            await box.files.download("nothing", tmp_path / "y")
        assert not (tmp_path / "y").exists()


async def test_directories_go_up_and_down(server: WireServer, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "below").mkdir(parents=True)
    (source / "a").write_bytes(DATA)
    (source / "below" / "b").write_bytes(b"b")
    moved: list[int] = []
    async with AsyncSandbox(url=server.url) as box:
        up = await box.files.upload(source, "tree", progress=lambda done, total: moved.append(done))
        assert (up.files, up.size) == (3, len(DATA) + 1)
        assert moved[-1] == len(DATA) + 1
        server.script("GET", ".*/fs/tar", Answer(200, b"x" * 512, promise=1000))
        down = await box.files.download(
            "tree", tmp_path / "copy", progress=lambda done, total: moved.append(done)
        )
        assert (down.files, down.size) == (2, len(DATA) + 1)
    assert (tmp_path / "copy" / "a").read_bytes() == DATA
    assert (tmp_path / "copy" / "below" / "b").read_bytes() == b"b"


async def test_a_directory_that_keeps_breaking_off_is_said(server: WireServer, tmp_path: Path) -> None:
    async with AsyncSandbox(url=server.url) as box:
        await box.files.write("tree/a", DATA)
        server.script("GET", ".*/fs/tar", *[Answer(200, b"", promise=1000)] * 3)
        with pytest.raises(TransferIncomplete):
            await box.files.download("tree", tmp_path / "copy")
    assert list((tmp_path / "copy").iterdir()) == []


async def test_a_watch_sees_everything_from_the_start_of_the_block_on(server: WireServer) -> None:
    async with AsyncSandbox(url=server.url) as box:
        async with box.files.watch(recursive=True) as changes:
            await box.files.write("a", b"")
            assert await anext(changes) == FileChanged(kind="create", path="a")
            await box.files.move("a", "b")
            assert await anext(changes) == FileChanged(kind="rename", path="b", from_path="a")
            server.cut_streams()
            assert await anext(changes) == FileChanged(kind="overflow")
            await box.files.delete("b")
            assert await anext(changes) == FileChanged(kind="delete", path="b")
        with pytest.raises(StopAsyncIteration):
            await anext(changes)
        assert server.requests("GET", ".*/fs/watch")[0].query == {"path": ".", "recursive": "true"}
