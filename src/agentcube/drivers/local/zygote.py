"""The server's end of the zygote: starts the process, asks it for births, replaces it when it died."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Collection
from pathlib import Path

from agentcube.drivers.local import bundle
from agentcube.drivers.local.inside.birth import MESSAGE_BYTES_MAX
from agentcube.errors import DriverFailed

_START_S = 20.0
_END_S = 5.0
_DYING_S = 0.5


class Zygote:
    """One zygote process. All methods block; `fork` may be called from any thread.

    Args:
        folder: a directory of ours (runtime) for the bundle, the log and a mount point.
        uid: what root's zygote becomes; None when there is no root to give up.
        entry: module of PicoD's entry, imported beforehand.
        off: guards that a test turned off. extra: its modules for the bundle.
    """

    def __init__(
        self,
        folder: Path,
        *,
        uid: int | None,
        entry: str,
        off: Collection[str] = (),
        extra: tuple[Path, ...] = (),
    ) -> None:
        self._archive, self._log, self._stage = folder / "inside.zip", folder / "zygote.log", folder / "stage"
        self._settings = {
            "uid": uid,
            "stage": str(self._stage),
            "preload": [entry.partition(":")[0]],
            "off": sorted(off),
        }
        self._extra = extra
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._generation = 0
        self._control: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        """The process, None when there is none now."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Return once it serves. Raises DriverFailed with what it said."""
        with self._lock:
            self._start()

    def fork(self, channel: socket.socket) -> int:
        """Begin a birth whose other end is `channel` (which stays the caller's). Raises DriverFailed.

        Returns which process was asked, for `has_died`.
        """
        with self._lock:
            for attempt in (1, 2):
                try:
                    if self._control is None:
                        self._start()
                    assert self._control is not None
                    socket.send_fds(self._control, [b"fork"], [channel.fileno()])
                    return self._generation
                except OSError as exc:
                    self._end()  # it died: another one, once
                    if attempt == 2:
                        raise DriverFailed(f"the zygote does not answer: {exc.strerror}") from exc
        raise AssertionError("unreachable")

    def has_died(self, generation: int) -> bool:
        """Whether the process that `fork` asked has ended; the next `fork` asks another."""
        with self._lock:
            if self._process is None or generation != self._generation:
                return True  # somebody else has noticed
            try:
                self._process.wait(_DYING_S)  # its sockets close a moment before it can be waited for
            except subprocess.TimeoutExpired:
                return False
            self._end()
            return True

    def close(self) -> None:
        """End it and remove its files; its sandboxes live on. Idempotent."""
        with self._lock:
            self._end()
            for path in (self._archive, self._log):
                path.unlink(missing_ok=True)
            try:
                self._stage.rmdir()
            except FileNotFoundError:
                pass

    def _start(self) -> None:
        self._stage.mkdir(parents=True, exist_ok=True)
        archive = bundle.build(self._archive, self._extra)
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            self._process = subprocess.Popen(
                [_interpreter(), "-I", "-S", str(archive), str(its.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={},
                cwd="/",
                pass_fds=[its.fileno()],
                start_new_session=True,  # a Ctrl-C at our terminal is ours to handle
            )
        except OSError as exc:
            ours.close()
            raise DriverFailed(f"cannot start the zygote with {_interpreter()}: {exc.strerror}") from exc
        finally:
            os.close(log)
            its.close()
        self._control = ours
        self._generation += 1
        ours.settimeout(_START_S)
        ours.sendall(json.dumps(self._settings).encode())
        try:
            answer = ours.recv(MESSAGE_BYTES_MAX)
        except OSError:
            answer = b""
        failure = json.loads(answer).get("error", "") if answer else self._last_words()
        if failure:
            self._end()
            raise DriverFailed(f"the zygote did not start: {failure}")

    def _last_words(self) -> str:
        text = self._log.read_text(errors="replace").strip()
        return text[-500:] or "it said nothing"

    def _end(self) -> None:
        if self._control is not None:
            self._control.close()  # it exits at the end of file
            self._control = None
        if self._process is not None:
            try:
                self._process.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGKILL)
                self._process.wait()
            self._process = None


def _interpreter() -> str:
    """Our interpreter without the virtual environment around it."""
    return str(getattr(sys, "_base_executable", None) or sys.executable)
