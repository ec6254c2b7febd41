"""The Router's work in FastAPI. The client is httpx2, httpx's continuation, which the project has anyway."""

from __future__ import annotations

import json
import socket
import sys
from typing import Any

import httpx2
import jwt
import uvicorn
import websockets
from fastapi import FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import StreamingResponse
from starlette.background import BackgroundTask
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocketDisconnect

from benchmarks.router.peers import FORWARDED, SANDBOX_TOKEN
from benchmarks.router.scene import SCENE

_WHERE = "/v1/namespaces/{namespace}/agent-runtimes/{name}/invocations/{path:path}"
_HOP_BY_HOP = {"connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"}
_REPLACED = {*_HOP_BY_HOP, *FORWARDED, "authorization", "host", "x-forwarded-for"}

app = FastAPI()
given: dict[str, Any] = {}
sessions = {held.id: held for held in SCENE}
known: dict[str, str] = {}
active: set[str] = set()
client = httpx2.AsyncClient(timeout=None, limits=httpx2.Limits(max_connections=None))


def caller(authorization: str) -> str:
    if authorization not in known:
        try:
            text = authorization.removeprefix("Bearer ")
            claims = jwt.decode(text, given["public_key"], algorithms=["RS256"], audience="agentcube")
        except jwt.InvalidTokenError:
            raise HTTPException(401) from None
        known[authorization] = claims["sub"]
    return known[authorization]


def find(request: HTTPConnection) -> int:
    """The port of the session's sandbox."""
    held = sessions.get(request.headers.get("x-agentcube-session-id", ""))
    if held is None or held.owner != caller(request.headers.get("authorization", "")):
        raise HTTPException(404)
    active.add(held.id)
    port: int = given["sandboxes"][held.sandbox]
    return port


@app.api_route(_WHERE, methods=["GET", "POST"])
async def invoke(request: Request, namespace: str, name: str, path: str) -> StreamingResponse:
    port = find(request)
    has_body = "content-length" in request.headers or "transfer-encoding" in request.headers
    kept = [pair for pair in request.headers.items() if pair[0] not in _REPLACED]
    peer = request.client.host if request.client else ""
    asked = client.build_request(
        request.method,
        f"http://127.0.0.1:{port}/{path}?{request.url.query}",
        headers=[*kept, ("authorization", SANDBOX_TOKEN), ("x-forwarded-for", peer)],
        content=request.stream() if has_body else None,
    )
    answer = await client.send(asked, stream=True)
    headers = {k: v for k, v in answer.headers.items() if k not in _HOP_BY_HOP}
    headers["x-agentcube-session-id"] = request.headers["x-agentcube-session-id"]
    return StreamingResponse(
        answer.aiter_raw(),
        status_code=answer.status_code,
        headers=headers,
        background=BackgroundTask(answer.aclose),
    )


@app.websocket(_WHERE)
async def tunnel(socket: WebSocket, namespace: str, name: str, path: str) -> None:
    port = find(socket)
    async with websockets.connect(
        f"ws://127.0.0.1:{port}/{path}?ws", compression=None, ping_interval=None
    ) as upstream:
        await socket.accept()
        try:
            while True:  # an echo: one message each way in turn
                await upstream.send(await socket.receive_text())
                await socket.send_text(str(await upstream.recv()))
        except WebSocketDisconnect:
            pass


def main() -> None:
    given.update(json.loads(sys.stdin.readline()))
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        timeout_keep_alive=75,
        ws="websockets-sansio",
        ws_ping_interval=None,
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
