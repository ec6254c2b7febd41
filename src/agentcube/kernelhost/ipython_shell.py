"""Cells as IPython runs them, its displays and errors published instead of printed.

What is changed, and why: nothing is written to disk or kept for a history (a kernel lives in memory,
and outputs may be huge); `!command` writes straight to the kernel's own stdout and stderr; `%pip` and
its kin are refused; a cell that is interrupted while it awaits is cancelled; `exit` ends nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import traceback
from collections.abc import Coroutine, Iterator
from typing import Any

import IPython
from IPython.core import page
from IPython.core.application import ProfileDir
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from traitlets import Type, observe
from traitlets.config import Config

from agentcube.kernelhost import bundles, commands, figures, loops
from agentcube.kernelhost.host import NO_EXIT, Outcome, Publish, leave_us_out

_REHEARSAL = ("1", "await __import__('asyncio').sleep(0)", "x = [1]\nx[1]", "x y", "display(x)")
_INLINE = "module://matplotlib_inline.backend_inline"


class _NoProfile(ProfileDir):  # type: ignore[misc]  # IPython has no types that are installed here
    """A profile that is nowhere: IPython would make directories in the user's workspace."""

    @observe("location")  # type: ignore[untyped-decorator]
    def _location_changed(self, change: object) -> None:
        pass


class _Results(DisplayHook):  # type: ignore[misc]
    """Publishes the value of a cell's last expression."""

    def write_output_prompt(self) -> None:
        pass

    def write_format_data(self, format_dict: dict[str, Any], md_dict: Any = None) -> None:
        shell = self.shell
        shell.show("execute_result", format_dict, md_dict, execution_count=self.prompt_count)

    def log_output(self, format_dict: dict[str, Any]) -> None:
        pass  # it would keep every output for ever

    def finish_displayhook(self) -> None:
        self._is_active = False


class _Displays(DisplayPublisher):  # type: ignore[misc]
    """Publishes what `display()` is given."""

    def publish(
        self,
        data: dict[str, Any],
        metadata: dict[str, Any] | None = None,
        source: object = None,
        *,
        transient: dict[str, Any] | None = None,
        update: bool = False,
        **others: object,
    ) -> None:
        self._validate_data(data, metadata)
        display_id = (transient or {}).get("display_id")
        more = {} if display_id is None else {"display_id": str(display_id)[:256]}
        self.shell.show("update_display_data" if update else "display_data", data, metadata, **more)

    def clear_output(self, wait: bool = False) -> None:
        self.shell.publish({"event": "clear_output", "wait": bool(wait)}, ())


def _nobody(members: dict[str, Any], blobs: object) -> bool:
    return False


def _nowhere(members: dict[str, Any], blobs: object) -> bool:
    return True


class KernelShell(InteractiveShell):  # type: ignore[misc]
    """One kernel's IPython. `publish` is set by the host."""

    displayhook_class = Type(_Results)
    display_pub_class = Type(_Displays)
    publish: Publish = staticmethod(_nobody)
    told = 0  # errors published in this cell
    cancelled = False  # the cell was interrupted while it awaited

    def init_ipython_dir(self, ipython_dir: object) -> None:
        pass

    def init_profile_dir(self, profile_dir: object) -> None:
        self.profile_dir = _NoProfile(location=os.path.join(_temporary(), "ipython"))

    @contextlib.contextmanager
    def _tee(self, channel: str) -> Iterator[None]:
        yield  # the original keeps all that is printed

    def _format_exception_for_storage(self, exception: BaseException, *_: Any, **__: Any) -> dict[str, Any]:
        return {}  # the original formats every traceback again, to keep it

    def show(self, event: str, data: dict[str, Any], metadata: Any, **more: Any) -> None:
        """Publish a bundle; a forked child prints its text."""
        members, blobs = bundles.display(event, data, metadata, **more)
        if not self.publish(members, blobs) and "text/plain" in data:
            print(data["text/plain"])  # noqa: T201  (the child's own output)

    # Errors

    def tell(self, name: str, value: str, text: str) -> None:
        """Publish an error; a forked child prints it."""
        self.told += 1
        if not self.publish(*bundles.error(name, value, text)):
            print(text, file=sys.stderr)  # noqa: T201

    def _showtraceback(self, etype: Any, evalue: Any, stb: list[str]) -> None:
        self.tell(etype.__name__, _text_of(evalue), self.InteractiveTB.stb2text(stb))

    def show_usage_error(self, exc: BaseException) -> None:
        self.tell("UsageError", str(exc), f"UsageError: {exc}")

    def showtraceback(self, exc_tuple: Any = None, *more: Any, **options: Any) -> None:
        try:
            etype, value, tb = self._get_exc_info(exc_tuple)
        except ValueError:
            super().showtraceback(exc_tuple, *more, **options)
            return
        if self.cancelled and issubclass(etype, asyncio.CancelledError):
            etype, value = KeyboardInterrupt, KeyboardInterrupt()
            exc_tuple = (etype, value, tb)
        if _is_group(value):  # which IPython prints itself, by the standard library
            text = "".join(traceback.format_exception(etype, value, tb and tb.tb_next)).rstrip("\n")
            self.tell(etype.__name__, _text_of(value), text)
            return
        leave_us_out(tb)
        super().showtraceback(exc_tuple, *more, **options)

    # What has no place in a kernel

    def ask_exit(self) -> None:
        """`exit` and `quit`."""
        print(NO_EXIT, file=sys.stderr)  # noqa: T201

    def enable_gui(self, gui: str | None = None) -> None:
        """`%gui`, `%matplotlib qt`."""
        if gui:
            raise UsageError(f"there is no screen here for {gui!r}: figures are shown inline")

    def system(self, cmd: str) -> None:
        """`!command`: its output goes where the kernel's own goes, as it comes."""
        command = self.var_expand(cmd, depth=1)
        code = commands.run(command)
        # As IPython has it: minus the signal's number for a program that was killed.
        self.user_ns["_exit_code"] = 128 - code if code > 128 else code
        if self.system_raise_on_error and code:
            raise subprocess.CalledProcessError(code, command)


