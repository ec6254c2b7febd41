"""A bash kernel: one interactive bash without a terminal, which runs cell by cell.

Interactive, because only such a bash abandons on SIGINT what it is at and goes on with the next line. On
its standard input is a memory file in which all lines are the same, each to run one cell, and which we
rewind. A second one (199) is a script that sets the cell and, last, its number; what becomes of the cell
is told on a pipe (198); another pipe (197) says that it is time to look again. So nothing is lost wherever
a SIGINT meets bash: the next line looks at what there is to do, and tells of a cell that was abandoned.
What cells read on their standard input is /dev/null.
"""

from __future__ import annotations

import os
import re
import signal

from agentcube.picod import processes
from agentcube.picod.kernel_events import members
from agentcube.picod.kernel_life import Life

_WAKE, _REPORT, _CELL = 197, 198, 199
_STEP = (
    # The user may have functions and aliases of any name.
    r"{ if [[ $__agentcube_open ]]; then "
    r'\builtin echo "$__agentcube_n 130" >&198; __agentcube_open= PS1= PS2=; fi; '
    r"while \builtin . /proc/self/fd/199; [[ $__agentcube_next = $__agentcube_n ]]; do "
    r"\builtin read -r -u 197 __agentcube_cell || [[ $? -gt 128 ]] || \builtin exit; done; "
    r'__agentcube_n=$__agentcube_next __agentcube_open=1; \builtin echo "$__agentcube_n begun" >&198; '
    r'[[ $- = *e* ]] || __agentcube_return "$__agentcube_status"; } 2>/dev/null; '
    r'\builtin eval "$__agentcube_cell" </dev/null; '
    r'{ \builtin echo "$__agentcube_n $?" >&198; __agentcube_open= PS1= PS2=; } 2>/dev/null'
)
_FIRST = (
    "PS1= PS2= PROMPT_COMMAND=; unset HISTFILE MAILCHECK; set +m +o history +o histexpand; BASH_ARGV0=bash; "
    "__agentcube_n= __agentcube_next= __agentcube_open=; __agentcube='{step}'; "
    '__agentcube_return() {{ \\builtin return "$1"; }}; '
    'ulimit -x {mark}; echo "$BASH_VERSION" >&198\n'
)
_LINES = b'\\builtin eval "$__agentcube"\n'.ljust(61, b"#") + b'#"\n'
"""To run one cell. Where a SIGINT met bash within the first line, the comment closes the quotes of what is left."""

_BLOCK_BYTES = 1024  # bash reads so much at once (older ones a part of it); the lines fit in, also rewound
_AGAIN_S = 0.2
_REPORT_BYTES = 256
_WORDS_BYTES = 256  # ours has fewer
_VERSION = re.compile(rb"([0-9]+\.[0-9]+(\.[0-9]+)?)[ -~]*")
_TOLD = re.compile(rb"([0-9]{1,15}) (begun|[0-9]{1,3})")


