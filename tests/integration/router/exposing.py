"""Sessions that expose ports, and who asks for these: what tests of ports and of share links have in common."""

import time
from dataclasses import replace
from typing import Any

from agentcube.model.sandbox import Endpoint
from agentcube.model.session import Session
from tests.integration.router.world import AGENT, FAST, SID, Answer, Handler, World, session

OTHER = "t" * 32
DOMAIN = "apps.test"
SETTINGS = replace(FAST, ports_domain=DOMAIN)


async def exposing(w: World, handler: Handler, **changes: Any) -> int:
    """A session that exposes the port on which `handler` serves, and no other; the port."""
    end = await w.tcp(handler)
    return expose(w, end.port, **changes)


def expose(w: World, port: int, **changes: Any) -> int:
    """A session that exposes that port, and no other; the port."""
    made = session(AGENT, {}, (), exposed={port: "key"}, **changes)
    assert made.sandbox is not None
    w.add(replace(made, sandbox=replace(made.sandbox, others=Endpoint(scheme="tcp", host="127.0.0.1"))))
    return port


def known(w: World) -> Session:
    """The session as it stands."""
    return w.sessions.known[SID]


def host(port: int, session: str = SID, domain: str = DOMAIN) -> str:
    """The host name of the port."""
    return f"{port}-{session}.{domain}"


async def ask(
    w: World, target: str, at: str, *headers: str, token: str | None = None, body: bytes = b""
) -> Answer:
    """A request that says its own Host."""
    peer = await w.connect()
    lines = [f"{target} HTTP/1.1", f"Host: {at}", *headers]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    if body:
        lines.append(f"Content-Length: {len(body)}")
    await peer.write("\r\n".join((*lines, "", "")).encode() + body)
    answer = await peer.answer(head=target.startswith("HEAD"))
    peer.close()
    return answer


def share(port: int, *, session: str = SID, key: str = "key", expires_in: float = 600) -> str:
    """The token of a share link, as `world.Links` verifies it."""
    return f"{session}/{port}/{key}/{time.time() + expires_in:.0f}"


def cookie(port: int, **changes: Any) -> str:
    """The header of a guest who followed a share link."""
    return f"Cookie: agentcube-share={share(port, **changes)}"


def fields(answer: Answer, name: str) -> list[str]:
    """All values of a header."""
    return [value.decode() for key, value in answer.headers if key == name.encode()]
