"""An append whose request ends early is taken back, unless all of it had come."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentcube.picod.files.files import Files
from agentcube.picod.paths import Workspace


@pytest.mark.parametrize(
    ("whole", "kept"),
    [(6, True), (7, False), (None, False)],
    ids=["all has come", "some is missing", "nobody knows how much it is"],
)
@pytest.mark.parametrize("before", [b"there ", None])
def test_what_came_whole_is_kept_although_nobody_waits_for_the_answer(
    tmp_path: Path, before: bytes | None, whole: int | None, kept: bool
) -> None:
    """Else a client that lost the answer and looked would see it done, and later undone."""
    file = tmp_path / "log"
    if before is not None:
        file.write_bytes(before)
    workspace = Workspace(str(tmp_path))
    files = Files(workspace)
    appending = files.begin_append(b"log", 0o640, parents=True, exclusive=False, offset=None, whole=whole)
    files.add(appending, b"app")
    files.add(appending, b"end")
    appending.discard()
    workspace.close()
    if kept:
        assert file.read_bytes() == (before or b"") + b"append"
        assert before is not None or file.stat().st_mode & 0o777 == 0o640
    elif before is None:
        assert not file.exists()
    else:
        assert file.read_bytes() == before
