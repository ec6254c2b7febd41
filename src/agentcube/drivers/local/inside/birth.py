"""The birth of one sandbox: from a fork of the zygote to PicoD as its process 1.

The other side is the launcher, on a SEQPACKET socket of this birth alone:

    child    `unshared`                       it is in a new user namespace
    launcher {"maps_root": …, "off": […]}     its ids are mapped
    child    `born`                           this message comes from process 1
    launcher {"fds": names} + descriptors     it is on record and in its groups; what it is to be
    launcher `workspace` + descriptor         only when the request promises one
    child    {"landlock": …, "fork_server": …}  the walls are up; PicoD starts

or at any time {"error": text, "errno": n} from the child. End of file from the launcher means that it
is gone: the child exits. The launcher learns ids of processes from the kernel (SCM_CREDENTIALS).
The request itself is JSON in a memory file, descriptor `request`; `launch.py` has its fields.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agentcube.drivers.local.inside import confine, forkserver, kernel, landlock, root, seccomp
from agentcube.drivers.local.inside.enclosure import UNSHARED
from agentcube.drivers.local.inside.kernel import NODEV, NOSUID, RDONLY

MESSAGE_BYTES_MAX = 64 * 1024
DESCRIPTORS_MAX = 250  # SCM_MAX_FD is 253
BORN, WORKSPACE = b"born", b"workspace"

_NAMESPACES = kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS

_RULES = (
    ("/", landlock.READ),
    ("/workspace", landlock.WRITE),
    ("/tmp", landlock.WRITE),  # the sandbox's own
    ("/dev", landlock.CHANGE_FILES),
    ("/dev/shm", landlock.WRITE),
    ("/proc", landlock.CHANGE_FILES),
)


class LauncherGone(Exception):
    """The launcher closed its end before the sandbox was on record."""


@dataclass(frozen=True)
class Request:
    """What the launcher sent: fields of the request, and descriptors by name."""

    fields: Mapping[str, Any]
    fds: Mapping[str, int]

    @property
    def groups(self) -> list[int]:
        """Open `cgroup.procs` files that every process of the user's moves into."""
        return [fd for name, fd in self.fds.items() if name.startswith("group:")]

    def off(self, guard: str) -> bool:
        """Whether a test asked for this sandbox to lack `guard`, to show that its probes notice."""
        return guard in self.fields["off"]


@dataclass(frozen=True)
class Inheritance:
    """What a newborn has of its zygote: the seccomp filter's program, and how to import for its user."""

    program: bytes
    imports: forkserver.Imports


def begin(channel: socket.socket, inherited: Inheritance) -> None:
    """Run one sandbox; called in a fresh fork of the zygote, and never returns."""
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.umask(0o022)
        kernel.close_all_but({channel.fileno()})
        kernel.unshare(kernel.CLONE_NEWUSER, "make a user namespace")
        channel.sendall(UNSHARED)
        first = channel.recv(MESSAGE_BYTES_MAX)
        if not first:
            raise LauncherGone
        terms = json.loads(first)
        if terms["maps_root"]:
            confine.become_root_inside()
        flags = _NAMESPACES | (0 if "network" in terms["off"] else kernel.CLONE_NEWNET)
        kernel.unshare(flags, "make the sandbox's namespaces")
        if os.fork() == 0:
            _live(channel, inherited)
        status = 0
    except LauncherGone:
        pass
    except BaseException as exc:
        tell_failure(channel, exc)
    finally:
        os._exit(status)  # whatever happened, this fork must not go back to serving


def tell_failure(channel: socket.socket, exc: BaseException) -> None:
    """Tell the launcher why there will be no sandbox."""
    number = exc.errno if isinstance(exc, OSError) else None
    text = str(exc) if isinstance(exc, OSError) else repr(exc)
    try:
        channel.sendall(json.dumps({"error": text[:2000], "errno": number}).encode())
    except OSError:
        pass  # nobody is listening any more


def _ask(channel: socket.socket) -> Request:
    channel.sendall(BORN)
    data, fds = kernel.receive(channel, MESSAGE_BYTES_MAX, DESCRIPTORS_MAX)
    if not data:
        raise LauncherGone
    named = dict(zip(json.loads(data)["fds"], fds))  # Python 3.9
    with os.fdopen(named.pop("request"), "rb") as file:
        file.seek(0)
        return Request(json.load(file), named)


