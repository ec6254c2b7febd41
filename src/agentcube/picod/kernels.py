"""The session's kernels, by id."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Callable

from agentcube.picod.kernel import Design, Kernel
from agentcube.picod.kernel_life import Parts, Place
from agentcube.picod.problems import Problem

KERNELS_MAX = 16


class Kernels:
    """All of them, by id."""

    def __init__(self, parts: Parts, environment: Callable[[], Mapping[str, str]]) -> None:
        self._parts = parts
        self._environment = environment
        self._kernels: dict[str, Kernel] = {}

    async def create(
        self, language: str, working_dir: str, env: Mapping[str, str], id: str = ""
    ) -> tuple[Kernel, bool]:
        """A new kernel, ready; or the one of that id, if it has the same language. And whether it is new.

        Raises:
            Problem: `kernel_exists`, `limit_exceeded`, and what a start may raise.
        """
        known = self._kernels.get(id)
        if known is not None:
            if known.design.language != language:
                raise Problem(
                    "kernel_exists", f"kernel {id!r} exists, and its language is {known.design.language}"
                )
            await known.started()
            if self._kernels.get(id) is not known:  # it could not be started, or was deleted
                return await self.create(language, working_dir, env, id)
            return known, False
        self._make_room()
        place = Place({**self._environment(), **env}, working_dir)
        kernel = Kernel(self._parts, id or "k-" + os.urandom(8).hex(), Design(language, place))
        self._kernels[kernel.id] = kernel
        try:
            await kernel.start()
        except BaseException:
            if self._kernels.get(kernel.id) is kernel:
                del self._kernels[kernel.id]
            raise
        return kernel, True

    def _make_room(self) -> None:
        if len(self._kernels) < KERNELS_MAX:
            return
        dead = next((kernel for kernel in self._kernels.values() if kernel.state == "dead"), None)
        if dead is None:
            raise Problem("limit_exceeded", f"{KERNELS_MAX} kernels are running in this session already")
        del self._kernels[dead.id]
        self._parts.trees.in_background(dead.delete())

    def get(self, id: str) -> Kernel:
        """The kernel of that id. Raises Problem `kernel_not_found`."""
        kernel = self._kernels.get(id)
        if kernel is None:
            raise Problem("kernel_not_found", "there is no such kernel in this session")
        return kernel

    def find(self, id: str) -> Kernel | None:
        """The kernel of that id, if there is one."""
        return self._kernels.get(id)

    def list(self) -> list[Kernel]:
        """All of them, oldest first."""
        return list(self._kernels.values())

    async def delete(self, kernel: Kernel) -> None:
        """Kill it with all that descends from it, and forget it."""
        if self._kernels.get(kernel.id) is kernel:
            del self._kernels[kernel.id]
        await kernel.delete()

    def note(self, pid: int, reason: str) -> bool:
        """PicoD has killed `pid`: tell those it concerns. Whether it was a kernel's."""
        return any(kernel.note(pid, reason) for kernel in list(self._kernels.values()))
