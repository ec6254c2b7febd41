"""Steps of the driver that no caller may break off half-way, and the machine's refusals as our errors."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import anyio
import anyio.lowlevel

from agentcube.errors import AgentCubeError, CapacityExhausted, DriverFailed

T = TypeVar("T")

_FULL = {
    errno.EMFILE: "too many open files: raise the server's limit (ulimit -n)",
    errno.ENFILE: "too many open files on this machine: raise sysctl fs.file-max",
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.ENOMEM: "no memory left",
    errno.EAGAIN: "no more processes: raise the server's limit (ulimit -u)",
}


async def finished(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which goes on to its end even when the caller is cancelled.

    A thread cannot be cancelled; who left before it ends would tidy up beside it and miss what it
    makes. A cancellation, be it asyncio's or of an anyio scope, is raised when `work` is over.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):  # this stops a scope's cancellation, the loop below asyncio's own
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError as exc:
                cancelled = exc
    if not task.cancelled():
        task.exception()  # heard, whoever is left
    if cancelled is not None:
        raise cancelled
    await anyio.lowlevel.checkpoint_if_cancelled()  # the scope's
    return task.result()


@contextmanager
def named(step: str) -> Iterator[None]:
    """Let an OSError say which step it ended.

    Raises:
        CapacityExhausted: the machine has no more of something. DriverFailed: any other refusal.
    """
    try:
        yield
    except OSError as exc:
        raise failure(step, exc) from exc


def failure(step: str, exc: OSError, other: type[AgentCubeError] = DriverFailed) -> AgentCubeError:
    """The error that `named` raises for `exc`; `other` is for what is no lack of room."""
    if exc.errno in _FULL:
        return CapacityExhausted(f"cannot {step}: {_FULL[exc.errno]}")
    place = f" ({exc.filename})" if exc.filename else ""
    return other(f"cannot {step}: {exc.strerror or exc}{place}")
