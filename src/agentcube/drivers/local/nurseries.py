"""Where sandboxes are born: the bare zygote, and the zygotes of the Python environments in use.

Loading an environment's libraries takes a second and a hundred megabytes, so it is done when the
environment is first asked for, aside; a few are kept, and an idle one ends. Nobody fails for want of one:
until it is there, and when it cannot be had, sandboxes are born bare.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import structlog

from agentcube.drivers.local.hostimage import Bind
from agentcube.drivers.local.identity import Identity
from agentcube.drivers.local.images import ImageRoot
from agentcube.drivers.local.nursery import Embryo, Nursery
from agentcube.drivers.local.steps import named
from agentcube.drivers.local.uidrange import UidRanges
from agentcube.drivers.local.zygote import Home, Zygote, remove_leftovers
from agentcube.errors import AgentCubeError, CapacityExhausted

log = structlog.get_logger(__name__)

IDLE_S = 900.0
"""How long a zygote waits for a next birth: as long as a session waits for a next call, by default."""

_TICK_S = 30.0
_BACKOFF_FIRST_S = 1.0
_BACKOFF_MAX_S = 600.0

Key = tuple[str, tuple[Bind, ...], tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kit:
    """What all zygotes of a server are made with; see `Zygote` and `Nursery`.

    `idle_s` is how long an environment's one waits for a next birth before it ends.
    """

    folder: Path
    entry: str
    fork_server: str
    ranges: UidRanges
    spares: int
    idle_s: float = IDLE_S
    off: Collection[str] = ()
    extra: tuple[Path, ...] = ()

    def nursery(self, mode: Identity, uid: int | None, home: Home | None = None) -> Nursery:
        """A nursery with its zygote, not started. `uid` belongs to it from now on."""
        zygote = Zygote(
            self.folder,
            uid=uid,
            entry=self.entry,
            home=home,
            fork_server=self.fork_server,
            off=self.off,
            extra=self.extra,
        )
        return Nursery(zygote, mode, self.ranges, spares=self.spares, off=self.off)


@dataclass(slots=True)
class _Warm:
    """One environment: its nursery when that is ready, and when it may be tried again if it failed."""

    image: ImageRoot
    nursery: Nursery | None = None
    used_at: float = 0.0
    failures: int = 0
    not_before: float = 0.0


class Nurseries:
    """All that sandboxes are born from. Calls block, except for `take` only briefly; from any thread.

    Args:
        mode: how ids are mapped, if that works. uid: the bare zygote's; see `Kit.nursery`.
        most: how many environments may be warm at once (their zygotes have about 80 MB each); 0 for none.
    """

    def __init__(self, kit: Kit, mode: Identity, uid: int | None, *, most: int) -> None:
        self._kit, self._most = kit, most
        self._bare = kit.nursery(mode, uid)
        self._known: dict[Key, _Warm] = {}
        self._wanted: list[_Warm] = []
        self._changed = threading.Condition()
        self._closing = False
        self._starting: Nursery | None = None
        self._thread = threading.Thread(target=self._tend, name="zygotes", daemon=True)

    @property
    def bare(self) -> Nursery:
        """The one that is always there."""
        return self._bare

    def start(self) -> None:
        """Start the bare one. Raises what `Nursery.start` does."""
        remove_leftovers(self._kit.folder)
        self._bare.start()
        self._thread.start()

    def close(self) -> None:
        """End them all; sandboxes live on. Idempotent."""
        with self._changed:
            self._closing = True
            if self._starting is not None:
                self._starting.zygote.abandon()
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        for warm in self._known.values():
            if warm.nursery is not None:
                warm.nursery.close()
        self._bare.close()

    def prepare(self, image: ImageRoot, within_s: float) -> None:
        """Wait until the environment of `image` is warm, if it is going to be, for `within_s` at most."""
        with self._changed:
            warm = self._want(image)
            if warm is not None:
                self._changed.wait_for(
                    lambda: warm.nursery is not None or warm not in self._wanted or self._closing, within_s
                )

    def take(self, image: ImageRoot, *, plain: bool = False) -> Embryo:
        """An embryo for a sandbox of `image`, of its environment's zygote if that is warm and not `plain`.

        Raises:
            StartFailed, StartTimedOut, CapacityExhausted, DriverFailed.
        """
        warm = None
        if not plain:
            with self._changed:
                warm = self._want(image)
        nursery = warm.nursery if warm is not None else None
        if warm is not None and nursery is not None:
            try:
                return nursery.take()
            except CapacityExhausted:
                raise
            except AgentCubeError as exc:
                if not nursery.zygote.is_alive():
                    self._retire(warm, exc.detail)
        return self._bare.take()

    def blame(self, image: ImageRoot, reason: str) -> None:
        """A sandbox that was born of this environment's zygote failed where a bare one did not."""
        with self._changed:
            warm = self._known.get(_key(image))
        if warm is not None:
            self._retire(warm, reason)

    def _want(self, image: ImageRoot) -> _Warm | None:
        """What is known of the environment; asks for a zygote when there is none. Holds the lock."""
        if not image.preload or not self._most:
            return None
        warm = self._known.setdefault(_key(image), _Warm(image))
        warm.used_at = time.monotonic()
        ready = warm.nursery is not None or warm in self._wanted
        if not ready and not self._closing and warm.not_before <= warm.used_at:
            self._wanted.append(warm)
            self._changed.notify_all()
        return warm

    def _tend(self) -> None:
        """Start what is wanted, one after the other; end what is idle or one too many."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted or self._closing, min(_TICK_S, self._kit.idle_s))
                if self._closing:
                    return
                warm = self._wanted[0] if self._wanted else None
                leaving = self._leaving(room_for=1 if warm else 0)
            for nursery in leaving:
                nursery.close()
            if warm is not None:
                self._start(warm)

    def _leaving(self, room_for: int) -> list[Nursery]:
        """Take out those that are idle, and the longest unused while there are too many."""
        now = time.monotonic()
        by_use = sorted((w for w in self._known.values() if w.nursery is not None), key=lambda w: w.used_at)
        excess = len(by_use) + room_for - self._most
        leaving = []
        for number, warm in enumerate(by_use):
            if (number < excess or now - warm.used_at > self._kit.idle_s) and warm.nursery is not None:
                leaving.append(warm.nursery)
                warm.nursery = None
        for key in [k for k, w in self._known.items() if w.nursery is None and w not in self._wanted]:
            if now - self._known[key].used_at > _BACKOFF_MAX_S:
                del self._known[key]
        return leaving

    def _start(self, warm: _Warm) -> None:
        began = time.monotonic()
        nursery = None
        reason = ""
        try:
            with named("load an environment"):
                nursery = self._make(warm.image)
                with self._changed:
                    self._starting = nursery
                    if self._closing:
                        nursery.zygote.abandon()
                nursery.start()
        except AgentCubeError as exc:
            reason = exc.detail
        except Exception:  # a thread's top: one environment's trouble must not end the others'
            log.exception("environment not loaded", environment=_name(warm.image))
            reason = "see the server's log"
        if reason and nursery is not None:
            nursery.close()
        with self._changed:
            self._starting = None
            self._wanted.remove(warm)
            if not reason:
                warm.nursery, warm.failures = nursery, 0
                seconds = round(time.monotonic() - began, 2)
                log.info("environment loaded", environment=_name(warm.image), seconds=seconds)
            elif not self._closing:
                self._put_off(warm, reason)
            self._changed.notify_all()

    def _make(self, image: ImageRoot) -> Nursery:
        mode = self._bare.mode
        uid = self._kit.ranges.allocate() if mode.lends else None
        return self._kit.nursery(mode, uid, Home(image=image, mode=mode))

    def _retire(self, warm: _Warm, reason: str) -> None:
        with self._changed:
            nursery, warm.nursery = warm.nursery, None
            if nursery is None:
                return  # somebody else has
            self._put_off(warm, reason)
        nursery.close()

    def _put_off(self, warm: _Warm, reason: str) -> None:
        """Not again for a while. Holds the lock."""
        pause_s = min(_BACKOFF_FIRST_S * 2.0**warm.failures, _BACKOFF_MAX_S)
        warm.failures = min(warm.failures + 1, 32)
        warm.not_before = time.monotonic() + pause_s
        log.warning(
            "environment not loaded; its kernels start slowly",
            environment=_name(warm.image),
            reason=reason,
            again_in_s=pause_s,
        )


def _key(image: ImageRoot) -> Key:
    """What a zygote's memory and root depend on."""
    return str(image.lower), image.binds, image.preload


def _name(image: ImageRoot) -> str:
    return image.environment.name if image.environment else ""
