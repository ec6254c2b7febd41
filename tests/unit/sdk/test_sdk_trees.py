"""Directories as tar streams: packed from this machine, and unpacked from a sandbox that is not trusted."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentcube.sdk._core.errors import InvalidArgument, TransferIncomplete, UnexpectedAnswer
from agentcube.sdk._core.tar_source import TarSource
from agentcube.sdk._core.tar_target import TarTarget


def _packed(source: TarSource) -> bytes:
    source.rewind()
    return b"".join(iter(source.read, b""))


def _unpack(stream: bytes, root: Path, *, piece: int = 1 << 20) -> TarTarget:
    with TarTarget(root, "unpack") as target:
        for at in range(0, len(stream), piece):
            target.feed(stream[at : at + piece])
    return target


def _member(name: str, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    return member, data


def _archive(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=format) as archive:
        for member, data in members:
            archive.addfile(member, io.BytesIO(data))
    return made.getvalue()


def _tree(root: Path) -> dict[str, object]:
    return {
        str(p.relative_to(root)): os.readlink(p)
        if p.is_symlink()
        else p.read_bytes()
        if p.is_file()
        else None
        for p in root.rglob("*")
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    (root / "below" / "deep").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "a").write_bytes(b"a" * 1000)
    (root / "b").write_bytes(bytes(1024))
    (root / "run").write_text("#!/bin/sh\n")
    (root / "run").chmod(0o750)
    (root / "below" / "deep" / ("ä" * 60 + "x" * 60)).write_bytes(b"long")
    (root / "up").symlink_to("below/../a")
    (root / "below" / "link").symlink_to("../a")
    os.utime(root / "a", (1_000_000_000, 1_000_000_000))
    (root / "below").chmod(0o700)
    return root


@pytest.mark.parametrize("piece", [1, 511, 4096, 1 << 20])
def test_a_tree_goes_there_and_back(source: Path, tmp_path: Path, piece: int) -> None:
    moved: list[tuple[int, int | None]] = []
    packed = TarSource(source, lambda done, total: moved.append((done, total)))
    stream = _packed(packed)
    assert _packed(packed) == stream, "it can be sent again"
    assert moved[-1] == (1000 + 1024 + 10 + 4, 1000 + 1024 + 10 + 4)
    target = _unpack(stream, tmp_path / "copy", piece=piece)
    assert target.files == 4
    assert target.left_out == ["up"], "its target is written in a way that may lead anywhere"
    expected = _tree(source)
    del expected["up"]
    assert _tree(tmp_path / "copy") == expected
    assert (tmp_path / "copy" / "run").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "copy" / "below").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "copy" / "a").stat().st_mtime == 1_000_000_000


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_every_dialect_of_tar_is_read(tmp_path: Path, format: int) -> None:
    name = "/".join(["directory" * 4] * 3) + "/" + "f" * 90
    members = [_member(name, b"x")]
    if format != tarfile.USTAR_FORMAT:
        members.append(_member("hard", type=tarfile.LNKTYPE, linkname=name))
        members.append(_member("n" * 150, b"long"))
    done = _unpack(_archive(*members, format=format), tmp_path / "t")
    assert done.left_out == []
    assert (tmp_path / "t" / name).read_bytes() == b"x"
    if format != tarfile.USTAR_FORMAT:
        assert (tmp_path / "t" / "hard").read_bytes() == b"x"
        assert (tmp_path / "t" / ("n" * 150)).read_bytes() == b"long"


def test_what_is_there_is_merged_and_files_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "t" / "d").mkdir(parents=True)
    (tmp_path / "t" / "d" / "mine").write_text("stays")
    (tmp_path / "t" / "d" / "theirs").write_text("old and longer")
    _unpack(
        _archive(_member("d", type=tarfile.DIRTYPE, mode=0o755), _member("d/theirs", b"new")), tmp_path / "t"
    )
    assert _tree(tmp_path / "t") == {"d": None, "d/mine": b"stays", "d/theirs": b"new"}


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "a/../b", "a\0b"])
def test_names_that_lead_out_end_the_transfer(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnexpectedAnswer, match="leads out"):
        _unpack(_archive(_member("ok", b"1"), _member("placeholder"))[:1024] + _raw(name), tmp_path / "t")
    assert _tree(tmp_path) == {"t": None, "t/ok": b"1"}


def _raw(name: str) -> bytes:
    """A header that tarfile's writer would not make."""
    head = bytearray(tarfile.TarInfo("x" * len(name)).tobuf(tarfile.USTAR_FORMAT))
    encoded = name.encode()
    head[: len(encoded)] = encoded
    if b"\0" in encoded:  # only an extended header can say such a name
        record = b" path=" + encoded + b"\n"
        length = len(record) + 2
        body = str(length).encode() + record
        extended = tarfile.TarInfo("pax")
        extended.type, extended.size = tarfile.XHDTYPE, len(body)
        return extended.tobuf(tarfile.USTAR_FORMAT) + body.ljust(512, b"\0") + tarfile.TarInfo("y").tobuf()
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + bytes(1024)


@pytest.mark.parametrize(
    "target", ["/etc/passwd", "..", "../../x", "a/../../x", "up/..", "a/b/../../..", "./../x"]
)
def test_links_that_could_lead_out_are_left_out(tmp_path: Path, target: str) -> None:
    stream = _archive(
        _member("up", type=tarfile.SYMTYPE, linkname="."),
        _member("link", type=tarfile.SYMTYPE, linkname=target),
    )
    done = _unpack(stream, tmp_path / "t")
    assert done.left_out == ["link"]
    assert _tree(tmp_path / "t") == {"up": "."}


