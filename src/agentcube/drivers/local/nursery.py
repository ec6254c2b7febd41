"""Processes that are ready to become sandboxes: namespaces made, ids mapped, nothing of anybody's in them.

Making namespaces takes a third of a sandbox's start and needs nothing of its template, so a few are
made ahead. One that nobody takes ends with its server: its channel closes.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

from agentcube.drivers.local import identity, processes
from agentcube.drivers.local.birth import Birth
from agentcube.drivers.local.steps import named
from agentcube.drivers.local.uidrange import UidRanges
from agentcube.drivers.local.zygote import Zygote
from agentcube.errors import AgentCubeError, StartFailed

_BIRTH_S = 20.0
_END_S = 5.0
_PAUSE_S = 0.025  # after one is taken: the sandbox that it becomes needs the processors now


@dataclass(frozen=True, slots=True)
class Embryo:
    """Process 1 of a sandbox to be, waiting on `birth`'s channel. `uid_base` is None where nothing is mapped."""

    zygote: Zygote
    birth: Birth
    uid_base: int | None
    pid: int
    start: int

    def is_alive(self) -> bool:
        """Whether it still waits."""
        return processes.start_ticks(self.pid) == self.start and not self.birth.has_ended()


class Nursery:
    """Makes embryos of one zygote, and keeps up to `spares` ready. Calls block; they may come from any thread."""

    def __init__(
        self,
        zygote: Zygote,
        mode: identity.Identity,
        ranges: UidRanges,
        *,
        spares: int,
        off: Collection[str] = (),
    ) -> None:
        self._zygote, self._mode, self._ranges, self._off = zygote, mode, ranges, off
        self._spares = spares
        self._ready: deque[Embryo] = deque()
        self._taken = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="nursery", daemon=True)

    @property
    def zygote(self) -> Zygote:
        """Where they come from."""
        return self._zygote

    @property
    def mode(self) -> identity.Identity:
        """How ids are mapped, known for certain after `start`."""
        return self._mode

    def start(self) -> None:
        """Start the zygote, make the first one, which shows what works here, and keep more ready from now on.

        Subordinate ids that newuidmap does not give after all become a single one.

        Raises:
            StartFailed: namespaces are denied; names the remedy. DriverFailed: the zygote does not start.
        """
        self._zygote.start()
        try:
            first = self._conceive()
        except identity.HelperFailed:
            self._mode = identity.Identity("single")
            first = self._conceive()
        if self._spares:
            self._ready.append(first)
        else:
            self._drop(first)
        self._taken.set()
        self._thread.start()

    def take(self) -> Embryo:
        """One that is the caller's now: to launch, or to close its birth and release its range.

        Raises:
            StartFailed, StartTimedOut, CapacityExhausted, DriverFailed.
        """
        while self._ready:
            try:
                found = self._ready.popleft()
            except IndexError:
                break
            self._taken.set()
            if found.is_alive():
                return found
            self._drop(found)
        return self._conceive()

    def close(self) -> None:
        """Let the spare ones end, and the zygote, whose ids are free then. Idempotent."""
        self._closing.set()
        self._taken.set()
        if self._thread.is_alive():
            self._thread.join()
        while self._ready:
            self._drop(self._ready.popleft())
        self._zygote.close()
        self._release(self._zygote.uid)

    def _keep(self) -> None:
        while True:
            self._taken.wait()
            self._taken.clear()
            if self._closing.wait(_PAUSE_S):
                return
            try:
                while len(self._ready) < self._spares and not self._closing.is_set():
                    self._ready.append(self._conceive())
            except AgentCubeError:
                continue  # whoever comes next makes one for himself, and is told why that fails

    def _conceive(self) -> Embryo:
        base = self._ranges.allocate() if self._mode.lends else None
        birth = Birth(self._zygote, _BIRTH_S)
        try:
            with named("make a process for a sandbox"):
                birth.begin()
                self._zygote.map_ids(self._mode, birth.await_unshared(), 0 if "uids" in self._off else base)
                birth.mapped(maps_root=self._mode.maps_root, off=self._off)
                pid = birth.await_born()
                start = processes.start_ticks(pid)
            if start is None:
                raise StartFailed("the sandbox's first process ended at once")
            return Embryo(self._zygote, birth, base, pid, start)
        except BaseException:
            birth.close()
            self._release(base)
            raise

    def _drop(self, embryo: Embryo) -> None:
        """Let it end, and wait for that: its range is somebody else's afterwards."""
        pidfd = processes.open_process(embryo.pid, embryo.start)
        embryo.birth.close()
        if pidfd is not None:
            processes.has_ended(pidfd, _END_S)
            os.close(pidfd)
        self._release(embryo.uid_base)

    def _release(self, base: int | None) -> None:
        if base is not None:
            self._ranges.release(base)
