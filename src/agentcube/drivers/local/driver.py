"""The local driver: sandboxes on this machine, from namespaces. What blocks runs in worker threads."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import anyio
import anyio.to_thread

from agentcube.drivers import daemon
from agentcube.drivers.local import dialing, identity, images, launch, processes, removal
from agentcube.drivers.local.cgroups import CgroupTree, SandboxCgroup
from agentcube.drivers.local.environments import Environments
from agentcube.drivers.local.inside import landlock
from agentcube.drivers.local.inside.numbers import UnsupportedMachine, machine
from agentcube.drivers.local.launch import Launcher, Sockets
from agentcube.drivers.local.lives import Lives
from agentcube.drivers.local.nurseries import IDLE_S, Kit, Nurseries
from agentcube.drivers.local.records import Record, Records
from agentcube.drivers.local.steps import finished, named
from agentcube.drivers.local.turns import Turns
from agentcube.drivers.local.uidrange import UidRanges
from agentcube.drivers.local.workspace import Workspaces
from agentcube.errors import (
    AgentCubeError,
    CapacityExhausted,
    Conflict,
    DriverFailed,
    Invalid,
    NotFound,
    StartFailed,
    StartTimedOut,
    Unreachable,
)
from agentcube.model.ids import SandboxId
from agentcube.model.plan import Seen
from agentcube.model.sandbox import Endpoint, Isolation, Sandbox, SandboxSpec
from agentcube.ports.driver import Capabilities, Usage

ENTRY = "agentcube.picod.main:run"
FORK_SERVER = "agentcube.kernelhost.forkserver"

_LAUNCHES_MAX = 8  # at once: most of a launch is waiting for the child, and two cores are soon busy
_BUILDS_MAX = 2
_PATIENT_MAX = 64  # threads that only wait
_SPARES = 2
_ENVIRONMENTS = 4
_PATIENCE_S = 15.0  # for an environment's libraries; loading the usual ones takes 1 to 3
_FREEZES_MAX = 4  # at once; one that fails takes 5 s, and wakes must not wait for that
_NO_FREEZER = (
    "this server has no control group that can freeze a sandbox: run it as root, or in a delegated group "
    "(`agentcube doctor` says how)"
)
_ENOUGH = (Isolation.PROCESS, Isolation.NAMESPACE)

T = TypeVar("T")


class LocalDriver:
    """Implements `ports.driver.SandboxDriver` and `Suspendable` on this machine; an async context manager.

    Args:
        data_dir: durable state: `sandboxes/` and `images/`.
        runtime_dir: sockets; short (they are limited to 108 bytes), ours alone, exists.
        env_cache: Python environments of `image: host`; None for this user's cache.
        host_paths: directories that templates may use; looked at again whenever one is opened. None: any.
        spares: how many processes of each zygote wait to become a sandbox (4 MB each; a launch then takes
            a third less).
        environments: for how many Python environments a zygote is kept that has their libraries loaded, each
            until nothing was born from it for `environments_idle_s` seconds.
        off, entry, fork_server, extra: for tests of the walls only: guards to leave out, another PicoD, another
            fork server, their modules.
    """

    name = "local"

    def __init__(
        self,
        *,
        data_dir: Path,
        runtime_dir: Path,
        env_cache: Path | None = None,
        host_paths: Sequence[Path] | None = None,
        spares: int = _SPARES,
        environments: int = _ENVIRONMENTS,
        environments_idle_s: float = IDLE_S,
        off: Collection[str] = (),
        entry: str = ENTRY,
        fork_server: str = FORK_SERVER,
        extra: tuple[Path, ...] = (),
    ) -> None:
        self._images = data_dir / "images"
        self._runtime_dir = runtime_dir
        self._environments = Environments(env_cache)
        self._records = Records(data_dir / "sandboxes")
        self._instance = hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:8]
        self._workspaces = Workspaces(self._images / "workspaces")
        self._host_paths = None if host_paths is None else [os.path.realpath(p) for p in host_paths]
        self._ranges = UidRanges.detect()
        self._kit = Kit(
            folder=runtime_dir,
            entry=entry,
            fork_server=fork_server,
            ranges=self._ranges,
            spares=spares,
            idle_s=environments_idle_s,
            off=off,
            extra=extra,
        )
        self._warm_most = environments
        self._launches = anyio.CapacityLimiter(_LAUNCHES_MAX)
        self._calls = anyio.CapacityLimiter(_LAUNCHES_MAX)
        self._builds = anyio.CapacityLimiter(_BUILDS_MAX)
        self._patient = anyio.CapacityLimiter(_PATIENT_MAX)
        self._freezes = anyio.CapacityLimiter(_FREEZES_MAX)
        self._turns = Turns()
        self._lives = Lives()
        self._fences: dict[SandboxId, int] = {}
        self._launcher: Launcher

    async def __aenter__(self) -> Self:
        """Look at the machine and start the zygote.

        Raises:
            Invalid: not a processor we know. StartFailed: namespaces are denied; names the remedy.
            DriverFailed: the zygote does not start.
        """
        self._launcher = await anyio.to_thread.run_sync(self._start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop builds and the zygote, and let go of the sandboxes, which live on."""
        self._environments.give_up()  # whoever waited for one has left
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._stop)

    def _start(self) -> Launcher:
        try:
            machine()
        except UnsupportedMachine as exc:
            raise Invalid(str(exc)) from exc
        for record in filter(None, map(self._records.find, self._records.ids())):
            if record.uid_base is not None and record.uid_base not in self._ranges.in_use():
                self._ranges.reserve(record.uid_base)
        mode, uid = self._identity()
        self._runtime_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Before the zygote: in a delegated v2 group this process moves into a leaf, and what it starts
        # afterwards is born there.
        cgroups = CgroupTree.detect(self._instance)
        nurseries = Nurseries(self._kit, mode, uid, most=self._warm_most)
        try:
            nurseries.start()
        except AgentCubeError:
            nurseries.close()
            cgroups.cleanup()
            raise
        return Launcher(
            kit=self._kit,
            nurseries=nurseries,
            cgroups=cgroups,
            workspaces=self._workspaces,
            records=self._records,
            host_paths=self._host_paths,
        )

    def _identity(self) -> tuple[identity.Identity, int | None]:
        """How ids can be mapped, with a range for the zygote where it is to give up root."""
        mode = identity.detect()
        if not mode.lends:
            return mode, None
        try:
            return mode, self._ranges.allocate()
        except CapacityExhausted:
            if self._ranges.in_use():
                raise
            return identity.Identity("single"), None  # root without ids to give, as in a rootless container

    def _stop(self) -> None:
        self._launcher.nurseries.close()
        self._launcher.cgroups.cleanup()
        self._lives.close()

    async def capabilities(self) -> Capabilities:
        return await self._in_thread(self._capabilities)

    def _capabilities(self) -> Capabilities:
        cgroups = self._launcher.cgroups
        facts = {
            "kernel": platform.release(),
            "machine": platform.machine(),
            "cgroups": cgroups.version,
            "landlock": str(landlock.abi() or "none"),
            **self._launcher.facts(),
        }
        return Capabilities(
            isolation=Isolation.NAMESPACE,
            suspend=cgroups.freezes,
            cannot_suspend="" if cgroups.freezes else _NO_FREEZER,
            facts=facts,
        )

    async def create(self, spec: SandboxSpec) -> Sandbox:
        if spec.isolation not in _ENOUGH:
            raise Invalid(
                f"isolation {spec.isolation}: this machine's driver offers {Isolation.NAMESPACE}",
                isolation=spec.isolation,
            )
        launch.check_mounts(spec.mounts)
        self._records.folder(spec.id)  # raises Invalid for an id that names no folder
        with named(f"prepare image {spec.image} of sandbox {spec.id}"):
            image = await anyio.to_thread.run_sync(
                self._resolve, spec.image, spec.environment, limiter=self._builds, abandon_on_cancel=True
            )
        if spec.patient:
            await anyio.to_thread.run_sync(
                self._launcher.nurseries.prepare,
                image,
                _PATIENCE_S,
                limiter=self._patient,
                abandon_on_cancel=True,
            )
        async with self._turns.of(spec.id):
            if self._records.folder(spec.id).exists():
                record = await self._in_thread(self._records.find, spec.id)
                if record is not None and record.made and self._lives.look(record) is Seen.ALIVE:
                    return self._sandbox(record)
                await self._destroy(spec.id)
            try:
                with named(f"start sandbox {spec.id}"):
                    return await finished(self._make_somehow(spec, image))
            except BaseException:
                await finished(self._destroy(spec.id))
                raise

    def _resolve(self, image: str, environment: str) -> images.ImageRoot:
        try:
            return images.resolve(
                image,
                environment=environment,
                root=self._images,
                environments=self._environments,
                host_paths=self._host_paths,
            )
        except NotFound as exc:
            raise Invalid(exc.detail) from exc

    async def _make_somehow(self, spec: SandboxSpec, image: images.ImageRoot) -> Sandbox:
        """Born with its environment's libraries; without them where that fails and this does not."""
        try:
            return await self._make(spec, image)
        except (StartFailed, StartTimedOut) as exc:
            record = await self._in_thread(self._records.find, spec.id)
            if record is None or record.facts.get("preload", launch.NOTHING) == launch.NOTHING:
                raise
            reason = exc.detail
        await self._destroy(spec.id)
        sandbox = await self._make(spec, image, plain=True)
        await self._in_thread(self._launcher.nurseries.blame, image, reason)
        return sandbox

    async def _make(self, spec: SandboxSpec, image: images.ImageRoot, *, plain: bool = False) -> Sandbox:
        call = partial(self._launcher.launch, spec, image, plain=plain)
        record = await anyio.to_thread.run_sync(call, limiter=self._launches)
        sandbox = self._sandbox(record)
        try:
            health = await daemon.health(await self.dial(sandbox))
        except AgentCubeError as exc:
            words = await self._in_thread(self._records.last_words, spec.id)
            raise StartFailed(
                f"PicoD did not start: {exc.detail}{f'; it said: {words}' if words else ''}"
            ) from exc
        if health.sandbox_id != spec.id:
            raise StartFailed("another sandbox's PicoD answers")
        self._lives.look(record)
        return sandbox

    def _sandbox(self, record: Record) -> Sandbox:
        sockets = Sockets.of(self._runtime_dir, record.id)
        control_path = str(sockets.control)
        return Sandbox(
            id=record.id,
            driver=self.name,
            handle=record.to_text(),
            isolation=Isolation.NAMESPACE,
            picod=Endpoint(scheme="unix", path=str(sockets.picod)),
            ports={port: Endpoint(scheme="passed", path=control_path, port=port) for port in record.ports},
            others=Endpoint(scheme="passed", path=control_path),
            facts=dict(record.facts),
        )

    async def bind(self, sandbox: Sandbox, token: str, *, env: Mapping[str, str] | None = None) -> None:
        await daemon.bind(await self.dial(sandbox), token, env or {})

    async def ready(self, sandbox: Sandbox, *, timeout: timedelta) -> None:
        await daemon.ready(await self.dial(sandbox), timeout)

    async def dial(self, sandbox: Sandbox, port: int | None = None) -> socket.socket:
        if port is None:
            return await dialing.connect(sandbox.picod.path)
        return await dialing.passed(str(Sockets.of(self._runtime_dir, sandbox.id).control), port)

    async def observe(self, sandbox: Sandbox) -> Seen:
        return self._lives.known(sandbox.id) or self._lives.look(Record.parse(sandbox.handle))

    async def adopt(self, sandbox: Sandbox) -> Seen:
        record = Record.parse(sandbox.handle)
        if record.id != sandbox.id:
            raise DriverFailed(f"sandbox {sandbox.id} carries the handle of {record.id}")
        self._launcher.reserve(record.uid_base)
        if self._lives.look(record) is Seen.GONE:
            return Seen.GONE
        with named(f"look at sandbox {record.id}"):
            if await self._in_thread(self._group(record).is_held):
                return Seen.ALIVE
        try:
            health = await daemon.health(await self.dial(sandbox))
        except AgentCubeError:
            return Seen.UNKNOWN
        return Seen.ALIVE if health.sandbox_id == sandbox.id else Seen.UNKNOWN

    async def inventory(self) -> Sequence[tuple[SandboxId, Mapping[str, str]]]:
        with named("list sandboxes"):
            return await self._in_thread(self._inventory)

    def _inventory(self) -> list[tuple[SandboxId, Mapping[str, str]]]:
        ids = {*self._records.ids(), *map(SandboxId, self._launcher.cgroups.inventory())}
        records = {id: self._records.find(id) for id in sorted(ids)}
        return [(id, dict(record.labels) if record else {}) for id, record in records.items()]

    async def destroy(self, id: SandboxId) -> None:
        async with self._turns.of(id):
            await finished(self._destroy(id))

    async def _destroy(self, id: SandboxId) -> None:
        self._fences.pop(id, None)
        pidfd = self._lives.take(id)
        with named(f"destroy sandbox {id}"):
            await self._in_thread(removal.raze, self._launcher, id, pidfd)

    async def suspend(self, sandbox: Sandbox, *, fence: int) -> Sandbox:
        record = Record.parse(sandbox.handle)
        async with self._living(record, fence):
            await finished(anyio.to_thread.run_sync(self._group(record).freeze, limiter=self._freezes))
        return sandbox

    async def resume(self, sandbox: Sandbox, *, fence: int) -> Sandbox:
        record = Record.parse(sandbox.handle)
        async with self._living(record, fence):
            await finished(self._in_thread(self._group(record).thaw))
        return sandbox

    @asynccontextmanager
    async def _living(self, record: Record, fence: int) -> AsyncIterator[None]:
        """No other change of the sandbox meanwhile; its process 1 lives, before and after.

        Raises Unreachable, and Conflict when the call is late. Nobody else drives these sandboxes: that
        what was wanted last is forgotten with the process does no harm.
        """
        async with self._turns.of(record.id):
            if fence < self._fences.get(record.id, 0):
                raise Conflict(f"sandbox {record.id} is wanted otherwise meanwhile", sandbox=record.id)
            self._must_live(record)
            self._fences[record.id] = fence
            with named(f"freeze or thaw sandbox {record.id}"):
                yield
            self._must_live(record)

    def _must_live(self, record: Record) -> None:
        if self._lives.look(record) is Seen.GONE:
            raise Unreachable(f"sandbox {record.id} is no more")

    def _group(self, record: Record) -> SandboxCgroup:
        return self._launcher.cgroups.open(record.id, record.cgroups)

    async def usage(self, sandbox: Sandbox) -> Usage:
        record = Record.parse(sandbox.handle)
        alive = self._lives.look(record) is Seen.ALIVE
        with named(f"measure sandbox {record.id}"):
            return await self._in_thread(self._usage, record, alive)

    def _usage(self, record: Record, alive: bool) -> Usage:
        disk = self._workspaces.used_bytes(self._records.folder(record.id))
        if self._launcher.cgroups.limits == "cgroup":
            used = self._group(record).usage()
            return replace(used, workspace_bytes=disk)
        if not alive:
            return Usage(workspace_bytes=disk)
        tree = processes.tree_usage(record.pid)
        return Usage(memory_bytes=tree.memory_bytes, cpu_s=tree.cpu_s, pids=tree.pids, workspace_bytes=disk)

    async def _in_thread(self, call: Callable[..., T], *args: object) -> T:
        return await anyio.to_thread.run_sync(call, *args, limiter=self._calls)
