"""Reads all that a kernel says: its stdout and stderr, and the descriptor on which it reports.

What was written before a report is read before it: a cell's output comes before its end, and what it
printed before a figure comes before the figure. Nothing is read while somebody `holds` it; then the
kernel waits where it writes.

A stream that says something is left a moment to finish it: `print` writes its text and the end of its
line one after the other. A report is not waited for, nor is a stream that has much to say.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import termios
from collections.abc import Mapping
from typing import Callable

READ_BYTES = 64 * 1024  # what a pipe holds
MOMENT_S = 0.001
_MUCH_BYTES = READ_BYTES // 4
_LAST_REPORTS = 1024  # taken after the end, at most
_INT = struct.Struct("=i")


class Intake:
    """`on_output` gets what came on a stream; `take` reads one report and says whether there was one."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        outputs: Mapping[str, int],
        report: int,
        on_output: Callable[[str, bytes], None],
        take: Callable[[], bool],
    ) -> None:
        self._loop = loop
        self._outputs = dict(outputs)
        self._report = report
        self._on_output = on_output
        self._take = take
        self._holds: set[str] = set()
        self._reads = False
        self._moments: dict[str, asyncio.TimerHandle] = {}
        self._busy: set[str] = set()  # streams that had much to say last time
        for fd in (*self._outputs.values(), report):
            os.set_blocking(fd, False)
        self._read_on()

    def hold(self, why: str) -> None:
        """Read no more, until `release` for every reason to hold. Idempotent."""
        self._holds.add(why)
        if self._reads:
            self._reads = False
            for fd in (*self._outputs.values(), self._report):
                self._loop.remove_reader(fd)
            for moment in self._moments.values():
                moment.cancel()
            self._moments.clear()

    def release(self, why: str) -> None:
        """Read on, if there is no other reason to hold. Idempotent."""
        self._holds.discard(why)
        if not self._holds and not self._reads and self._report >= 0:
            self._read_on()

    def _read_on(self) -> None:
        self._reads = True
        for name, fd in self._outputs.items():
            self._loop.add_reader(fd, self._on_data, name)
        self._loop.add_reader(self._report, self._on_report)

    def _on_data(self, name: str) -> None:
        if name in self._busy:
            self._read_soon(name)
        else:
            self._loop.remove_reader(self._outputs[name])
            self._moments[name] = self._loop.call_later(MOMENT_S, self._after_moment, name)

    def _after_moment(self, name: str) -> None:
        del self._moments[name]
        if name in self._outputs:
            self._loop.add_reader(self._outputs[name], self._on_data, name)
            self._read_soon(name)

    def _read_soon(self, name: str) -> None:
        if self._read(name) >= _MUCH_BYTES:
            self._busy.add(name)
        else:
            self._busy.discard(name)

    def _read(self, name: str, most: int = READ_BYTES) -> int:
        """Read once, and return how much it was; 0 when there is nothing now or no more ever."""
        fd = self._outputs.get(name)
        if fd is None:
            return 0
        try:
            data = os.read(fd, most)
        except BlockingIOError:
            return 0
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(fd)
            os.close(self._outputs.pop(name))
            return 0
        self._on_output(name, data)
        return len(data)

    def _catch_up(self) -> None:
        """Read what has been written by now."""
        for name, fd in list(self._outputs.items()):
            left = _INT.unpack(fcntl.ioctl(fd, termios.FIONREAD, bytes(_INT.size)))[0]
            while left > 0:
                count = self._read(name, min(left, READ_BYTES))
                if count == 0:
                    break
                left -= count

    def _on_report(self) -> None:
        self._catch_up()
        if self._reads:  # what was read may have been too much already
            self._take()

    def finish(self) -> None:
        """The kernel has ended: take what it had written and reported, then close everything. Idempotent."""
        if self._report < 0:
            return
        self.hold("finish")
        self._catch_up()
        for _ in range(_LAST_REPORTS):
            if not self._take():
                break
        self._catch_up()
        for fd in self._outputs.values():
            os.close(fd)
        self._outputs.clear()
        self._report = -1
