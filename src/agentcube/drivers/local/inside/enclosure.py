"""Walls around a zygote, so that what it imports runs confined and what is forked from it sees no machine.

The bare zygote gets an empty root. The zygote of an environment becomes another interpreter: the
environment's own, executed in a root that looks like a sandbox's, so that every path it remembers is one
that exists in the sandboxes born from it.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from agentcube.drivers.local.inside import confine, kernel, root
from agentcube.drivers.local.inside.kernel import NODEV, NOEXEC, NOSUID, RDONLY

UNSHARED = b"unshared"
"""What a process tells that is in a new user namespace and waits for its ids to be mapped."""

STAGE = "/stage"
"""Where sandboxes build their root, in a zygote's."""

SOURCES = "/sources"
"""Where a zygote without root keeps what its sandboxes are made of: `lower`, and mounts by number."""

_TMP_BYTES = 16 << 20
_LOG_BYTES_MAX = 1 << 20  # what libraries may say when they are imported
_NAMESPACES = kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS


def empty(settings: Mapping[str, Any]) -> None:
    """An empty read-only root with /proc, which a sandbox needs in order to mount one of its own.

    Gives up root. What runs on has imported all it will ever import.
    """
    kernel.unshare(_namespaces(settings), "make the zygote's namespaces")
    kernel.set_private("cut off the machine's mounts")
    scratch = kernel.new_mount(
        "tmpfs", {"size": "64k", "nr_inodes": "16", "mode": "0755"}, NOSUID | NODEV, "mount the zygote's root"
    )
    root.attach_at(scratch, settings["stage"], "place the zygote's root")
    os.chdir(settings["stage"])
    os.mkdir("proc")
    os.mkdir("stage")
    root.attach_at(_own_proc(), "proc", "place /proc")
    root.enter()
    confine.lift_limits()
    confine.become_nobody(settings["uid"])


def furnish(control: socket.socket, settings: Mapping[str, Any]) -> NoReturn:
    """Build the root of an environment's zygote, give up every right, and execute its interpreter there.

    That one finds our modules in a memory file, and the next message on `control` tells it the rest.
    """
    archive = _in_memory(settings["archive"])
    privileged = settings["uid"] is not None
    if not privileged:
        kernel.unshare(kernel.CLONE_NEWUSER, "make a user namespace")
        control.sendall(UNSHARED)
        if not control.recv(64):
            os._exit(1)  # the launcher is gone
        if settings["maps_root"]:
            confine.become_root_inside()
    kernel.unshare(_namespaces(settings), "make the zygote's namespaces")
    _build(settings, privileged=privileged)
    socket.sethostname("sandbox")
    confine.lift_limits()
    if privileged:
        confine.become_nobody(settings["uid"])
    else:
        confine.keep_only(confine.MAPPER_CAPABILITIES if settings["maps_root"] else 0)
    confine.limit_written_files(_LOG_BYTES_MAX)  # until all is imported
    for fd in (archive, control.fileno()):
        os.set_inheritable(fd, True)
    program = settings["program"]
    os.execve(  # noqa: S606  # the operator's interpreter
        program, [program, f"/proc/self/fd/{archive}", str(control.fileno())], settings["environ"]
    )


def _namespaces(settings: Mapping[str, Any]) -> int:
    return _NAMESPACES | (0 if "network" in settings["off"] else kernel.CLONE_NEWNET)


def _in_memory(path: str) -> int:
    """A copy of our archive that needs no file: it is the server's, and out of sight in there."""
    fd = os.memfd_create("agentcube", os.MFD_CLOEXEC)
    with open(path, "rb") as source, os.fdopen(os.dup(fd), "wb") as target:
        shutil.copyfileobj(source, target)
    return fd


def _build(settings: Mapping[str, Any], *, privileged: bool) -> None:
    mounts: Sequence[Mapping[str, Any]] = sorted(
        settings["mounts"], key=lambda mount: str(mount["target"]).count("/")
    )
    attached = [(_opened(mount["source"]), str(mount["target"]), bool(mount["folder"])) for mount in mounts]
    if not privileged:  # sandboxes born here open them by these paths
        attached.append((_opened(settings["lower"], recursive=False), f"{SOURCES}/lower", True))
        attached += [
            (_opened(mount["source"]), f"{SOURCES}/{number}", bool(mount["folder"]))
            for number, mount in enumerate(settings["mounts"])
        ]
    lent = {
        name: kernel.open_tree(f"/dev/{name}", f"open /dev/{name}", recursive=False) for name in root.DEVICES
    }
    lower = _opened(settings["lower"], recursive=False)
    machine_proc = -1 if privileged else kernel.open_tree("/proc", "open /proc")
    targets = [(target, folder) for _, target, folder in attached]
    root.overlay(
        settings["stage"], lower, [*((name, True) for name in root.FOLDERS), (STAGE, True), *targets]
    )
    here = os.open(".", os.O_PATH | os.O_CLOEXEC)
    try:
        for fd, target, _ in attached:
            root.attach_in(here, fd, target)
        root.memory_mounts(here, _TMP_BYTES)
        root.devices(here, lent)
        # Without root nobody may mount one for the machine's process ids; it is the machine's own then.
        root.attach_in(here, _own_proc() if privileged else machine_proc, "/proc")
    finally:
        os.close(here)
    root.enter()


def _opened(source: str, *, recursive: bool = True) -> int:
    fd = kernel.open_tree(source, f"open {source}", recursive=recursive)
    kernel.set_mount(fd, f"restrict {source}", attributes=RDONLY | NOSUID | NODEV, recursive=recursive)
    return fd


def _own_proc() -> int:
    """A /proc that shows whoever looks only his own processes."""
    return kernel.new_mount(
        "proc", {"hidepid": "invisible"}, NOSUID | NODEV | NOEXEC, "mount the zygote's /proc"
    )
