"""What PicoD is told at its start, checked once. Plain data; the launcher writes it, nobody else."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Callable

_ENV_NAME = re.compile(r"[^=\x00]+")


@dataclass(frozen=True)
class Limits:
    """What the sandbox may use. In mode `rlimit` PicoD itself holds the user to it; 0 is no limit."""

    memory_bytes: int = 0
    pids_max: int = 0
    mode: str = "cgroup"  # or "rlimit"


@dataclass(frozen=True)
class Config:
    """PicoD's whole configuration.

    `listen_fd` is a listening stream socket for the API, `control_fd` one for the control protocol
    (-1: none). `uid`/`gid` are the user's; with `single_uid` PicoD has the same ones and changes
    nothing. `cgroup_fds` are open `cgroup.procs` files that every process of the user moves into.
    `oom_fd` is an open table (`memory.events`, `memory.oom_control`) whose `oom_kill` counts those that
    died for want of memory (-1: none).
    `session_id` binds at once, where there is no pool (clusters); "" waits for a binding.
    `fork_server_fd` is a SEQPACKET socket to the child `fork_server_pid`, a process of the user's that
    forks kernels with libraries loaded (-1 and 0: none).
    """

    sandbox_id: str
    public_keys: tuple[str, ...]
    listen_fd: int
    workspace: str = "/workspace"
    control_fd: int = -1
    uid: int = 1000
    gid: int = 1000
    single_uid: bool = False
    env: dict[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    working_dir: str = ""
    ports: tuple[int, ...] = ()
    cgroup_fds: tuple[int, ...] = ()
    oom_fd: int = -1
    limits: Limits = field(default_factory=Limits)
    version: str = "0"
    session_id: str = ""
    fork_server_fd: int = -1
    fork_server_pid: int = 0


def parse_config(data: dict[str, Any]) -> Config:
    """The configuration in `data`. Unknown keys are errors.

    Raises:
        ValueError: names the key that is missing, unknown or of the wrong kind.
    """
    known: dict[str, Callable[[str, Any], Any]] = {
        "sandbox_id": _text,
        "public_keys": _texts,
        "listen_fd": _number,
        "workspace": _text,
        "control_fd": _number,
        "uid": _number,
        "gid": _number,
        "single_uid": _flag,
        "env": env_map,
        "command": _texts,
        "working_dir": _text,
        "ports": _numbers,
        "cgroup_fds": _numbers,
        "oom_fd": _number,
        "limits": _limits,
        "version": _text,
        "session_id": _text,
        "fork_server_fd": _number,
        "fork_server_pid": _number,
    }
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise ValueError(f"config: unknown key {unknown[0]!r}")
    missing = [key for key in ("sandbox_id", "public_keys", "listen_fd") if key not in data]
    if missing:
        raise ValueError(f"config: {missing[0]!r} is missing")
    # A control socket that is absent may also be said as null.
    given = {key: value for key, value in data.items() if value is not None}
    return Config(**{key: known[key]("config: " + key, value) for key, value in given.items()})


def env_map(name: str, value: Any) -> dict[str, str]:
    """`value` as an environment. Raises ValueError that names the entry."""
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object of names and texts")
    for key, text in value.items():
        if not isinstance(key, str) or not _ENV_NAME.fullmatch(key):
            raise ValueError(f"{name}: {key!r} is no name of an environment variable")
        if not isinstance(text, str) or "\x00" in text:
            raise ValueError(f"{name}: {key!r} must be a text without NUL")
        _encodable(f"{name}: {key!r}", key + text)
    return dict(value)


def arguments(name: str, value: Any) -> tuple[str, ...]:
    """`value` as an argv: a non-empty list of texts. Raises ValueError."""
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f'{name} must be a non-empty list of texts, such as ["python3", "-c", "print(1)"]')
    for item in value:
        if not isinstance(item, str) or "\x00" in item:
            raise ValueError(f"{name} must hold only texts without NUL")
        _encodable(name, item)
    if not value[0]:
        raise ValueError(f"{name}: the program's name is empty")
    return tuple(value)


def _encodable(name: str, text: str) -> None:
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ValueError(f"{name}: half of a surrogate pair is no text") from None


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or "\x00" in value:
        raise ValueError(f"{name} must be a text")
    return value


def _number(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number")
    return value


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false")
    return value


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{name} must be a list of texts")
    return tuple(_text(name, item) for item in value)


def _numbers(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{name} must be a list of whole numbers")
    return tuple(_number(name, item) for item in value)


def _limits(name: str, value: Any) -> Limits:
    if not isinstance(value, dict) or set(value) - {"memory_bytes", "pids_max", "mode"}:
        raise ValueError(f"{name} must be an object of memory_bytes, pids_max and mode")
    mode = value.get("mode", "cgroup")
    if mode not in ("cgroup", "rlimit"):
        raise ValueError(f"{name}.mode must be cgroup or rlimit")
    numbers = {key: _number(f"{name}.{key}", value.get(key) or 0) for key in ("memory_bytes", "pids_max")}
    return Limits(mode=mode, **numbers)
