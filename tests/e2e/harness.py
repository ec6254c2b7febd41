"""A real `agentcube up` in a process of its own, and counts of what a machine holds."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

CLI = [sys.executable, "-m", "agentcube.cli.main"]
START_WITHIN_S = 100.0
STOP_WITHIN_S = 60.0


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
        self, *argv: str, input: bytes | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the CLI against this server."""
        stdin = {"input": input} if input is not None else {"stdin": subprocess.DEVNULL}
        return subprocess.run([*CLI, *argv], capture_output=True, env=self.env(), timeout=timeout, **stdin)  # type: ignore[call-overload,no-any-return]

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
    if not line.startswith("ready http://"):
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


def census(data_dir: Path) -> Counter[str]:
    """What the machine holds that a sandbox could leave behind.

    Processes and namespaces are those of other user namespaces than ours, and processes that say
    `agentcube`; cgroups and sockets those below a directory of that name. So what else happens on the
    machine meanwhile does not count.
    """
    found: Counter[str] = Counter()
    ours = {os.readlink(ns) for ns in Path("/proc/self/ns").iterdir()}
    namespaces: set[str] = set()
    for proc in Path("/proc").iterdir():
        if not proc.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            own = {os.readlink(ns) for ns in (proc / "ns").iterdir()}
            foreign = os.readlink(proc / "ns" / "user") not in ours
            if foreign or b"agentcube" in (proc / "cmdline").read_bytes():
                found["processes"] += 1
                namespaces |= own - ours
    found["namespaces"] = len(namespaces)
    found["mounts"] = len(Path("/proc/self/mountinfo").read_text().splitlines())
    found["cgroups"] = sum("agentcube" in folder.parts for folder in _folders(Path("/sys/fs/cgroup")))
    found["loop devices"] = sum(1 for _ in Path("/sys/block").glob("loop*/loop/backing_file"))
    found["unix sockets"] = Path("/proc/net/unix").read_text().count("agentcube")
    found["runtime directories"] = sum(1 for _ in _folders(Path("/run/agentcube")))
    found["sandbox directories"] = sum(1 for _ in _folders(data_dir / "sandboxes"))
    return found


def _folders(root: Path) -> Iterator[Path]:
    for folder, below, _ in os.walk(root):
        yield from (Path(folder, name) for name in below)