class BashLife(Life):
    """One bash."""

    program = "bash"
    _status = 0  # of the last cell: what `$?` is in the next one
    _interrupted = 0  # the last cell that was
    _lines_at = 0  # where the lines begin on its standard input
    _report = _wake = _input = _cell = -1
    _line = b""  # of the report, not whole yet

    async def _launch(self) -> None:
        starter, place = self._parts.starter, self._place
        argv = (self.program, "--norc", "--noprofile", "--noediting", "-i", "-s")
        self._input = self._first_lines()
        self._cell = os.memfd_create("cell", os.MFD_CLOEXEC)
        wake_r, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        out, out_w = os.pipe()
        err, err_w = os.pipe()
        self._report, report_w = os.pipe2(os.O_CLOEXEC | os.O_DIRECT)  # read report by report
        try:
            program = starter.program(
                argv,
                place.env,
                place.working_dir,
                inherited={_WAKE: wake_r, _REPORT: report_w, _CELL: self._cell},
            )
            child = starter.start(program, stdin=self._input, stdout=out_w, stderr=err_w, guarded=False)
        except BaseException:
            os.close(out)
            os.close(err)
            self._close()
            raise
        finally:
            for fd in (wake_r, out_w, err_w, report_w):
                os.close(fd)
        self._join(child.pid, {"stdout": out, "stderr": err}, self._report, self._take)
        self._follow(child)

    def _first_lines(self) -> int:
        """What bash reads on its standard input."""
        first = _FIRST.format(step=_STEP, mark=self._mark).encode("ascii")
        self._lines_at = -(-len(first) // _BLOCK_BYTES) * _BLOCK_BYTES
        fd = os.memfd_create("lines", os.MFD_CLOEXEC)
        os.write(fd, first.ljust(self._lines_at, b"\n") + _LINES * 64)
        os.lseek(fd, 0, os.SEEK_SET)
        return fd

    def _execute(self, code: str, *, silent: bool, store_history: bool) -> None:
        os.lseek(self._input, self._lines_at, os.SEEK_SET)
        cell = code.partition("\0")[0].replace("'", "'\\''")
        os.ftruncate(self._cell, 0)
        text = (
            f"__agentcube_status={self._status} __agentcube_cell='{cell}' __agentcube_next='{self.count}'\n"
        )
        os.pwrite(self._cell, text.encode("utf-8"), 0)
        try:
            os.write(self._wake, b"\n")
        except OSError:
            pass  # it is full of reasons to look; or bash has just ended

    def interrupt(self) -> None:
        """See `Life`."""
        if self.gone.is_set():
            return
        os.lseek(self._input, self._lines_at, os.SEEK_SET)
        super().interrupt()
        if self._interrupted != self.count:
            self._interrupted = self.count
            self._parts.loop.call_later(_AGAIN_S, self._interrupt_again, self.count)

    def _interrupt_again(self, count: int) -> None:
        if self.count == count and not self.gone.is_set():
            os.lseek(self._input, self._lines_at, os.SEEK_SET)
            processes.send(self.pid, signal.SIGINT)
            self._interrupt_deaf(self._in_foreground())
            self._parts.loop.call_later(_AGAIN_S, self._interrupt_again, count)

    def _in_foreground(self) -> list[processes.Process]:
        """What bash and its subshells have started; also in the background, but that ignores SIGINT.

        What these programs start, to clean up as they were told to end, is theirs.
        """
        below = processes.descendants(self.pid, processes.all_processes())
        shells = {self.pid} | {
            p.pid for p in below if _words(p.pid) == _words(self.pid)
        }  # subshells are forks
        return [p for p in below if p.parent in shells and p.group == self.pid and p.alive]

    def _interrupt_deaf(self, those: list[processes.Process]) -> None:
        """A program that bash was just starting may have missed the SIGINT; had it met it, it would be dead."""
        for process in those:
            now = processes.read_process(process.pid)
            if (
                now is not None
                and now.started == process.started
                and processes.dies_of(now.pid, signal.SIGINT)
            ):
                processes.send(now.pid, signal.SIGINT)

    def _take(self) -> bool:
        """Read one report."""
        if self._report < 0:
            return False
        try:
            data = os.read(self._report, _REPORT_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        *lines, self._line = (self._line + data).split(b"\n")
        if not data or len(self._line) > _REPORT_BYTES or not all(map(self._understands, lines)):
            self.hold("broken")
            if data:
                self.end("something else wrote on its report")
            else:
                self._end_soon("it closed its report")
            return False
        return True

    def _understands(self, line: bytes) -> bool:
        if not self._ready.done():
            version = _VERSION.fullmatch(line)
            self._is_ready(f"bash {version[1].decode('ascii')}" if version else "bash")
            return version is not None
        told = _TOLD.fullmatch(line)
        if told is not None and int(told[1]) == self.count:
            if told[2] == b"begun":
                self._owner.began()
            else:
                self._has_ended(int(told[2]) & 255)
        return told is not None

    def _has_ended(self, status: int) -> None:
        if self._interrupted == self.count:  # bash waits in the next cell for what it has lost sight of
            left = self._in_foreground()
            self._interrupt_deaf(left)
            self._parts.loop.call_later(_AGAIN_S, self._interrupt_deaf, left)
        self._status = status
        self.count += 1
        if status:
            self._owner.told("error", members(name="ExitStatus", value=str(status), traceback=[]))
        self._owner.ended(ok=status == 0, interrupted=status == 130, exit_code=status)

    def _close(self) -> None:
        for fd in (self._report, self._wake, self._input, self._cell):
            if fd >= 0:
                os.close(fd)
        self._report = self._wake = self._input = self._cell = -1


def _words(pid: int) -> bytes:
    """The command line of a process; b"" when it is gone."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read(_WORDS_BYTES)
    except OSError:
        return b""
