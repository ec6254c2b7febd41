"""/api/fs/tar both ways: what tar(1) and Python make and read; hostile archives stay below their directory."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import tarfile
from collections.abc import Callable
from typing import Any

import pytest

from .conftest import ROOT, USER, Answer, Folder, eventually

LISTING = "find . -mindepth 1 -printf '%P %y %m %s %T@ %l\\n' | sort"


def unpack(folder: Folder, archive: bytes, below: str = "", query: str = "") -> Answer:
    target = f"/api/fs/tar?path={folder.name}/{below}{query}"
    return folder.picod.call("PUT", target, archive, {"Content-Type": "application/x-tar"})


def archive(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def member(name: str, content: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


TREE = (
    "mkdir -p d/sub/empty d/ro; echo hello > d/sub/f; chmod 0751 d/sub/f; ln -s ../absent d/sub/link;"
    "head -c 300000 /dev/urandom > d/random; ln d/random d/sub/other-name; mkfifo d/pipe; : > d/nothing;"
    "cd d; n=$(printf 'x%.0s' $(seq 150)); mkdir -p $n/$n; echo long > $n/$n/$n; ln -s $n/$n/$n longlink; cd ..;"
    "echo y > d/ro/g; touch -d '2001-02-03 04:05:06.789012345' d/sub/f; touch -h -d 2001-02-04 d/sub/link;"
    "printf e > 'd/näme'; printf '' > $(printf 'd/\\377\\376'); touch -d 1960-01-01 d/nothing; chmod 0555 d/ro;"
    "touch -d 2001-02-05 d/ro d/sub"
)


@pytest.mark.parametrize("gzipped", ["false", "true"])
def test_there_and_back_again(folder: Folder, gzipped: str) -> None:
    folder.shell(TREE)
    answer = folder.get("fs/tar?path={}/d&gzip=" + gzipped)
    assert answer.status == 200
    assert answer.headers["content-type"] == (
        "application/gzip" if gzipped == "true" else "application/x-tar"
    )

    back = unpack(folder, answer.body, "e/made")

    with tarfile.open(fileobj=io.BytesIO(answer.body)) as tar:
        count = len(tar.getmembers())
    assert (back.status, back.json()["entries"]) == (200, count)
    without_pipe = LISTING.replace("|", "| grep -v pipe |", 1)
    assert folder.shell(f"cd e/made; {LISTING}") == folder.shell(f"cd d; {without_pipe}")
    assert (folder.path / "e/made/random").stat().st_ino == (
        folder.path / "e/made/sub/other-name"
    ).stat().st_ino
    assert folder.shell("cmp d/random e/made/random && cat e/made/x*/x*/x*") == "long\n"
    folder.shell("chmod -R u+w d e")


def test_tar_reads_what_we_write_and_we_read_what_tar_writes(folder: Folder) -> None:
    folder.shell(TREE)
    ours = folder.get("fs/tar?path={}/d").body
    assert len(ours) % 10240 == 0
    folder.shell("mkdir gnu")
    subprocess.run(
        ["tar", "-x", "-p", "--no-same-owner", "-C", folder.path / "gnu"],
        input=ours,
        check=True,
        capture_output=True,
    )
    without_pipe = LISTING.replace("|", "| grep -v pipe |", 1)
    assert folder.shell(f"cd gnu; {LISTING}") == folder.shell(f"cd d; {without_pipe}")

    for number, format in enumerate(("gnu", "pax", "oldgnu", "ustar")):
        options, skip = "--exclude=pipe", "pipe"
        if format == "ustar":  # it has neither long links nor times before 1970
            options += " --exclude='x*' --exclude=longlink --exclude=nothing"
            skip = "pipe\\|^x\\|longlink\\|nothing"
        theirs = subprocess.run(
            ["sh", "-c", f"cd {folder.path}/d && tar -c --format={format} {options} ."],
            check=True,
            capture_output=True,
        ).stdout
        answer = unpack(folder, theirs, f"from-{number}")
        assert answer.status == 200, (format, answer.body)
        listing = "find . -mindepth 1 -printf '%P %y %m %s %Ts %l\\n' | sort"
        if format == "pax":
            listing = LISTING
        expected = folder.shell("cd d; " + listing.replace("|", f"| grep -v '{skip}' |", 1))
        assert folder.shell(f"cd from-{number}; {listing}") == expected, format
    folder.shell("chmod -R u+w d from-*")
    (folder.path / "gnu/ro").chmod(0o755)


def test_owners_are_the_user_and_setuid_is_dropped(folder: Folder) -> None:
    data = archive(
        member("f", b"x", mode=0o6755, uid=0, gid=0, uname="root"),
        member("d", type=tarfile.DIRTYPE, mode=0o7777),
    )
    assert unpack(folder, data).json() == {"entries": 2, "bytes": 1}
    found = (folder.path / "f").stat()
    assert (found.st_uid, found.st_mode & 0o7777) == (USER, 0o755)
    assert (folder.path / "d").stat().st_mode & 0o7777 == 0o1777


def test_unpacking_replaces_files_and_links_and_keeps_the_rest(folder: Folder) -> None:
    folder.shell("mkdir d; echo old > d/f; echo kept > d/g; ln -s /etc/hostname d/l; ln -s g d/h")
    data = archive(
        member("d/", type=tarfile.DIRTYPE, mode=0o750),
        member("d/f", b"new"),
        member("d/l", b"mine"),
        member("d/h", type=tarfile.SYMTYPE, linkname="f"),
        member("./d//./i", type=tarfile.LNKTYPE, linkname="./d/f"),
        member("d/i", type=tarfile.LNKTYPE, linkname="d/f"),
    )
    assert unpack(folder, data).status == 200
    assert folder.shell("cat d/f d/g d/l d/h d/i; ls -A d") == "newkept\nminenewnewf\ng\nh\ni\nl\n"


def hostile(folder: Folder) -> dict[str, tuple[bytes, str]]:
    """Archives, each with the member that is to blame."""
    ok = member("fine", b"fine")
    outside = f"../{folder.name}-out"
    cases: dict[str, list[tuple[tarfile.TarInfo, bytes]]] = {
        "/abs": [member("/abs", b"x")],
        outside: [member(outside, b"x")],
        "a/../../x": [member("a/../../x", b"x")],
        "..": [member("..", type=tarfile.DIRTYPE)],
        "dev": [member("dev", type=tarfile.CHRTYPE, devmajor=1, devminor=3)],
        "blk": [member("blk", type=tarfile.BLKTYPE)],
        "fifo": [member("fifo", type=tarfile.FIFOTYPE)],
        "hard": [member("hard", type=tarfile.LNKTYPE, linkname="/etc/passwd")],
        "hard2": [member("hard2", type=tarfile.LNKTYPE, linkname="../../../etc/passwd")],
        "hard3": [member("hard3", type=tarfile.LNKTYPE, linkname="absent")],
        "hard4": [
            member("out4", type=tarfile.SYMTYPE, linkname="/etc"),
            member("hard4", type=tarfile.LNKTYPE, linkname="out4/passwd"),
        ],
        "out/x": [member("out", type=tarfile.SYMTYPE, linkname="/tmp"), member("out/x", b"x")],
        "up/x": [member("up", type=tarfile.SYMTYPE, linkname=".."), member("up/x", b"x")],
        "here/x": [member("here", type=tarfile.SYMTYPE, linkname="."), member("here/x", b"x")],
        "there/x": [member("there/x", b"x")],
        "out2": [member("out2", type=tarfile.SYMTYPE, linkname="/tmp"), member("out2", type=tarfile.DIRTYPE)],
        "f/x": [member("f", b"x"), member("f/x", b"x")],
        "adir": [member("adir/x", b"x"), member("adir", b"x")],
        "a/" * 260 + "a": [member("a/" * 260 + "a", b"x")],
        "n" * 300: [member("n" * 300, b"x")],
        "empty-link": [member("empty-link", type=tarfile.SYMTYPE, linkname="")],
        "odd": [member("odd", type=b"Z")],
        "multi": [member("multi", type=b"M")],
    }
    return {name: (archive(ok, *members), name) for name, members in cases.items()}


def test_hostile_archives_are_refused_and_nothing_outside_is_touched(folder: Folder) -> None:
    os.mkdir(folder.path.parent / f"{folder.name}-ws")
    folder.shell(f"chmod 755 .; ln -s ../{folder.name}-ws there")
    before = (
        set(os.listdir(folder.path.parent)),
        set(os.listdir(folder.path.parent.parent)),
        set(os.listdir("/tmp")),
    )
    for name, (data, blamed) in hostile(folder).items():
        answer = unpack(folder, data)
        assert (name, answer.status, answer.json().get("code")) == (name, 400, "invalid")
        assert blamed[:200] in answer.json()["detail"]
        assert answer.json()["entries"] >= 1  # what came before it stays
        assert (folder.path / "fine").read_text() == "fine"
    after = set(os.listdir(folder.path.parent)), set(os.listdir(folder.path.parent.parent))
    assert after == before[:2]
    assert not os.listdir(folder.path.parent / f"{folder.name}-ws")
    assert not [n for n in set(os.listdir("/tmp")) - before[2] if n in ("x", "abs")]
    left = folder.shell("find . -name '.agentcube*' -o -type p -o -type b -o -type c")
    assert left == ""


def broken() -> dict[str, bytes]:
    good = archive(member("f", b"x" * 1000), member("g", b"y" * 1000))
    zipped = gzip.compress(good)
    swapped = bytearray(good)
    swapped[1536 + 5] ^= 1  # in the second header
    long = tarfile.TarInfo("x")
    long.type, long.size = tarfile.XHDTYPE, 2 << 20
    pax = tarfile.TarInfo("x")
    pax.type = tarfile.XHDTYPE

    def with_records(data: bytes) -> bytes:
        pax.size = len(data)
        return pax.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512) + good

    negative = bytearray(tarfile.TarInfo("neg").tobuf(tarfile.GNU_FORMAT))
    negative[124:136] = b"\xff" * 12
    negative[148:156] = b"%06o\0 " % (sum(negative[:148]) + 8 * 32 + sum(negative[156:]))
    sparse = tarfile.TarInfo("s")
    sparse.type = tarfile.GNUTYPE_SPARSE
    return {
        "nothing": b"",
        "a little": b"x",
        "text": b"hello " * 1000,
        "zip": b"PK\x03\x04" + bytes(1000),
        "bzip2": b"BZh9" + bytes(range(200)) * 3,
        "cut in a member": good[:1200],
        "cut in a header": good[:1600],
        "a wrong checksum": bytes(swapped),
        "cut gzip": zipped[: len(zipped) // 2],
        "damaged gzip": zipped[:40] + b"\0\0\0\0" + zipped[44:],
        "gzip of nothing": gzip.compress(b""),
        "a huge header": long.tobuf(tarfile.USTAR_FORMAT) + bytes(1 << 20),
        "records without length": with_records(b"path=x\n"),
        "records of length 0": with_records(b"0 path=x\n"),
        "records too long": with_records(b"99 path=x\n"),
        "a huge number": with_records(b"30 size=99999999999999999999999\n"),
        "a wrong time": with_records(b"13 mtime=abc\n"),
        "a NUL in a path": with_records(b"11 path=a\0b\n"),
        "pax sparse": with_records(b"22 GNU.sparse.major=1\n"),
        "gnu sparse": sparse.tobuf(tarfile.GNU_FORMAT) + good,
        "a negative size": bytes(negative) + good,
    }


@pytest.mark.parametrize("what", sorted(broken()))
def test_what_is_no_archive_is_a_clear_400(folder: Folder, what: str) -> None:
    answer = unpack(folder, broken()[what])
    assert (answer.status, answer.json()["code"]) == (400, "invalid"), answer.body
    assert len(answer.json()["detail"]) > 15
    assert not [name for name in os.listdir(folder.path) if name.startswith(".")]


@pytest.mark.parametrize("query", ["&gzip=maybe", "&x=1", "/../../..", "&gzip=true"])
def test_a_bad_call_is_a_clear_400(folder: Folder, query: str) -> None:
    assert unpack(folder, archive(member("f", b"x")), "", query).status == 400


def test_odd_but_right_archives(folder: Folder) -> None:
    good = archive(member("f", b"x" * 1000))
    for number, data in enumerate(
        (
            bytes(10240),  # empty
            good + b"rubbish behind the end" * 1000,
            good[:2048],  # without its end, but for whole members
            gzip.compress(good[:1000]) + gzip.compress(good[1000:]) + bytes(512),
            archive(member("f", b"x" * 1000), member("old/", type=tarfile.AREGTYPE)),
            archive(
                member("f", b"x" * 1000, mtime=1e9 + 0.5, pax_headers={"path": "f", "comment": "c" * 500_000})
            ),
        )
    ):
        answer = unpack(folder, data, f"n{number}")
        assert answer.status == 200, (number, answer.body)
        assert number == 0 or (folder.path / f"n{number}/f").stat().st_size == 1000
    assert (folder.path / "n5/f").stat().st_mtime_ns == 1_000_000_000_500_000_000
    assert (folder.path / "n4/old").is_dir()


def test_an_archive_in_pieces_of_any_size(folder: Folder) -> None:
    data = gzip.compress(archive(*(member(f"d/{i}", bytes([i]) * i * 7) for i in range(40))))
    connection = folder.picod.raw()
    head = f"PUT /api/fs/tar?path={folder.name} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {folder.picod.token}\r\n"
    connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
    for at in range(len(data)):
        connection.sendall(b"1\r\n" + data[at : at + 1] + b"\r\n")
    connection.sendall(b"0\r\n\r\n")
    assert b'"entries": 40' in connection.recv(65536)
    assert (folder.path / "d/39").read_bytes() == bytes([39]) * 39 * 7


def test_an_upload_that_breaks_off_keeps_whole_members_only(folder: Folder) -> None:
    data = archive(
        member("d", type=tarfile.DIRTYPE, mode=0o750),
        member("d/f", b"x" * 1000),
        member("d/g", b"y" * 900_000),
    )
    connection = folder.picod.raw()
    head = f"PUT /api/fs/tar?path={folder.name} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {folder.picod.token}\r\n"
    connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data[:500_000])
    eventually(lambda: len(list(folder.path.glob("d/*"))) == 2)
    connection.close()
    eventually(lambda: os.listdir(folder.path / "d") == ["f"])
    # A directory's own permissions come last, when nothing more goes into it.
    eventually(lambda: (folder.path / "d").stat().st_mode & 0o777 == 0o750)


def test_a_directory_that_cannot_be_packed_is_told_before_a_byte(folder: Folder) -> None:
    folder.shell("mkdir d; echo 1 > d/f; echo 2 > f; mkdir d/closed")

    def code(query: str) -> tuple[int, str]:
        answer = folder.picod.call("GET", f"/api/fs/tar?path={folder.name}/{query}")
        return answer.status, answer.json()["code"]

    assert code("absent") == (404, "file_not_found")
    assert code("f") == (400, "invalid")
    assert code("../..") == (400, "invalid")
    assert code("d&gzip=auto") == (400, "invalid")
    if ROOT or os.geteuid():
        folder.shell("chmod 0 d/f")
        assert code("d") == (403, "forbidden")
        folder.shell("chmod 644 d/f; chmod 0 d/closed")
        assert code("d") == (403, "forbidden")
    assert folder.picod.call("HEAD", f"/api/fs/tar?path={folder.name}/d").body == b""


def test_a_file_that_shrinks_breaks_the_archive_off(folder: Folder) -> None:
    folder.shell("truncate -s 1G sparse")
    connection = folder.picod.raw()
    head = f"GET /api/fs/tar?path={folder.name} HTTP/1.1\r\nHost: x\r\n"
    connection.sendall(f"{head}Authorization: Bearer {folder.picod.token}\r\n\r\n".encode())
    connection.recv(1000)
    folder.shell("truncate -s 100 sparse")
    data = b""
    try:
        while piece := connection.recv(1 << 20):
            data = (data + piece)[-1000:]
    except ConnectionResetError:
        pass
    assert not data.endswith(b"0\r\n\r\n")
    assert folder.picod.call("GET", "/health").status == 200


def test_a_bomb_costs_no_memory_and_its_client_may_leave(folder: Folder, peak: Callable[[], int]) -> None:
    """A gigabyte of zeros, and a hundred thousand empty members, from a megabyte."""
    before = peak()
    info = tarfile.TarInfo("zeros")
    info.size = 300 << 20
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1) as zipped:
        zipped.write(info.tobuf())
        for _ in range(300):
            zipped.write(bytes(1 << 20))
        for i in range(3000):
            zipped.write(tarfile.TarInfo(f"empty/{i}").tobuf())
        zipped.write(bytes(1024))
    answer = unpack(folder, out.getvalue())
    assert answer.json() == {"entries": 3001, "bytes": 300 << 20}
    assert peak() - before < 16 << 20
    folder.shell("rm -r zeros empty")
