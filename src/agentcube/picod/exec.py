"""`/api/execute`: one fresh process per call, its whole tree dead when the call is cut short.

Knows processes and pipes, not HTTP: an outcome is data, a refusal is a `Problem`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from agentcube.durations import format_duration
from agentcube.picod.output import Head, Heads, PipeReader, PipeWriter
from agentcube.picod.starter import Starter
from agentcube.picod.trees import (
    LATE_OUTPUT_S,
    TIMED_OUT,
    Tree,
    Trees,
    Verdict,
    refuse_bad_start,
    verdict,
)

TIMEOUT_DEFAULT_S = 60.0
TIMEOUT_MAX_S = 24 * 3600.0
OUTPUT_BYTES_MAX = 8 * 1024 * 1024  # kept per stream; what comes after is read and dropped
OUTPUTS_BYTES_MAX = 32 * 1024 * 1024  # of all calls together: PicoD's own memory is bounded, too


@dataclass(frozen=True)
class Call:
    """What to execute. `timeout_s` covers the program and its late output."""

    argv: tuple[str, ...]
    timeout_s: float = TIMEOUT_DEFAULT_S
    working_dir: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    stdin: bytes | None = None


@dataclass(frozen=True)
class Outcome:
    """How it went. Times are seconds since the epoch; `signal` names what killed the program."""

    stdout: Head
    stderr: Head
    exit_code: int
    signal: str | None
    started_at: float
    duration_s: float


class Runner:
    """Executes calls."""

    def __init__(self, loop: asyncio.AbstractEventLoop, starter: Starter, trees: Trees) -> None:
        self._loop = loop
        self._starter = starter
        self._trees = trees
        self._heads = Heads(OUTPUTS_BYTES_MAX)

    def prepare(self) -> None:
        """Make the next call start sooner."""
        self._starter.prepare()

    async def execute(self, call: Call, env: Mapping[str, str]) -> Outcome:
        """Run to the end, or to the timeout; then everything it started is dead before this returns.

        Cancelled, it kills the tree as well (going on in the background). After a normal end,
        background processes live on. `env` is what `call.env` goes on top of.

        Raises:
            Problem: `limit_exceeded`, `unavailable`, or `invalid` for a working directory that
                cannot be entered.
        """
        self._trees.take_place()
        try:
            return await self._run(call, env)
        finally:
            self._trees.give_place()

    async def _run(self, call: Call, env: Mapping[str, str]) -> Outcome:
        program = self._starter.program(call.argv, {**env, **call.env}, call.working_dir)
        started_at, begin = time.time(), time.monotonic()
        pipes = _Pipes(self._loop, self._heads, call.stdin)
        try:
            tree = self._trees.start(program, pipes.stdin, pipes.stdout, pipes.stderr)
        except BaseException:
            pipes.close()
            raise
        finally:
            pipes.close_childs_ends()
        try:
            timed_out = await self._wait(tree, pipes, call.timeout_s)
        except asyncio.CancelledError:
            self._abandon(tree)
            pipes.close()
            raise
        finally:
            self._trees.forget(tree)
        pipes.stop_input()
        self._trees.let_go(pipes.readers)
        refuse_bad_start(tree.child.ending, call.argv[0], call.working_dir)
        return _outcome(tree, call, pipes, timed_out, started_at, time.monotonic() - begin)

    async def _wait(self, tree: Tree, pipes: _Pipes, timeout_s: float) -> bool:
        """Wait for the end and the output. Returns whether the time was up."""
        ending = tree.child.ending
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(ending.done.wait(), timeout_s)
        cut_short = (not ending.done.is_set() or ending.lost) and await self._trees.kill(tree)
        pipes.drain()
        if not pipes.ended.is_set():
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(pipes.ended.wait(), LATE_OUTPUT_S)
        return cut_short and not tree.guard_lost

    def _abandon(self, tree: Tree) -> None:
        if tree.child.ending.done.is_set() and not tree.child.ending.lost:
            return

        async def kill() -> None:
            await self._trees.kill(tree)

        self._trees.in_background(kill())


class _Pipes:
    """The three pipes of a run. The child's ends are closed in PicoD right after the start."""

    def __init__(self, loop: asyncio.AbstractEventLoop, heads: Heads, stdin: bytes | None) -> None:
        self.heads = (heads.new(OUTPUT_BYTES_MAX), heads.new(OUTPUT_BYTES_MAX))
        self.ended = asyncio.Event()
        self.stdin: int | None = None
        self._writer: PipeWriter | None = None
        out, self.stdout = os.pipe()
        err, self.stderr = os.pipe()
        if stdin is not None:
            self.stdin, write = os.pipe()
            self._writer = PipeWriter(loop, write, stdin)
        self.readers: tuple[PipeReader, ...] = ()
        self.readers = tuple(
            PipeReader(loop, fd, head.add, self._on_end) for fd, head in zip((out, err), self.heads)
        )

    def _on_end(self) -> None:
        if not any(reader.open for reader in self.readers):
            self.ended.set()

    def close_childs_ends(self) -> None:
        for fd in (self.stdin, self.stdout, self.stderr):
            if fd is not None:
                os.close(fd)

    def drain(self) -> None:
        for reader in self.readers:
            reader.drain()

    def stop_input(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def close(self) -> None:
        self.stop_input()
        for reader in self.readers:
            reader.close()


def _outcome(
    tree: Tree, call: Call, pipes: _Pipes, timed_out: bool, started_at: float, duration_s: float
) -> Outcome:
    stdout, stderr = pipes.heads
    how = verdict(tree, call.argv[0])
    if timed_out:
        note = f"command timed out after {format_duration(call.timeout_s)}; {tree.fate}"
        how = Verdict(TIMED_OUT, "SIGKILL", note)
    if how.note:
        stderr.add_line(how.note)
    return Outcome(stdout, stderr, how.exit_code, how.signal, started_at, duration_s)
