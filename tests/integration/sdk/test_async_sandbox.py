"""A sandbox from the inside, against a server that speaks the wire: its session, its cells, its kernels."""

from __future__ import annotations

import pytest

from agentcube import (
    AsyncAgentCube,
    AsyncSandbox,
    CellFailed,
    ClientClosed,
    ConnectFailed,
    InvalidArgument,
    Result,
    StreamReplaced,
    UnexpectedAnswer,
)
from agentcube.errors import (
    KernelBusy,
    KernelExists,
    KernelNotFound,
    SessionFailed,
    SessionNotFound,
    Unavailable,
)
from agentcube.events import CellEnded, CellStarted, Displayed, Stdout
from tests.integration.sdk.wire_answers import Answer
from tests.integration.sdk.wire_kernels import PNG
from tests.integration.sdk.wire_server import DROP, WireServer, of, problem

# [async
pytestmark = pytest.mark.anyio
# async]


async def test_a_session_lives_as_long_as_the_block(server: WireServer) -> None:
    async with AsyncSandbox(
        url=server.url, ttl="1h", idle_timeout=60, env={"A": "b"}, metadata={"k": "v"}
    ) as box:
        assert list(server.sessions) == [box.session_id]
        assert (await box.info()).id == box.session_id
        assert repr(box).endswith(f"session={box.session_id}>")
    assert server.sessions == {}
    made = server.requests("POST", "/v1/sessions")[0]
    assert made.json == {
        "kind": "CodeInterpreter",
        "namespace": "default",
        "name": "my-interpreter",
        "ttl": "1h",
        "idle_timeout": 60,
        "env": {"A": "b"},
        "metadata": {"k": "v"},
    }
    with pytest.raises(ClientClosed):
        await box.run("print x")
    await box.close()


async def test_a_session_is_kept_where_that_is_said(server: WireServer) -> None:
    async with AsyncSandbox("own", namespace="team", url=server.url, keep=True) as box:
        id = box.session_id
    assert (server.sessions[id]["name"], server.sessions[id]["namespace"]) == ("own", "team")
    async with await AsyncSandbox.connect(id, url=server.url) as again:
        assert (await again.run("print hi")).stdout == "hi\n"
    assert id in server.sessions
    last = await AsyncSandbox.connect(id, url=server.url)
    await last.delete()
    assert server.sessions == {}


# [async
async def test_create_makes_the_session_at_once(server: WireServer) -> None:
    box = await AsyncSandbox.create(url=server.url)
    assert box.session_id in server.sessions
    await box.close()
    assert server.sessions == {}


async def test_without_a_session_the_error_says_how_to_make_one(server: WireServer) -> None:
    box = AsyncSandbox(url=server.url)
    with pytest.raises(ClientClosed, match="async with"):
        await box.run("print x")
    await box.close()


# async]


async def test_a_session_that_is_not_there_is_said_at_once(server: WireServer) -> None:
    with pytest.raises(SessionNotFound):
        await AsyncSandbox.connect("nobody", url=server.url)


async def test_a_session_that_failed_is_an_error_and_removed(server: WireServer) -> None:
    server.script(
        "POST", "/v1/sessions", of({"id": "s9", "phase": "Failed", "reason": "Crash", "message": "boom"})
    )
    with pytest.raises(SessionFailed, match="Crash: boom"):
        async with AsyncSandbox(url=server.url):
            pass
    assert server.requests("DELETE", "/v1/sessions/s9")


async def test_the_blocks_own_exception_is_what_is_seen(server: WireServer) -> None:
    server.script("DELETE", "/v1/sessions/.*", problem(500, "internal", "broken"))
    with pytest.raises(KeyError, match="mine"):
        async with AsyncSandbox(url=server.url):
            raise KeyError("mine")


async def test_management_opens_sessions_and_enters_them(server: WireServer) -> None:
    async with AsyncAgentCube(server.url) as cube:
        async with await cube.sessions.open(ttl=60) as box:
            assert (await box.run("value 42")).text == "42"
            other = cube.sessions.sandbox(box.session_id)
            assert (await other.run("value 43")).execution_count == 2
            await other.close()
            assert (await box.info()).phase == "Ready"
        assert server.sessions == {}
        assert [s async for s in cube.sessions.list()] == [], "the connection is still open"