class Shell:
    """The shell as the host wants it."""

    def __init__(self) -> None:
        config = Config()
        config.HistoryManager.enabled = False
        config.HistoryManager.hist_file = ":memory:"
        config.InteractiveShell.colors = "nocolor" if IPython.version_info[0] >= 9 else "NoColor"
        config.InteractiveShell.warn_venv = False
        self._loops = loops.Loops()
        self._shell: Any = KernelShell.instance(config=config)
        self._shell.loop_runner = self._run_async
        self._shell.set_hook("show_in_pager", page.as_hook(page.display_page), 99)
        for name in commands.INSTALLERS:
            self._shell.register_magic_function(_refuse, "line", name)
        figures.show_with(_INLINE)
        pictures = self._shell.display_formatter.formatters["image/png"]
        pictures.for_type_by_name("matplotlib.figure", "Figure", _picture)  # made without pyplot
        self.implementation = f"ipython {IPython.__version__}"

    def rehearse(self) -> None:
        """See `host.Shell`: IPython imports half of itself when it is first used."""
        shell, before = self._shell, dict(self._shell.user_ns)
        shell.publish = _nowhere
        for cell in _REHEARSAL:
            shell.run_cell(cell, store_history=False)
        shell.publish = _nobody
        shell.reset()
        for name, value in before.items():
            shell.user_ns.setdefault(name, value)
        self._loops.close()

    @property
    def count(self) -> int:
        """What the next cell is numbered."""
        number: int = self._shell.execution_count
        return number

    @property
    def publish(self) -> Publish:
        """Where displays and errors go."""
        publish: Publish = self._shell.publish
        return publish

    @publish.setter
    def publish(self, publish: Publish) -> None:
        self._shell.publish = publish

    def prepare(self) -> None:
        """See `host.Shell`."""
        shell = self._shell
        sys.modules["__main__"] = shell.user_module
        shell.starting_dir = os.getcwd()
        shell.home_dir = os.environ.get("HOME", "/")
        shell.history_manager.dir_hist[:] = [shell.starting_dir]
        figures.obey_environment()

    def run(self, code: str, *, silent: bool, store_history: bool) -> Outcome:
        """See `host.Shell`."""
        shell = self._shell
        shell.told, shell.cancelled = 0, False
        result = shell.run_cell(code, store_history=store_history and not silent, silent=silent)
        error = result.error_before_exec or result.error_in_exec
        if error is not None and not shell.told:
            self.show_error(error)
        stopped = shell.cancelled or isinstance(error, KeyboardInterrupt)
        return Outcome(ok=error is None, interrupted=error is not None and stopped)

    def show_error(self, error: BaseException) -> None:
        """See `host.Shell`."""
        name = type(error).__name__
        text = "".join(traceback.format_exception_only(type(error), error)).rstrip("\n")
        self._shell.tell(name, _text_of(error), text)

    def idle(self, fd: int) -> None:
        """See `host.Shell`."""
        self._loops.idle(fd)

    def _run_async(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        def interrupted() -> None:
            self._shell.cancelled = True

        return self._loops.run(coroutine, interrupted)


def make() -> Shell:
    """A new shell; there is one in a process."""
    return Shell()


def _picture(figure: Any) -> Any:
    from IPython.core.pylabtools import print_figure

    return print_figure(figure, fmt="png", base64=True)


def _refuse(line: str) -> None:
    """Installers are not for a running sandbox."""
    raise UsageError(commands.NO_INSTALLER)


def _temporary() -> str:
    return os.environ.get("TMPDIR") or "/tmp"  # noqa: S108  (the sandbox's own)


def _text_of(value: object) -> str:
    try:
        return str(value)
    except Exception:
        return "<the exception's text cannot be made>"


def _is_group(value: BaseException | None) -> bool:
    kind: tuple[type, ...] | None = getattr(sys.modules["builtins"], "BaseExceptionGroup", None)
    seen = 0
    while kind is not None and value is not None and seen < 100:
        if isinstance(value, kind):
            return True
        value, seen = value.__context__, seen + 1
    return False
