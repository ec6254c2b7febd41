"""Kernels of a session: code whose variables stay from one call to the next."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence

from agentcube.sdk._async._connection import AsyncConnection
from agentcube.sdk._async._primitives import called
from agentcube.sdk._async._stream import AsyncEventStream
from agentcube.sdk._core import kernels, results
from agentcube.sdk._core.display import Result
from agentcube.sdk._core.events import CellEvent, Displayed, Stderr, Stdout
from agentcube.sdk._core.execution import CellCollector, Execution
from agentcube.sdk._core.kernels import CellTrack, KernelInfo
from agentcube.sdk._core.requests import Place, Request

TIMEOUT_S = 300.0
WAIT_S = 60.0


class AsyncKernel:
    """One kernel. Cells run one after the other; what one defines, the next ones see."""

    def __init__(
        self, connection: AsyncConnection, place: Place, id: str, language: str, *, make: bool = False
    ) -> None:
        """Made by `kernels.create` and `kernels.get`. `make`: a cell makes the kernel when there is none."""
        self.id = id
        self.language = language
        self._connection = connection
        self._place = place
        self._make = make

    async def run(
        self,
        code: str,
        *,
        timeout: float | None = TIMEOUT_S,
        wait: float = WAIT_S,
        on_stdout: Callable[[str], object] | None = None,
        on_stderr: Callable[[str], object] | None = None,
        on_result: Callable[[Result], object] | None = None,
        check: bool = False,
    ) -> Execution:
        """Run a cell and wait for its end. The callbacks get what it shows, as it comes.

        `timeout` (seconds; None: none) interrupts the cell; so does cancelling or interrupting this call. While
        the kernel is busy with another cell, this one waits in line for `wait` seconds, at most 600; then
        KernelBusy is raised. An exception in the cell is in the result's `error`; with `check`, CellFailed is raised.
        """
        collector = CellCollector()
        async with self.stream(code, timeout=timeout, wait=wait) as events:
            async for event in events:
                collector.add(event)
                if isinstance(event, Stdout):
                    await called(on_stdout, event.text)
                elif isinstance(event, Stderr):
                    await called(on_stderr, event.text)
                elif isinstance(event, Displayed):
                    await called(on_result, event.result)
        execution = collector.execution()
        return execution.check() if check else execution

    def stream(
        self, code: str, *, timeout: float | None = TIMEOUT_S, wait: float = WAIT_S
    ) -> AsyncEventStream[CellEvent]:
        """Run a cell and get its events as they happen. Arguments as of `run`.

        The cell is sent when iteration begins. Stopping before the last event interrupts it.
        """
        request = kernels.execute_cell(
            self._place,
            self.id,
            code,
            create=self.language if self._make else None,
            timeout_s=timeout,
            wait_s=wait,
        )
        return AsyncEventStream(self._connection, CellTrack(self._place, self.id, request))

    async def info(self) -> KernelInfo:
        """The kernel as it is now. Raises KernelNotFound."""
        return await self._one(kernels.kernel_call(self._place, "GET", self.id, "get", repeatable=True))

    async def interrupt(self, *, execution: str | None = None, grace: float | None = None) -> KernelInfo:
        """Raise KeyboardInterrupt in the cell that runs, whoever sent it; with `execution` only in that one.

        When it has not ended after `grace` seconds (default 5), the kernel is killed and its variables are lost.
        """
        return await self._one(
            kernels.interrupt_kernel(self._place, self.id, execution=execution, grace_s=grace)
        )

    async def restart(self) -> KernelInfo:
        """End what runs and begin with an empty kernel of the same id."""
        return await self._one(kernels.restart_kernel(self._place, self.id))

    async def delete(self) -> None:
        """Remove the kernel, and all processes that its cells left. Raises KernelNotFound."""
        request = kernels.kernel_call(self._place, "DELETE", self.id, "delete", repeatable=True)
        await self._connection.send(request)

    async def _one(self, request: Request) -> KernelInfo:
        response = await self._connection.send(request)
        return kernels.kernel_info(results.object_of(response.content, request.what), request.what)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} ({self.language}) of session {self._place.session_id}>"


class AsyncKernels:
    """`kernels` of a sandbox: at most 16, each with variables of its own."""

    def __init__(self, connection: AsyncConnection, place: Place) -> None:
        self._connection = connection
        self._place = place

    async def create(
        self,
        language: str = "python",
        *,
        id: str | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> AsyncKernel:
        """A kernel, ready to run cells. A kernel of that `id` and language that is there already is used as it is.

        `language` is "python" or "bash". Without an `id` (a-z, 0-9 and "-", at most 40) it gets one of its own.
        Raises KernelExists when that id has another language.
        """
        chosen = f"k-{uuid.uuid4().hex[:16]}" if id is None else id
        request = kernels.put_kernel(self._place, chosen, language, cwd=cwd, env=env)
        response = await self._connection.send(request)
        info = kernels.kernel_info(results.object_of(response.content, request.what), request.what)
        return AsyncKernel(self._connection, self._place, info.id, info.language or language)

    async def get(self, id: str) -> AsyncKernel:
        """The kernel of that id. Raises KernelNotFound."""
        request = kernels.kernel_call(self._place, "GET", id, "get", repeatable=True)
        response = await self._connection.send(request)
        info = kernels.kernel_info(results.object_of(response.content, request.what), request.what)
        return AsyncKernel(self._connection, self._place, info.id, info.language)

    async def list(self) -> Sequence[KernelInfo]:
        """The kernels of the session."""
        request = kernels.list_kernels(self._place)
        response = await self._connection.send(request)
        return kernels.kernels_of(response.content, request.what)
