"""Calls into one session's sandbox. The route differs between clients; the calls do not."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, BinaryIO

from agentcube.sdk._async._connection import AsyncConnection
from agentcube.sdk._core import calls, requests, results
from agentcube.sdk._core.localfile import PartFile
from agentcube.sdk._core.results import CommandResult, FileInfo


class AsyncSandboxCalls:
    """PicoD's API in one session, through the Router."""

    def __init__(self, connection: AsyncConnection, place: requests.Place) -> None:
        self._connection = connection
        self._place = place

    async def output(self, command: str | Sequence[str], *, timeout_s: float | None) -> dict[str, Any]:
        """`stdout`, `stderr` and `exit_code` of a command, as text."""
        request = calls.execute(self._place, command, timeout_s=timeout_s)
        response = await self._connection.send(request)
        return results.command_output(response.content, request.what)

    async def run(
        self,
        command: str | Sequence[str],
        *,
        timeout_s: float | None = None,
        stdin: bytes | str | None = None,
        env: Mapping[str, str] | None = None,
        working_dir: str | None = None,
    ) -> CommandResult:
        """A command's result, exact to the byte."""
        argv = calls.argv_of(command)
        request = calls.execute(
            self._place,
            argv,
            timeout_s=timeout_s,
            stdin=stdin,
            env=env,
            working_dir=working_dir,
            exact=True,
        )
        response = await self._connection.send(request)
        return results.command_result(response.content, request.what, argv)

    async def write(self, path: str, content: bytes, *, mode: str = "0644") -> FileInfo:
        """Write a whole file."""
        request = calls.write_file(self._place, path, content, mode=mode)
        response = await self._connection.send(request)
        return results.file_info(results.object_of(response.content, request.what))

    async def upload(self, file: BinaryIO, path: str, *, mode: str = "0644") -> FileInfo:
        """Stream an open file into the workspace."""
        request = calls.upload_file(self._place, file, path, mode=mode)
        response = await self._connection.send(request)
        return results.file_info(results.object_of(response.content, request.what))

    def chunks(self, path: str) -> AsyncIterator[bytes]:
        """A file's bytes as they arrive."""
        return self._connection.chunks(calls.download_file(self._place, path))

    async def download(self, path: str, local_path: str | os.PathLike[str]) -> None:
        """Stream a file to disk, where it appears whole or not at all."""
        request = calls.download_file(self._place, path)
        async with self._connection.stream(request) as response:
            with PartFile(local_path) as part:
                async for chunk in self._connection.body(response, request):
                    part.write(chunk)

    async def list_dicts(self, path: str) -> list[dict[str, Any]]:
        """A directory's entries as the wire has them."""
        request = calls.list_files(self._place, path)
        response = await self._connection.send(request)
        return results.file_dicts(response.content, request.what)

    async def list_infos(self, path: str) -> list[FileInfo]:
        """A directory's entries."""
        request = calls.list_files(self._place, path)
        response = await self._connection.send(request)
        return results.file_infos(response.content, request.what)

    async def logs(self, *, stream: str, tail_bytes: int | None) -> bytes:
        """What the session's own command wrote and PicoD still holds."""
        request = calls.read_logs(self._place, stream=stream, tail_bytes=tail_bytes)
        response = await self._connection.send(request)
        return response.content
