"""Commands of this machine's own server. They need the extra `server`, which a client does not install."""

from __future__ import annotations

import importlib
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from agentcube.cli.inputs import OutputOption
from agentcube.cli.render import Output
from agentcube.errors import Invalid
from agentcube.wire.names import PORTS_DOMAIN

DataDirOption = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", metavar="DIR", help="Where state is kept. Otherwise in the user's data directory."
    ),
]


class Auth(StrEnum):
    """Whom the server lets in."""

    KEY = "key"
    NONE = "none"


class LogLevel(StrEnum):
    """How much the server says on standard error."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def up(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8080,
    data_dir: DataDirOption = None,
    auth: Annotated[
        Auth, typer.Option(help="`key`: callers need the API key. `none`: loopback only.")
    ] = Auth.KEY,
    pool: Annotated[int, typer.Option(min=0, help="Warm sandboxes of the built-in interpreter.")] = 2,
    allow_host_path: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="Directory below which templates may take images and files. Repeatable."
        ),
    ] = None,
    store: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="Where sessions are kept: `sqlite` in the data directory, or redis://… (docs/how-to/use-redis.md).",
        ),
    ] = "sqlite",
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave sandboxes alive when the server stops.")
    ] = False,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificate chain in PEM: speak HTTPS.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its private key, in PEM.")] = None,
    trust_proxy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CIDR",
            help="Address or network of a proxy whose X-Forwarded-* headers count. Repeatable.",
        ),
    ] = None,
    proxy_protocol: Annotated[
        bool,
        typer.Option("--proxy-protocol", help="Trusted proxies begin each connection with a PROXY header."),
    ] = False,
    router_workers: Annotated[
        int, typer.Option(min=0, help="Router processes of their own; 0 serves clients in the main one.")
    ] = 0,
    ports_domain: Annotated[
        str,
        typer.Option(
            metavar="DOMAIN",
            help="Exposed ports have hosts of their own below it: PORT-SESSION.DOMAIN. Empty: they have none.",
        ),
    ] = PORTS_DOMAIN,
    log_level: Annotated[LogLevel, typer.Option(help="How much to say on standard error.")] = LogLevel.INFO,
) -> int:
    """Serve on this machine until SIGTERM or Ctrl-C.

    Prints one line, `ready http://HOST:PORT`, once it serves. Clients of the same user find it by themselves. Told
    to stop, it lets requests end (for 20 seconds at most; a second Ctrl-C does not wait), then its sessions.
    """
    main = _server("main")
    options = main.UpOptions(
        host=host,
        port=port,
        data_dir=data_dir,
        auth=auth.value,
        pool=pool,
        allow_host_path=tuple(allow_host_path or ()),
        store=store,
        keep=keep,
        tls_cert=tls_cert,
        tls_key=tls_key,
        trust_proxy=tuple(trust_proxy or ()),
        proxy_protocol=proxy_protocol,
        router_workers=router_workers,
        ports_domain=ports_domain,
        log_level=log_level.value,
    )
    return int(main.up(options))


def down(data_dir: DataDirOption = None) -> int:
    """Stop the server of a data directory and wait until it has stopped."""
    return int(_server("stop").down(data_dir))


def demo() -> int:
    """Show a real session from start to end: a server, code, files, a chart, an agent, and cleaning up."""
    _server("main")  # lacks what the server lacks, and is asked before anything is begun
    return int(_server("demo").demo())


def doctor(
    output: OutputOption = Output.TABLE,
    store: Annotated[
        str, typer.Option(metavar="URL", help="Try this store, too: what `up --store` would be given.")
    ] = "sqlite",
) -> int:
    """Say what this machine can and cannot do, each with the remedy."""
    return int(_server("doctor").doctor(output.value, store))


environments = typer.Typer(
    name="env", help="Python environments of sandboxes.", rich_markup_mode=None, no_args_is_help=False
)


@environments.command("list")
def env_list(output: OutputOption = Output.TABLE) -> int:
    """List the environments of this user."""
    return int(_server("envs").env_list(output.value))


@environments.command("create")
def env_create(
    name: Annotated[str, typer.Argument(help="Name, for `environment:` of templates.")],
    requirements: Annotated[
        Path | None, typer.Option("--requirements", "-r", help="File of packages, as pip reads it.")
    ] = None,
    preload: Annotated[
        list[str] | None,
        typer.Option(
            "--preload",
            help="Module that kernels find imported; repeatable. 'none' for none. "
            "Default: IPython, numpy, pandas and matplotlib, where installed.",
        ),
    ] = None,
) -> int:
    """Define an environment by a requirements file and build it; without the file, build one that is defined."""
    return int(_server("envs").env_create(name, requirements, preload))


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (up, down, demo, doctor):
        app.command()(command)
    app.add_typer(environments)


class NeedsLinux(Invalid):
    """The server does not run on this operating system."""

    code, title = "needs_linux", "Needs Linux"


def _server(module: str) -> Any:
    """A module of the server; what lacks the extra is told what to install by `main.run`. Raises NeedsLinux."""
    if sys.platform != "linux":
        raise NeedsLinux(
            "sandboxes need Linux, and this machine works as a client: run `agentcube up` on a Linux machine, in a "
            "virtual machine, WSL 2 or a container, and set AGENTCUBE_URL and AGENTCUBE_API_KEY here"
        )
    return importlib.import_module(f"agentcube.up.{module}")