def _live(channel: socket.socket, inherited: Inheritance) -> None:
    """Process 1: build the walls from the inside, then be PicoD."""
    os.setsid()
    request = _ask(channel)
    fields = request.fields
    limits = os.open("/proc/sys/user", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    kernel.unshare(kernel.CLONE_NEWCGROUP, "make a cgroup namespace")  # now that it is in its groups
    root.build(_root_plan(request), lambda: _workspace(channel))
    confine.limit_kernel_objects(limits)
    socket.sethostname(fields["hostname"])
    if not request.off("network"):
        kernel.loopback_up()
    _standard_streams(request.fds["log"])
    confine.set_limits()
    confine.drop_capabilities(confine.PICOD_CAPABILITIES if fields["maps_root"] else 0)
    if fields["maps_root"]:
        confine.work_on_files_as(fields["config"]["uid"], fields["config"]["gid"])
    confine.no_new_privileges()
    version = 0
    if not request.off("landlock"):
        writable = [(m["target"], landlock.WRITE) for m in fields["mounts"] if not m["read_only"]]
        version = landlock.confine([*_RULES, *writable])
    confine.undumpable()
    if not request.off("seccomp"):
        seccomp.confine(inherited.program)
    pid, link = _fork_server(request, inherited.imports)
    channel.sendall(json.dumps({"landlock": version, "fork_server": pid != 0}).encode())
    _run(request, pid, link)


def _fork_server(request: Request, imports: forkserver.Imports) -> tuple[int, int]:
    """The pid and our end of the process that kernels will be forked from; (0, -1) where there is none."""
    fields = request.fields
    if not fields["fork_server"]:
        return 0, -1
    return forkserver.fork(
        fields["fork_server"], imports, fields["config"], request.groups, becomes_user=fields["maps_root"]
    )


def _root_plan(request: Request) -> root.Plan:
    fields, fds = request.fields, dict(request.fds)
    if not fields["lent"]:
        fds.update(_open_sources(fields))
    mounts = [
        root.Mount(fds[f"mount:{i}"], m["target"], folder=m["folder"]) for i, m in enumerate(fields["mounts"])
    ]
    return root.Plan(
        stage=fields["stage"],
        lower=fds["lower"],
        mounts=tuple(mounts),
        devices={name: fds[f"device:{name}"] for name in root.DEVICES},
        tmp_bytes=fields["tmp_bytes"],
        workspace_bytes=fields["workspace_bytes"],
        uid=fields["config"]["uid"],
        gid=fields["config"]["gid"],
    )


def _workspace(channel: socket.socket) -> int:
    """The workspace's mount, which the launcher makes while the root is built."""
    data, fds = kernel.receive(channel, 64, 1)
    if data != WORKSPACE:
        raise LauncherGone
    return fds[0]


def _open_sources(fields: Mapping[str, Any]) -> dict[str, int]:
    """Without root nobody can lend mounts across user namespaces: open them here, before the root changes."""
    found = {
        "lower": kernel.open_tree(
            fields["lower"], "open the image", recursive=False, within=fields["lower_within"]
        )
    }
    for name in root.DEVICES:
        found[f"device:{name}"] = kernel.open_tree(f"/dev/{name}", f"open /dev/{name}", recursive=False)
    for i, mount in enumerate(fields["mounts"]):
        fd = kernel.open_tree(mount["source"], f"open {mount['source']}", within=mount["within"])
        attributes = NOSUID | NODEV | (RDONLY if mount["read_only"] else 0)
        kernel.set_mount(fd, f"restrict {mount['source']}", attributes=attributes)
        found[f"mount:{i}"] = fd
    return found


def _standard_streams(log: int) -> None:
    null = os.open("/dev/null", os.O_RDWR)
    for fd, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(fd, target)
    os.close(null)
    os.close(log)


def _run(request: Request, fork_server: int, link: int) -> None:
    """Become PicoD: nothing of the birth stays open."""
    fds, groups = request.fds, request.groups
    oom = fds.get("oom", -1)
    kernel.close_all_but({fds["listen"], fds["control"], *groups, *(fd for fd in (link, oom) if fd >= 0)})
    os.chdir("/workspace")
    config = {
        **request.fields["config"],
        "listen_fd": fds["listen"],
        "control_fd": fds["control"],
        "cgroup_fds": groups,
        "oom_fd": oom,
        "fork_server_fd": link,
        "fork_server_pid": fork_server,
    }
    module, _, name = request.fields["entry"].partition(":")
    try:
        getattr(importlib.import_module(module), name)(config)
    except BaseException:
        traceback.print_exc()  # into the sandbox's log: nobody listens on the channel any more
        sys.stderr.flush()
        os._exit(1)
