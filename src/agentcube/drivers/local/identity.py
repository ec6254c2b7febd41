"""User ids of a sandbox: which ones this server can give, and how they are mapped.

* `range`: root gives every sandbox 65,536 ids of its own.
* `subordinate`: without root, where newuidmap and /etc/subuid allow it: PicoD is us, its user a
  subordinate id.
* `single`: without that: everything inside is us, and only PicoD's being undumpable sets it apart.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agentcube.drivers.local.uidrange import RANGE_SIZE
from agentcube.errors import StartFailed

USER = 1000
"""uid and gid of user code, as seen inside."""

_HELPER_S = 5.0
_NEEDED = {"chown": 0, "dac_override": 1, "setgid": 6, "setuid": 7, "sys_admin": 21}


class HelperFailed(StartFailed):
    """newuidmap or newgidmap is there and does not work."""


Mode = Literal["range", "subordinate", "single"]


@dataclass(frozen=True, slots=True)
class Identity:
    """How this server maps ids. `subordinate` is (first uid, first gid) for the mode of that name."""

    mode: Mode
    subordinate: tuple[int, int] = (0, 0)

    @property
    def lends(self) -> bool:
        """Whether we may put our own mounts into a sandbox's file system."""
        return self.mode == "range"

    @property
    def maps_root(self) -> bool:
        """Whether there is an id 0 inside, for PicoD, beside the user's."""
        return self.mode != "single"


def detect() -> Identity:
    """The best mode that this process can do."""
    if is_privileged():
        return Identity("range")
    first = _subordinate()
    return Identity("subordinate", first) if first else Identity("single")


def is_privileged() -> bool:
    """Whether we are root with the capabilities that it takes (root in a container may lack them)."""
    if os.geteuid() != 0:
        return False
    status = Path("/proc/self/status").read_text()
    held = int(next(line for line in status.splitlines() if line.startswith("CapEff:")).split()[1], 16)
    return all(held >> number & 1 for number in _NEEDED.values())


def map_ids(identity: Identity, pid: int, base: int | None) -> None:
    """Write the maps of the user namespace that process `pid` has just made.

    Raises:
        StartFailed: the kernel refused. HelperFailed: newuidmap did.
    """
    try:
        if identity.mode == "range":
            assert base is not None
            _write(pid, "uid_map", f"0 {base} {RANGE_SIZE}")
            _write(pid, "gid_map", f"0 {base} {RANGE_SIZE}")
        elif identity.mode == "subordinate":
            _help("newuidmap", pid, os.geteuid(), identity.subordinate[0])
            _help("newgidmap", pid, os.getegid(), identity.subordinate[1])
        else:
            _write(pid, "uid_map", f"{USER} {os.geteuid()} 1")
            _write(pid, "setgroups", "deny")
            _write(pid, "gid_map", f"{USER} {os.getegid()} 1")
    except OSError as exc:
        raise StartFailed(f"cannot map the sandbox's user ids: {exc.strerror}") from exc


def _write(pid: int, name: str, text: str) -> None:
    fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _help(program: str, pid: int, own: int, first: int) -> None:
    command = [program, str(pid), "0", str(own), "1", "1", str(first), str(RANGE_SIZE - 1)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_HELPER_S, check=False)
    except subprocess.TimeoutExpired as exc:
        raise HelperFailed(f"{program} did not end within {_HELPER_S:g} s") from exc
    if done.returncode != 0:
        raise HelperFailed(f"{program} failed: {done.stderr.decode(errors='replace').strip()[:300]}")


def _subordinate() -> tuple[int, int] | None:
    if not shutil.which("newuidmap") or not shutil.which("newgidmap"):
        return None
    try:
        names = {str(os.geteuid()), pwd.getpwuid(os.geteuid()).pw_name}
    except KeyError:
        return None  # newuidmap wants to know our name
    uid, gid = _first(Path("/etc/subuid"), names), _first(Path("/etc/subgid"), names)
    return (uid, gid) if uid is not None and gid is not None else None


def _first(path: Path, names: set[str]) -> int | None:
    """The first id of a range of ours that is large enough."""
    try:
        rows = [line.split(":") for line in path.read_text(errors="replace").splitlines()]
    except OSError:
        return None
    for row in rows:
        if len(row) != 3 or row[0] not in names or not row[1].isdigit() or not row[2].strip().isdigit():
            continue
        if int(row[2]) >= RANGE_SIZE - 1:
            return int(row[1])
    return None
