"""Records of sandboxes, processes by identity, and the zip."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from agentcube.drivers.local import bundle, processes
from agentcube.drivers.local.records import Record, Records
from agentcube.errors import DriverFailed, Invalid
from agentcube.model.ids import SandboxId

ID = SandboxId("sb-abc")


def test_a_record_reads_back_as_it_was_written(tmp_path: Path) -> None:
    records = Records(tmp_path / "sandboxes")
    record = Record(
        id=ID,
        labels={"a": "b"},
        made=True,
        pid=7,
        start=9,
        uid_base=10_000_000,
        cgroups={"2:": "/x"},
        ports=[80],
    )
    records.write(record)
    assert records.find(ID) == Record.parse(record.to_text()) == record
    assert records.ids() == [ID]
    records.remove(ID)
    records.remove(ID)
    assert records.find(ID) is None
    assert records.ids() == []


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"v":2,"id":"x"}', '{"v":1,"id":"x","more":1}', '{"v":1}']
)
def test_a_record_that_is_not_ours_is_refused(text: str) -> None:
    with pytest.raises(DriverFailed):
        Record.parse(text)


@pytest.mark.parametrize("id", ["", ".", "..", "a/b", "A", "-a", "a-", "ä", "x" * 41, "a\n"])
def test_what_names_no_folder_is_no_id(tmp_path: Path, id: str) -> None:
    with pytest.raises(Invalid):
        Records(tmp_path).folder(SandboxId(id))


def test_a_record_of_another_boot_has_no_process(tmp_path: Path) -> None:
    start = processes.start_ticks(os.getpid())
    assert start is not None
    mine = Record(id=ID, pid=os.getpid(), start=start)
    fd = mine.open_process()
    assert fd is not None
    os.close(fd)
    assert Record(id=ID, pid=os.getpid(), start=start, boot="another").open_process() is None
    assert Record(id=ID, pid=os.getpid(), start=start + 1).open_process() is None
    assert Record(id=ID).open_process() is None


def test_a_process_is_known_by_its_descriptor_until_it_ends() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        start = processes.start_ticks(child.pid)
        assert start is not None
        fd = processes.open_process(child.pid, start)
        assert fd is not None
        assert not processes.has_ended(fd)
        usage = processes.tree_usage(os.getpid())
        assert usage.pids >= 2
        assert usage.memory_bytes > 1 << 20
        processes.kill(fd)
        assert processes.has_ended(fd, within_s=5)
        processes.kill(fd)
        os.close(fd)
        assert processes.open_process(child.pid, start) is None  # a zombie is no sandbox


def test_the_zip_holds_picod_and_what_is_inside_and_runs_isolated(tmp_path: Path) -> None:
    archive = bundle.build(tmp_path / "inside.zip")
    names = zipfile.ZipFile(archive).namelist()
    assert "__main__.py" in names
    packages = {name.split("/")[1] for name in names if name.startswith("agentcube/") and name.count("/") > 1}
    assert packages == {"http1", "picod", "kernelhost", "drivers"}
    assert not [
        n for n in names if n.startswith("agentcube/drivers/") and "inside" not in n and "__init__" not in n
    ]
    code = (
        "import agentcube.picod.main, agentcube.drivers.local.inside.zygote, sys;"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in "
        "('pydantic', 'anyio', 'uvloop', 'cryptography', 'jwt', 'httpx2')))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(archive)!r}); {code}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "[]\n", done.stderr
