"""The local terminal: raw while a program inside has it, and as it was afterwards, whatever happens.

POSIX only; `available` says whether this machine has such terminals. Knows nothing of sessions.
"""

from __future__ import annotations

import contextlib
import os
from types import TracebackType
from typing import Any, Self

try:
    import termios
    import tty
except ImportError:  # Windows
    available = False
else:
    available = True

STDIN, STDOUT, STDERR = 0, 1, 2
FALLBACK_SIZE = (80, 24)
SIDE_MAX = 4096  # columns or rows, as PicoD takes them

RESET = (
    b"\x1b[?1049l"  # back from the alternate screen
    b"\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l"  # no mouse reports
    b"\x1b[?2004l"  # no bracketed paste
    b"\x1b[?25h\x1b[0m"  # a cursor, no colours
)
"""For a terminal whose program cannot put it right any more, because the connection to it is gone."""

# What Debian's ncurses-base has, and most images.
# fmt: off
_KNOWN = {
    "ansi", "dumb", "linux", "rxvt", "rxvt-unicode", "screen", "screen-256color", "tmux", "tmux-256color",
    "vt100", "vt220", "xterm", "xterm-color", "xterm-256color",
}
# fmt: on


def size_of(*fds: int) -> tuple[int, int]:
    """Columns and rows of the first of these that is a terminal; 80 by 24 when none is or none knows."""
    for fd in fds:
        with contextlib.suppress(OSError):
            columns, rows = os.get_terminal_size(fd)
            if columns and rows:
                return min(columns, SIDE_MAX), min(rows, SIDE_MAX)
    return FALLBACK_SIZE


def kind() -> str:
    """TERM for the program inside: that of this terminal, where other machines know it, too."""
    term = os.environ.get("TERM", "")
    return term if term in _KNOWN else "xterm-256color"


class Raw:
    """A terminal that hands every key on, for the length of a block. Anything that is no terminal is left alone."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._before: list[Any] | None = None

    def __enter__(self) -> Self:
        if available and os.isatty(self._fd):
            self._before = termios.tcgetattr(self._fd)
            tty.setraw(self._fd, termios.TCSADRAIN)
        return self

    def restore(self) -> None:
        """As it was before the block. Idempotent."""
        if self._before is not None:
            with contextlib.suppress(termios.error, OSError):  # the terminal may be gone
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)

    def resume(self) -> None:
        """Raw again, after `restore` in the block."""
        if self._before is not None:
            with contextlib.suppress(termios.error, OSError):
                tty.setraw(self._fd, termios.TCSADRAIN)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()


class Escape:
    """Finds `~.` at the beginning of a line, the way out when nothing else answers; `~~` sends one tilde."""

    def __init__(self) -> None:
        self._begins = True
        self._held = False

    def feed(self, typed: bytes) -> tuple[bytes, bool]:
        """What of this to send, and whether the way out was asked for; then the rest is dropped."""
        sent = bytearray()
        for key in typed:
            if self._held:
                self._held = False
                if key == ord("."):
                    return bytes(sent), True
                if key != ord("~"):
                    sent += b"~"
            elif self._begins and key == ord("~"):
                self._held = True
                continue
            sent.append(key)
            self._begins = key in b"\r\n"
        return bytes(sent), False
