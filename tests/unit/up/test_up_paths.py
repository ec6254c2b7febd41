"""The data directory is ours alone to write."""

import os
from pathlib import Path

import pytest

from agentcube.errors import Invalid
from agentcube.up.paths import DataDir, runtime_dir


def test_it_is_made_private(tmp_path: Path) -> None:
    opened = DataDir.open(tmp_path / "parents/too/data")
    opened.close()
    assert (tmp_path / "parents/too/data").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777, 0o702])
def test_one_that_others_can_write_is_refused_and_left_alone(tmp_path: Path, mode: int) -> None:
    (tmp_path / "target").write_text("precious")
    data = tmp_path / "data"
    data.mkdir()
    (data / "lock").symlink_to(tmp_path / "target")
    data.chmod(mode)
    with pytest.raises(Invalid, match="can be written by others: chmod go-w"):
        DataDir.open(data)
    assert (tmp_path / "target").read_text() == "precious"
    assert os.listdir(data) == ["lock"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a directory away")
def test_somebody_elses_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    os.chown(tmp_path / "data", 21042, 21042)
    with pytest.raises(Invalid, match="belongs to uid 21042"):
        DataDir.open(tmp_path / "data")


@pytest.mark.skipif(os.geteuid() == 0, reason="root's is below /run")
def test_a_runtime_directory_that_others_can_enter_is_refused_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "agentcube").mkdir()
    (tmp_path / "agentcube").chmod(0o755)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(Invalid, match="not ours alone; remove it, or set XDG_RUNTIME_DIR"):
        runtime_dir(tmp_path / "data")
