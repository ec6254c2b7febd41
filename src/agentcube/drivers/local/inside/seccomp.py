"""The seccomp filter: a small assembler for classic BPF, and the program made from `syscalls.py`."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable

from agentcube.drivers.local.inside import kernel
from agentcube.drivers.local.inside.numbers import AUDIT_ARCH, machine, number
from agentcube.drivers.local.inside.syscalls import ALLOWED, CHECKED, REFUSED

Instruction = tuple[int, int, int, int]  # code, jump when true, jump when false, k

ALLOW = 0x7FFF_0000
KILL = 0x8000_0000
_ERRNO = 0x0005_0000

_LOAD, _JUMP_EQ, _JUMP_GE, _JUMP_GT, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x25, 0x45, 0x06

# Offsets in struct seccomp_data (linux/seccomp.h). Arguments are 64 bits, little endian on both
# machines; the kernel takes every argument compared here as 32 bits, so the upper half must be ignored.
_NR, _ARCH = 0, 4

_X32_BIT = 0x4000_0000  # x86-64: the x32 calls, which nobody needs and few have looked at
_NAMESPACE_FLAGS = 0x7E02_0000  # CLONE_NEW*, but for NEWTIME, which clone(2) cannot carry
_TERMINAL_REQUESTS = (0x5412, 0x541C, 0x5423, 0x541D)  # TIOCSTI TIOCLINUX TIOCSETD TIOCCONS
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK, _NETLINK_ROUTE = 1, 2, 10, 16, 0
_PROTOCOLS = (0, 1, 6, 17, 58)  # the family's own choice, ICMP, TCP, UDP, ICMPv6
_PR_SET_MM = 35


def _load(offset: int) -> Instruction:
    return (_LOAD, 0, 0, offset)


def _argument(index: int) -> Instruction:
    return _load(16 + 8 * index)


def _return(value: int) -> Instruction:
    return (_RETURN, 0, 0, value)


def _refuse(error: int) -> Instruction:
    return _return(_ERRNO | error)


def _one_of(values: Iterable[int], then: Instruction, otherwise: Instruction) -> list[Instruction]:
    """Compare what is loaded; both ways end in a return."""
    body: list[Instruction] = []
    for value in values:
        body += [(_JUMP_EQ, 0, 1, value), then]
    return [*body, otherwise]


def _checks() -> dict[str, list[Instruction]]:
    """For each name in CHECKED, code that always returns."""
    allow, eperm, no_family = _return(ALLOW), _refuse(errno.EPERM), _refuse(errno.EAFNOSUPPORT)
    return {
        "clone": [_argument(0), (_JUMP_SET, 0, 1, _NAMESPACE_FLAGS), eperm, allow],
        "clone3": [_refuse(errno.ENOSYS)],
        "ioctl": [_argument(1), *_one_of(_TERMINAL_REQUESTS, eperm, allow)],
        "personality": [_argument(0), *_one_of((0, 0xFFFF_FFFF), allow, eperm)],
        "prctl": [_argument(0), *_one_of((_PR_SET_MM,), eperm, allow)],
        "socket": [
            _argument(0),
            *((_JUMP_EQ, 0, 1, _AF_UNIX), allow),
            (_JUMP_EQ, 7, 0, _AF_INET),
            (_JUMP_EQ, 6, 0, _AF_INET6),
            (_JUMP_EQ, 1, 0, _AF_NETLINK),
            no_family,
            _argument(2),
            *_one_of((_NETLINK_ROUTE,), allow, no_family),
            # Others make the kernel load modules that few have looked at: SCTP, L2TP, SMC and the like.
            _argument(2),
            *_one_of(_PROTOCOLS, allow, _refuse(errno.EPROTONOSUPPORT)),
        ],
        "socketpair": [_argument(0), *_one_of((_AF_UNIX,), allow, no_family)],
    }


def _numbers(names: Iterable[str], on: str) -> list[int]:
    return sorted(nr for nr in (number(name, on) for name in names) if nr is not None)


def _ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Sorted numbers as inclusive ranges."""
    found: list[tuple[int, int]] = []
    for nr in numbers:
        if found and nr == found[-1][1] + 1:
            found[-1] = (found[-1][0], nr)
        else:
            found.append((nr, nr))
    return found


def _in_ranges(numbers: Iterable[int], action: Instruction) -> list[Instruction]:
    """Return `action` for these numbers, fall through for others. The number is loaded."""
    code: list[Instruction] = []
    for low, high in _ranges(numbers):
        if low == high:
            code += [(_JUMP_EQ, 0, 1, low), action]
        else:
            code += [(_JUMP_GE, 0, 2, low), (_JUMP_GT, 1, 0, high), action]
    return code


def instructions(on: str | None = None) -> list[Instruction]:
    """The filter for machine `on` (default: this one).

    Calls whose answer does not depend on arguments cost nothing on Linux 5.11 and later, which caches
    them; so the order is by kind, not by frequency.
    """
    on = on or machine()
    code: list[Instruction] = [
        _load(_ARCH),
        (_JUMP_EQ, 1, 0, AUDIT_ARCH[on]),
        _return(KILL),
        _load(_NR),
    ]
    if on == "x86_64":
        code += [(_JUMP_GE, 0, 1, _X32_BIT), _refuse(errno.ENOSYS)]
    for name, body in sorted(_checks().items()):
        nr = number(name, on)
        if nr is not None:
            code += [(_JUMP_EQ, 0, len(body), nr), *body]
    allowed = {name for group in ALLOWED for name in group.names}
    refused = {name for group in REFUSED for name in group.names}
    code += _in_ranges(_numbers(allowed - set(CHECKED), on), _return(ALLOW))
    code += _in_ranges(_numbers(refused, on), _refuse(errno.EPERM))
    return [*code, _refuse(errno.ENOSYS)]


def assemble(code: Iterable[Instruction]) -> bytes:
    """The program as an array of struct sock_filter."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def confine(program: bytes) -> None:
    """Install the filter; needs no_new_privs. From here on this process and its children are held by it."""
    kernel.install_filter(program)
