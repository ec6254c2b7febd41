"""The launcher's half of a birth: the conversation that `inside/birth.py` documents. Blocks, with deadlines."""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import struct
import time
from collections.abc import Collection, Mapping
from typing import Any

from agentcube.drivers.local.inside.birth import (
    BORN,
    DESCRIPTORS_MAX,
    MESSAGE_BYTES_MAX,
    WORKSPACE,
)
from agentcube.drivers.local.inside.enclosure import UNSHARED
from agentcube.drivers.local.zygote import Zygote
from agentcube.errors import AgentCubeError, CapacityExhausted, Invalid, StartFailed, StartTimedOut

_SCM_CREDENTIALS = 2
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_DENIED = (
    "this machine does not let us make user namespaces: run AgentCube as root, or allow them (Ubuntu: "
    "sysctl kernel.apparmor_restrict_unprivileged_userns=0; Debian: sysctl "
    "kernel.unprivileged_userns_clone=1; elsewhere: sysctl user.max_user_namespaces=15000); "
    "'agentcube doctor' tells which"
)


class Birth:
    """One birth, from asking the zygote to PicoD's start. One thread at a time."""

    def __init__(self, zygote: Zygote, timeout_s: float) -> None:
        self._zygote = zygote
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._channel: socket.socket | None = None
        self._asked = 0

    def begin(self) -> None:
        """Ask the zygote for a child. Raises DriverFailed."""
        self._channel, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            self._channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._asked = self._zygote.fork(its)

    def close(self) -> None:
        """Leave it; a child that has not been told to go yet exits. Idempotent."""
        if self._channel is not None:
            self._channel.close()

    def has_ended(self) -> bool:
        """Whether the child is gone, or said something while it had nothing to say."""
        assert self._channel is not None
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        return bool(poll.poll(0))

    def await_unshared(self) -> int:
        """The pid of the process whose ids are to be mapped."""
        try:
            return self._receive("make a user namespace", UNSHARED)[1]
        except StartFailed:
            if not self._zygote.has_died(self._asked):
                raise
        # It died with our request in its queue: nothing was born. Once more, from the next one.
        self.close()
        self.begin()
        return self._receive("make a user namespace", UNSHARED)[1]

    def mapped(self, *, maps_root: bool, off: Collection[str]) -> None:
        """Its ids are mapped: let it make the other namespaces."""
        self._send([json.dumps({"maps_root": maps_root, "off": sorted(off)}).encode()], [])

    def await_born(self) -> int:
        """The pid of the sandbox's process 1, as we see it. It waits for what it is to be."""
        return self._receive("make the sandbox's namespaces", BORN)[1]

    def go(self, request: Mapping[str, Any], fds: Mapping[str, int]) -> None:
        """Hand over the request and the descriptors it needs, which stay the caller's."""
        if len(fds) + 1 > DESCRIPTORS_MAX:
            raise Invalid(f"too many mounts: at most {DESCRIPTORS_MAX - 30}")
        self._deadline = time.monotonic() + self._timeout_s
        file = os.memfd_create("request", os.MFD_CLOEXEC)
        try:
            with os.fdopen(os.dup(file), "wb") as writer:
                writer.write(json.dumps(request).encode())
            self._send([json.dumps({"fds": ["request", *fds]}).encode()], [file, *fds.values()])
        finally:
            os.close(file)

    def lend_workspace(self, mount: int) -> None:
        """Hand over the workspace that the request promised; the descriptor stays the caller's."""
        try:
            self._send([WORKSPACE], [mount])
        except StartFailed:
            self._receive("set the sandbox up")  # raises what it said before it ended
            raise

    def await_running(self) -> dict[str, Any]:
        """What the child says of its walls when PicoD starts: `landlock` and `fork_server`."""
        data = self._receive("set the sandbox up")[0]
        answer = _parsed(data)
        if answer is None or not answer.keys() >= {"landlock", "fork_server"}:
            raise StartFailed(f"the zygote talks nonsense: {data[:40]!r}")
        return answer

    def _send(self, message: list[bytes], fds: list[int]) -> None:
        assert self._channel is not None
        try:
            socket.send_fds(self._channel, message, fds)
        except OSError as exc:
            raise StartFailed(f"the sandbox's process ended early: {exc.strerror}") from exc

    def _receive(self, step: str, expected: bytes | None = None) -> tuple[bytes, int]:
        assert self._channel is not None
        self._channel.settimeout(max(0.001, self._deadline - time.monotonic()))
        space = socket.CMSG_SPACE(_CREDENTIALS.size)
        try:
            data, ancillary, _, _ = self._channel.recvmsg(MESSAGE_BYTES_MAX, space)
        except TimeoutError as exc:
            raise StartTimedOut(f"cannot {step} within {self._timeout_s:g} s") from exc
        except ConnectionResetError:
            data = b""
        if not data:
            raise StartFailed(f"the sandbox's process was killed before it could {step}")
        answer = _parsed(data)
        if answer is not None and "error" in answer:
            raise _failure(str(answer["error"]), answer.get("errno"))
        if expected is not None and data != expected:
            raise StartFailed(f"the zygote talks nonsense: {data[:40]!r}")
        pids = [_CREDENTIALS.unpack(d)[0] for _, kind, d in ancillary if kind == _SCM_CREDENTIALS]
        return data, pids[0]


def _parsed(data: bytes) -> dict[str, Any] | None:
    """The JSON object in `data`; None for anything else, which libraries in a zygote may have sent."""
    try:
        answer = json.loads(data)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def _failure(text: str, number: int | None) -> AgentCubeError:
    """What the child told, as one of our errors."""
    namespaces = text.startswith(("make a user namespace", "make the sandbox's namespaces"))
    if namespaces and number in (errno.EPERM, errno.EACCES):
        return StartFailed(f"{_DENIED} ({text})")
    if namespaces and number in (errno.ENOSPC, errno.EUSERS):
        return CapacityExhausted(
            f"this machine allows no more user namespaces or others: raise sysctl user.max_*_namespaces; "
            f"see agentcube doctor ({text})"
        )
    if number in (errno.EAGAIN, errno.ENOMEM):
        return CapacityExhausted(f"no room for another sandbox: cannot {text}")
    if text.startswith("mount /proc:") and number == errno.EPERM:
        return StartFailed(
            "cannot mount /proc in a sandbox: parts of this machine's own /proc are covered, as in a container; "
            "run the container with an unmasked /proc (docker: --security-opt systempaths=unconfined)"
        )
    return StartFailed(f"cannot {text}")
