"""Programs and cells that a command line starts in a session and stays with. Loaded only by commands that do."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agentcube.cli import terminal
from agentcube.cli.attendance import Attendance
from agentcube.cli.cells import Viewing
from agentcube.cli.inputs import Target, is_terminal
from agentcube.cli.render import line, notice
from agentcube.cli.terminal import STDERR, STDIN, STDOUT
from agentcube.errors import AgentCubeError
from agentcube.sdk import AsyncAgentCube, AsyncSandbox
from agentcube.sdk._core.errors import InvalidArgument
from agentcube.sdk._core.scripts import Script

STARTING_S = 300.0  # of a session's life, beside what its command may take
FORGOTTEN_S = 60.0  # a session made for one command ends when that command is no more


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """What the options say of a program. `tty` None: a terminal where both our ends are one."""

    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    timeout_s: float | None = None
    tty: bool | None = None
    no_stdin: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """The session to make where none is given."""

    template: str
    namespace: str


def client(target: Target) -> AsyncAgentCube:
    """A client of the server that the options, the environment or the user's config name."""
    return AsyncAgentCube(target.url, target.api_key)


async def execute(target: Target, session: str, argv: Sequence[str], how: How) -> int:
    """A program in a session, until it ends; its exit code."""
    async with client(target) as cube:
        return await _attended(cube.sessions.sandbox(session), argv, how)


async def start(target: Target, session: str, argv: Sequence[str], how: How) -> int:
    """A program in a session that is left running; its id is printed."""
    async with client(target) as cube:
        commands = cube.sessions.sandbox(session).commands
        process = await commands.start(argv, env=how.env, cwd=how.cwd, timeout=how.timeout_s, background=True)
        line(process.id)
    return 0


async def run_script(target: Target, made: Made, script: Script, how: How, timeout_s: float) -> int:
    """A script in a session of its own, until it ends; its exit code."""
    async with client(target) as cube, _temporary(cube, made, timeout_s) as box:
        await box.files.write(script.path, script.source)
        return await _attended(box, script.command, how)


async def run_cell(
    target: Target, session: str | Made, language: str, code: str, timeout_s: float, png: Path | None
) -> int:
    """A cell in a session that stays; the exit code."""
    async with client(target) as cube:
        if isinstance(session, str):
            box = cube.sessions.sandbox(session)
        else:
            box = await cube.sessions.open(session.template, namespace=session.namespace, keep=True)
            notice(f"session {box.session_id}")
        return await Viewing(box, language, png).run(code, timeout_s)


async def open_shell(target: Target, session: str) -> int:
    """A shell in our terminal; its exit code."""
    columns, rows = terminal.size_of(STDIN, STDOUT)
    async with client(target) as cube:
        box = cube.sessions.sandbox(session)
        opened = await box.pty.open(cols=columns, rows=rows, env={"TERM": terminal.kind()})
        async with opened.process as process:
            return await Attendance(process, input=True, keys=True).attend()


async def watch(target: Target, session: str, id: str) -> int:
    """A process that runs already, until it ends or we leave; its exit code."""
    async with client(target) as cube:
        commands = cube.sessions.sandbox(session).commands
        info = await commands.get(id)
        keys = info.terminal is not None and info.running and _both_ends_are_terminals()
        async with await commands.attach(id) as process:
            if keys:
                await process.resize(*terminal.size_of(STDIN, STDOUT))
            return await Attendance(process, input=keys, keys=keys, owned=False).attend()


async def _attended(box: AsyncSandbox, argv: Sequence[str], how: How) -> int:
    """Started with a terminal or with pipes, and attended. A terminal of ours is read only for one inside."""
    if how.tty and not terminal.available:
        raise InvalidArgument("there are no terminals of this kind on this system: leave out --tty")
    typing = is_terminal(sys.stdin) and not how.no_stdin
    tty = how.tty if how.tty is not None else typing and _both_ends_are_terminals()
    reading = not how.no_stdin and sys.stdin is not None and not sys.stdin.closed and (tty or not typing)
    if tty:
        columns, rows = terminal.size_of(STDIN, STDOUT, STDERR)
        env = {"TERM": terminal.kind(), **how.env}
        opened = await box.pty.open(
            argv, cols=columns, rows=rows, env=env, cwd=how.cwd, timeout=how.timeout_s
        )
        process = opened.process
    else:
        process = await box.commands.start(
            argv, stdin=reading, env=how.env, cwd=how.cwd, timeout=how.timeout_s
        )
    async with process:
        return await Attendance(process, input=reading, keys=tty and typing).attend()


def _both_ends_are_terminals() -> bool:
    return terminal.available and is_terminal(sys.stdin) and is_terminal(sys.stdout)


@contextlib.asynccontextmanager
async def _temporary(cube: AsyncAgentCube, made: Made, timeout_s: float) -> AsyncIterator[AsyncSandbox]:
    """A session for one program. Should this process be killed, it does not outlive that by much."""
    box = await cube.sessions.open(
        made.template, namespace=made.namespace, ttl=timeout_s + STARTING_S, idle_timeout=FORGOTTEN_S
    )
    try:
        yield box
    finally:
        try:
            await box.delete()
        except AgentCubeError as exc:
            notice(f"session {box.session_id} is left to its time limit: {exc.detail}")
