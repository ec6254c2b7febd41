"""What every proxy is given: 64 sessions of 16 owners in 16 sandboxes, and requests with 1 KB heads."""

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
PATH = "/v1/namespaces/default/agent-runtimes/agent/invocations"
BODY = b'{"answer": "' + b"x" * 98 + b'"}'  # what every sandbox answers
ANSWER = (
    b"HTTP/1.1 200 OK\r\ndate: Sat, 21 Nov 2026 12:00:00 GMT\r\nserver: uvicorn\r\n"
    b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY)
)


@dataclass(frozen=True)
class Held:
    """A session and who owns it."""

    id: str
    owner: str
    sandbox: int


SCENE = [Held(f"{n:02d}" + "s" * 30, f"user-{n % OWNERS}", n % SANDBOXES) for n in range(SESSIONS)]


def make_tokens() -> tuple[str, dict[str, str]]:
    """A public key, and a client token (RS256 JWT) for each owner."""
    key: RSAPrivateKey = generate_private_key(public_exponent=65537, key_size=2048)
    claims = {"iss": "bench", "aud": "agentcube", "exp": int(time.time()) + 86400, "scope": "x" * 60}
    names = sorted({held.owner for held in SCENE})
    tokens = {name: jwt.encode({**claims, "sub": name}, key, algorithm="RS256") for name in names}
    return public_pem(key.public_key()), tokens


def requests(tokens: dict[str, str], held: Held, seed: int, *, traced: bool) -> Iterator[bytes]:
    """Endless requests of one client to its session; no query comes twice, nor, if `traced`, a traceparent."""
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
    for n in itertools.count():
        fresh = n if traced else 0
        trace = b"traceparent: 00-%032x-%016x-01" % (dice.getrandbits(128) if traced else 1, fresh)
        first = b"GET %b/run?seed=%d&n=%d HTTP/1.1" % (PATH.encode(), seed, n)
        yield b"\r\n".join((first, head, trace, b"", b""))
