"""The command of an AgentRuntime: started with PicoD, its output kept, its end remembered. Not restarted."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import time
from collections.abc import Sequence
from typing import Any

from agentcube.picod.config import Config
from agentcube.picod.output import PipeReader, Ring
from agentcube.picod.problems import Problem
from agentcube.picod.starter import Starter

LOG_BYTES = 1024 * 1024  # kept per stream
_POLL_S = (0.005, 0.05)  # first and longest pause between two looks at the ports
_LOOPBACK = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


class Command:
    """One command, started at once, with the template's environment."""

    def __init__(self, loop: asyncio.AbstractEventLoop, starter: Starter, config: Config) -> None:
        self._loop = loop
        self._rings = (Ring(LOG_BYTES), Ring(LOG_BYTES))
        self._order = 0
        self._name = config.command[0]
        program = starter.program(config.command, config.env, config.working_dir)
        out, out_w = os.pipe()
        err, err_w = os.pipe()
        self._readers = tuple(
            PipeReader(loop, fd, functools.partial(self._keep, ring))
            for fd, ring in zip((out, err), self._rings)
        )
        try:
            self._child = starter.start(program, stdin=None, stdout=out_w, stderr=err_w, guarded=False)
        finally:
            os.close(out_w)
            os.close(err_w)

    def _keep(self, ring: Ring, data: bytes) -> None:
        self._order += 1
        ring.add(self._order, data)

    def note(self, text: str) -> None:
        """Add a line of PicoD's own to the command's stderr."""
        self._keep(self._rings[1], f"agentcube: {text}\n".encode("utf-8", "replace"))

    @property
    def pid(self) -> int | None:
        """The command's pid while it runs."""
        return None if self._child.gone else self._child.pid

    def state(self) -> dict[str, Any]:
        """Whether it runs, and how it ended."""
        ending = self._child.ending
        if not ending.done.is_set():
            return {"state": "running"}
        return {"state": "exited", "exit_code": ending.exit_code()}

    def output(self, stream: str) -> bytes:
        """What is retained of `stdout`, `stderr`, or of `both` in the order in which it came."""
        for reader in self._readers:
            reader.drain()
        why = self._child.ending.why_not_started(self._name)
        rings = {"stdout": self._rings[:1], "stderr": self._rings[1:]}.get(stream, self._rings)
        chunks = sorted(chunk for ring in rings for chunk in ring.chunks)
        told = why.encode("utf-8", "replace") + b"\n" if why and stream != "stdout" else b""
        return b"".join(data for _, data in chunks) + told

    async def ready(self, ports: Sequence[int], timeout_s: float) -> None:
        """Return once every one of `ports` accepts connections on loopback.

        Raises:
            Problem: `start_failed` when the command ended first, `start_timed_out` after `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        waiting, pause = list(ports), _POLL_S[0]
        while True:
            if self._child.ending.done.is_set():
                self._say_it_ended()
            waiting = [port for port in waiting if not await self._accepts(port)]
            if not waiting:
                return
            if time.monotonic() + pause > deadline:
                raise Problem("start_timed_out", f"port {waiting[0]} does not accept connections yet")
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _POLL_S[1])

    def _say_it_ended(self) -> None:
        ending = self._child.ending
        why = ending.why_not_started(self._name) or f"the command ended with exit code {ending.exit_code()}"
        raise Problem("start_failed", why, exit_code=ending.exit_code())

    async def _accepts(self, port: int) -> bool:
        for family, host in _LOOPBACK:
            try:
                with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
                    await asyncio.wait_for(self._loop.sock_connect(probe, (host, port)), 1.0)
                    return True
            except (OSError, asyncio.TimeoutError):
                continue
        return False
