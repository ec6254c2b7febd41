"""The server's end of a zygote: starts the process, asks it for births, replaces the bare one when it died."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentcube.drivers.local import bundle, identity
from agentcube.drivers.local.environments import MOUNTED_AT
from agentcube.drivers.local.identity import USER, Identity
from agentcube.drivers.local.images import ImageRoot
from agentcube.drivers.local.inside.birth import MESSAGE_BYTES_MAX
from agentcube.drivers.local.inside.enclosure import STAGE, UNSHARED
from agentcube.drivers.local.inside.preload import ONE_THREAD
from agentcube.drivers.local.uidrange import RANGE_SIZE
from agentcube.errors import AgentCubeError, DriverFailed, StartFailed

_START_S = 20.0
_PRELOAD_S = 60.0  # importing a hundred megabytes from a cold disk
_END_S = 5.0
_DYING_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """What an environment's zygote is made from: the image with the environment, and how ids are mapped."""

    image: ImageRoot
    mode: Identity

    @property
    def name(self) -> str:
        """The environment's, with the version that it is."""
        return self.image.environment.name if self.image.environment else ""

    @property
    def modules(self) -> tuple[str, ...]:
        """What is imported."""
        return self.image.preload

    @property
    def maps(self) -> Mapping[str, str]:
        """Files of /proc/PID and what to write there, where the zygote maps the ids of what is born from it.

        That is where it is in a user namespace of its own: nobody else may then.
        """
        if self.mode.lends:
            return {}
        if self.mode.maps_root:
            # Two lines, as the map of the zygote's own namespace has: each has to lie within one of its.
            return dict.fromkeys(("uid_map", "gid_map"), f"0 0 1\n1 1 {RANGE_SIZE - 1}\n")
        return {"uid_map": f"{USER} {USER} 1", "setgroups": "deny", "gid_map": f"{USER} {USER} 1"}


def remove_leftovers(folder: Path) -> None:
    """Remove what zygotes of a server that was killed have left in its `folder`, before one starts there."""
    for log in folder.glob("zygote-*.log"):  # the bare one's files are used again
        log.unlink(missing_ok=True)


