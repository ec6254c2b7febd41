"""One process of a client's: its channels, what is known of it, and who reads it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agentcube.picod.messages import rfc3339
from agentcube.picod.problems import Problem
from agentcube.picod.process_input import Input
from agentcube.picod.process_output import Output, Source, Store
from agentcube.picod.terminal import Size, Terminal
from agentcube.picod.trees import TIMED_OUT, Tree, Verdict

RING_BYTES = 1024 * 1024  # kept per stream of a background process
HELD_BYTES = 1024 * 1024  # unconfirmed per stream of a foreground process with a grace
DIRECT_BYTES = 256 * 1024  # on its way to a client that may not come back


@dataclass(frozen=True)
class Order:
    """What a client asks for. Times are seconds; `grace_s` and `background` exclude each other."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    shell: str | None = None  # the line that `argv` runs
    working_dir: str = ""
    stdin_open: bool = False
    input: bytes | None = None
    size: Size | None = None  # of its terminal
    timeout_s: float | None = None
    background: bool = False
    grace_s: float = 0.0


@dataclass(frozen=True)
class Exit:
    """How it ended, and when (seconds since the epoch)."""

    verdict: Verdict
    timed_out: bool
    ended_at: float
    duration_s: float


class Channels:
    """The descriptors between PicoD and a program. `theirs` are its own, closed here once it has them."""

    def __init__(self, size: Size | None, *, stdin: bool) -> None:
        """Raises Problem `limit_exceeded` or `unavailable`."""
        self.terminal: Terminal | None = None
        self.write: int | None = None  # to its standard input
        self.read: dict[str, int] = {}
        self.theirs: list[int] = []
        try:
            if size is None:
                self._open_pipes(stdin=stdin)
            else:
                self._open_terminal(size)
        except BaseException as exc:
            self.close_theirs()
            self.close()
            if isinstance(exc, OSError):
                raise Problem("unavailable", f"cannot start another process: {exc.strerror}") from exc
            raise

    def _open_pipes(self, *, stdin: bool) -> None:
        for name in ("stdout", "stderr"):
            self.read[name], theirs = os.pipe()
            self.theirs.append(theirs)
        if stdin:
            theirs, self.write = os.pipe()
            self.theirs.append(theirs)

    def _open_terminal(self, size: Size) -> None:
        self.terminal = Terminal(size)
        self.write = self.terminal.fd
        self.read["stdout"] = os.dup(self.terminal.fd)
        self.theirs.append(self.terminal.open_program_side())

    @property
    def stdio(self) -> tuple[int | None, int, int]:
        """The program's standard input (None: nothing), output and error."""
        if self.terminal is not None:
            return (self.theirs[0],) * 3
        out, err, *stdin = self.theirs
        return (stdin[0] if stdin else None, out, err)

    def close_theirs(self) -> None:
        """The program has its copies."""
        while self.theirs:
            os.close(self.theirs.pop())

    def close(self) -> None:
        """There will be no program."""
        for fd in self.read.values():
            os.close(fd)
        if self.terminal is not None:
            self.terminal.close()
        elif self.write is not None:
            os.close(self.write)


