"""A kernel's life: take a cell from PicoD, run it, say how it ended; until PicoD closes the channel.

Whatever the user's code leaves behind (handlers that raise, redefined builtins, broken streams), the
loop comes back to saying that the cell has ended and to waiting for the next one. SIGINT is the
interrupt: during a cell it is Python's own KeyboardInterrupt, between cells nothing.
"""

from __future__ import annotations

import builtins
import faulthandler
import getpass
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from json import loads
from types import FrameType, TracebackType
from typing import Any, NoReturn, Protocol

from agentcube.kernelhost import newborn
from agentcube.kernelhost.channel import Blob, Channel, ChannelClosed

__builtins__ = dict(vars(builtins))  # type: ignore[assignment]  # ours: the user may redefine what is common

_FAILURES_MAX = 100  # in a row, before a kernel counts as broken
_BUILTINS = dict(vars(builtins))
_exit = os._exit
_RECURSION_MIN = 200  # below it the shell itself cannot run a cell that would raise the limit again


class Outcome:
    """How a cell ended."""

    def __init__(self, *, ok: bool, interrupted: bool = False) -> None:
        self.ok = ok
        self.interrupted = interrupted


class Publish(Protocol):
    """Sends one event; false in a forked child, which has nobody to send it to."""

    def __call__(self, members: dict[str, Any], blobs: Sequence[Blob]) -> bool: ...


class Shell(Protocol):
    """What runs cells. Built before a fork, put to use after it."""

    implementation: str
    publish: Publish

    @property
    def count(self) -> int:
        """What the next cell is numbered."""
        ...

    def rehearse(self) -> None:
        """Do once what is late the first time, and leave no trace of it. For a shell that many are forked from."""
        ...

    def prepare(self) -> None:
        """The process is the kernel now: make the namespace and what depends on the environment."""
        ...

    def run(self, code: str, *, silent: bool, store_history: bool) -> Outcome:
        """Run a cell, publishing its result, displays and error. Raises nothing but interrupts and bugs."""
        ...

    def show_error(self, error: BaseException) -> None:
        """Publish an error that is not the cell's own."""
        ...

    def idle(self, fd: int) -> None:
        """Let tasks that cells have left in the event loop go on until `fd` is readable."""
        ...


class StdinNotImplementedError(NotImplementedError):
    """Raised by `input()` where there is no IPython, which has one of that name."""

    __module__ = "__main__"  # so that its name is shown without ours


NO_EXIT = "a kernel does not end by exit(): restart it to begin anew, or delete it"
NO_INPUT = "there is no input in a kernel; run the program as a process with stdin, or set a variable instead"


class Host:
    """Runs cells in the main thread of its process."""

    def __init__(self, channel: Channel, shell: Shell) -> None:
        self._channel = channel
        self._shell = shell
        self._pid = os.getpid()
        self._owed: Outcome | None = None  # the end of a cell, until it was sent
        self._idles = True
        self._begun = 0  # the number of the last execution that began
        self._failures = 0  # since the last end of a cell
        shell.publish = self._publish
        os.register_at_fork(after_in_child=channel.abandon)

    def serve(self) -> NoReturn:
        """Run cells until the channel closes. Never returns, whatever the user's code raises."""
        while True:
            try:
                self._step()
            except ChannelClosed:
                _exit(0)
            except BaseException as exc:
                # From a signal handler or a task of the user's, between cells; or what is common to all
                # code here is broken.
                self._failures += 1
                if self._failures > _FAILURES_MAX:
                    _complain(exc)
                    _exit(1)
                vars(builtins).update(_BUILTINS)
                if self._owed is None:
                    self._idles = False
                    _complain(exc)

    def _step(self) -> None:
        """Say that a cell has ended, or run the next one."""
        if os.getpid() != self._pid:
            _leave_child(self._owed)
        if self._owed is not None:
            _calm()
            self._flush()
            self._channel.send(
                "end", ok=self._owed.ok, interrupted=self._owed.interrupted, count=self._shell.count
            )
            self._owed, self._idles, self._failures = None, True, 0
            return
        if self._idles:
            self._shell.idle(self._channel.fileno())
        header, content = self._channel.receive()
        if header["op"] == "execute" and header["n"] > self._begun:
            self._begun = header["n"]
            self._execute(header, content.decode("utf-8", "surrogatepass"))

    def _execute(self, header: dict[str, Any], code: str) -> None:
        self._owed = Outcome(ok=False)
        try:
            try:
                _arm()
                self._channel.send("begin", count=self._shell.count)
                self._owed = self._shell.run(
                    code, silent=header["silent"], store_history=header["store_history"]
                )
            finally:
                _calm()
        except ChannelClosed:
            raise
        except BaseException as exc:
            _calm()
            self._owed = Outcome(ok=False, interrupted=isinstance(exc, KeyboardInterrupt))
            self._shell.show_error(exc)

    def _publish(self, members: dict[str, Any], blobs: Sequence[Blob]) -> bool:
        if not self._channel.open:
            return False
        self._channel.publish(members, blobs)
        return True

    def _flush(self) -> None:
        """What the user wrote past our streams' own flushing (`sys.stdout.buffer`), or on streams of their own."""
        for stream in {sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__}:
            try:
                if stream is not None:
                    stream.flush()
            except Exception:  # noqa: S112  (the user's stream, or one that they closed)
                continue
        if sys.getrecursionlimit() < _RECURSION_MIN:
            sys.setrecursionlimit(_RECURSION_MIN)


