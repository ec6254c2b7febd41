"""A real `agentcube up` in a process of its own, and counts of what a machine holds."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agentcube.up.paths import instance_name

CLI = [sys.executable, "-m", "agentcube.cli.main"]
START_WITHIN_S = 100.0
STOP_WITHIN_S = 60.0
PR_SET_CHILD_SUBREAPER = 36


@dataclass
class Server:
    """A running server, its address and what its clients need."""

    process: subprocess.Popen[str]
    url: str
    data_dir: Path
    log: Path
    api_key: str
    config_home: Path

    def env(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of a client that was told where the server is."""
        return {**os.environ, "AGENTCUBE_URL": self.url, "AGENTCUBE_API_KEY": self.api_key, **(extra or {})}

    def cli(
        self,
        *argv: str,
        input: bytes | None = None,
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the CLI against this server."""
        stdin = {"input": input} if input is not None else {"stdin": subprocess.DEVNULL}
        return subprocess.run([*CLI, *argv], capture_output=True, env=self.env(env), timeout=timeout, **stdin)  # type: ignore[call-overload,no-any-return]

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_WITHIN_S)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            if self.process.stdout:
                self.process.stdout.close()

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()


def start(
    data_dir: Path, *options: str, config_home: Path | None = None, prefix: Sequence[str] = ()
) -> Server:
    """Start `agentcube up` on a free port, as an argument of `prefix`, and wait for its ready line."""
    config_home = config_home or data_dir.parent / "config"
    log = data_dir.parent / f"{data_dir.name}.log"
    env = {**os.environ, "XDG_CONFIG_HOME": str(config_home)}
    with log.open("a") as errors:
        process = subprocess.Popen(
            [*prefix, *CLI, "up", "--port", "0", "--data-dir", str(data_dir), *options],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=env,
        )
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], START_WITHIN_S)
    line = process.stdout.readline().strip() if readable else ""
    if not line.startswith(("ready http://", "ready https://")):
        process.kill()
        process.wait()
        process.stdout.close()
        raise AssertionError(f"not ready: {line!r}\n{log.read_text()[-4000:]}")
    key_file = data_dir / "api-key"
    return Server(
        process=process,
        url=line.removeprefix("ready "),
        data_dir=data_dir,
        log=log,
        api_key=key_file.read_text().strip() if key_file.exists() else "",
        config_home=config_home,
    )


@contextlib.contextmanager
def serving(data_dir: Path, *options: str) -> Iterator[Server]:
    """A server for the length of a block; it must stop cleanly."""
    server = start(data_dir, *options)
    try:
        yield server
    finally:
        code = server.stop()
    assert code == 0, server.log.read_text()[-4000:]


def eventually(holds: Callable[[], object], *, within: float, what: str = "") -> None:
    """Wait for a state, looking often; the deadline is for machines that are slow, not for luck."""
    end = time.monotonic() + within
    while not holds():
        if time.monotonic() > end:
            raise AssertionError(what or "did not become true")
        time.sleep(0.02)


@contextlib.contextmanager
def orphans() -> Iterator[None]:
    """Within it, what servers leave behind when they end becomes a child of this process: `census` sees it."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    assert prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def census(data_dir: Path) -> Counter[str]:
    """What there is of a server's and its sandboxes' making; needs `orphans` around all of its servers.

    Nothing that others do on the machine counts: processes are our descendants, the rest has the server's
    directories or its instance's name in its own.
    """
    instance = instance_name(data_dir)
    parents = (Path("/run/agentcube"), Path(f"/tmp/agentcube-{os.geteuid()}"))
    runtimes = [parent / instance for parent in parents]
    own = tuple(map(str, (data_dir, *runtimes)))
    found: Counter[str] = Counter()
    ours = {os.readlink(ns) for ns in Path("/proc/self/ns").iterdir()}
    namespaces: set[str] = set()
    for pid in _descendants(os.getpid()):
        with contextlib.suppress(OSError):  # a zombie has none, and is nothing that was left
            namespaces |= {os.readlink(ns) for ns in Path(f"/proc/{pid}/ns").iterdir()} - ours
            found["processes"] += 1
    found["namespaces"] = len(namespaces)
    found["mounts"] = _mentions(Path("/proc/self/mountinfo").read_text().splitlines(), own)
    found["unix sockets"] = _mentions(Path("/proc/net/unix").read_text().splitlines(), own)
    found["loop devices"] = _mentions(_backing_files(), own)
    found["cgroups"] = sum(instance in folder.parts for folder in _folders(Path("/sys/fs/cgroup")))
    # By `walk`, which passes over what another user's server does not let us see.
    inside = (len(below) + len(files) for folder in runtimes for _, below, files in os.walk(folder))
    found["runtime directory"] = sum(inside)
    found["sandbox directories"] = sum(1 for _ in _folders(data_dir / "sandboxes"))
    return found


def _descendants(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                yield child
                yield from _descendants(child)


def _mentions(lines: Iterable[str], own: tuple[str, ...]) -> int:
    return sum(any(path in line for path in own) for line in lines)


def _backing_files() -> Iterator[str]:
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            yield file.read_text()


def _folders(root: Path) -> Iterator[Path]:
    for folder, below, _ in os.walk(root):
        yield from (Path(folder, name) for name in below)