class Process:
    """What is known of it, from its start until it is forgotten. Made and ended by the `ProcessTable`."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, number: int, order: Order, working_dir: str, store: Store
    ) -> None:
        self._loop = loop
        self.id = "p-" + os.urandom(8).hex()
        self.number = number  # in the order of starting
        self.key: str | None = None
        self.name = order.argv[0]
        self.command = None if order.shell is not None else _shown(order.argv)
        self.shell = None if order.shell is None else "".join(_shown((order.shell,)))
        self.working_dir = working_dir
        self.background = order.background
        self.grace_s = order.grace_s
        self.timeout_s = order.timeout_s
        self.started_at = time.time()
        self._begin = time.monotonic()
        limit = RING_BYTES if order.background else HELD_BYTES if order.grace_s else DIRECT_BYTES
        self.outputs = {
            name: Output(store, limit, holds=not order.background) for name in ("stdout", "stderr")
        }
        self.sources: tuple[Source, ...] = ()
        self.input: Input | None = None
        self.terminal: Terminal | None = None
        self.exit: Exit | None = None
        self.ended = asyncio.Event()
        self.settled = asyncio.Event()  # its output is whole, too
        self.killing: asyncio.Task[None] | None = None
        self.cut_short: tuple[str, bool] | None = None  # why PicoD killed it, and whether its time was up
        self.reader: object | None = None  # of a foreground process: the attachment that it is for
        self.grace: asyncio.TimerHandle | None = None
        self.version = 0  # counts what readers may want to know of
        self._waiters: list[asyncio.Future[None]] = []
        self.takes_input = order.stdin_open and order.input is None

    def join(self, tree: Tree, channels: Channels) -> None:
        """It was started: take over its channels."""
        self.tree = tree
        self.terminal = channels.terminal
        if channels.write is not None:
            self.input = Input(self._loop, channels.write, channels.terminal)
        self.sources = tuple(
            Source(self._loop, fd, self.outputs[name], self.changed) for name, fd in channels.read.items()
        )

    # Changes

    def changed(self) -> None:
        """Wake whoever waits for a change."""
        self.version += 1
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def change(self, since: int) -> None:
        """Wait until `version` is not `since`."""
        if self.version == since:
            waiter = self._loop.create_future()
            self._waiters.append(waiter)
            await waiter

    def finish(self, how: Verdict) -> None:
        """The program has ended, by itself as `how` says if nobody cut it short."""
        timed_out = False
        if self.cut_short is not None:
            why, timed_out = self.cut_short
            how = Verdict(TIMED_OUT if timed_out else 137, "SIGKILL", f"{why}; {self.tree.fate}")
        duration_s = time.monotonic() - self._begin
        self.exit = Exit(how, timed_out, self.started_at + duration_s, duration_s)
        if self.input is not None:
            self.input.end()
        self.ended.set()
        self.changed()

    @property
    def stdin_open(self) -> bool:
        """Whether a client may write to it now."""
        return self.takes_input and self.input is not None and self.input.open

    def ends(self) -> dict[str, int]:
        """The offsets at which its output ends now."""
        return {name: output.end for name, output in self.outputs.items()}

    def conclude(self) -> None:
        """Nobody is owed its output any more."""
        for output in self.outputs.values():
            output.conclude()

    def forget(self) -> None:
        """Keep nothing of it. Who reads it still sees its end."""
        if self.grace is not None:
            self.grace.cancel()
        for output in self.outputs.values():
            output.forget()

    # Documents

    def document(self) -> dict[str, Any]:
        """What clients see of it."""
        members: dict[str, Any] = {
            "id": self.id,
            "pid": self.tree.child.ending.pid,
            "command": self.command,
            "shell": self.shell,
            "working_dir": self.working_dir,
            "background": self.background,
            "pty": None if self.terminal is None else vars(self.terminal.size),
            "state": "running" if self.exit is None else "exited",
            "stdin": "open" if self.stdin_open else "closed",
            "exit_code": None,
            "signal": None,
            "timed_out": False,
            "started_at": rfc3339(self.started_at),
            "ended_at": None,
            "duration": None,
        }
        if self.exit is not None:
            members.update(_ended(self.exit), ended_at=rfc3339(self.exit.ended_at))
        for name, output in self.outputs.items():
            members[name] = {"start": output.start, "end": output.end}
        return members

    def start_event(self) -> dict[str, Any]:
        """Members of the event `start`."""
        pid = self.tree.child.ending.pid
        return {"id": self.id, "pid": pid, "started_at": rfc3339(self.started_at)}

    def exit_event(self) -> dict[str, Any]:
        """Members of the event `exit`; not to be asked before it ended."""
        assert self.exit is not None
        return {**_ended(self.exit), **self.ends()}


def _ended(exit: Exit) -> dict[str, Any]:
    members: dict[str, Any] = {
        "exit_code": exit.verdict.exit_code,
        "signal": exit.verdict.signal,
        "timed_out": exit.timed_out,
        "duration": round(exit.duration_s, 6),
    }
    if exit.verdict.note:
        members["error"] = exit.verdict.note
    return members


_SHOWN_CHARACTERS = 4096
"""How much of a command is remembered: hundreds of processes are, and a command may have megabytes."""


def _shown(argv: tuple[str, ...]) -> list[str]:
    """The command as it is shown, cut short with an ellipsis when it is long."""
    shown: list[str] = []
    left = _SHOWN_CHARACTERS
    for item in argv:
        if len(item) > left:
            return [*shown, item[:left] + "…"]
        shown.append(item)
        left -= len(item) + 1
    return shown
