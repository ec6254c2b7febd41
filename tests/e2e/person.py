"""Somebody at a terminal: a real pseudo-terminal with a program in it, typed into and read from."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping, Sequence

WITHIN_S = 60.0


class Person:
    """`screen` is all that the program wrote so far."""

    def __init__(self, program: subprocess.Popen[bytes], fd: int) -> None:
        self.screen = b""
        self._program = program
        self._fd = fd
        self._read_up_to = 0

    def types(self, text: str) -> None:
        """Keys; Enter is \\r."""
        os.write(self._fd, text.encode())

    def resizes(self, columns: int, rows: int) -> None:
        """Of the window; the kernel tells the program."""
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def sends(self, number: signal.Signals) -> None:
        """A signal to the program from elsewhere."""
        self._program.send_signal(number)

    def sees(self, pattern: str, within: float = WITHIN_S) -> re.Match[bytes]:
        """Read until the pattern has come, after what was seen before."""
        end = time.monotonic() + within
        while True:
            match = re.compile(pattern.encode()).search(self.screen, self._read_up_to)
            if match:
                self._read_up_to = match.end()
                return match
            assert self._read(end), f"no {pattern!r} on the screen: {self.screen[-2000:]!r}"

    def types_until(self, text: str, pattern: str, within: float = WITHIN_S) -> None:
        """Type, again every few seconds, until the pattern comes: a key may go to what was there a moment ago."""
        end = time.monotonic() + within
        while True:
            self.types(text)
            try:
                self.sees(pattern, within=3.0)
                return
            except AssertionError:
                if time.monotonic() > end:
                    raise

    def exit_code(self, within: float = WITHIN_S) -> int:
        """Read until the program ends."""
        end = time.monotonic() + within
        while (code := self._program.poll()) is None:
            assert time.monotonic() < end, f"did not end: {self.screen[-2000:]!r}"
            self._read(min(end, time.monotonic() + 0.05))
        while self._read(time.monotonic()):
            pass
        return code

    def mode(self) -> list[object]:
        """The terminal's settings now."""
        return termios.tcgetattr(self._fd)

    def _read(self, end: float) -> bool:
        """What comes next; False when nothing did in time, or nothing can."""
        ready, _, _ = select.select([self._fd], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            return False
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # the program's side is closed
            data = b""
        self.screen += data
        return bool(data)

    def leaves(self) -> None:
        """The window is closed."""
        os.close(self._fd)
        self._program.kill()
        self._program.wait()


_IN_THE_TERMINAL = "import os, sys; os.login_tty(0); os.execvp(sys.argv[1], sys.argv[1:])"


@contextlib.contextmanager
def at_terminal(
    argv: Sequence[str], env: Mapping[str, str], *, columns: int = 100, rows: int = 30
) -> Iterator[Person]:
    """A program in a terminal of its own, for the length of a block."""
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    try:
        program = subprocess.Popen(
            [sys.executable, "-c", _IN_THE_TERMINAL, *argv], stdin=inner, stdout=inner, stderr=inner, env=env
        )
    finally:
        os.close(inner)
    person = Person(program, outer)
    try:
        yield person
    finally:
        person.leaves()
