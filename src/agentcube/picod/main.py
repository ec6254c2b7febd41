"""PicoD's composition: `warm` in the interpreter it is forked from, `run` in the sandbox, for ever.

Whatever a request may need is imported and tried before `run` serves: where PicoD lives there may
be no Python, no standard library and no file of ours to import from.
"""

from __future__ import annotations

import asyncio
import encodings.ascii
import encodings.idna
import encodings.latin_1
import encodings.utf_8
import gc
import hashlib
import json
import linecache
import logging
import mimetypes
import os
import resource
import selectors
import signal
import socket
import sys
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

from agentcube.picod import linux
from agentcube.picod.app import App
from agentcube.picod.binding import Binding
from agentcube.picod.command import Command
from agentcube.picod.config import Config, parse_config
from agentcube.picod.control import Control
from agentcube.picod.exec import Runner
from agentcube.picod.file_routes import FileRoutes
from agentcube.picod.files.files import Files
from agentcube.picod.fs_routes import FsRoutes
from agentcube.picod.kernel_forks import Forks, load_sources
from agentcube.picod.kernel_life import Parts
from agentcube.picod.kernel_routes import KernelRoutes
from agentcube.picod.kernel_run import Store
from agentcube.picod.kernels import Kernels
from agentcube.picod.messages import http_date, rfc3339
from agentcube.picod.meter import Meter
from agentcube.picod.paths import Workspace
from agentcube.picod.problems import Problem
from agentcube.picod.process_routes import ProcessRoutes
from agentcube.picod.process_table import ProcessTable
from agentcube.picod.reaper import Reaper
from agentcube.picod.server import Server
from agentcube.picod.starter import Starter
from agentcube.picod.tokens import Verifier, parse_public_keys
from agentcube.picod.trees import Trees
from agentcube.picod.upload_routes import UploadRoutes
from agentcube.picod.workers import Workers

FILE_WORKERS = 4
BACKLOG = 1024  # connecting to a unix socket whose queue is full fails at once (EAGAIN)
NOFILE = 4096  # 512 connections, 128 runs of 5 descriptors, pipes of background processes, files
_ENCODINGS = (encodings.ascii, encodings.idna, encodings.latin_1, encodings.utf_8)

log = logging.getLogger("picod")


def warm() -> None:
    """Load everything that is loaded late otherwise: codecs, tables, what error paths import. Idempotent."""
    for codec in _ENCODINGS:
        codec.getregentry()
    for name in ("ascii", "idna", "latin-1", "utf-8"):
        "a".encode(name).decode(name)
    mimetypes.init(files=())  # the built-in table, whatever files the machine has
    hashlib.sha256(b"").digest()
    json.loads(json.dumps({"a": [1, 1.5, None, True, "\u00e9"]}))
    rfc3339(0.0), http_date(0.0)
    try:
        raise Problem("internal", "warm")
    except Problem:
        traceback.format_exc()
    linecache.clearcache()
    load_sources()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()
    selectors.DefaultSelector().close()
    asyncio.run(_turn())


async def _turn() -> None:
    """Let the event loop do once what it imports things for."""
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, int)
    try:
        await asyncio.wait_for(loop.create_future(), 0.001)
    except asyncio.TimeoutError:
        pass


def run(config: dict[str, Any]) -> NoReturn:
    """Be PicoD with this configuration (see `Config`), until SIGKILL.

    Must be called in the main thread of a process without other threads. Anything that is wrong with
    the configuration or the sandbox ends the process with status 1 and a line on stderr.
    """
    try:
        logging.basicConfig(
            stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
        )
        parsed = parse_config(config)
        _settle(parsed)
        asyncio.run(_main(parsed))
    except (ValueError, OSError) as exc:
        log.critical("picod cannot start: %s", exc)
    finally:
        # Not sys.exit: in a forked child the parent's clean-up must not run.
        sys.stderr.flush()
        os._exit(1)


