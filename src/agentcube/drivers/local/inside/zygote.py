"""The zygote: a warm interpreter that every sandbox of this server is forked from.

It has imported all that PicoD needs, holds no secret and runs nobody's code. Started by root it has
given up root, sees an empty root file system and no network. It serves one socket with one thread:
each message carries a descriptor, the channel of one birth. At end of file it exits; the sandboxes stay.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import sys
import zipimport
from typing import Any

from agentcube.drivers.local.inside import birth, confine, kernel, seccomp
from agentcube.drivers.local.inside.kernel import NODEV, NOEXEC, NOSUID, RDONLY

_ALSO = (
    "ast concurrent.futures.thread encodings.ascii encodings.cp437 encodings.idna encodings.latin_1 "
    "encodings.punycode encodings.utf_16 encodings.utf_32 encodings.utf_8_sig grp linecache locale pwd "
    "stringprep tokenize traceback unicodedata _strptime"
).split()
"""Modules that the standard library imports at first use; later there is no file to import them from."""


def main() -> None:
    """Serve on the descriptor named by the last argument until its other end closes."""
    control = socket.socket(fileno=int(sys.argv[-1]))
    settings = json.loads(control.recv(birth.MESSAGE_BYTES_MAX))
    try:
        program = _prepare(settings)
    except BaseException as exc:
        birth.tell_failure(control, exc)
        raise
    control.sendall(b"{}")
    _serve(control, program)


def _prepare(settings: dict[str, Any]) -> bytes:
    kernel.set_title(b"agentcube: sandbox")
    os.environ.clear()
    for name in _ALSO:
        importlib.import_module(name)
    for name in settings["preload"]:
        warm = getattr(importlib.import_module(name), "warm", None)
        if warm is not None:
            warm()
    program = seccomp.assemble(seccomp.instructions())
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps: what the parents of sandboxes leave
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    kernel.prctl("take over orphans", kernel.PR_SET_CHILD_SUBREAPER, 1)
    kernel.fresh_keyring()
    if settings["uid"] is not None:
        _wall_off(settings)
    _forget_imports()
    gc.collect()
    gc.freeze()  # so that collections in the forks do not write to (and copy) pages they share
    return program


def _wall_off(settings: dict[str, Any]) -> None:
    """An empty read-only root with /proc, which a sandbox needs in order to mount one of its own."""
    network = 0 if "network" in settings["off"] else kernel.CLONE_NEWNET
    kernel.unshare(
        kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS | network,
        "make the zygote's namespaces",
    )
    kernel.set_private("cut off the machine's mounts")
    scratch = kernel.new_mount(
        "tmpfs", {"size": "64k", "nr_inodes": "16", "mode": "0755"}, NOSUID | NODEV, "mount the zygote's root"
    )
    _attach(scratch, settings["stage"])
    os.chdir(settings["stage"])
    os.mkdir("proc")
    os.mkdir("stage")
    proc = kernel.new_mount(
        "proc", {"hidepid": "invisible"}, NOSUID | NODEV | NOEXEC, "mount the zygote's /proc"
    )
    _attach(proc, "proc")
    here = os.open(".", os.O_PATH | os.O_CLOEXEC)
    kernel.set_mount(here, "make the zygote's root read-only", attributes=RDONLY, recursive=False)
    os.close(here)
    kernel.pivot_to_cwd("change the zygote's root")
    confine.lift_limits()
    confine.become_nobody(settings["uid"])


def _attach(mount: int, path: str) -> None:
    target = os.open(path, os.O_PATH | os.O_CLOEXEC)
    kernel.attach(mount, target, f"place {path}")
    os.close(target)
    os.close(mount)


def _forget_imports() -> None:
    """From here on nothing is imported from files: the files that a sandbox sees are its image's."""
    sys.path[:] = []
    sys.path_hooks[:] = []
    sys.path_importer_cache.clear()
    sys.meta_path[:] = [finder for finder in sys.meta_path if finder.__name__ != "PathFinder"]  # type: ignore[attr-defined]  # finders are classes here
    zipimport._zip_directory_cache.clear()  # type: ignore[attr-defined]  # a megabyte that no one reads again


def _serve(control: socket.socket, program: bytes) -> None:
    while True:
        data, fds = kernel.receive(control, 64, 1)
        if not data:
            return
        channel = socket.socket(fileno=fds[0])
        try:
            if os.fork() == 0:
                control.close()
                birth.begin(channel, program)
        except OSError as exc:  # no process to be had: this birth fails, the next may not
            birth.tell_failure(channel, exc)
        channel.close()
