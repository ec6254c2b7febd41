"""The Router under measurement: real store, real signer, client tokens verified through a cache."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import uvloop
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from agentcube.errors import Unauthenticated
from agentcube.model.ids import SandboxId, SessionId
from agentcube.model.lifecycle import Phase
from agentcube.model.sandbox import Endpoint, Isolation, Port, Sandbox
from agentcube.model.session import Session
from agentcube.model.template import Kind, TemplateKey
from agentcube.ports.tokens import Subject
from agentcube.router import Router, RouterSettings
from agentcube.runtime.keys import RsaSigner, RsaVerifier
from agentcube.stores.memory import MemoryStore
from benchmarks.router.scene import SCENE, Held


class Tokens:
    """Client tokens, each verified once while it is remembered."""

    def __init__(self, public_key: str) -> None:
        self._key = public_key
        self._known: dict[bytes, Subject] = {}

    def authenticate(self, authorization: bytes | None) -> Subject:
        found = self._known.get(authorization or b"")
        if found is None:
            try:
                text = (authorization or b"").removeprefix(b"Bearer ")
                claims = jwt.decode(text, self._key, algorithms=["RS256"], audience="agentcube")
            except jwt.InvalidTokenError as error:
                raise Unauthenticated("the token does not verify") from error
            found = self._known[authorization or b""] = Subject(claims["sub"])
        return found


class Http2Router(Router):
    """Whose clients speak HTTP/2, by the h2 library."""

    async def _accept(self, sock: socket.socket) -> asyncio.AbstractServer:
        from benchmarks.router.h2_subject import Front

        return await asyncio.get_running_loop().create_server(lambda: Front(self._engine), sock=sock)


class NoControl:
    """Nothing is made, woken or suspected in a measurement."""

    async def create_for(self, template: TemplateKey, subject: Subject, *, key: str = "") -> Session:
        raise AssertionError

    async def wake(self, id: SessionId) -> Session:
        raise AssertionError

    async def suspect(self, id: SessionId) -> Session:
        raise AssertionError


def session(held: Held, port: int) -> Session:
    now = datetime.now(UTC)
    return Session(
        id=SessionId(held.id),
        template=TemplateKey(Kind.AGENT_RUNTIME, "default", "agent"),
        generation=1,
        owner=held.owner,
        phase=Phase.READY,
        created_at=now,
        last_activity_at=now,
        expires_at=now + timedelta(days=1),
        idle_timeout=timedelta(minutes=15),
        routes=(Port(port=8080),),
        sandbox=Sandbox(
            id=SandboxId(f"sb-{held.sandbox}"),
            driver="bench",
            handle="",
            isolation=Isolation.PROCESS,
            picod=Endpoint(scheme="unix", path="/nonexistent"),
            ports={8080: Endpoint(scheme="tcp", host="127.0.0.1", port=port)},
        ),
    )


async def main(given: dict[str, Any]) -> None:
    store = MemoryStore()
    for held in SCENE:
        await store.insert(session(held, given["sandboxes"][held.sandbox]))
    signer = RsaSigner(generate_private_key(public_exponent=65537, key_size=2048))
    router = (Http2Router if given.get("http2") else Router)(
        RouterSettings(),
        store=store,
        control=NoControl(),
        auth=Tokens(given["public_key"]),
        signer=signer,
        links=RsaVerifier(signer.public_keys),
        manager=Endpoint(scheme="unix", path="/nonexistent"),
    )
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    gc.collect()
    gc.freeze()
    print(listener.getsockname()[1], flush=True)
    await router.serve(listener)


if __name__ == "__main__":
    said = json.loads(sys.stdin.readline())
    (asyncio if said["loop"] == "asyncio" else uvloop).run(main(said))