async def test_variables_stay_because_the_kernel_does(server: WireServer) -> None:
    async with AsyncSandbox(url=server.url) as box:
        done = await box.run("print a\nerr b\npng\nhtml <b>\nvalue 42")
        assert (done.stdout, done.stderr, done.text, done.execution_count) == ("a\n", "b\n", "42", 1)
        assert done.pngs == [PNG]
        assert done.results[1].html == "<b>"
        assert (await box.run("print c", "bash")).kernel == "bash"
        assert (await box.run("print d")).execution_count == 2
        first = server.requests("POST", ".*/kernels/main/execute")[0]
        assert first.json["create"] == {"language": "python"}
        assert (first.json["timeout"], first.json["wait"], first.json["grace"]) == ("300s", "60s", "30s")
        with pytest.raises(InvalidArgument, match="cobol"):
            await box.run("print a", "cobol")


async def test_an_exception_in_a_cell_is_a_result_or_raised(server: WireServer) -> None:
    async with AsyncSandbox(url=server.url) as box:
        done = await box.run("print a\nraise ValueError no\nprint b")
        assert done.error is not None
        assert (done.error.name, done.error.value, done.stdout) == ("ValueError", "no", "a\n")
        with pytest.raises(CellFailed, match="ValueError: no"):
            await box.run("raise ValueError no", check=True)


async def test_a_kernel_that_died_is_told_and_made_again(server: WireServer) -> None:
    async with AsyncSandbox(url=server.url) as box:
        died = await box.run("print a\ndie")
        assert (died.status, died.state_lost, died.stdout) == ("kernel_died", True, "a\n")
        assert "SIGSEGV" in died.reason
        assert (await box.run("print b")).execution_count == 1


async def test_callbacks_get_what_a_cell_shows_as_it_comes(server: WireServer) -> None:
    out: list[str] = []
    err: list[str] = []
    shown: list[Result] = []
    async with AsyncSandbox(url=server.url) as box:
        await box.run(
            "print a\nprint b\nerr c\npng\nvalue 1",
            on_stdout=out.append,
            on_stderr=err.append,
            on_result=shown.append,
        )
    assert (out, err) == (["a\n", "b\n"], ["c\n"])
    assert [r.is_value for r in shown] == [False, True]


async def test_events_come_one_by_one(server: WireServer) -> None:
    async with AsyncSandbox(url=server.url) as box:
        async with box.stream("print a\nshow i old\nupdate i new\nnew thing") as events:
            kinds = [type(event).__name__ async for event in events]
        assert kinds == ["CellStarted", "Stdout", "Displayed", "DisplayUpdated", "CellEnded"]
        assert [e async for e in events] == [], "it has ended"


async def test_nothing_is_sent_before_iteration(server: WireServer) -> None:
    async with AsyncSandbox(url=server.url) as box:
        async with box.stream("print a"):
            pass
        assert server.kernels.cells == []
        assert not server.requests("POST", ".*/interrupt")


async def test_leaving_a_stream_early_interrupts_the_cell(server: WireServer) -> None:
    async with AsyncSandbox(url=server.url) as box:
        async with box.stream("print a\nsleep") as events:
            async for event in events:
                if isinstance(event, Stdout):
                    break
        asked = server.requests("POST", ".*/kernels/main/interrupt")
        assert [a.json for a in asked] == [{"execution": "e-0"}]
        assert (await box.run("print b", wait=30)).stdout == "b\n"


async def test_an_exception_in_a_callback_interrupts_the_cell(server: WireServer) -> None:
    def refuse(text: str) -> None:
        raise KeyError(text)

    async with AsyncSandbox(url=server.url) as box:
        with pytest.raises(KeyError, match="a"):
            await box.run("print a\nsleep", on_stdout=refuse)
        assert (await box.run("print b", wait=30)).stdout == "b\n"


