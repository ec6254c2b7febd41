"""What the SDK makes of code and files before they are sent, and of what it downloads."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

import pytest

from agentcube.sdk._core.errors import InvalidArgument
from agentcube.sdk._core.localfile import PartFile
from agentcube.sdk._core.multipart import Upload
from agentcube.sdk._core.scripts import script


def test_scripts_never_share_a_name() -> None:
    assert len({script("python", "pass").path for _ in range(100)}) == 100


@pytest.mark.parametrize(
    ("code", "source"),
    [
        ("a = 1\\nb = 2", "a = 1\nb = 2"),
        ("print('x\\ny')", "print('x\\ny')"),
        ("broken(\\n", "broken(\\n"),
        ("x = '\\d'", "x = '\\d'"),
        ("(" * 5000 + "\\n", "(" * 5000 + "\\n"),
        ("nul\0\\n", "nul\0\\n"),
    ],
)
def test_python_is_repaired_only_when_that_makes_it_valid(code: str, source: str) -> None:
    made = script("py", code)
    assert made.source == source
    assert made.repaired is (code != source)
    assert script("sh", code).source == code


def _body(upload: Upload) -> bytes:
    upload.rewind()
    return b"".join(iter(upload.read, b""))


def test_an_upload_is_read_from_where_it_stands_as_often_as_needed(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"0123456789")
    for source in (io.BytesIO(b"0123456789"), file.open("rb")):
        with source:
            source.seek(4)
            upload = Upload(source, {"path": "ä", "mode": "0644"})
            assert _body(upload) == _body(upload)
            assert len(_body(upload)) == upload.content_length
            assert b"\r\n\r\n456789\r\n--" in _body(upload)


def test_a_file_that_changes_while_it_is_sent(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"0123456789" * 100_000)
    with file.open("rb") as source:
        upload = Upload(source, {})
        file.write_bytes(b"0123456789" * 200_000)
        assert len(_body(upload)) == upload.content_length
        os.truncate(file, 3)
        with pytest.raises(InvalidArgument, match="shorter"):
            _body(upload)


def test_files_of_proc_have_no_size_and_are_not_empty() -> None:
    with Path("/proc/self/status").open("rb") as source:
        upload = Upload(source, {})
        assert upload.content_length is None
        assert b"Name:" in _body(upload)


def test_a_part_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new" / "f"
    with PartFile(target) as part:
        part.write(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    target.chmod(0o640)
    with pytest.raises(TypeError), PartFile(target) as part:
        part.write([part.write(b"half")])  # type: ignore[arg-type,func-returns-value,list-item]
    assert target.read_bytes() == b"new"
    link = tmp_path / "link"
    link.symlink_to(target)
    with PartFile(link) as part:
        part.write(b"newer")
    assert link.is_symlink()
    assert target.read_bytes() == b"newer"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert [p.name for p in target.parent.iterdir()] == ["f"]
    with pytest.raises(IsADirectoryError), PartFile(tmp_path):
        pass


def test_a_device_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with PartFile(pipe) as part:
        part.write(b"through")
    assert os.read(reading, 100) == b"through"
    os.close(reading)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
