"""Who stops waiting ends what was waited for: cancelled tasks, Ctrl-C, iterators that are dropped."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable

import pytest

from agentcube import AsyncSandbox, Sandbox
from agentcube.events import CellStarted, Started, Stdout
from tests.e2e.harness import eventually
from tests.integration.sdk.wire_server import HANG, WireServer

WITHIN_S = 30.0


def _killed(server: WireServer) -> list[str]:
    return [s.path.rpartition("/")[2] for s in server.requests("DELETE", ".*/processes/.*")]


def _interrupted(server: WireServer) -> list[object]:
    return [s.json.get("execution") for s in server.requests("POST", ".*/interrupt")]


def _ran(server: WireServer) -> Callable[[], bool]:
    return lambda: bool(server.processes.started or server.kernels.cells)


@pytest.mark.anyio
@pytest.mark.parametrize("what", ["command", "cell"])
async def test_a_cancelled_task_ends_what_it_ran(server: WireServer, what: str) -> None:
    async with AsyncSandbox(url=server.url) as box:
        begun = asyncio.Event()

        async def work() -> None:
            if what == "command":
                async with await box.commands.start(["sleep"]) as process:
                    async for _ in process:
                        begun.set()
            else:
                await box.run("print a\nsleep", on_stdout=lambda text: begun.set())

        task = asyncio.create_task(work())
        await asyncio.wait_for(begun.wait(), WITHIN_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (
            (_killed(server), _interrupted(server)) == (["p-0"], []) if what == "command" else ([], ["e-0"])
        )


@pytest.mark.anyio
async def test_a_second_cancellation_does_not_keep_the_first_from_ending_it(server: WireServer) -> None:
    async with AsyncSandbox(url=server.url) as box:
        begun = asyncio.Event()
        task = asyncio.create_task(box.run("print a\nsleep", on_stdout=lambda text: begun.set()))
        await asyncio.wait_for(begun.wait(), WITHIN_S)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert _interrupted(server) == ["e-0"]


@pytest.mark.anyio
async def test_a_timeout_around_a_call_ends_what_it_ran(server: WireServer) -> None:
    async with AsyncSandbox(url=server.url) as box:
        loop = asyncio.get_running_loop()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as limit:
                await box.run("print a\nsleep", on_stdout=lambda text: limit.reschedule(loop.time()))
        assert _interrupted(server) == ["e-0"]


@pytest.mark.anyio
@pytest.mark.parametrize("background", [False, True])
async def test_what_began_without_our_knowing_is_found_and_ended(
    server: WireServer, background: bool
) -> None:
    """The call is cancelled after the request was sent, and before the answer named what it began."""
    async with AsyncSandbox(url=server.url) as box:
        server.hold_events("POST", ".*/processes")
        server.processes.ring = 1 << 20
        start = box.commands.start(["sleep"], background=True) if background else box.commands.run(["sleep"])
        task = asyncio.create_task(start)
        while not server.processes.started:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert _killed(server) == ["p-0"]
        assert server.processes.started == [["sleep"]], "it was not begun a second time"


@pytest.mark.anyio
async def test_what_was_never_sent_is_not_looked_for(server: WireServer) -> None:
    silent = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0, backlog=1)
    async with silent, AsyncSandbox(url=server.url) as box:
        stream = box.stream("print a")
        await stream.aclose()
    assert server.kernels.cells == []
    assert _interrupted(server) == []


@pytest.mark.anyio
async def test_an_end_that_cannot_be_told_is_given_up_in_time(
    server: WireServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentcube.sdk._async._stream.CANCEL_WITHIN_S", 0.3)
    async with AsyncSandbox(url=server.url) as box:
        server.script("POST", ".*/interrupt", HANG)
        async with box.stream("print a\nsleep") as events:
            assert isinstance(await anext(events), CellStarted)
    assert "cancel: run code" in caplog.text


@pytest.mark.anyio
async def test_an_iterator_that_is_dropped_ends_what_it_was_of(server: WireServer) -> None:
    async with AsyncSandbox(url=server.url) as box:
        async for event in box.stream("print a\nsleep"):
            if isinstance(event, Stdout):
                break
        while not _interrupted(server):
            await asyncio.sleep(0.01)
        process = await box.commands.start(["sleep"])
        assert isinstance(await anext(process), Started)
        del process
        while not _killed(server):
            await asyncio.sleep(0.01)


def test_an_iterator_that_is_dropped_ends_what_it_was_of_at_once(server: WireServer) -> None:
    with Sandbox(url=server.url) as box:
        gc.disable()  # not by the garbage collector, but by the last reference
        try:
            for event in box.stream("print a\nsleep"):
                if isinstance(event, Stdout):
                    break
            assert _interrupted(server) == ["e-0"]
            process = box.commands.start(["sleep"])
            del process
            assert _killed(server) == ["p-0"]
        finally:
            gc.enable()


@pytest.mark.anyio
async def test_an_asynchronous_process_that_outlives_its_client_is_no_news(
    server: WireServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncSandbox(url=server.url) as box:
        process = await box.commands.start(["sleep"])
        await anext(aiter(process))
    await process.aclose()
    assert not [record for record in caplog.records if record.name == "agentcube.sdk"]


def test_a_process_that_outlives_its_client_is_no_news(
    server: WireServer, caplog: pytest.LogCaptureFixture
) -> None:
    with Sandbox(url=server.url) as box:
        process = box.commands.start(["sleep"])
        next(iter(process))
    del process
    gc.collect()
    assert not [record for record in caplog.records if record.name == "agentcube.sdk"]


@pytest.mark.parametrize("call", ['box.commands.run(["sleep"])', 'box.run("print a\\nsleep")'])
def test_ctrl_c_ends_what_was_waited_for(server: WireServer, call: str) -> None:
    program = f"""
        from agentcube import Sandbox
        with Sandbox(url={server.url!r}) as box:
            try:
                {call}
            except KeyboardInterrupt:
                print("interrupted", flush=True)
    """
    child = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ},
    )
    try:
        eventually(_ran(server), within=WITHIN_S)
        eventually(lambda: server.streaming, within=WITHIN_S)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=WITHIN_S)
    finally:
        child.kill()
        child.communicate()
    assert (out, child.returncode) == ("interrupted\n", 0), err
    assert _killed(server) == ["p-0"] or _interrupted(server) == ["e-0"]
    assert server.sessions == {}


def test_threads_share_a_sandbox(server: WireServer) -> None:
    """Each waits for its own; the cells take their turns."""
    with Sandbox(url=server.url) as box:
        said: dict[int, str] = {}

        def work(number: int) -> None:
            said[number] = box.run(f"print {number}").stdout + box.commands.run(["echo", str(number)]).stdout

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WITHIN_S)
    assert said == {number: f"{number}\n{number}\n" for number in range(8)}