def _ignore(number: int, frame: FrameType | None) -> None:
    """An interrupt that no cell is there for. Not SIG_IGN, which programs started now would inherit."""


def _arm() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))


def _calm() -> None:
    while True:
        try:
            signal.signal(signal.SIGINT, _ignore)
            return
        except KeyboardInterrupt:
            continue  # it came just before


def _leave_child(owed: Outcome | None) -> NoReturn:
    """A forked child has come to the end of the cell that forked it: it ends as a script would."""
    try:
        sys.stdout.flush()
    finally:
        os._exit(0 if owed is None or owed.ok else 1)


def _complain(error: BaseException) -> None:
    try:
        traceback.print_exception(type(error), error, error.__traceback__, file=sys.__stderr__)
    except BaseException:  # noqa: S110  (there is nobody left to tell)
        pass


def leave_us_out(tb: TracebackType | None) -> None:
    """End a traceback where the cell called one of ours: how `input` and `!` work is not what went wrong."""
    ours = __name__.rpartition(".")[0] + "."  # files are named otherwise in every way we are loaded
    last = None
    while tb is not None:
        if not str(tb.tb_frame.f_globals.get("__name__")).startswith(ours):
            last = tb
        tb = tb.tb_next
    if last is not None:
        last.tb_next = None


def refuse_input() -> None:
    """Let `input()` and `getpass()` say what to do instead."""
    try:
        from IPython.core.error import StdinNotImplementedError as Error
    except ImportError:
        Error = StdinNotImplementedError

    def no_input(prompt: object = "", *more: object, **others: object) -> str:
        raise Error(NO_INPUT)

    builtins.input = no_input
    getpass.getpass = no_input


def make_shell() -> Shell:
    """IPython's where this Python has it, else our own."""
    try:
        from agentcube.kernelhost import ipython_shell
    except ImportError:
        from agentcube.kernelhost import plain_shell

        return plain_shell.make()
    return ipython_shell.make()


def run(
    channel: Channel, shell: Shell | None = None, *, groups: Sequence[int] = (), forked: bool = False
) -> NoReturn:
    """Be the kernel at the other end of `channel`; stdout and stderr are in place, everything else is not yet.

    `groups` are `cgroup.procs` files of the control groups to move into. `shell`: one that was built before.
    """
    try:
        _calm()
        _, content = channel.receive()
        try:
            newborn.enter_groups(groups)
            if forked:
                newborn.close_others(channel.fileno())
            newborn.settle(loads(content))
        except newborn.StepFailed as exc:
            channel.send("failed", step=exc.failure[0], errno=exc.failure[1])
            os._exit(1)
        newborn.open_streams()
        newborn.unbuffer_c_output()
        newborn.clean_up(forked=forked)
        faulthandler.enable(2)
        shell = shell or make_shell()
        shell.prepare()
        refuse_input()
        host = Host(channel, shell)
        channel.send("ready", implementation=shell.implementation, count=shell.count)
        host.serve()
    except ChannelClosed:
        os._exit(0)
    except BaseException as exc:
        _complain(exc)
    os._exit(1)


def main() -> NoReturn:
    """As a program: the channel is descriptor 0."""
    run(newborn.adopt_channel(0))
