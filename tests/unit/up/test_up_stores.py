"""Which store a data directory's sessions are in, and what is said before another one takes its place."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from agentcube.errors import Invalid
from agentcube.testing.samples import sample_session, sample_warm
from agentcube.up.stores import open_store

pytestmark = pytest.mark.anyio


async def test_a_store_with_sessions_is_not_left_for_another(tmp_path: Path) -> None:
    note = tmp_path / "sessions-in"
    async with open_store("sqlite", tmp_path) as opened:
        session = await opened.store.insert(sample_session())
        await opened.let_go()
        assert note.read_text() == "sqlite\n"
    note.write_text("redis agentcube 1234\n")
    with pytest.raises(Invalid, match=rf"another store \(redis agentcube 1234, not sqlite\).* remove {note}"):
        async with open_store("sqlite", tmp_path):
            pass
    note.unlink()
    async with open_store("sqlite", tmp_path) as opened:
        await opened.store.delete(session.id, revision=1)
        await opened.store.put_warm(entry := sample_warm())
        await opened.let_go()
        assert note.exists()
        await opened.store.remove_warm(entry.id)
        await opened.let_go()
        assert not note.exists()


async def test_without_its_package_a_redis_store_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "hiredis", None)
    with pytest.raises(Invalid, match=r"pip install 'agentcube\[server,redis\]'"):
        async with open_store("redis://h", tmp_path):
            pass


async def test_a_setting_that_is_wrong_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTCUBE_REDIS_WAIT_S", "soon")
    with pytest.raises(Invalid, match="AGENTCUBE_REDIS_WAIT_S: Input should be a valid number"):
        async with open_store("redis://h", tmp_path):
            pass
