"""Coverage-guided fuzzing of the HTTP/1.1 parser against llhttp: `make fuzz [SECONDS=60]`. Stops at a finding."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["agentcube.http1"]):
    from agentcube import http1
    from agentcube.router.heads import Reader, unread_request
    from tests.fuzz.http1_oracle import disagreement

_SEEDS = (
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\nPOST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nX: y\r\n\r\n",
    b"GET /c HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"GET /w HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly",
    b"GET /w HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: w\r\nContent-Length: 3\r\n\r\nabc",
    b"POST /w HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: w\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
)
_WORDS = (
    "Content-Length: ", "Transfer-Encoding: chunked", "chunked", "identity", "Connection: close", "Connection: ",
    "Upgrade: h2c", "Host: x", "HTTP/1.1", "HTTP/1.0", "POST ", "GET ", "\\x0d\\x0a", "\\x0d\\x0a\\x0d\\x0a",
    "0\\x0d\\x0a\\x0d\\x0a", "\\x0a", "\\x0d", "\\x00", "\\x0b", " : ", ";", ", ", "\\x09", "Expect: 100-continue",
)  # fmt: skip


def one(data: bytes) -> None:
    """One input; raises when something is wrong with it."""
    found = disagreement(data)
    if found:
        raise AssertionError(f"{found}: {data!r}")
    end = -1
    try:
        end = http1.request_end(data)
    except http1.ProtocolError:
        pass
    if end >= 0:
        _same_head(data[:end])


def _same_head(head: bytes) -> None:
    """The Router's own reader takes a head exactly when `http1` does, and frames it alike."""
    try:
        plain = http1.parse_request(head)
    except http1.ProtocolError:
        plain = None
    reader, before = Reader(), unread_request(b"")
    for said in (
        head,
        head.replace(b"a", b"b"),
        head.replace(b"a", b"c"),
        head,
    ):  # what came before changes nothing
        try:
            before = routed = reader.request(said, before)
        except http1.ProtocolError:
            continue  # it may refuse more: duplicate Authorization, say
        if said is head:
            assert plain is not None, f"the Router reads what http1 refuses: {head!r}"
            assert (plain.method, plain.target, plain.body) == (routed.method, routed.target, routed.body), (
                head
            )


def main() -> None:
    """Run for as many seconds as the last argument says, or until something is found (status not 0)."""
    for seed in _SEEDS:
        one(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = folder / "words.dict"
        words.write_text("".join(f'"{word}"\n' for word in _WORDS))
        corpus = folder / "corpus"
        corpus.mkdir()
        for number, seed in enumerate(_SEEDS):
            (corpus / str(number)).write_bytes(seed)
        limits = [f"-max_total_time={int(sys.argv[-1])}", "-max_len=600", f"-artifact_prefix={folder}/"]
        atheris.Setup([sys.argv[0], *limits, f"-dict={words}", str(corpus)], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
