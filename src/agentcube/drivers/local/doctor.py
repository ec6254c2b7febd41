"""What this machine can and cannot do for sandboxes, each with the remedy.

Nothing is inferred that can be tried: trials run in processes of their own (`probes`), with a
deadline. It reports and changes nothing.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import agentcube

KERNEL_MIN = (5, 13)
"""mount_setattr (5.12) and Landlock (5.13)."""

NOFILE_WANTED = 8192
"""Three descriptors for each sandbox and two for each connection: enough for a thousand sessions."""

PID_MAX_WANTED = 65_536

_TRIAL_WITHIN_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One finding. `ok` is None when it was not tried or does not matter; `detail` says what was found.

    `remedy` says what to do when it is not ok; `required`: without it there are no sandboxes here.
    """

    name: str
    ok: bool | None
    detail: str
    remedy: str = ""
    required: bool = False


def checks(data_dir: Path | None = None) -> list[Check]:
    """Everything that is known of this machine, in the order a person would want to read it.

    `data_dir` is where the server keeps its files (its file system decides where workspaces can live).
    Takes about two seconds; never raises.
    """
    if sys.platform != "linux":
        return [other_system(sys.platform)]
    tries: list[Callable[[], Check]] = [
        lambda: kernel_check(platform.release()),
        _user,
        _user_namespaces,
        lambda: _trial("namespaces", "namespaces", _CONTAINER, required=True),
        lambda: _trial("mount calls", "mount_api", _CONTAINER, required=True),
        lambda: _trial("overlay", "overlay", _OVERLAY, required=True),
        lambda: _trial("proc", "proc", _PROC, required=True),
        lambda: _trial("seccomp", "seccomp_filter", "use a kernel with CONFIG_SECCOMP_FILTER", required=True),
        lambda: _trial("landlock", "landlock_version", _LANDLOCK),
        lambda: _trial("uid range", "uid_range", _uid_range_remedy()),
        lambda: _trial("cgroups", "cgroups", _cgroup_remedy()),
        lambda: _workspace(data_dir),
        _open_files,
        _pid_max,
        _pip,
        _environments,
        _gvisor,
        _criu,
        _kvm,
    ]
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 2) as pool:
        return list(pool.map(lambda attempt: attempt(), tries))


def missing(found: Sequence[Check]) -> list[Check]:
    """What is required and not there."""
    return [check for check in found if check.required and check.ok is False]


_CONTAINER = (
    "in a container, start it with --privileged, or with --security-opt seccomp=unconfined "
    "--security-opt apparmor=unconfined"
)
_OVERLAY = f"load the overlay module (modprobe overlay); {_CONTAINER}"
_PROC = (
    "this container has parts of /proc covered: start it with --security-opt systempaths=unconfined "
    "(Kubernetes: procMount: Unmasked)"
)
_LANDLOCK = "optional second wall around files: use Linux 5.13 or newer and add landlock to the kernel's lsm= parameter"


def other_system(name: str) -> Check:
    """What is said where there is no Linux; `name` as in sys.platform."""
    system = {"darwin": "macOS", "win32": "Windows"}.get(name, name)
    return Check(
        name="operating system",
        ok=False,
        detail=f"{system}: sandboxes are made of Linux namespaces",
        remedy="run 'agentcube up' on Linux (a virtual machine, WSL 2, a server) and point this machine's "
        "client at it: AGENTCUBE_URL and AGENTCUBE_API_KEY",
        required=True,
    )


def kernel_check(release: str) -> Check:
    """Whether Linux `release` has the calls that sandboxes are made with."""
    numbers = tuple(int(n) for n in release.split("-")[0].split(".")[:2] if n.isdigit())
    wanted = ".".join(map(str, KERNEL_MIN))
    return Check(
        name="kernel",
        ok=numbers >= KERNEL_MIN,
        detail=f"Linux {release}, {platform.machine()}",
        remedy=f"use Linux {wanted} or newer",
        required=True,
    )


def _user() -> Check:
    if os.geteuid() == 0:
        return Check(
            name="user", ok=True, detail="root: user ids, limits and disk workspaces for each sandbox"
        )
    return Check(name="user", ok=True, detail=f"unprivileged (uid {os.geteuid()}); root gets more, see below")


def _trial(name: str, trial: str, remedy: str, *arguments: str, required: bool = False) -> Check:
    """Run one of `probes` in a process of its own."""
    ok, detail = _tried(trial, *arguments)
    return Check(name=name, ok=ok, detail=detail, remedy=remedy, required=required)


def _tried(trial: str, *arguments: str) -> tuple[bool, str]:
    home = str(Path(agentcube.__file__).resolve().parent.parent)
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")])),
    }
    command = [sys.executable, "-m", "agentcube.drivers.local.probes", trial, *arguments]
    code, text = _output(command, environ)
    return code == 0, text


