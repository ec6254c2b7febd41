"""How sessions end: by time, by idleness, by deletion, by the death of their sandbox; and whose they are."""

from __future__ import annotations

import asyncio
import time

import pytest

from agentcube import AgentCube, AsyncAgentCube
from agentcube.errors import SandboxUnavailable, SessionNotFound
from tests.e2e import harness


def _gone(cube: AgentCube, id: str) -> bool:
    try:
        cube.sessions.get(id)
    except SessionNotFound:
        return True
    return False


@pytest.fixture
def cube(server: harness.Server):  # type: ignore[no-untyped-def]
    with AgentCube(url=server.url, api_key=server.api_key) as client:
        yield client


def test_ttl_ends_a_busy_session(cube: AgentCube) -> None:
    session = cube.sessions.create("CodeInterpreter", "my-interpreter", ttl=2)
    began = time.monotonic()

    def ended() -> bool:
        try:
            cube.sessions.exec(session.id, ["true"])  # activity does not save it
        except SessionNotFound:
            return True
        except SandboxUnavailable:
            return False  # it ended in the middle of this call
        return False

    harness.eventually(ended, within=15)
    assert time.monotonic() - began >= 1.5


def test_idle_sessions_are_deleted_and_active_ones_are_not(cube: AgentCube) -> None:
    idle = cube.sessions.create("CodeInterpreter", "my-interpreter", idle_timeout="3s")
    busy = cube.sessions.create("CodeInterpreter", "my-interpreter", idle_timeout="3s")

    def idle_gone_while_busy_answers() -> bool:
        assert cube.sessions.exec(busy.id, ["echo", "here"]).stdout == "here\n"
        return _gone(cube, idle.id)

    harness.eventually(idle_gone_while_busy_answers, within=20)
    cube.sessions.delete(busy.id)


def test_a_long_command_keeps_its_session(cube: AgentCube) -> None:
    session = cube.sessions.create("CodeInterpreter", "my-interpreter", idle_timeout="2s")
    assert cube.sessions.exec(session.id, ["sh", "-c", "sleep 5; echo done"]).stdout == "done\n"
    cube.sessions.delete(session.id)


def test_patch_moves_the_deadline(cube: AgentCube) -> None:
    session = cube.sessions.create("CodeInterpreter", "my-interpreter", ttl=3600)
    changed = cube.sessions.update(session.id, ttl=1, metadata={"step": "last"})
    assert changed.metadata == {"step": "last"}
    harness.eventually(lambda: _gone(cube, session.id), within=15)


def test_delete_is_certain_and_repeatable(cube: AgentCube) -> None:
    session = cube.sessions.create("CodeInterpreter", "my-interpreter")
    cube.sessions.delete(session.id)
    with pytest.raises(SessionNotFound):
        cube.sessions.exec(session.id, ["true"])
    with pytest.raises(SessionNotFound):
        cube.sessions.get(session.id)


def test_the_pool_is_used_and_refilled(cube: AgentCube) -> None:
    def ready() -> int:
        return next(p.ready for p in cube.pools.list() if p.name == "my-interpreter")

    harness.eventually(lambda: ready() >= 1, within=30)
    session = cube.sessions.create("CodeInterpreter", "my-interpreter")
    assert session.from_pool
    harness.eventually(lambda: ready() >= 2, within=30)
    cube.sessions.delete(session.id)


def test_creation_is_repeatable_with_an_idempotency_key(server: harness.Server) -> None:
    async def create_twice() -> tuple[str, str]:
        async with AsyncAgentCube(url=server.url, api_key=server.api_key) as cube:
            one, two = await asyncio.gather(
                *(
                    cube.sessions.create("CodeInterpreter", "my-interpreter", idempotency_key="same-key-1")
                    for _ in range(2)
                )
            )
            await cube.sessions.delete(one.id)
            return one.id, two.id

    one, two = asyncio.run(create_twice())
    assert one == two