def _settle(config: Config) -> None:
    """Make the process what PicoD needs: signals, descriptors 0 to 2, parent of orphans, the user's fsuid."""
    # Python 3.12 warns of forking with threads; ours only ever exec (spawn.py).
    warnings.simplefilter("ignore", DeprecationWarning)
    if os.getpid() == 1:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # from inside; from outside SIGKILL ends a sandbox
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open("/dev/null", os.O_RDWR)  # takes the lowest free number: this one
    os.umask(0o022)
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)  # as process 1 it is one anyway
    linux.prctl(linux.PR_SET_DUMPABLE, 0)  # nobody of the same uid reads or traces us
    linux.set_name(b"picod")
    if os.geteuid() == 0 and not config.single_uid:
        if os.getgroups():
            os.setgroups([])
        linux.set_fs_ids(config.uid, config.gid)


async def _main(config: Config) -> None:
    loop = asyncio.get_running_loop()
    reaper = Reaper(loop)
    starter = Starter(loop, config, reaper)
    _raise_nofile()
    pool = ThreadPoolExecutor(FILE_WORKERS, thread_name_prefix="files")
    loop.set_default_executor(pool)
    verifier = Verifier([key for pem in config.public_keys for key in parse_public_keys(pem)])
    binding = Binding(config.sandbox_id, verifier, config.session_id)
    trees = Trees(loop, starter)

    def environment() -> dict[str, str]:
        return {**config.env, **binding.env}

    runner = Runner(loop, starter, trees)
    command = Command(loop, starter, config) if config.command else None
    workers, files = Workers(loop, pool), Files(Workspace(config.workspace))
    kernels = Kernels(_kernel_parts(loop, config, reaper, starter, trees), environment)
    table = ProcessTable(loop, starter, trees)
    if config.limits.mode == "rlimit" and config.limits.memory_bytes:
        _meter(loop, config, starter, trees, kernels, command)
    rows = (
        *UploadRoutes(workers, files).rows(),
        *FileRoutes(workers, files).rows(),
        *FsRoutes(workers, files, _user(config)).rows(),
        *ProcessRoutes(loop, table, _user(config)[0], environment).rows(),
        *KernelRoutes(kernels).rows(),
    )
    app = App(config, binding, runner, command, rows)
    if config.control_fd >= 0:
        Control(loop, socket.socket(fileno=config.control_fd))
    listener = socket.socket(fileno=config.listen_fd)
    listener.setblocking(False)
    server = Server(loop, app.handle)
    await loop.create_server(server.protocol, sock=listener, backlog=BACKLOG)
    gc.collect()
    gc.freeze()
    await asyncio.Event().wait()  # for ever


def _kernel_parts(
    loop: asyncio.AbstractEventLoop, config: Config, reaper: Reaper, starter: Starter, trees: Trees
) -> Parts:
    forks = Forks(loop, reaper, config.fork_server_fd, config.fork_server_pid)
    return Parts(loop, starter, trees, forks, Store(), lambda: _oom_kills(config.oom_fd))


def _oom_kills(fd: int) -> int:
    """How many of the user's processes have died for want of memory, as far as anybody counts."""
    if fd >= 0:
        for line in os.pread(fd, 4096, 0).splitlines():
            name, _, value = line.partition(b" ")
            if name == b"oom_kill":
                return int(value)
    return 0


def _user(config: Config) -> tuple[int, int]:
    """Who programs run, and file work is done, as: uid and gid."""
    return (os.geteuid(), os.getegid()) if config.single_uid else (config.uid, config.gid)


def _meter(
    loop: asyncio.AbstractEventLoop,
    config: Config,
    starter: Starter,
    trees: Trees,
    kernels: Kernels,
    command: Command | None,
) -> None:
    def killed(pid: int, reason: str) -> None:
        owner = trees.owner(pid)
        if owner is not None:
            owner.note = reason
        elif not kernels.note(pid, reason) and command is not None:
            command.note(reason)

    def spares(pid: int) -> bool:
        return pid in starter.guards or pid == config.fork_server_pid

    meter = Meter(loop, config.limits.memory_bytes, spares, killed)
    starter.started = meter.wake
    meter.wake()


def _raise_nofile() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ceiling = NOFILE if hard == resource.RLIM_INFINITY else min(NOFILE, hard)
    if soft != resource.RLIM_INFINITY and soft < ceiling:
        resource.setrlimit(resource.RLIMIT_NOFILE, (ceiling, hard))