async def test_a_busy_kernel_is_said_and_the_cell_not_looked_for(server: WireServer) -> None:
    async with AsyncSandbox(url=server.url) as box:
        kernel = await box.kernels.create(id="k")
        async with kernel.stream("sleep") as events:
            assert isinstance(await anext(events), CellStarted)
            with pytest.raises(KernelBusy, match="another cell"):
                await kernel.run("print b", wait=0)
            assert (await kernel.info()).state == "busy"
        assert (await kernel.run("print c", wait=30)).stdout == "c\n"
    assert server.kernels.cells == ["sleep", "print c"]


async def test_kernels_have_lives_of_their_own(server: WireServer) -> None:
    async with AsyncSandbox(url=server.url) as box:
        own = await box.kernels.create("bash", id="own", cwd="src", env={"A": "b"})
        put = server.requests("PUT", ".*/kernels/own")[0]
        assert put.json == {"language": "bash", "working_dir": "src", "env": {"A": "b"}}
        named = await box.kernels.create()
        assert named.id.startswith("k-")
        with pytest.raises(KernelExists):
            await box.kernels.create("python", id="own")
        assert {k.id for k in await box.kernels.list()} == {"own", named.id}
        await own.run("print a")
        assert (await own.restart()).execution_count == 0
        again = await box.kernels.get("own")
        assert (again.language, repr(again)) == ("bash", repr(own))
        assert (await again.interrupt(grace=2)).state == "idle"
        await again.interrupt(execution="e-7")
        asked = [seen.json for seen in server.requests("POST", ".*/interrupt")]
        assert asked == [{"grace": "2s"}, {"execution": "e-7"}]
        await again.delete()
        with pytest.raises(KernelNotFound):
            await box.kernels.get("own")
        with pytest.raises(KernelNotFound):
            await again.run("print a")


async def test_another_reader_is_told_and_the_cell_goes_on(server: WireServer) -> None:
    async with AsyncSandbox(url=server.url) as box:
        async with box.stream("print a\nsleep") as events:
            assert isinstance(await anext(events), CellStarted)
            assert isinstance(await anext(events), Stdout)
            execution = server.kernels.all["main"].executions["e-0"]
            server.call(execution.taken_over)
            with pytest.raises(StreamReplaced):
                await anext(events)
        assert not server.requests("POST", ".*/interrupt")
        await (await box.kernels.get("main")).interrupt()


async def test_a_server_that_is_not_there_is_said_at_once(server: WireServer) -> None:
    async with AsyncAgentCube("http://127.0.0.1:1") as cube:
        with pytest.raises(ConnectFailed, match="agentcube up"):
            await cube.sessions.sandbox("s").run("print a")


async def test_an_answer_that_is_no_stream_is_said(server: WireServer) -> None:
    page = Answer(200, b"<html>", {"content-type": "text/html"})
    server.script("POST", ".*/execute", page)
    async with AsyncSandbox(url=server.url) as box:
        with pytest.raises(UnexpectedAnswer, match="text/html"):
            await box.run("print a")
        assert not server.kernels.cells


async def test_an_error_before_the_cell_began_is_final_and_one_after_it_is_not(server: WireServer) -> None:
    async with AsyncSandbox(url=server.url) as box:
        server.script("POST", ".*/execute", *[problem(503, "unavailable", "draining", retryable=True)] * 3)
        with pytest.raises(Unavailable):
            await box.run("print a")
        server.kernels.more_after = 1
        down = problem(503, "unavailable", "draining", retryable=True, retry_after="0")
        server.script("GET", ".*/executions/.*", DROP, *[down] * 5, DROP)
        done = await box.run("print a\nprint b")
        assert done.stdout == "a\nb\n"
        assert server.kernels.cells == ["print a\nprint b"]


async def test_displayed_values_say_what_they_are(server: WireServer) -> None:
    async with AsyncSandbox(url=server.url) as box:
        async for event in box.stream("value 1"):
            match event:
                case Displayed(result=result):
                    assert (result.is_value, str(result)) == (True, "1")
                case CellEnded(status=status):
                    assert status == "ok"
