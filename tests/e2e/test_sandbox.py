"""The SDK's sandboxes on real ones: cells, programs, files, and connections that break on the way."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentcube import AgentCube, AsyncAgentCube, Sandbox
from agentcube.errors import FileExists, KernelBusy, ProcessNotFound
from agentcube.events import CellStarted, Started, Stdout
from tests.e2e import harness
from tests.integration.sdk.cutting import cutting

WITHIN_S = 60.0


@pytest.fixture(scope="module")
def box(server: harness.Server) -> Iterator[Sandbox]:
    with Sandbox(url=server.url, api_key=server.api_key) as box:
        yield box


# Cells


def test_a_notebook(box: Sandbox) -> None:
    kernel = box.kernels.create(id="notebook")
    box.files.write("sales.csv", "month,sales\n1,10\n2,30\n3,20\n")
    kernel.run("import pandas as pd\nframe = pd.read_csv('sales.csv')", check=True)
    table = kernel.run("frame", check=True)
    assert table.text is not None
    assert table.text.splitlines()[0].split() == ["month", "sales"]
    assert table.value is not None
    assert "<table" in (table.value.html or "")
    assert "<iframe sandbox=" in table._repr_mimebundle_()[0]["text/html"]
    charts = kernel.run(
        """
        import matplotlib.pyplot as plt
        for kind in ("bar", "line"):
            frame.plot(x="month", y="sales", kind=kind)
            plt.show()
        print("drawn")
        """,
        check=True,
    )
    assert charts.stdout == "drawn\n"
    assert [png[:4] for png in charts.pngs] == [b"\x89PNG"] * 2
    failed = kernel.run("frame['nothing']")
    assert failed.error is not None
    assert (failed.status, failed.error.name) == ("error", "KeyError")
    slow = kernel.run("import time\nwhile True: time.sleep(0.1)", timeout=0.5)
    assert (slow.status, slow.state_lost) == ("timed_out", False)
    assert kernel.run("int(frame.sales.sum())").text == "60", "variables outlive exceptions and interrupts"
    assert kernel.run("await __import__('asyncio').sleep(0, 7)").text == "7"


def test_a_cell_that_kills_its_kernel_is_told_and_the_next_one_begins_anew(box: Sandbox) -> None:
    box.run("x = 1", check=True)
    died = box.run("import os; os._exit(3)")
    assert (died.status, died.state_lost) == ("kernel_died", True)
    assert box.run("x").error is not None


def test_a_stream_comes_while_the_cell_runs_and_leaving_it_interrupts(box: Sandbox) -> None:
    code = "import time\nprint('a', flush=True)\ntime.sleep(600)"
    for event in box.stream(code):
        if isinstance(event, Stdout):
            break
    assert box.run("'free'", wait=WITHIN_S).text == "'free'"
    kernel = box.kernels.get("main")
    with box.stream(code) as events:
        assert isinstance(next(events), CellStarted)
        with pytest.raises(KernelBusy):
            kernel.run("1", wait=0)


def test_bash_keeps_its_state_and_tells_its_exit_code(box: Sandbox) -> None:
    box.run("cd /tmp; N=7", "bash")
    done = box.run("pwd; echo $N; false", "bash")
    assert (done.stdout, done.exit_code) == ("/tmp\n7\n", 1)


# Programs


def test_a_program_is_run_to_the_byte(box: Sandbox) -> None:
    code = "import sys; sys.stdout.buffer.write(bytes(range(256)) * 8000); sys.stderr.write('e'); sys.exit(7)"
    said: list[str] = []
    done = box.commands.run(["python3", "-c", code], on_stdout=said.append)
    assert done.stdout_bytes == bytes(range(256)) * 8000
    assert (done.stderr, done.exit_code) == ("e", 7)
    assert "".join(said) == done.stdout
    assert box.commands.run("cat", stdin="grüße").stdout == "grüße"
    killed = box.commands.run("sleep 600 & sleep 600", timeout=0.2)
    assert (killed.exit_code, killed.timed_out) == (124, True)
    assert box.commands.run("echo $A; pwd", env={"A": "b"}, cwd="/tmp").stdout.startswith("b\n")


def test_a_program_is_talked_with(box: Sandbox) -> None:
    with box.commands.start(["cat"], stdin=True) as cat:
        assert isinstance(next(cat), Started)
        for text in ("one\n", "two\n"):
            cat.write(text)
            event = next(cat)
            assert isinstance(event, Stdout)
            assert event.text == text
        cat.close_stdin()
        assert cat.wait(WITHIN_S).exit_code == 0


def test_a_process_that_is_left_is_dead_and_one_in_the_background_is_not(box: Sandbox) -> None:
    with box.commands.start("sleep 600 & sleep 600") as left:
        pass
    with pytest.raises(ProcessNotFound):
        left.info()
    with box.commands.start("echo begun; exec sleep 601", background=True) as stays:
        assert isinstance(next(stays), Started)
    again = box.commands.attach(stays.id)
    harness.eventually(lambda: again.logs().stdout == "begun\n", within=WITHIN_S)
    running = box.commands.run("cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout
    assert "sleep 601" in running
    assert "sleep 600" not in running
    again.kill()
    assert again.wait(WITHIN_S).signal == "SIGKILL"


def test_a_terminal(box: Sandbox) -> None:
    with box.pty.open(["sh", "-i"], cols=90, rows=33, env={"PS1": "$ "}) as terminal:
        terminal.write("stty size; test -t 0 && echo a-$((40+2))-terminal\r")
        seen = b""
        while b"a-42-terminal" not in seen:
            seen += next(terminal)
        assert b"33 90" in seen
        terminal.resize(70, 20)
        terminal.write("stty size; exit 5\r")
        seen = b"".join(terminal)
        assert b"20 70" in seen
        assert terminal.exit_code == 5


async def _many(server: harness.Server, session: str) -> list[str]:
    async with AsyncAgentCube(url=server.url, api_key=server.api_key, connect_timeout=WITHIN_S) as cube:
        box = cube.sessions.sandbox(session)
        done = await asyncio.gather(*(box.commands.run(["echo", str(n)]) for n in range(60)))
    return [one.stdout for one in done]


def test_sixty_at_once(server: harness.Server, box: Sandbox) -> None:
    assert asyncio.run(_many(server, box.session_id)) == [f"{n}\n" for n in range(60)]


def test_a_cancelled_call_leaves_nothing_running(server: harness.Server, box: Sandbox) -> None:
    async def cancelled() -> None:
        async with AsyncAgentCube(url=server.url, api_key=server.api_key) as cube:
            inside, begun = cube.sessions.sandbox(box.session_id), asyncio.Event()
            task = asyncio.create_task(
                inside.commands.run("echo begun; exec sleep 602", on_stdout=lambda text: begun.set())
            )
            await asyncio.wait_for(begun.wait(), WITHIN_S)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(cancelled())
    assert "sleep 602" not in box.commands.run("cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout


# Files


def test_files(box: Sandbox, tmp_path: Path) -> None:
    files = box.files
    made = files.write("f/a.txt", "grüße", mode=0o640)
    assert (made.size, made.permissions, made.path) == (7, "0640", "f/a.txt")
    files.append("f/a.txt", "!", offset=7)
    assert files.read_text("f/a.txt") == "grüße!"
    assert files.read("f/a.txt", offset=3, length=2) == "ü".encode()[1:] + "ß".encode()[:1]
    with pytest.raises(FileExists):
        files.write("f/a.txt", b"", exclusive=True)
    files.copy("f", "g")
    files.move("g/a.txt", "g/b.txt")
    files.chmod("g/b.txt", "600")
    assert [entry.path for entry in files.glob("**/*.txt")] == ["f/a.txt", "g/b.txt"]
    name = b"g/\xff.txt".decode("utf-8", "surrogateescape")
    files.write(name, b"odd")
    assert files.read(name) == b"odd"
    assert name in [entry.path for entry in files.list("g", recursive=True)]
    assert files.stat(name).size == 3
    files.delete("g", recursive=True)
    assert not files.exists("g")
    with files.writer("made") as file:
        file.write("x" * 100)
    with files.reader("made") as file:
        file.seek(90)
        assert file.read() == b"x" * 10
    files.download("f/a.txt", tmp_path / "a")
    assert (tmp_path / "a").read_text() == "grüße!"


def test_trees_go_up_and_down(box: Sandbox, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "empty").mkdir()
    (source / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (source / "run.sh").chmod(0o755)
    (source / "deep" / "big").write_bytes(random.Random(1).randbytes(3_000_000))
    (source / "deep" / "er" / "link").symlink_to("../big")
    up = box.files.upload(source, "tree")
    assert up.size == 3_000_000 + 19
    assert box.commands.run(["./run.sh"], cwd="tree").stdout == "ran\n"
    down = box.files.download("tree", tmp_path / "copy")
    assert (down.files, down.size, tuple(down.left_out)) == (2, up.size, ())
    for path in ("run.sh", "deep/big", "deep/er/link"):
        assert (tmp_path / "copy" / path).read_bytes() == (source / path).read_bytes()
    assert (tmp_path / "copy" / "deep" / "er" / "link").is_symlink()
    assert (tmp_path / "copy" / "run.sh").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "copy" / "empty").is_dir()


def test_a_watch(box: Sandbox) -> None:
    box.files.mkdir("watched")
    with box.files.watch("watched", recursive=True) as changes:
        box.commands.run("echo x > a; mv a b; rm b", cwd="watched", check=True)
        kinds: list[str] = []
        for change in changes:
            kinds.append(change.kind)
            if change.kind == "delete":
                break
        assert kinds[0] == "create"
        assert "rename" in kinds


# Connections that break


@pytest.mark.parametrize("seed", range(2))
def test_nothing_is_lost_and_nothing_comes_twice(server: harness.Server, box: Sandbox, seed: int) -> None:
    size = 1_500_000
    code = f"import random, sys; sys.stdout.buffer.write(random.Random({seed}).randbytes({size}))"
    expected = random.Random(seed).randbytes(size)
    with cutting(server.url, seed, most=400_000) as proxy, AgentCube(proxy.url, server.api_key) as cube:
        cut = cube.sessions.sandbox(box.session_id)
        done = cut.commands.run(f"echo run >> ran-{seed}; exec python3 -c {code!r}", check=True)
        assert done.stdout_bytes == expected
        before = int(box.run("globals().get('count', 0)").text or 0)
        cell = cut.run(
            "count = globals().get('count', 0) + 1\nfor n in range(3000): print(n, flush=True)\ncount"
        )
        assert cell.stdout == "".join(f"{n}\n" for n in range(3000))
        assert cell.text == str(before + 1), "it ran once"
        with cut.commands.start(["cat"], stdin=True) as cat:
            cat.write(expected[:300_000])
            cat.close_stdin()
            assert cat.wait(WITHIN_S).stdout_bytes == expected[:300_000]
        assert proxy.cuts > 3
    assert box.files.read_text(f"ran-{seed}") == "run\n"