class Zygote:
    """One zygote process. All methods block; `fork` may be called from any thread.

    Args:
        folder: a directory of ours (runtime) for the bundle, the log and a mount point.
        uid: what root's zygote becomes; None when there is no root to give up.
        entry: module of PicoD's entry, imported beforehand.
        home: the environment that it is to be the zygote of. One that died is not replaced: its
            libraries may be why, and loading them takes long.
        fork_server: module of the fork server that sandboxes of an environment get.
        off: guards that a test turned off. extra: its modules for the bundle.
    """

    def __init__(
        self,
        folder: Path,
        *,
        uid: int | None,
        entry: str,
        home: Home | None = None,
        fork_server: str = "",
        off: Collection[str] = (),
        extra: tuple[Path, ...] = (),
    ) -> None:
        self._archive, self._stage = folder / "inside.zip", folder / "stage"
        self._log = folder / (f"zygote-{home.name}.log" if home else "zygote.log")
        self._home, self._uid, self._off, self._extra = home, uid, off, extra
        self._settings = {
            "uid": None if home else uid,
            "stage": str(self._stage),
            "entry": entry.partition(":")[0],
            "off": sorted(off),
            "modules": list(home.modules) if home else [],
            "fork_server": fork_server,
            "maps": dict(home.maps) if home else {},
        }
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._generation = 0
        self._control: socket.socket | None = None
        self._abandoned = False

    @property
    def pid(self) -> int | None:
        """The process, None when there is none now."""
        return self._process.pid if self._process else None

    @property
    def uid(self) -> int | None:
        """What root's zygote is; the first id of a range that is its alone."""
        return self._uid

    @property
    def home(self) -> Home | None:
        """The environment whose zygote it is; None for the bare one."""
        return self._home

    @property
    def stage(self) -> str:
        """Where a process born from it builds its root, as that process sees it."""
        inside = self._home is not None or self._uid is not None
        return STAGE if inside else str(self._stage)

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
                        if self._home and self._generation:
                            raise DriverFailed(f"the zygote of {self._home.name} has ended")
                        self._start()
                    assert self._control is not None
                    socket.send_fds(self._control, [b"fork"], [channel.fileno()])
                    return self._generation
                except OSError as exc:
                    self._end()  # it died: another one, once
                    if attempt == 2 or self._home:
                        raise DriverFailed(f"the zygote does not answer: {exc.strerror}") from exc
        raise AssertionError("unreachable")

    def map_ids(self, mode: Identity, pid: int, base: int | None) -> None:
        """Map the ids of process `pid`, born from here, which is in a new user namespace.

        Raises:
            StartFailed: the kernel refused.
        """
        if self._home is None or not self._home.maps:
            identity.map_ids(mode, pid, base)
            return
        with self._lock:
            try:
                if self._control is None:
                    raise OSError(0, "it has ended")
                self._control.sendall(b"%d" % pid)
                answer = self._control.recv(MESSAGE_BYTES_MAX)
            except OSError as exc:
                raise StartFailed(f"the zygote does not map the sandbox's user ids: {exc.strerror}") from exc
        if answer != b"mapped":
            raise StartFailed(f"cannot map the sandbox's user ids: {answer.decode(errors='replace')}")

    def is_alive(self) -> bool:
        """Whether the process lives, as far as is known without waiting."""
        process = self._process
        return process is not None and process.poll() is None

    def abandon(self) -> None:
        """End a `start` that is under way in another thread: it raises. Its births so far go on."""
        self._abandoned = True
        process = self._process
        if process is not None:
            process.kill()

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
            self._log.unlink(missing_ok=True)
            if self._home is None:  # the others live in the same folder, and shorter
                self._archive.unlink(missing_ok=True)
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
        if self._abandoned:
            self._process.kill()
        ours.settimeout(_PRELOAD_S if self._home else _START_S)
        failure = self._introduce(ours, self._process.pid)
        if failure:
            self._end()
            raise DriverFailed(f"the zygote did not start: {failure}")

    def _introduce(self, control: socket.socket, pid: int) -> str:
        """Tell a new process what it is to be, and hear that it serves; else why not."""
        try:
            if self._home is not None:
                control.sendall(json.dumps(self._walls(self._home)).encode())
                if self._home.maps:
                    answer = control.recv(MESSAGE_BYTES_MAX)
                    if answer != UNSHARED:
                        return self._failure(answer)
                    identity.map_ids(self._home.mode, pid, None)
                    control.sendall(b"mapped")
            control.sendall(json.dumps(self._settings).encode())
            answer = control.recv(MESSAGE_BYTES_MAX)
        except TimeoutError:
            return f"it did not answer in time; {self._last_words()}"
        except OSError:
            answer = b""
        except AgentCubeError as exc:
            return exc.detail
        return "" if answer == b"{}" else self._failure(answer)

    def _failure(self, answer: bytes) -> str:
        try:
            return str(json.loads(answer)["error"]) if answer else self._last_words()
        except (ValueError, TypeError, KeyError):  # some library has written to its socket
            return f"it talks nonsense: {answer[:40]!r}"

    def _walls(self, home: Home) -> dict[str, Any]:
        """The message for `enclosure.furnish`."""
        return {
            "uid": self._uid,
            "maps_root": home.mode.maps_root,
            "off": sorted(self._off),
            "stage": str(self._stage),
            "archive": str(self._archive),
            "lower": str(home.image.lower),
            "mounts": [
                {"source": str(b.source), "target": b.target, "folder": b.source.is_dir()}
                for b in home.image.binds
            ],
            "program": f"{MOUNTED_AT}/bin/python3",
            "environ": {**home.image.environ(), **ONE_THREAD},
        }

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
