"""The birth of a sandbox's fork server: process 1 forks it after the walls are up and before it is PicoD.

It is a process of the user's: his ids, limits and control groups, none of PicoD's descriptors. It has
back what the zygote took away to keep PicoD from files (the import machinery), and runs the module it is
told, which forks kernels.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NoReturn

from agentcube.drivers.local.inside import confine, kernel

_KEPT = "agentcube.kernelhost"
_BUILT_IN = ("BuiltinImporter", "FrozenImporter")
_hidden: list[ModuleType] = []
"""Modules of PicoD: alive, because taking them apart would write to pages that are shared."""

_DEFAULT_SIGNALS = (
    signal.SIGCHLD,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


class Imports:
    """The import machinery as it was, kept out of PicoD's reach and given back to the fork server.

    PicoD imports nothing from files: those that a sandbox sees are its image's, or its user's. And the
    fork server has none of PicoD's modules. Made in the zygote: looking at every name in sys.modules
    writes to it (reference counts), which in a fork copies a thousand pages.
    """

    def __init__(self) -> None:
        own = sys.argv[0]
        self._path = [path for path in sys.path if path not in ("", own)]
        self._finders, self._hooks, self._cache = sys.meta_path, sys.path_hooks, sys.path_importer_cache
        self._cache.pop(own, None)
        ours = (name for name in sys.modules if name.startswith("agentcube."))
        self._ours = [name for name in ours if not f"{name}.".startswith(_KEPT + ".")]

    def forget(self) -> None:
        """From here on only what is built in or frozen is found."""
        sys.path, sys.path_hooks, sys.path_importer_cache = [], [], {}
        sys.meta_path = [f for f in sys.meta_path if getattr(f, "__name__", "") in _BUILT_IN]

    def restore(self) -> None:
        """As any Python of this environment begins, with the current directory first."""
        sys.path = ["", *self._path]
        sys.meta_path, sys.path_hooks, sys.path_importer_cache = self._finders, self._hooks, self._cache
        for name in self._ours:
            _hidden.append(sys.modules.pop(name))  # noqa: PERF401  # there is one list of them


def fork(
    host: str, imports: Imports, config: Mapping[str, Any], groups: Sequence[int], *, becomes_user: bool
) -> tuple[int, int]:
    """Fork the server: its pid, and our end of its socket. (0, -1) when there is no room for a process.

    `host` names a loaded module with `serve(sock)`. `groups` are open `cgroup.procs` files of the user's.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            return 0, -1
        if pid == 0:
            _be(host, imports, config, groups, theirs, becomes_user=becomes_user)
    return pid, ours.detach()


def _be(
    host: str,
    imports: Imports,
    config: Mapping[str, Any],
    groups: Sequence[int],
    link: socket.socket,
    *,
    becomes_user: bool,
) -> NoReturn:
    try:
        os.setsid()
        for fd in groups:
            os.write(fd, b"0")  # 0: whoever writes
        _limit(config["limits"])
        os.chdir("/workspace")
        kernel.close_all_but({link.fileno()})
        _leave_log()
        _become((config["uid"], config["gid"]) if becomes_user else None)
        _look_like_python(imports, config["env"])
        sys.modules[host].serve(link)
    except BaseException:
        traceback.print_exc()  # into PicoD's log, as long as it is not the user's process yet
        sys.stderr.flush()
    finally:
        os._exit(1)


def _limit(limits: Mapping[str, Any]) -> None:
    """What PicoD sets for every program of the user's (picod/starter.py) where no control group does."""
    if limits["mode"] == "rlimit":
        for kind, most in ((resource.RLIMIT_NPROC, "pids_max"), (resource.RLIMIT_DATA, "memory_bytes")):
            if limits[most]:
                confine.limit(kind, limits[most], limits[most])


def _leave_log() -> None:
    """The log is a file of the machine's: not for the user's processes."""
    null = os.open("/dev/null", os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    os.close(null)


def _become(user: tuple[int, int] | None) -> None:
    if user is not None:
        uid, gid = user
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    kernel.capset(0)
    kernel.prctl("be a process like any other of the user's", kernel.PR_SET_DUMPABLE, 1)
    confine.lower_oom_score()


def _look_like_python(imports: Imports, environ: Mapping[str, str]) -> None:
    for number in _DEFAULT_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(environ)
    sys.argv[:] = [""]
    sys.orig_argv[:] = [sys.executable]
    imports.restore()
    seed = getattr(sys.modules.get("agentcube_fonts"), "seed", None)
    if seed is not None:
        seed()  # what the environment does at the start of each Python (venvs.py)