def test_nothing_is_written_through_a_link_of_the_stream(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    members = [_member("d", type=tarfile.SYMTYPE, linkname="e"), _member("d/file", b"x")]
    done = _unpack(_archive(*members), tmp_path / "t")
    assert done.left_out == ["d"], "the directory was there first"
    assert _tree(tmp_path / "t") == {"d": None, "d/file": b"x"}


@pytest.mark.parametrize(
    "member",
    [
        _member("link/file", b"x"),
        _member("link", type=tarfile.DIRTYPE),
        _member("link/below", type=tarfile.DIRTYPE),
        _member("link/below", type=tarfile.SYMTYPE, linkname="x"),
    ],
)
def test_nothing_is_written_through_a_link_that_was_there(
    tmp_path: Path, member: tuple[tarfile.TarInfo, bytes]
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(UnexpectedAnswer, match="written through"):
        _unpack(_archive(member), tmp_path / "t")
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_link_that_was_there_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("untouched")
    (tmp_path / "t").mkdir()
    for name in ("file", "hard", "link"):
        (tmp_path / "t" / name).symlink_to(tmp_path / "secret")
    members = [
        _member("file", b"new"),
        _member("hard", type=tarfile.LNKTYPE, linkname="file"),
        _member("link", type=tarfile.SYMTYPE, linkname="file"),
    ]
    _unpack(_archive(*members), tmp_path / "t")
    assert (tmp_path / "secret").read_text() == "untouched"
    assert _tree(tmp_path / "t") == {"file": b"new", "hard": b"new", "link": "file"}


def test_a_hard_link_to_what_the_stream_did_not_bring_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "link").symlink_to(tmp_path / "secret")
    done = _unpack(_archive(_member("copy", type=tarfile.LNKTYPE, linkname="link")), tmp_path / "t")
    assert done.left_out == ["copy"]
    with pytest.raises(UnexpectedAnswer, match="leads out"):
        _unpack(_archive(_member("copy", type=tarfile.LNKTYPE, linkname="../secret")), tmp_path / "t")


def test_devices_and_pipes_are_left_out_and_set_id_bits_dropped(tmp_path: Path) -> None:
    members = [
        _member("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        _member("pipe", type=tarfile.FIFOTYPE),
        _member("unheard", b"of" * 500, type=b"Q"),
        _member("run", b"x", mode=0o6755),
    ]
    done = _unpack(_archive(*members), tmp_path / "t")
    assert done.left_out == ["null", "pipe", "unheard"]
    assert (tmp_path / "t" / "run").stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize("keep", [0, 100, 512, 700, 1024])
def test_a_stream_that_breaks_off_leaves_no_half_file(tmp_path: Path, keep: int) -> None:
    stream = _archive(_member("file", b"x" * 5000))
    with pytest.raises(TransferIncomplete, match="in the middle"):
        _unpack(stream[:keep], tmp_path / "t")
    assert list((tmp_path / "t").iterdir()) == []


@settings(max_examples=60)
@given(data=st.data())
def test_damaged_streams_are_told_and_nothing_else_happens(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stream = bytearray(
        _archive(
            _member("d/file", b"x" * 600),
            _member("n" * 150, b"y"),
            _member("l", type=tarfile.SYMTYPE, linkname="d"),
        )
    )
    for _ in range(data.draw(st.integers(1, 4))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.mktemp("damaged")
    try:
        _unpack(bytes(stream), folder / "t")
    except (UnexpectedAnswer, TransferIncomplete, OSError):
        pass
    assert [p.name for p in folder.iterdir()] == ["t"]
    assert not any(p.name.endswith(".part") for p in folder.rglob("*"))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda head: b"\xff" * 512,
        lambda head: head[:124] + b"\xff" * 12 + head[136:],
        lambda head: b"x" * 512,
    ],
    ids=["no header", "a negative size", "no checksum"],
)
def test_what_is_no_archive_is_an_unexpected_answer(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    head = bytearray(spoil(tarfile.TarInfo("f").tobuf(tarfile.GNU_FORMAT)))
    if head[257:262] == b"ustar":
        head[148:156] = b" " * 8
        head[148:156] = b"%06o\0 " % sum(head)
    with pytest.raises(UnexpectedAnswer):
        _unpack(bytes(head) + bytes(1024), tmp_path / "t")


def test_headers_are_bounded(tmp_path: Path) -> None:
    huge = tarfile.TarInfo("pax")
    huge.type, huge.size = tarfile.XHDTYPE, 1 << 30
    with pytest.raises(UnexpectedAnswer, match="a header of"):
        _unpack(huge.tobuf(tarfile.USTAR_FORMAT), tmp_path / "t")


def test_a_file_that_shrinks_while_it_is_sent_ends_the_request(source: Path) -> None:
    packed = TarSource(source)
    packed.rewind()
    head = packed.read()
    assert head[:2] == b"a\0"
    (source / "a").write_bytes(b"")
    with pytest.raises(InvalidArgument, match="shorter"):
        list(iter(packed.read, b""))


def test_sockets_and_pipes_are_left_out(source: Path) -> None:
    os.mkfifo(source / "pipe")
    packed = TarSource(source)
    stream = _packed(packed)
    assert packed.left_out == ["pipe"]
    with tarfile.open(fileobj=io.BytesIO(stream)) as archive:
        assert "pipe" not in archive.getnames()
        assert archive.getmember("up").linkname == "below/../a"
