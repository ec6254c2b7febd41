"""The seccomp filter, run by a small interpreter of classic BPF: every call on both machines."""

from __future__ import annotations

import errno
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from agentcube.drivers.local.inside import seccomp
from agentcube.drivers.local.inside.numbers import AUDIT_ARCH, NUMBERS, number
from agentcube.drivers.local.inside.syscalls import ALLOWED, CHECKED, REFUSED

MACHINES = ("x86_64", "aarch64")
ALLOW, KILL = "allow", "kill"
WORST_LENGTH = 4096  # BPF_MAXINSNS

allowed_names = {name for group in ALLOWED for name in group.names}
refused_names = {name for group in REFUSED for name in group.names}


def answer(on: str, nr: int, *args: int, arch: int | None = None) -> str:
    """What the filter says to one call: `allow`, `kill`, or an errno's name."""
    data = struct.pack(
        "=iIQ6Q", nr, AUDIT_ARCH[on] if arch is None else arch, 0, *(*args, *[0] * (6 - len(args)))
    )
    code, at, loaded = seccomp.instructions(on), 0, 0
    while True:
        kind, when_true, when_false, k = code[at]
        at += 1
        if kind == 0x06:
            break
        if kind == 0x20:
            loaded = struct.unpack_from("=I", data, k)[0]
            continue
        holds = {0x15: loaded == k, 0x35: loaded >= k, 0x25: loaded > k, 0x45: bool(loaded & k)}[kind]
        at += when_true if holds else when_false
    if k == 0x7FFF0000:
        return ALLOW
    if k == 0x80000000:
        return KILL
    assert k >> 16 == 0x0005
    return errno.errorcode[k & 0xFFFF]


def nr(name: str, on: str) -> int:
    value = number(name, on)
    assert value is not None
    return value


@pytest.mark.parametrize("on", MACHINES)
def test_every_call_gets_the_answer_of_its_table(on: str) -> None:
    for name in set(NUMBERS) - set(CHECKED):
        if number(name, on) is None:
            continue
        expected = ALLOW if name in allowed_names else "EPERM" if name in refused_names else "ENOSYS"
        assert answer(on, nr(name, on)) == expected, name


@pytest.mark.parametrize("on", MACHINES)
def test_numbers_that_no_table_has_answer_enosys(on: str) -> None:
    known = {number(name, on) for name in NUMBERS}
    for value in range(600):
        if value not in known:
            assert answer(on, value) == "ENOSYS", value
    assert answer(on, 0xFFFF_FFFF - (1 << 32)) == "ENOSYS"


def test_tables_do_not_contradict_each_other() -> None:
    assert not allowed_names & refused_names
    assert not (allowed_names | refused_names) & set(CHECKED)
    assert allowed_names | refused_names | set(CHECKED) <= set(NUMBERS)
    for groups in (ALLOWED, REFUSED):
        listed = [name for group in groups for name in group.names]
        assert len(listed) == len(set(listed))


@pytest.mark.parametrize("on", MACHINES)
def test_numbers_are_distinct(on: str) -> None:
    values = [value for name in NUMBERS if (value := number(name, on)) is not None]
    assert len(values) == len(set(values))


@pytest.mark.parametrize("on", MACHINES)
@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("clone", (0x11,), ALLOW),
        ("clone", (0x3D0F00,), ALLOW),  # what glibc's pthread_create passes
        ("clone", (0x10000000,), "EPERM"),
        ("clone", (0x20000 | 0x11,), "EPERM"),
        ("clone", (0x02000000,), "EPERM"),
        ("clone", (0x40000000,), "EPERM"),
        ("clone3", (0, 0), "ENOSYS"),
        ("socket", (1, 1, 0), ALLOW),
        ("socket", (2, 1, 6), ALLOW),
        ("socket", (10, 2, 17), ALLOW),
        ("socket", (16, 3, 0), ALLOW),
        ("socket", (2, 1, 0), ALLOW),
        ("socket", (2, 2, 1), ALLOW),
        ("socket", (10, 2, 58), ALLOW),
        ("socket", (2, 1, 132), "EPROTONOSUPPORT"),  # SCTP: the kernel would load a module
        ("socket", (10, 1, 262), "EPROTONOSUPPORT"),  # MPTCP: Go asks, and uses TCP then
        ("socket", (2, 2, 115), "EPROTONOSUPPORT"),
        ("socket", (2, 1, 0x1_0000_0006), ALLOW),
        ("socket", (16, 3, 9), "EAFNOSUPPORT"),
        ("socket", (17, 3, 0), "EAFNOSUPPORT"),
        ("socket", (40, 1, 0), "EAFNOSUPPORT"),
        ("socket", (38, 5, 0), "EAFNOSUPPORT"),
        ("socket", (0x1_0000_0002, 1, 0), ALLOW),  # the kernel sees 2
        ("socketpair", (1, 1, 0), ALLOW),
        ("socketpair", (40, 1, 0), "EAFNOSUPPORT"),
        ("ioctl", (0, 0x5401), ALLOW),
        ("ioctl", (0, 0x5412), "EPERM"),
        ("ioctl", (0, 0x1_0000_5412), "EPERM"),
        ("ioctl", (0, 0x541C), "EPERM"),
        ("personality", (0,), ALLOW),
        ("personality", (0xFFFFFFFF,), ALLOW),
        ("personality", (0x0040000,), "EPERM"),
        ("prctl", (38, 1), ALLOW),
        ("prctl", (35, 1), "EPERM"),
    ],
)
def test_arguments_are_looked_at(on: str, name: str, args: tuple[int, ...], expected: str) -> None:
    assert answer(on, nr(name, on), *args) == expected


@pytest.mark.parametrize("on", MACHINES)
def test_calls_of_another_architecture_end_the_process(on: str) -> None:
    i386, arm = 0x40000003, 0x40000028
    assert answer(on, 0, arch=i386) == KILL
    assert answer(on, 0, arch=arm) == KILL


def test_x32_calls_are_not_there() -> None:
    assert answer("x86_64", 0x40000000 | nr("read", "x86_64")) == "ENOSYS"


@pytest.mark.parametrize("on", MACHINES)
def test_the_program_is_one_that_the_kernel_takes(on: str) -> None:
    code = seccomp.instructions(on)
    assert len(seccomp.assemble(code)) == 8 * len(code)
    assert len(code) <= WORST_LENGTH
    for at, (kind, when_true, when_false, _) in enumerate(code):
        assert 0 <= when_true <= 255
        assert 0 <= when_false <= 255
        if kind not in (0x06, 0x20):
            assert at + 1 + max(when_true, when_false) < len(code)


def test_the_reference_page_is_what_the_table_says() -> None:
    tool = Path(__file__).parents[3] / "tools/syscalls_page.py"
    done = subprocess.run([sys.executable, str(tool), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
