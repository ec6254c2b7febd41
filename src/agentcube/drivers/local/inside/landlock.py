"""Landlock: a second wall around files, signals and abstract sockets, beside mounts and file modes."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable

from agentcube.drivers.local.inside import kernel

_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1
_LOG_SAME_EXEC_OFF = 1  # LANDLOCK_RESTRICT_SELF_LOG_SAME_EXEC_OFF, ABI 7

# Access rights to files (linux/landlock.h), by the ABI that brought them.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE = 1 << 4, 1 << 5
_MAKE_CHAR, _MAKE_DIR, _MAKE_REG, _MAKE_SOCK, _MAKE_FIFO = 1 << 6, 1 << 7, 1 << 8, 1 << 9, 1 << 10
_MAKE_BLOCK, _MAKE_SYM = 1 << 11, 1 << 12
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_HANDLED = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}

_SCOPE_ABSTRACT_UNIX_SOCKET, _SCOPE_SIGNAL = 1 << 0, 1 << 1

READ = _EXECUTE | _READ_FILE | _READ_DIR
CHANGE_FILES = READ | _WRITE_FILE | _TRUNCATE | _IOCTL_DEV
"""Write to what exists, make nothing: /dev and /proc."""
WRITE = (
    READ
    | _WRITE_FILE
    | _TRUNCATE
    | _REMOVE_DIR
    | _REMOVE_FILE
    | _MAKE_DIR
    | _MAKE_REG
    | _MAKE_SOCK
    | _MAKE_FIFO
    | _MAKE_SYM
    | _REFER
)
"""All but device nodes: the workspace, /tmp and /dev/shm."""


def abi() -> int:
    """The Landlock version of this kernel; 0 where there is none or it is off."""
    try:
        return kernel.call(
            "ask for the Landlock version", "landlock_create_ruleset", None, 0, _CREATE_RULESET_VERSION
        )
    except kernel.StepFailed as exc:
        if exc.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
            return 0
        raise


def handled(version: int) -> int:
    """The file rights that a ruleset of ABI `version` can deny."""
    return max(bits for since, bits in _HANDLED.items() if since <= version)


def confine(rules: Iterable[tuple[str, int]]) -> int:
    """Allow what `rules` (path, rights) say and deny every other access to files, for good.

    Needs no_new_privs. Signals and abstract sockets are kept within the sandbox where the kernel can
    (ABI 6). Returns the ABI in force, 0 when this kernel has no Landlock.
    """
    version = abi()
    if version == 0:
        return 0
    rights = handled(version)
    scope = _SCOPE_ABSTRACT_UNIX_SOCKET | _SCOPE_SIGNAL if version >= 6 else 0
    record = struct.pack("=QQQ", rights, 0, scope)
    size = len(record) if version >= 6 else 8  # older kernels know a shorter record
    buffer = ctypes.create_string_buffer(record, len(record))
    ruleset = kernel.call("make the Landlock ruleset", "landlock_create_ruleset", buffer, size, 0)
    try:
        for path, wanted in rules:
            _allow(ruleset, path, wanted & rights)
        flags = _LOG_SAME_EXEC_OFF if version >= 7 else 0
        kernel.call("enter the Landlock domain", "landlock_restrict_self", ruleset, flags)
    finally:
        os.close(ruleset)
    return version


def _allow(ruleset: int, path: str, rights: int) -> None:
    target = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        record = struct.pack("=Qi", rights, target)  # packed in the kernel's header too
        buffer = ctypes.create_string_buffer(record, len(record))
        kernel.call(f"allow {path} by Landlock", "landlock_add_rule", ruleset, _RULE_PATH_BENEATH, buffer, 0)
    finally:
        os.close(target)
