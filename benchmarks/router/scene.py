"""What every proxy is given: 64 sessions of 16 owners in 16 sandboxes, and the requests of each load."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key

from agentcube.runtime.keys import public_pem

OWNERS = 16
SESSIONS = 64
SANDBOXES = 16
PREFIX = "/v1/namespaces/[^/]+/agent-runtimes/[^/]+/invocations"
PATH = "/v1/namespaces/default/agent-runtimes/agent/invocations"
BODY = b'{"answer": "' + b"x" * 98 + b'"}'  # the small answer
LARGE = bytes(100_000)
EVENT = b"data: " + b"x" * 92 + b"\n\n"
EVENTS = 25  # in a stream, one each EVENT_S; then it ends
EVENT_S = 0.01
MESSAGE = b"x" * 100  # of a WebSocket
_CHUNKS = (
    b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (b"y" * 40, b"y" * 1000, b"y" * 7))
    + b"0\r\n\r\n"
)
CHUNKED_ANSWER = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n" + _CHUNKS
)


def answer(body: bytes, kind: bytes = b"application/json") -> bytes:
    return (
        b"HTTP/1.1 200 OK\r\ndate: Sat, 21 Nov 2026 12:00:00 GMT\r\nserver: uvicorn\r\n"
        b"content-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (kind, len(body), body)
    )


@dataclass(frozen=True)
class Held:
    """A session and who owns it."""

    id: str
    owner: str
    sandbox: int


@dataclass(frozen=True)
class Kind:
    """A load: what one turn of a connection is, and how many `units` it counts for.

    A WebSocket's connection sends its request once and then messages.
    """

    title: str
    path: str = "run"
    body: bytes = b""  # with its framing lines before it
    fresh: bool = False  # header lines that never came before
    unit: str = "requests"
    units: int = 1
    websocket: bool = False


LOADS = {
    "hot": Kind("small answers, a client's headers stay the same, its query changes"),
    "hostile": Kind("the same, and with every request three header lines that never came before", fresh=True),
    "post": Kind("1 KB of JSON posted", body=b"Content-Length: 1000\r\n\r\n" + b"z" * 1000),
    "chunked": Kind("chunked both ways", "chunked", b"Transfer-Encoding: chunked\r\n\r\n" + _CHUNKS),
    "bodies": Kind("100 KB each way", "large", b"Content-Length: %d\r\n\r\n" % len(LARGE) + LARGE),
    "sse": Kind("64 event streams at 100 events/s each", "events", unit="events", units=EVENTS),
    "websocket": Kind("echo of 100 bytes, 64 sockets", "echo", unit="messages", websocket=True),
}

SCENE = [Held(f"{n:02d}" + "s" * 30, f"user-{n % OWNERS}", n % SANDBOXES) for n in range(SESSIONS)]


def make_tokens() -> tuple[str, dict[str, str]]:
    """A public key, and a client token (RS256 JWT) for each owner."""
    key: RSAPrivateKey = generate_private_key(public_exponent=65537, key_size=2048)
    claims = {"iss": "bench", "aud": "agentcube", "exp": int(time.time()) + 86400, "scope": "x" * 60}
    names = sorted({held.owner for held in SCENE})
    tokens = {name: jwt.encode({**claims, "sub": name}, key, algorithm="RS256") for name in names}
    return public_pem(key.public_key()), tokens


def requests(tokens: dict[str, str], held: Held, seed: int, kind: Kind) -> Iterator[bytes]:
    """Endless requests of one client to its session, with heads of about 1 KB; no query comes twice."""
    dice = random.Random(f"{seed} {held.id}")
    lines = (
        "Host: router.bench:8080",
        f"Authorization: Bearer {tokens[held.owner]}",
        f"X-AgentCube-Session-Id: {held.id}",
        "User-Agent: agentcube-bench/1.0 (linux; x86_64) python/3.11",
        "Accept: application/json, text/event-stream;q=0.9, */*;q=0.1",
        "Accept-Encoding: gzip, deflate, br, zstd",
        "Accept-Language: en-GB,en;q=0.8",
        "Cookie: theme=dark; visited=" + "v" * 100,
        "Cache-Control: no-cache",
    )
    head = "\r\n".join(lines).encode()
    if kind.websocket:
        head += b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        head += b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    method = b"POST" if kind.body else b"GET"
    first = b"%b %b/%b?seed=%d&n=%%d HTTP/1.1" % (method, PATH.encode(), kind.path.encode(), seed)
    trace, correlation, span = 1, 1, 1
    for n in itertools.count():
        if kind.fresh:
            trace, correlation, span = dice.getrandbits(128), dice.getrandbits(96), dice.getrandbits(64)
        more = b"traceparent: 00-%032x-%016x-01\r\nX-Correlation-Id: %024x\r\nX-Span: %016x" % (
            trace,
            span,
            correlation,
            span,
        )
        yield b"\r\n".join((first % n, head, more, kind.body or b"\r\n"))
