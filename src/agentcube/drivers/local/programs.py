"""The programs that a build runs, and how they are ended from another thread when nobody wants it any more."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from agentcube.errors import StartFailed

_GIVEN_UP = "the build was given up"


class Programs:
    """Runs programs one after the other, each with all it starts in a process group of its own.

    `give_up` may come from any thread, at any time: what runs is killed, and nothing more is started.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[int] = set()  # process groups
        self._given_up = threading.Event()

    def give_up(self) -> None:
        """End it all; builds under way raise StartFailed. Idempotent."""
        with self._lock:
            self._given_up.set()
            for group in self._running:
                _kill(group)

    def pause(self, seconds: float) -> None:
        """Wait. Raises StartFailed when nothing is wanted any more."""
        if self._given_up.wait(seconds):
            raise StartFailed(_GIVEN_UP)

    def run(
        self, command: Sequence[str], *, within_s: float, env: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end; 124 after `within_s`, 127 when it cannot be started. Raises StartFailed."""
        try:
            with self._started(command, env=env) as process:
                try:
                    said, _ = process.communicate(timeout=within_s)
                    return subprocess.CompletedProcess(command, process.returncode, said)
                except subprocess.TimeoutExpired:
                    return subprocess.CompletedProcess(command, 124, f"no end after {within_s:.0f} s")
        except OSError as exc:
            return subprocess.CompletedProcess(command, 127, f"{command[0]}: {exc.strerror}")

    def stream(
        self, command: Sequence[str], heard: Callable[[str], None], *, cwd: Path, env: Mapping[str, str]
    ) -> int:
        """Run to the end, handing on each line; the exit status. Raises StartFailed, OSError."""
        with self._started(command, env=env, cwd=cwd) as process:
            assert process.stdout is not None
            for line in process.stdout:
                heard(line)
            return process.wait()

    @contextmanager
    def _started(
        self, command: Sequence[str], *, env: Mapping[str, str], cwd: Path | None = None
    ) -> Iterator[subprocess.Popen[str]]:
        with self._lock:
            self.pause(0)
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                process_group=0,
            )
            self._running.add(process.pid)
        try:
            yield process
        finally:
            with self._lock:  # before it is reaped: then its id may be somebody else's
                self._running.discard(process.pid)
                if process.returncode is None:
                    _kill(process.pid)
            if process.stdout is not None:
                process.stdout.close()
            process.wait()
        self.pause(0)


def _kill(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has just ended
