"""A zygote: a warm interpreter that sandboxes of this server are forked from.

It has imported all that PicoD needs, maybe the libraries of one environment, holds no secret and runs no
tenant's code. `enclosure.py` has its walls. It serves one socket with one thread: a message with a
descriptor, the channel of one birth, or with the id of a process whose ids it is to map. At end of file
it exits; the sandboxes stay.
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
from collections.abc import Mapping
from typing import Any

from agentcube.drivers.local.inside import birth, enclosure, forkserver, kernel, preload, seccomp

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
        if "program" in settings:
            enclosure.furnish(control, settings)
        inherited = _prepare(settings)
    except BaseException as exc:
        birth.tell_failure(control, exc)
        raise
    control.sendall(b"{}")
    _serve(control, inherited, settings["maps"])


def _prepare(settings: dict[str, Any]) -> birth.Inheritance:
    kernel.set_title(b"agentcube: sandbox")
    for name in _ALSO:
        importlib.import_module(name)
    warm = getattr(importlib.import_module(settings["entry"]), "warm", None)
    if warm is not None:
        warm()
    if settings["modules"]:  # after PicoD, which so has the standard library as it came
        preload.load(settings["modules"], settings["fork_server"])
    os.environ.clear()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps: what the parents of sandboxes leave
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    kernel.prctl("take over orphans", kernel.PR_SET_CHILD_SUBREAPER, 1)
    kernel.fresh_keyring()
    if settings["uid"] is not None:
        enclosure.empty(settings)
    imports = forkserver.Imports()
    imports.forget()
    zipimport._zip_directory_cache.clear()  # type: ignore[attr-defined]  # a megabyte that no one reads again
    inherited = birth.Inheritance(seccomp.assemble(seccomp.instructions()), imports)
    gc.collect()
    gc.freeze()  # so that collections in the forks do not write to (and copy) pages they share
    return inherited


def _serve(control: socket.socket, inherited: birth.Inheritance, maps: Mapping[str, str]) -> None:
    while True:
        data, fds = kernel.receive(control, 64, 1)
        if not data:
            return
        if not fds:
            control.sendall(_mapped(data, maps))
            continue
        channel = socket.socket(fileno=fds[0])
        try:
            if os.fork() == 0:
                control.close()
                birth.begin(channel, inherited)
        except OSError as exc:  # no process to be had: this birth fails, the next may not
            birth.tell_failure(channel, exc)
        channel.close()


def _mapped(pid: bytes, maps: Mapping[str, str]) -> bytes:
    """Write the id maps of a process born from here, where only its parent namespace may: the reason if not."""
    try:
        for name, text in maps.items():
            with open(f"/proc/{int(pid)}/{name}", "wb", buffering=0) as file:
                file.write(text.encode())
    except (OSError, ValueError) as exc:
        return str(exc).encode()[:1000]
    return b"mapped"
