"""The entry point: commands put together, and every failure turned into one line and an exit code.

Exit codes: 0 done; 1 the operation failed; 2 bad usage or input, or no connection; 130 interrupted.
`run`, `exec`, `shell` and `attach` end with the exit code of the program inside.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer

from agentcube.cli import copying, execution, forwarding, ports, processes, resources, server, sessions
from agentcube.cli.inputs import OutputOption, Target
from agentcube.cli.render import Output, as_json, line, notice
from agentcube.errors import AgentCubeError, Invalid

INTERRUPTED = 130
_SIGNALLED = 128  # plus the number, as shells say it

app = typer.Typer(
    name="agentcube",
    help="Sandboxed sessions for AI agents: start a server, run code, move files.",
    epilog="Exit codes: 0 done, 1 failed, 2 bad usage, input or no connection; of run and exec: the program's.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def options(
    ctx: typer.Context,
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="The server's address. Otherwise AGENTCUBE_URL, or the running `agentcube up`.",
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", help="The key to call it with. Otherwise AGENTCUBE_API_KEY, or that of `up`."
        ),
    ] = None,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Sandboxed sessions for AI agents: start a server, run code, move files."""
    ctx.obj = Target(url, api_key)
    if show_version:
        version()
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help(), err=True)
        raise typer.Exit(2)


def version(output: OutputOption = Output.TABLE) -> None:
    """Print the version of this program."""
    from agentcube import __version__

    if output is Output.JSON:
        as_json({"version": __version__, "python": sys.version.split()[0], "platform": sys.platform})
    else:
        line(f"agentcube {__version__}")


server.register(app)
execution.register(app)
processes.register(app)
copying.register(app)
sessions.register(app)
ports.register(app)
forwarding.register(app)
resources.register(app)
app.command()(version)


def run(arguments: list[str]) -> int:
    """Run one command line. Returns its exit code; raises nothing."""
    try:
        result = app(arguments, prog_name="agentcube", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except typer.TyperException as exc:
        return _failed(_usage(exc), 2)
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except SystemExit as exc:  # _terminate's; and typer's own, when whoever read our output has gone
        return exc.code if isinstance(exc.code, int) else 1
    except BrokenPipeError:
        # The same, at our own flush. What the interpreter flushes at its end must not fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except AgentCubeError as exc:
        return _failed(exc.detail, 2 if isinstance(exc, Invalid) or exc.code in _NO_CONNECTION else 1)
    except OSError as exc:
        return _failed(f"{exc.filename or 'input or output'}: {exc.strerror or exc}", 1)
    except ModuleNotFoundError as exc:
        if (exc.name or "agentcube").startswith("agentcube"):
            return _failed(f"this installation is damaged: {exc}", 1)
        return _failed(
            f"this machine has the client only (no {exc.name}): pip install 'agentcube[server]'", 2
        )
    except Exception as exc:
        if os.environ.get("AGENTCUBE_DEBUG"):
            raise
        return _failed(f"internal error: {type(exc).__name__}: {exc} (AGENTCUBE_DEBUG=1 shows where)", 1)


_NO_CONNECTION = ("connect_failed", "not_configured")


def _usage(exc: typer.TyperException) -> str:
    """What was wrong with the command line, and where its help is."""
    context = getattr(exc, "ctx", None)
    command = context.command_path if context else "agentcube"
    return f"{exc.format_message().replace('Value error, ', '')} (see `{command} --help`)"


def _failed(text: str, code: int) -> int:
    notice(text)
    return code


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """As with Ctrl-C, what was begun is ended in order."""
    raise SystemExit(_SIGNALLED + number)


def main() -> None:
    """The console script."""
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP; nohup ignores it, and so do we then
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _terminate)
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
