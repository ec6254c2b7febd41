"""Carries out operations through the SDK and checks every byte and count of what comes back."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from agentcube.errors import Conflict, FileExists, FileNotFound, ProcessEnded, StdinClosed
from agentcube.sdk import AsyncSandbox
from agentcube.sdk._async.process import AsyncProcess
from agentcube.sdk._core.errors import ConnectionLost, TimedOut
from agentcube.sdk._core.events import CellEnded, CellError, Stdout
from tests.soak.operations import (
    SIGNALS,
    Append,
    BashCount,
    Copy,
    Count,
    Delete,
    Echo,
    Emit,
    Interrupted,
    List,
    Mistake,
    Move,
    Operation,
    Part,
    Read,
    Script,
    Signalled,
    Terminal,
    TooSlow,
    Tree,
    Write,
    content,
)

T = TypeVar("T")

PATTERN = "pattern.bin"
WITHIN_S = 120.0  # of one operation, on a busy machine, with its connections cut several times


class Wrong(Exception):
    """What came is not what must come."""


def same(got: object, expected: object, what: str) -> None:
    """Raise Wrong unless these are equal; of bytes it is told where they begin to differ."""
    if got == expected:
        return
    if isinstance(got, bytes) and isinstance(expected, bytes):
        at = next((n for n, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), None)
        where = f"at byte {at}" if at is not None else "in length alone"
        raise Wrong(f"{what}: {len(got)} bytes instead of {len(expected)}, different {where}")
    raise Wrong(f"{what}: {got!r:.300} instead of {expected!r:.300}")


class Actor:
    """One session, through connections that break and, for asking after the operations, `direct`.

    `uncertain` counts calls after which only another look told whether they had happened; `compared` counts bytes.
    """

    def __init__(self, box: AsyncSandbox, direct: AsyncSandbox, script: Script) -> None:
        self.script = script
        self.done = 0
        self.uncertain = 0
        self.compared = 0
        self._box, self._direct = box, direct
        self._files, self._commands = box.files, box.commands

    async def prepare(self) -> None:
        """What the operations need."""
        await self._files.write(PATTERN, self.script.pattern)
        same((await self._box.run("counter = 0; counter")).text, "0", "the counter")
        same((await self._box.run("counter=0; echo $counter", "bash")).stdout, "0\n", "bash's counter")

    async def act(self, count: int) -> None:
        """The next operations of the script. Raises Wrong, which names the operation."""
        for operation in self.script.draw(count):
            try:
                async with asyncio.timeout(WITHIN_S):
                    await self._do(operation)
            except Exception as exc:
                raise Wrong(f"operation {self.done} of {self.script.seed}, {operation}: {exc!r}") from exc
            self.done += 1

    async def verify(self) -> None:
        """Everything is as the script says, and nothing runs that should not. Raises Wrong."""
        await self._list()
        for path, expected in self.script.files.items():
            self._same(await self._files.read(path), expected, path)
        same((await self._box.run("counter")).text, str(self.script.counter), "the counter at the end")
        said = (await self._box.run("echo $counter", "bash")).stdout
        same(said, f"{self.script.bash_counter}\n", "bash's counter at the end")
        running = [info.command for info in await self._direct.commands.list() if info.running]
        same(running, [], "processes left")

    def _same(self, got: bytes, expected: bytes, what: str) -> None:
        self.compared += len(expected)
        same(got, expected, what)

    async def kept_bytes(self) -> int:
        """What PicoD keeps of processes, as it must: for those who may still ask for it."""
        found = await self._direct.commands.list()
        return sum(end - start for info in found for start, end in info.kept.values())

    async def _do(self, operation: Operation) -> None:
        match operation:
            case Emit():
                await self._emit(operation)
            case Echo():
                await self._echo(operation)
            case Signalled():
                await self._signalled(operation)
            case Terminal():
                await self._terminal(operation)
            case Write():
                data = content(operation.seed, operation.size)
                await self._again(lambda: self._files.write(operation.path, data))
            case Append():
                await self._append(operation)
            case Read():
                await self._read(operation)
            case Move():
                await self._move(operation)
            case Copy():
                await self._copy(operation)
            case Delete():
                await self._again(lambda: self._files.delete(operation.path))
            case List():
                await self._list()
            case Tree():
                await self._tree(operation)
            case Count():
                await self._count(operation)
            case BashCount():
                done = await self._box.run("counter=$((counter + 1)); echo $counter", "bash")
                same((done.status, done.stdout), ("ok", f"{operation.value}\n"), "a cell of bash")
            case TooSlow():
                done = await self._box.run("import time; time.sleep(600)", timeout=0.2)
                same((done.status, done.state_lost), ("timed_out", False), "a cell with a timeout")
            case Mistake():
                done = await self._box.run(f"1 / 0  # {operation.number}")
                same((done.status, done.error and done.error.name), ("error", "ZeroDivisionError"), "mistake")
                same(f"# {operation.number}" in str(done.error), True, "the traceback shows the line")
            case Interrupted():
                await self._interrupted()

    async def _emit(self, operation: Emit) -> None:
        out, err = (_printing(part) for part in (operation.out, operation.err))
        command = ["sh", "-c", f"{out}; {err} >&2; exit {operation.code}"]
        if operation.background:
            started = await self._commands.start(command, background=True)
            results = [await started.wait(), await (await self._commands.attach(started.id)).wait()]
        else:
            results = [await self._commands.run(command)]
        for result in results:
            self._same(result.stdout_bytes, self.script.part(operation.out), "stdout")
            self._same(result.stderr_bytes, self.script.part(operation.err), "stderr")
            same(result.exit_code, operation.code, "exit code")

    async def _echo(self, operation: Echo) -> None:
        data = content(operation.seed, sum(operation.sizes))

        async def write(process: AsyncProcess) -> None:
            at = 0
            try:
                for size in operation.sizes:
                    await process.write(data[at : at + size])
                    at += size
            except (StdinClosed, ProcessEnded) as exc:
                info = await self._direct.commands.get(process.id)
                raise Wrong(f"cat reads no more at byte {at}: {exc}; {info}") from exc
            await process.close_stdin()

        async with await self._commands.start(["cat"], stdin=True) as process, asyncio.TaskGroup() as group:
            group.create_task(write(process))
            result = await process.wait()
        self._same(result.stdout_bytes, data, "what cat gave back")
        same(result.exit_code, 0, "exit code of cat")

    async def _signalled(self, operation: Signalled) -> None:
        async with await self._commands.start(["sh", "-c", "echo up; exec sleep 600"]) as process:
            async for event in process:
                if isinstance(event, Stdout):
                    break
            try:
                await self._again(lambda: process.signal(operation.name))
            except ProcessEnded:
                pass  # the first of two signals had reached it
            result = await process.wait()
        same(result.exit_code, 128 + SIGNALS[operation.name], "exit code")
        same(result.signal, operation.name, "signal")

    async def _terminal(self, operation: Terminal) -> None:
        screen = b""
        async with await self._box.pty.open(["sh", "-c", "read line; stty size; exit 3"]) as opened:
            await self._again(lambda: opened.resize(operation.cols, operation.rows))
            await opened.write("go\r")
            async for data in opened:
                screen += data
            same(opened.exit_code, 3, "exit code in a terminal")
        same(screen, f"go\r\n{operation.rows} {operation.cols}\r\n".encode(), "the screen")

    async def _append(self, operation: Append) -> None:
        data = content(operation.seed, operation.size)

        while True:
            try:
                await self._files.append(operation.path, data, offset=operation.at)
                return
            except (ConnectionLost, TimedOut):
                self.uncertain += 1
            except Conflict:
                pass  # an earlier attempt, thought lost, is at it or has done it
            if (await self._again(lambda: self._files.stat(operation.path))).size == operation.at + len(data):
                return
            await asyncio.sleep(0.05)

    async def _read(self, operation: Read) -> None:
        whole = self.script.files[operation.path]
        part = {"offset": operation.start, "length": operation.size}
        got = await self._again(lambda: self._files.read(operation.path, **part))
        end = None if operation.size is None else operation.start + operation.size
        self._same(got, whole[operation.start : end], operation.path)

    async def _move(self, operation: Move) -> None:
        try:
            await self._again(lambda: self._files.move(operation.source, operation.target))
        except FileNotFound:  # an earlier attempt, thought lost, came through
            moved = await self._again(lambda: self._files.exists(operation.target))
            same(moved, True, "a file that moved is there")

    async def _copy(self, operation: Copy) -> None:
        try:
            await self._again(lambda: self._files.copy(operation.source, operation.target))
        except FileExists:
            pass  # the answer to the first of two was lost

    async def _list(self) -> None:
        try:
            found = await self._again(lambda: self._files.list("work", recursive=True))
        except FileNotFound:
            found = []
        sizes = {entry.path: entry.size for entry in found if not entry.is_dir}
        same(sizes, {path: len(data) for path, data in self.script.files.items()}, "names and sizes")

    async def _tree(self, operation: Tree) -> None:
        files = {
            f"d{n % 3}/f{n}": content(operation.seed + n, size) for n, size in enumerate(operation.sizes)
        }
        with tempfile.TemporaryDirectory() as folder:
            here, back = Path(folder, "here"), Path(folder, "back")
            for name, data in files.items():
                (here / name).parent.mkdir(parents=True, exist_ok=True)
                (here / name).write_bytes(data)
            await self._again(lambda: self._files.upload(here, operation.name))
            await self._again(lambda: self._files.download(operation.name, back))
            got = {p.relative_to(back).as_posix(): p.read_bytes() for p in back.rglob("*") if p.is_file()}
        same(got, files, "a tree there and back")
        await self._again(lambda: self._files.delete(operation.name, recursive=True))

    async def _count(self, operation: Count) -> None:
        code = f"counter += 1\nfor n in range({operation.lines}): print(counter, n)\ncounter"
        done = await self._box.run(code, check=True)
        expected = "".join(f"{operation.value} {n}\n" for n in range(operation.lines))
        self._same(done.stdout.encode(), expected.encode(), "a cell's output")
        same(done.text, str(operation.value), "a cell's value")

    async def _interrupted(self) -> None:
        ends = []
        async with self._box.stream("import time\nprint('up', flush=True)\ntime.sleep(600)") as events:
            async for event in events:
                if isinstance(event, Stdout):
                    kernel = await self._again(lambda: self._box.kernels.get("main"))
                    await self._again(kernel.interrupt)
                elif isinstance(event, CellError | CellEnded):
                    ends.append(event)
        same(
            [event.name for event in ends if isinstance(event, CellError)], ["KeyboardInterrupt"], "the error"
        )
        same([e.status for e in ends if isinstance(e, CellEnded)], ["interrupted"], "the status")

    async def _again(self, call: Callable[[], Awaitable[T]]) -> T:
        """Until there is an answer: the SDK tries three times at most, and some calls only once."""
        while True:
            try:
                return await call()
            except (ConnectionLost, TimedOut):
                self.uncertain += 1


def _printing(part: Part) -> str:
    return f"tail -c +{part.start + 1} {PATTERN} | head -c {part.size}"
