"""Connections that are cut anywhere: nothing is lost, nothing comes twice, nothing runs twice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agentcube import AsyncAgentCube, AsyncSandbox
from agentcube.events import CellEnded, CellEvent, CellStarted, Gap, Stderr, Stdout
from tests.integration.sdk.cutting import CuttingProxy, cutting
from tests.integration.sdk.wire_processes import pattern
from tests.integration.sdk.wire_server import WireServer

# [async
pytestmark = pytest.mark.anyio
# async]

SIZE = 60_000
SEEDS = range(3)


@pytest.fixture(params=SEEDS)
def proxy(request: pytest.FixtureRequest, server: WireServer) -> Iterator[CuttingProxy]:
    server.processes.unconfirmed_max, server.processes.more_after = 30_000, 20_000
    with cutting(server.url, request.param) as proxy:
        yield proxy


async def _session(server: WireServer) -> str:
    async with AsyncSandbox(url=server.url, keep=True) as box:
        return box.session_id


async def test_the_output_of_a_command(server: WireServer, proxy: CuttingProxy) -> None:
    session = await _session(server)
    async with AsyncAgentCube(proxy.url) as cube:
        said: list[str] = []
        box = cube.sessions.sandbox(session)
        done = await box.commands.run(["emit", str(SIZE), "stdout", "stderr"], on_stdout=said.append)
    assert done.exit_code == 0
    assert done.stdout_bytes == done.stderr_bytes == pattern(SIZE)
    assert "".join(said) == pattern(SIZE).decode("utf-8", "replace")
    assert server.processes.started == [["emit", str(SIZE), "stdout", "stderr"]]
    assert proxy.cuts


async def test_input_and_output(server: WireServer, proxy: CuttingProxy) -> None:
    session = await _session(server)
    server.processes.stdin_takes = 3000
    async with AsyncAgentCube(proxy.url) as cube:
        box = cube.sessions.sandbox(session)
        async with await box.commands.start(["cat"], stdin=True) as process:
            for _ in range(4):
                await process.write(pattern(10_000))
            await process.close_stdin()
            done = await process.wait()
    assert done.stdout_bytes == pattern(10_000) * 4
    assert server.processes.started == [["cat"]]
    assert proxy.cuts


async def test_the_events_of_a_cell(server: WireServer, proxy: CuttingProxy) -> None:
    session = await _session(server)
    async with AsyncAgentCube(proxy.url) as cube:
        box = cube.sessions.sandbox(session)
        events: list[CellEvent] = [event async for event in box.stream("emit 400\nerr x\nvalue 1")]
        assert (await box.run("emit 300")).stdout == "".join(f"{n}\n" for n in range(300))
    assert isinstance(events[0], CellStarted)
    assert isinstance(events[-1], CellEnded)
    assert "".join(e.text for e in events if isinstance(e, Stdout)) == "".join(f"{n}\n" for n in range(400))
    assert [e.text for e in events if isinstance(e, Stderr)] == ["x\n"]
    assert len(events) == 404
    assert server.kernels.cells == ["emit 400\nerr x\nvalue 1", "emit 300"]
    assert proxy.cuts


async def test_the_bytes_of_a_file(server: WireServer, proxy: CuttingProxy) -> None:
    session = await _session(server)
    server.files[session]["big"] = pattern(SIZE)
    async with AsyncAgentCube(proxy.url) as cube:
        files = cube.sessions.sandbox(session).files
        assert await files.read("big") == pattern(SIZE)
        assert (
            b"".join([p async for p in files.stream("big", offset=1000, length=50_000)])
            == pattern(SIZE)[1000:51_000]
        )
    assert proxy.cuts


async def test_a_slow_reader_of_a_background_process_is_told_what_it_missed(
    server: WireServer, proxy: CuttingProxy
) -> None:
    session = await _session(server)
    async with AsyncAgentCube(proxy.url) as cube:
        box = cube.sessions.sandbox(session)
        proxy.resting = True
        process = await box.commands.start(["emit", str(SIZE)], background=True)
        proxy.unleash()
        at = 0
        async for event in process:
            if isinstance(event, Gap):
                assert event.start == at
                at = event.end
            elif isinstance(event, Stdout) and event.data:
                assert event.offset == at
                assert event.data == pattern(SIZE)[at : at + len(event.data)]
                at += len(event.data)
    assert at == SIZE
    assert process.exit_code == 0
