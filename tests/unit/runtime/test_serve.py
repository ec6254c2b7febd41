import asyncio
import os
import signal
import socket
import stat

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from agentcube.runtime.serve import (
    AppServer,
    LoopEnded,
    StopSignal,
    serve,
    stop_signals,
    tcp_socket,
    unix_socket,
)
from agentcube.testing.eventually import eventually

pytestmark = pytest.mark.anyio


async def forever() -> None:
    await asyncio.Event().wait()


async def test_a_signal_drains_and_then_cancels_the_loops() -> None:
    happened = []

    async def loop() -> None:
        try:
            await forever()
        finally:
            happened.append("cancelled")

    async def drain() -> None:
        happened.append("drained")

    async def started() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    async with stop_signals() as stop:
        await serve({"loop": loop}, stop=stop, started=started, drain=drain)
    assert happened == ["drained", "cancelled"]
    assert signal.getsignal(signal.SIGTERM) is before


async def test_a_loop_that_fails_ends_the_process_with_its_error() -> None:
    async def broken() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(ExceptionGroup) as caught:
        await serve({"good": forever, "broken": broken}, stop=StopSignal())
    assert caught.group_contains(RuntimeError, match="a bug")


async def test_a_loop_that_returns_ends_the_process_too() -> None:
    async def short() -> None:
        return

    with pytest.raises(ExceptionGroup) as caught:
        await serve({"short": short}, stop=StopSignal())
    assert caught.group_contains(LoopEnded, match="short")


async def test_a_loop_may_return_once_the_process_stops() -> None:
    stop, ended = StopSignal(), asyncio.Event()

    async def polite() -> None:
        await ended.wait()

    async def drain() -> None:
        ended.set()

    stop.set()
    await serve({"polite": polite}, stop=stop, drain=drain)


async def test_a_drain_is_cut_short_by_its_deadline_and_by_a_second_signal() -> None:
    stop = StopSignal()
    stop.set()
    await serve({"loop": forever}, stop=stop, drain=forever, drain_s=0.01)
    stop.set()
    async with asyncio.timeout(5):
        await serve({"loop": forever}, stop=stop, drain=forever, drain_s=60)


async def test_who_is_in_a_hurry_has_things_cleared_up_all_the_same() -> None:
    cleared = []

    async def clear() -> None:
        await asyncio.sleep(0.01)
        cleared.append(True)

    stop = StopSignal()
    stop.set()
    stop.set()
    await serve({"loop": forever}, stop=stop, drain=forever, drain_s=60, clear=clear)
    assert cleared == [True]
    async with asyncio.timeout(5):
        await serve({"loop": forever}, stop=stop, clear=forever, clear_s=0.01)


async def test_a_drain_that_fails_is_told() -> None:
    async def drain() -> None:
        raise RuntimeError("cannot")

    stop = StopSignal()
    stop.set()
    with pytest.raises(ExceptionGroup) as caught:
        await serve({"loop": forever}, stop=stop, drain=drain)
    assert caught.group_contains(RuntimeError, match="cannot")


def app(gate: asyncio.Event | None = None, entered: asyncio.Event | None = None) -> Starlette:
    async def hello(_):
        if entered is not None:
            entered.set()
        if gate is not None:
            await gate.wait()
        return PlainTextResponse("hello")

    return Starlette(routes=[Route("/", hello)])


async def test_an_application_is_served_on_a_private_unix_socket(tmp_path) -> None:
    path = tmp_path / "m.sock"
    unix_socket(path).close()
    server = AppServer(app(), unix_socket(path))  # the stale one is replaced
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    stop = StopSignal()

    async def started() -> None:
        await server.listening()
        transport = httpx2.AsyncHTTPTransport(uds=str(path))
        async with httpx2.AsyncClient(transport=transport, base_url="http://m") as client:
            assert (await client.get("/")).text == "hello"
        stop.set()

    async def drain() -> None:
        server.stop()

    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    await serve({"api": server.run}, stop=stop, started=started, drain=drain)
    assert {n: signal.getsignal(n) for n in handlers} == handlers


async def test_stopping_completes_answers_under_way() -> None:
    gate, entered = asyncio.Event(), asyncio.Event()
    listener = tcp_socket("127.0.0.1", 0)
    port = listener.getsockname()[1]
    server = AppServer(app(gate, entered), listener)
    running = asyncio.ensure_future(server.run())
    await server.listening()
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        asking = asyncio.ensure_future(client.get("/"))
        await entered.wait()
        server.stop()
        gate.set()
        assert (await asking).text == "hello"
    await running


async def test_cancelling_a_server_closes_it_without_waiting() -> None:
    gate, entered = asyncio.Event(), asyncio.Event()
    listener = tcp_socket("127.0.0.1", 0)
    port = listener.getsockname()[1]
    server = AppServer(app(gate, entered), listener)
    running = asyncio.ensure_future(server.run())
    await server.listening()
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        asking = asyncio.ensure_future(client.get("/"))
        await entered.wait()
        running.cancel()
        await asyncio.wait({running}, timeout=5)
        assert running.cancelled()
        gate.set()
        await asyncio.wait({asking})
        asking.exception()
    await eventually(lambda: _refused(port))


def _refused(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) != 0


async def test_a_taken_port_is_an_error_before_anything_starts() -> None:
    with tcp_socket("127.0.0.1", 0) as first, pytest.raises(OSError, match="in use"):
        tcp_socket("127.0.0.1", first.getsockname()[1])


async def test_a_path_that_is_too_long_is_an_error(tmp_path) -> None:
    with pytest.raises(OSError):
        unix_socket(tmp_path / ("x" * 120))
