"""A pseudo-terminal: its two ends, its size, and what end-of-file is on it (pty(7), termios(3))."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import termios
from dataclasses import dataclass

from agentcube.picod.problems import Problem

SIDE_MAX = 4096  # columns or rows; the kernel takes 65,535, no screen has a tenth of this
TERM = "xterm-256color"

_WINSIZE = struct.Struct("=HHHH")  # rows, columns, and pixels, which nobody uses
_INT = struct.Struct("=i")
_TIOCSPTLCK = 0x40045431  # Python's termios has neither of these; the same on x86-64 and arm64
_TIOCGPTN = 0x80045430
_IUTF8 = 0o40000  # asm-generic/termbits.h: erasing takes whole characters


@dataclass(frozen=True)
class Size:
    """Columns and rows."""

    cols: int
    rows: int


class Terminal:
    """The master's side. `path` is the other one's, as the sandbox knows it."""

    def __init__(self, size: Size) -> None:
        """Raises Problem `limit_exceeded` when the sandbox has no more of them, or no /dev/ptmx."""
        try:
            self.fd = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as exc:
            if exc.errno == errno.ENOSPC:
                raise Problem("limit_exceeded", "all terminals of this sandbox are in use") from exc
            raise Problem("unavailable", f"cannot open a terminal: {exc.strerror}") from exc
        fcntl.ioctl(self.fd, _TIOCSPTLCK, bytes(_INT.size))
        (number,) = _INT.unpack(fcntl.ioctl(self.fd, _TIOCGPTN, bytes(_INT.size)))
        self.path = f"/dev/pts/{number}"
        self.size = size
        self.resize(size)
        attributes = termios.tcgetattr(self.fd)
        attributes[0] |= _IUTF8
        termios.tcsetattr(self.fd, termios.TCSANOW, attributes)

    def open_program_side(self) -> int:
        """The other end, for the program. Whoever opens it holds it: the terminal hangs up with its last holder."""
        return os.open(self.path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)

    def resize(self, size: Size) -> None:
        """Change the size; the foreground programs hear of it by SIGWINCH."""
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, _WINSIZE.pack(size.rows, size.cols, 0, 0))
        self.size = size

    def end_of_file(self, last: bytes) -> bytes:
        """What to write so that the program reads an end of file, after a `last` byte (b"": none) before it.

        In a line that has begun, the first one only hands over the line as it is.
        """
        _, _, _, flags, _, _, characters = termios.tcgetattr(self.fd)
        character: bytes = characters[termios.VEOF]
        begun = last not in (b"", b"\n", b"\r", character)
        return character * (2 if begun and flags & termios.ICANON else 1)

    def close(self) -> None:
        """Let go of the terminal; who still uses it is hung up. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
