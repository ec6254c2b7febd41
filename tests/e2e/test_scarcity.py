"""When the machine runs out of something, callers are told, and the server goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path

from agentcube import AgentCube, AsyncAgentCube
from agentcube.errors import AgentCubeError
from tests.e2e import harness

FILES = 256  # enough for a few sandboxes at a time
AT_ONCE = 40


def test_too_few_open_files_end_no_server(tmp_path: Path) -> None:
    few = ["sh", "-c", f'ulimit -n {FILES} && exec "$@"', "sh"]
    server = harness.start(tmp_path / "data", "--pool", "1", prefix=few)
    try:
        refused = asyncio.run(_ask_for_many(server))
        with AgentCube(url=server.url, api_key=server.api_key) as cube:
            session = cube.sessions.create()
            assert cube.sessions.exec(session.id, ["echo", "alive"]).stdout == "alive\n"
            cube.sessions.delete(session.id)
            assert list(cube.sessions.list()) == []
    finally:
        code = server.stop()
    log = server.log.read_text()
    assert code == 0, log[-4000:]
    assert "Traceback" not in log, log[-4000:]
    assert not list((tmp_path / "data" / "sandboxes").iterdir())
    assert all("open files" in said for said in refused if "capacity" in said), refused


async def _ask_for_many(server: harness.Server) -> list[str]:
    """Sessions made and deleted all at once; what those that were refused were told."""
    refused: list[str] = []

    async def one(cube: AsyncAgentCube) -> None:
        try:
            session = await cube.sessions.create()
            await cube.sessions.delete(session.id)
        except AgentCubeError as exc:
            refused.append(f"{exc.code}: {exc.detail}")

    async with AsyncAgentCube(url=server.url, api_key=server.api_key) as cube:
        await asyncio.gather(*(one(cube) for _ in range(AT_ONCE)))
        end = asyncio.get_running_loop().time() + 30
        async for left in cube.sessions.list():  # of callers who lost their connection
            await cube.sessions.delete(left.id, missing_ok=True)
            assert asyncio.get_running_loop().time() < end
    return refused
