"""All processes of the session: started, watched to their end, remembered for a while."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Callable

from agentcube.durations import format_duration
from agentcube.picod import processes
from agentcube.picod.problems import Problem
from agentcube.picod.process_input import Input
from agentcube.picod.process_life import Channels, Order, Process
from agentcube.picod.process_output import Store
from agentcube.picod.starter import Starter
from agentcube.picod.terminal import TERM
from agentcube.picod.trees import LATE_OUTPUT_S, Trees, refuse_bad_start, verdict

RECORDS_MAX = 512
"""How many ended processes are remembered. A record takes some 8 KB; what they wrote has a bound of its own."""


class ProcessTable:
    """The processes by id, and what becomes of each."""

    def __init__(self, loop: asyncio.AbstractEventLoop, starter: Starter, trees: Trees) -> None:
        self._loop = loop
        self._starter = starter
        self._trees = trees
        self._store = Store()
        self._records: dict[str, Process] = {}  # in the order of starting
        self._ended: dict[str, None] = {}  # in the order of ending
        self._keys: dict[str, tuple[bytes, Process]] = {}
        self._number = 0

    # Starting and finding

    def start(
        self,
        order: Order,
        env: Mapping[str, str],
        *,
        key: str | None = None,
        digest: bytes = b"",
        fed: Callable[[], None] = lambda: None,
    ) -> Process:
        """Start a process; whether it could be is known when `begun` returns.

        `env` is what the order's own goes on top of; `fed` is called when its `input` is no longer
        needed. `find_key` gives it for `key` from now on.

        Raises:
            Problem: `limit_exceeded`, `unavailable`.
        """
        self._trees.take_place()
        try:
            process = self._launch(order, env)
        except BaseException:
            self._trees.give_place()
            fed()
            raise
        self._records[process.id] = process
        if key is not None:
            process.key = key
            self._keys[key] = (digest, process)
        self._trees.in_background(self._live(process))
        if order.input is None or process.input is None:
            fed()
        else:
            self._trees.in_background(_feed(process.input, order.input, fed))
        return process

    def _launch(self, order: Order, env: Mapping[str, str]) -> Process:
        env = {**env, **order.env}
        if order.size is not None:
            env.setdefault("TERM", TERM)
        channels = Channels(order.size, stdin=order.stdin_open or order.input is not None)
        try:
            terminal = "" if channels.terminal is None else channels.terminal.path
            program = self._starter.program(order.argv, env, order.working_dir, terminal=terminal)
            tree = self._trees.start(program, *channels.stdio)
        except BaseException:
            channels.close()
            raise
        finally:
            channels.close_theirs()
        self._number += 1
        where = os.fsdecode(program.working_dir).rstrip("/") or "/"
        process = Process(self._loop, self._number, order, where, self._store)
        process.join(tree, channels)
        return process

    async def begun(self, process: Process) -> None:
        """Wait until it is known whether it was started. Raises the Problem of one that never was, and is forgotten."""
        ending = process.tree.child.ending
        await ending.begun.wait()
        try:
            refuse_bad_start(ending, process.name, process.working_dir)
        except Problem:
            self._forget(process)
            raise

    def get(self, id: str) -> Process:
        """The process of that id. Raises Problem `process_not_found`."""
        process = self._records.get(id)
        if process is None:
            raise Problem("process_not_found", "there is no such process here, or it is no longer remembered")
        return process

    def find_key(self, key: str, digest: bytes) -> Process | None:
        """The process that was started for this idempotency key, if one is remembered.

        Raises:
            Problem: `idempotency_conflict` when that was for another request (`digest`).
        """
        known = self._keys.get(key)
        if known is None:
            return None
        if known[0] != digest:
            raise Problem("idempotency_conflict", "this Idempotency-Key was used with another body")
        return known[1]

    def list(self, after: int, limit: int) -> tuple[list[Process], bool]:
        """Up to `limit` processes that were started after number `after`, oldest first; whether there are more."""
        found = [process for process in self._records.values() if process.number > after]
        return found[:limit], len(found) > limit

    # Reading

    def attach(self, process: Process) -> object:
        """Become the reader of a foreground process, instead of any other; what `detach` takes."""
        if process.grace is not None:
            process.grace.cancel()
            process.grace = None
        process.reader = reader = object()
        process.changed()
        return reader

    def detach(self, process: Process, reader: object) -> None:
        """The reader is gone. If no other comes within the grace, the process is over."""
        if process.reader is not reader:
            return
        process.reader = None
        if process.grace_s:
            process.grace = self._loop.call_later(process.grace_s, self._abandon, process)
        else:
            self._abandon(process)

    def _abandon(self, process: Process) -> None:
        process.grace = None
        process.conclude()
        why = "its client went away"
        if process.grace_s:
            why += f" and did not come back within {format_duration(process.grace_s)}"
        self._cut_short(process, why)

    # Acting

    def signal(self, process: Process, number: int, *, tree: bool) -> None:
        """Send a signal to the program's process group, or to it and everything that descends from it.

        Raises:
            Problem: `process_ended`.
        """
        child = process.tree.child
        pid = child.ending.pid
        if process.exit is not None or child.ending.done.is_set() or pid is None:
            raise Problem("process_ended", "the process has ended")
        if tree:
            for one in processes.descendants(child.pid, processes.all_processes()):
                processes.send(one.pid, number)
        else:
            processes.send(-pid, number)  # it leads a session, so its group has its own number

    async def delete(self, process: Process) -> None:
        """Kill the whole tree if it still runs, and forget the process."""
        self._cut_short(process, "it was deleted")
        await process.ended.wait()
        self._forget(process)

    def _cut_short(self, process: Process, why: str, *, timed_out: bool = False) -> None:
        if process.exit is None and process.killing is None:
            process.killing = self._trees.in_background(self._kill(process, why, timed_out))

    async def _kill(self, process: Process, why: str, timed_out: bool) -> None:
        if await self._trees.kill(process.tree) and not process.tree.guard_lost:
            process.cut_short = (why, timed_out)

    # A life

    async def _live(self, process: Process) -> None:
        ending = process.tree.child.ending
        timer = None
        if process.timeout_s is not None:
            why = f"timed out after {format_duration(process.timeout_s)}"
            timer = self._loop.call_later(
                process.timeout_s, lambda: self._cut_short(process, why, timed_out=True)
            )
        await ending.done.wait()
        if timer is not None:
            timer.cancel()
        if process.killing is not None:
            await process.killing
        elif ending.lost:
            await self._trees.kill(process.tree)
        self._trees.forget(process.tree)
        how = verdict(process.tree, process.name)
        process.finish(how)
        await self._settle(process)
        if ending.failed is not None:
            self._say(process, how.note)
        with suppress(Problem):  # whoever asked for it is told
            await self.begun(process)
        self._retire(process)
        process.settled.set()
        process.changed()
        self._trees.give_place()

    async def _settle(self, process: Process) -> None:
        """Wait for the rest of the output; what others write who still hold its pipes, only for a moment."""
        for source in process.sources:
            source.reader.drain()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(_all_read(process), LATE_OUTPUT_S)
        for source in process.sources:
            source.finish()
        await _all_read(process)
        readers = [source.reader for source in process.sources]
        if process.terminal is None:
            self._trees.let_go(readers)
        else:
            for reader in readers:
                reader.close()
            process.terminal.close()
        process.sources = ()

    def _say(self, process: Process, note: str) -> None:
        """A line of PicoD's own in the output of a program that wrote nothing: why it did not start."""
        name = "stderr" if process.terminal is None else "stdout"
        process.outputs[name].add(note.encode("utf-8", "replace") + b"\n")

    def _retire(self, process: Process) -> None:
        if process.background:
            process.conclude()
        if process.id in self._records:  # it may be deleted already
            self._ended[process.id] = None
            while len(self._ended) > RECORDS_MAX:
                self._forget(self._records[next(iter(self._ended))])

    def _forget(self, process: Process) -> None:
        self._records.pop(process.id, None)
        self._ended.pop(process.id, None)
        if process.key is not None:
            self._keys.pop(process.key, None)
            process.key = None
        process.forget()


async def _all_read(process: Process) -> None:
    while not all(source.ended for source in process.sources):
        await process.change(process.version)


async def _feed(input: Input, data: bytes, fed: Callable[[], None]) -> None:
    try:
        await input.feed(data)
    finally:
        fed()
