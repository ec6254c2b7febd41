"""Commands, processes and terminals, against a server that speaks the wire."""

from __future__ import annotations

import pytest

from agentcube import AsyncSandbox, CommandExecutionError, InvalidArgument, TimedOut
from agentcube.errors import NotATerminal, ProcessEnded, ProcessNotFound, StdinClosed
from agentcube.events import Exited, Started, Stdout
from tests.integration.sdk.wire_processes import pattern
from tests.integration.sdk.wire_server import DROP, WireServer

# [async
pytestmark = pytest.mark.anyio
# async]

STARTS = ".*/processes"


async def test_a_command_is_run_to_its_end(server: WireServer) -> None:
    async with AsyncSandbox(url=server.url) as box:
        done = await box.commands.run("emit 3000 stdout stderr", cwd="src", env={"A": "b"}, timeout=5)
        assert (done.stdout_bytes, done.stderr_bytes, done.exit_code) == (pattern(3000), pattern(3000), 0)
        assert (done.command, done.duration_s) == (("emit 3000 stdout stderr",), 1.5)
    asked = server.requests("POST", STARTS)[0]
    assert asked.query == {"encoding": "base64"}
    assert asked.json == {
        "shell": "emit 3000 stdout stderr",
        "working_dir": "src",
        "env": {"A": "b"},
        "timeout": "5s",
        "grace": "30s",
    }


async def test_a_command_has_a_bound_of_its_own(server: WireServer) -> None:
    async with AsyncSandbox(url=server.url) as box:
        await box.commands.run(["exit", "0"])
        await box.commands.run(["exit", "0"], timeout=None)
    first, second = server.requests("POST", STARTS)
    assert first.json == {"command": ["exit", "0"], "timeout": "300s", "grace": "30s"}
    assert "timeout" not in second.json


async def test_another_exit_code_is_a_result_or_raised(server: WireServer) -> None:
    async with AsyncSandbox(url=server.url) as box:
        assert (await box.commands.run(["exit", "3"])).exit_code == 3
        with pytest.raises(CommandExecutionError, match=r"exit 3.*ended"):
            await box.commands.run(["exit", "3"], check=True)
        assert (await box.commands.run(["nonsense"])).exit_code == 127
        with pytest.raises(InvalidArgument, match="empty"):
            await box.commands.run("")


async def test_input_is_given_at_once_or_written(server: WireServer) -> None:
    async with AsyncSandbox(url=server.url) as box:
        assert (await box.commands.run(["cat"], stdin="grüße")).stdout == "grüße"
        async with await box.commands.start(["cat"], stdin=True) as process:
            await process.write("one ")
            await process.write(b"two")
            await process.close_stdin()
            await process.close_stdin()
            with pytest.raises((StdinClosed, ProcessEnded)):
                await process.write("three")
            assert (await process.wait()).stdout == "one two"


async def test_input_of_any_size_is_written_in_pieces_that_can_be_repeated(server: WireServer) -> None:
    server.processes.stdin_takes = 100_000
    data = pattern(300_000)
    async with AsyncSandbox(url=server.url) as box:
        server.processes.unconfirmed_max = 1 << 30
        async with await box.commands.start(["cat"], stdin=True) as process:
            server.script("POST", ".*/stdin", DROP)
            await process.write(data)
            await process.close_stdin()
            assert (await process.wait()).stdout_bytes == data
    offsets = [int(s.query["offset"]) for s in server.requests("POST", ".*/stdin") if "offset" in s.query]
    assert offsets == sorted(offsets)
    assert offsets[:2] == [0, 0]


async def test_a_program_that_does_not_read_is_not_waited_for_for_ever(server: WireServer) -> None:
    async with (
        AsyncSandbox(url=server.url) as box,
        await box.commands.start(["sleep"], stdin=True) as process,
    ):
        await process.write("taken")
        server.processes.stdin_takes = 0
        with pytest.raises(TimedOut, match="does not read"):
            await process.write("not taken", timeout=0.3)
        server.processes.stdin_takes = 100
        await process.write(" later")
    assert bytes(server.processes.inputs[0]) == b"taken later"


async def test_a_process_is_followed_while_it_runs(server: WireServer) -> None:
    async with AsyncSandbox(url=server.url) as box, await box.commands.start(["cat"], stdin=True) as process:
        assert (process.id, process.pid, process.exit_code) == ("p-0", 7, None)
        assert isinstance(await anext(process), Started)
        await process.write("a")
        event = await anext(process)
        assert isinstance(event, Stdout)
        assert (event.text, event.data, event.offset) == ("a", b"a", 0)
        assert process.output.stdout == "a"
        assert process.output.exit_code == -1
        info = await process.info()
        assert (info.running, info.command, info.stdin_open) == (True, ("cat",), True)
        await process.write("b")
        await process.close_stdin()
        assert (await process.wait()).stdout == "ab"
        assert process.exit_code == 0
        assert [e async for e in process] == []
        assert not (await process.info()).running
    assert not server.requests("DELETE", ".*/processes/.*"), "it had ended by itself"


async def test_waiting_has_a_limit_that_ends_nothing(server: WireServer) -> None:
    async with AsyncSandbox(url=server.url) as box, await box.commands.start(["cat"], stdin=True) as process:
        await process.write("a")
        with pytest.raises(TimedOut, match="goes on"):
            await process.wait(timeout=0.3)
        await process.write("b")
        await process.close_stdin()
        assert (await process.wait(timeout=30)).stdout == "ab"