def _output(command: Sequence[str], environ: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit status and last line of what `command` says."""
    try:
        done = subprocess.run(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_TRIAL_WITHIN_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 124, f"no answer within {_TRIAL_WITHIN_S:.0f} s"
    except OSError as exc:
        return 127, f"{command[0]}: {exc.strerror}"
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return done.returncode, lines[-1][:300] if lines else f"exit status {done.returncode}"


def _user_namespaces() -> Check:
    ok, detail = _tried("user_namespace")
    return Check(
        name="user namespaces", ok=ok, detail=detail, remedy=userns_remedy(Path("/proc/sys")), required=True
    )


def userns_remedy(sysctl: Path) -> str:
    """The switch of this distribution that is off, or the usual suspects."""
    if _number(sysctl / "user/max_user_namespaces") == 0:
        return "sysctl -w user.max_user_namespaces=15000"
    if _number(sysctl / "kernel/unprivileged_userns_clone") == 0:
        return "sysctl -w kernel.unprivileged_userns_clone=1, or run the server as root"
    if _number(sysctl / "kernel/apparmor_restrict_unprivileged_userns") == 1:
        return (
            "Ubuntu's AppArmor takes their powers away: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, "
            f"or an AppArmor profile with 'userns,' for {os.path.realpath(sys.executable)}, or run the server as root"
        )
    return f"use a kernel with CONFIG_USER_NS; {_CONTAINER}"


def _uid_range_remedy() -> str:
    if os.geteuid() == 0:
        return f"this container has too few user ids: give it more in the outer /etc/subuid; {_CONTAINER}"
    return (
        "without it user code and PicoD share one uid: install newuidmap (Debian and Ubuntu: apt install uidmap) "
        "and give this user a range: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER"
    )


def _cgroup_remedy() -> str:
    if os.geteuid() == 0:
        return (
            "without them limits are rlimits: make /sys/fs/cgroup writable "
            "(docker run --privileged --cgroupns=host)"
        )
    return (
        "without them limits are rlimits, and sandboxes cannot be frozen: start the server with "
        "'systemd-run --user --scope -p Delegate=yes agentcube up', or as root"
    )


def _workspace(data_dir: Path | None) -> Check:
    place = data_dir if data_dir is not None and data_dir.is_dir() else None
    ok, detail = _tried("workspace", *([str(place)] if place else []))
    if not ok:
        detail = f"in memory (tmpfs), hard quota: {detail}"
    remedy = "for workspaces on disk: run as root, with loop devices (modprobe loop) and mkfs.ext4 (package e2fsprogs)"
    return Check(name="workspace on disk", ok=ok, detail=detail, remedy=remedy)


def _open_files() -> Check:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Check(
        name="open files",
        ok=hard == resource.RLIM_INFINITY or hard >= NOFILE_WANTED,
        detail=f"{soft} now, the server may raise it to {hard}",
        remedy=f"raise the hard limit to {NOFILE_WANTED} or more (ulimit -Hn, LimitNOFILE=)",
    )


def _pid_max() -> Check:
    found = _number(Path("/proc/sys/kernel/pid_max"))
    return Check(
        name="process ids",
        ok=None if found is None else found >= PID_MAX_WANTED,
        detail=f"kernel.pid_max is {found}",
        remedy="for hundreds of sandboxes: sysctl -w kernel.pid_max=4194304",
    )


def _pip() -> Check:
    from agentcube.drivers.local import venvs

    found, detail = venvs.available()
    remedy = "to build Python environments: install venv and pip (Debian and Ubuntu: apt install python3-venv), or uv"
    return Check(name="venv and pip", ok=found, detail=detail, remedy=remedy)


def _environments() -> Check:
    from agentcube.drivers.local.environments import Environments
    from agentcube.errors import Invalid

    environments = Environments()
    try:
        listed = environments.list()
    except Invalid as exc:
        what, _, remedy = exc.detail.partition(": ")
        return Check(name="environments", ok=False, detail=what, remedy=remedy or "see there")
    except OSError as exc:
        return Check(
            name="environments",
            ok=False,
            detail=f"{environments.root}: {exc.strerror}",
            remedy="make it readable",
        )
    built = [env.name for env in listed if env.path is not None]
    waiting = [env.name for env in listed if env.path is None]
    words = [f"built: {', '.join(built)}"] if built else []
    words += [f"not built yet: {', '.join(waiting)}"] if waiting else []
    return Check(
        name="environments",
        ok=not waiting,
        detail=f"{'; '.join(words)} ({environments.root})",
        remedy="built at first use; to do it now: " + "; ".join(f"agentcube env create {n}" for n in waiting),
    )


def _gvisor() -> Check:
    tool = shutil.which("runsc")
    if tool is None:
        return Check(name="gVisor", ok=None, detail="no runsc on PATH; not used by this version")
    flags = [
        "--platform=systrap",
        "--network=none",
        "--ignore-cgroups",
        *(["--rootless"] if os.geteuid() else []),
    ]
    code, text = _output([tool, *flags, "do", "/bin/true"])
    detail = f"{tool} started a program" if code == 0 else f"{tool}: {text}"
    return Check(name="gVisor", ok=code == 0, detail=f"{detail}; not used by this version")


def _criu() -> Check:
    tool = shutil.which("criu")
    if tool is None:
        return Check(name="criu", ok=None, detail="no criu on PATH; not used by this version")
    code, text = _output([tool, "check"])
    _, version = _output([tool, "--version"])
    return Check(name="criu", ok=code == 0, detail=f"{version}: {text}; not used by this version")


def _kvm() -> Check:
    if not os.path.exists("/dev/kvm"):
        detail = "no /dev/kvm; not used by this version"
    elif not os.access("/dev/kvm", os.R_OK | os.W_OK):
        detail = "/dev/kvm is there, and not for this user; not used by this version"
    else:
        detail = (
            "/dev/kvm is there; not probed: whether a guest really runs is unknown; not used by this version"
        )
    return Check(name="kvm", ok=None, detail=detail)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
