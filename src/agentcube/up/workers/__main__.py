"""A Router worker: `python -m agentcube.up.workers LISTENER LINK` (two descriptors that it inherits)."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvloop

from agentcube.model.sandbox import Endpoint
from agentcube.router.server import Router
from agentcube.router.settings import RouterSettings
from agentcube.router.tls import Certificate
from agentcube.runtime import logs
from agentcube.runtime.keys import RsaSigner, RsaVerifier, load_or_make_key
from agentcube.up.authentication import authenticator
from agentcube.up.workers.link import LINE_BYTES_MAX, Link, LinkLost
from agentcube.up.workers.remote import Remote


def main() -> None:
    """Serve until told to drain, or until the main process is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process tells when to stop
    listener, link = (socket.socket(fileno=int(number)) for number in sys.argv[1:3])
    for sock in (listener, link):
        sock.setblocking(False)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(listener, link))


async def _serve(listener: socket.socket, sock: socket.socket) -> None:
    link = Link(*await asyncio.open_connection(sock=sock, limit=LINE_BYTES_MAX))
    with suppress(LinkLost):
        settings = await link.receive()
        logs.configure(level=settings["log_level"])
        remote = Remote(link)
        router = _router(settings, remote)
        following = asyncio.create_task(remote.run(), name="follow")
        serving = asyncio.create_task(_announced(router, listener, remote), name="serve")
        draining = asyncio.create_task(remote.draining.wait(), name="drain")
        await asyncio.wait({following, serving, draining}, return_when=asyncio.FIRST_COMPLETED)
        if draining.done():
            await router.drain()
        # Else the main process is gone, and its sandboxes' sessions with it; or we have failed.
        for task in (serving, following, draining):
            task.cancel()
        await asyncio.gather(following, draining, return_exceptions=True)
        with suppress(asyncio.CancelledError):
            await serving


async def _announced(router: Router, listener: socket.socket, remote: Remote) -> None:
    """Serve, once the session table is here; say so."""
    await remote.known.wait()
    gc.collect()
    gc.freeze()
    asyncio.get_running_loop().call_soon(remote.say_ready)
    await router.serve(listener)


def _router(settings: dict[str, Any], remote: Remote) -> Router:
    data_dir = Path(settings["data_dir"])
    tls = settings["tls"]
    auth, _ = authenticator(settings["auth"], data_dir)
    options = settings["router"]
    signer = RsaSigner(load_or_make_key(data_dir / "keys"))
    return Router(
        RouterSettings(**{**options, "trusted_proxies": tuple(options["trusted_proxies"])}),
        store=remote,
        control=remote,
        auth=auth,
        signer=signer,
        links=RsaVerifier(signer.public_keys),
        manager=Endpoint(scheme="unix", path=settings["manager"]),
        checks=[remote.check],
        certificate=Certificate(Path(tls[0]), Path(tls[1])) if tls else None,
    )


if __name__ == "__main__":
    main()