async def test_signals_and_the_end_by_one(server: WireServer) -> None:
    async with AsyncSandbox(url=server.url) as box:
        async with await box.commands.start(["sleep"]) as process:
            await process.signal("INT")
            done = await process.wait()
            assert (done.exit_code, done.signal) == (130, "SIGINT")
            with pytest.raises(ProcessEnded):
                await process.signal("TERM")
            await process.kill()
        async with await box.commands.start(["sleep"]) as process:
            await process.kill()
            assert (await process.wait()).signal == "SIGKILL"
            with pytest.raises(InvalidArgument, match="INT"):
                await process.signal(True)
    bodies = [s.json for s in server.requests("POST", ".*/signal")]
    assert bodies[-1] == {"signal": "KILL", "tree": True}


async def test_a_process_that_is_left_is_killed(server: WireServer) -> None:
    async with AsyncSandbox(url=server.url) as box:
        async with await box.commands.start(["sleep"]):
            pass
        process = await box.commands.start(["sleep"])
        with pytest.raises(TimedOut):
            await process.wait(timeout=0.1)
        await process.aclose()
        assert [s.path.rpartition("/")[2] for s in server.requests("DELETE", ".*/processes/.*")] == [
            "p-0",
            "p-1",
        ]
        with pytest.raises(ProcessNotFound):
            await process.info()


async def test_a_process_in_the_background_outlives_its_handle(server: WireServer) -> None:
    async with AsyncSandbox(url=server.url) as box:
        async with await box.commands.start(["emit", "6000"], background=True) as process:
            assert server.requests("POST", STARTS)[0].json == {
                "command": ["emit", "6000"],
                "background": True,
            }
            assert (await process.wait()).exit_code == 0
        sleeping = await box.commands.start(["sleep"], background=True)
        await sleeping.aclose()
        assert [p.id for p in await box.commands.list() if p.running] == [sleeping.id]
        again = await box.commands.attach(process.id)
        kept = await again.logs()
        assert kept.stdout_bytes == pattern(6000)[-4096:]
        assert kept.stdout_truncated
        await (await box.commands.attach(sleeping.id)).kill()
        with pytest.raises(ProcessNotFound):
            await box.commands.attach("p-99")


async def test_logs_do_not_wait(server: WireServer) -> None:
    async with AsyncSandbox(url=server.url) as box:
        process = await box.commands.start(["cat"], stdin=True, background=True)
        await process.write("a")
        assert isinstance(await anext(process), Started)
        assert (await process.logs()).stdout == "a"
        assert isinstance(await anext(process), Stdout)
        async with await box.commands.start(["sleep"]) as foreground:
            with pytest.raises(InvalidArgument, match="events"):
                await foreground.logs()
        await process.kill()


async def test_who_attaches_goes_on_writing_where_the_first_stopped(server: WireServer) -> None:
    async with AsyncSandbox(url=server.url) as box:
        first = await box.commands.start(["cat"], stdin=True, background=True)
        await first.write("one ")
        second = await box.commands.attach(first.id)
        await second.write("two")
        await second.close_stdin()
        done = await second.wait()
        assert (done.stdout, done.exit_code, second.pid) == ("one two", 0, 7)


async def test_a_terminal_is_typed_into_and_resized(server: WireServer) -> None:
    async with AsyncSandbox(url=server.url) as box:
        async with await box.pty.open(["cat"], cols=100, rows=30, env={"TERM": "dumb"}) as terminal:
            assert server.requests("POST", STARTS)[0].json["pty"] == {"cols": 100, "rows": 30}
            await terminal.write("ls\r")
            assert await anext(terminal) == b"ls\r"
            await terminal.resize(120, 40)
            assert (await terminal.process.info()).terminal == (120, 40)
            attached = await box.pty.attach(terminal.id)
            assert await anext(attached) == b"ls\r"
            await terminal.signal("TERM")
            assert await attached.wait(timeout=30) == 143
            assert attached.exit_code == 143
        plain = await box.commands.start(["sleep"])
        with pytest.raises(NotATerminal):
            await plain.resize(1, 1)
        with pytest.raises(NotATerminal, match=r"commands\.attach"):
            await box.pty.attach(plain.id)
        await plain.aclose()


async def test_without_a_command_a_terminal_has_a_shell(server: WireServer) -> None:
    async with AsyncSandbox(url=server.url) as box:
        async with await box.pty.open() as terminal:
            assert await terminal.wait() == 127, "the wire server has none"
        assert "exec bash" in server.requests("POST", STARTS)[0].json["shell"]


async def test_callbacks_get_text_that_is_never_cut_within_a_character(server: WireServer) -> None:
    pieces: list[str] = []
    async with AsyncSandbox(url=server.url) as box:
        await box.commands.run(["emit", "5003"], on_stdout=pieces.append)
    assert "".join(pieces) == pattern(5003).decode("utf-8", "replace")
    assert len(pieces) > 5


async def test_what_was_begun_is_not_begun_again(server: WireServer) -> None:
    async with AsyncSandbox(url=server.url) as box:
        server.drop_after("POST", STARTS)
        done = await box.commands.run(["emit", "10"])
        assert done.stdout_bytes == pattern(10)
        assert server.processes.started == [["emit", "10"]]
        keys = {s.headers["idempotency-key"] for s in server.requests("POST", STARTS)}
        assert len(keys) == 1
        server.drop_after("POST", STARTS)
        process = await box.commands.start(["emit", "20"], background=True)
        assert [type(e) for e in [e async for e in process]] == [Started, Stdout, Exited]
        assert len(server.processes.started) == 2
