"""A Router behind a proxy, and a Router that speaks TLS itself."""

import asyncio
import datetime
import socket
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agentcube.errors import Invalid
from agentcube.router.tls import Certificate
from tests.integration.router.world import FAST, OK, Peer, World, eventually, replying, world

pytestmark = pytest.mark.anyio

TRUSTING = replace(FAST, trusted_proxies=("127.0.0.0/8",))
CLAIMS = (
    "X-Forwarded-For: 203.0.113.7, 198.51.100.1",
    "X-Forwarded-For: 198.51.100.2",
    "X-Forwarded-Proto: https",
    "X-Forwarded-Host: cube.example",
)


async def told(w: World, *headers: str, peer: Peer | None = None) -> dict[bytes, bytes]:
    """The X-Forwarded-* that a sandbox gets."""
    seen: list[Any] = []
    w.agent(await w.tcp(replying(OK, seen)))
    peer = peer or await w.connect()
    await peer.send("", *headers)
    assert (await peer.answer()).status == 200
    return {name: value for name, value in seen[0][0].headers if name.startswith(b"x-forwarded")}


async def test_a_trusted_proxys_word_on_the_client_passes_on() -> None:
    async with world(TRUSTING) as w:
        assert await told(w, *CLAIMS) == {
            b"x-forwarded-for": b"203.0.113.7, 198.51.100.1, 198.51.100.2, 127.0.0.1",
            b"x-forwarded-host": b"cube.example",
            b"x-forwarded-proto": b"https",
        }


async def test_a_trusted_proxy_cannot_say_what_is_no_scheme_or_host() -> None:
    async with world(TRUSTING) as w:
        claims = await told(w, "X-Forwarded-Proto: gopher", "X-Forwarded-Host: a b")
        assert claims[b"x-forwarded-proto"] == b"http"
        assert claims[b"x-forwarded-host"] == b"router.test"


async def test_the_next_request_of_a_trusted_proxy_is_another_clients() -> None:
    seen: list[Any] = []
    async with world(TRUSTING) as w:
        w.agent(await w.tcp(replying(OK, seen)))
        peer = await w.connect()
        for headers in (("X-Forwarded-For: 203.0.113.7",), (), ("X-Forwarded-For: 203.0.113.9",)):
            await peer.send("", *headers)
            assert (await peer.answer()).status == 200
        chains = [head.get(b"x-forwarded-for") for head, _ in seen]
        assert chains == [b"203.0.113.7, 127.0.0.1", b"127.0.0.1", b"203.0.113.9, 127.0.0.1"]


async def test_nobody_elses_word_counts() -> None:
    async with world(replace(FAST, trusted_proxies=("203.0.113.0/24",))) as w:
        assert (await told(w, *CLAIMS))[b"x-forwarded-for"] == b"127.0.0.1"


async def all_that_comes(peer: Peer) -> bytes:
    """What a connection brings before it ends, cleanly or not."""
    try:
        return await peer.to_end()
    except ConnectionResetError:
        return b""


PROXIED = replace(TRUSTING, proxy_protocol=True)
PREFACE = b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 80\r\n"


@pytest.mark.parametrize("step", [1, 1000])
async def test_a_proxy_header_names_the_client(step: int) -> None:
    async with world(PROXIED) as w:
        peer = await w.connect()
        for start in range(0, len(PREFACE), step):
            await peer.write(PREFACE[start : start + step])
        claims = await told(w, "X-Forwarded-For: 6.6.6.6", peer=peer)
        assert claims[b"x-forwarded-for"] == b"203.0.113.7"  # the client is nobody's proxy


async def test_a_connection_without_a_proxy_header_is_dropped() -> None:
    async with world(PROXIED) as w:
        peer = await w.connect()
        await peer.send()
        assert await all_that_comes(peer) == b""


async def test_a_proxy_header_from_somebody_else_is_dropped() -> None:
    async with world(replace(PROXIED, trusted_proxies=("203.0.113.0/24",))) as w:
        peer = await w.connect()
        await peer.write(PREFACE)
        await peer.send()
        assert await all_that_comes(peer) == b""


async def test_a_proxy_header_that_does_not_end_is_dropped_in_time() -> None:
    async with world(replace(PROXIED, head_timeout_s=0.1)) as w:
        peer = await w.connect()
        await peer.write(PREFACE[:10])
        await eventually(lambda: w.router.connections == 0)


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate for localhost, whose common name is `name`, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    chain, private = folder / "chain.pem", folder / "key.pem"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return chain, private


async def secure(w: World, trusted: Path) -> tuple[Peer, ssl.SSLObject]:
    context = ssl.create_default_context(cafile=str(trusted))
    context.set_alpn_protocols(["h2", "http/1.1"])
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", w.port, ssl=context, server_hostname="localhost", limit=1 << 22
    )
    w.writers.append(writer)
    return Peer(reader, writer), writer.get_extra_info("ssl_object")


async def test_tls_ends_at_the_router(tmp_path: Path) -> None:
    chain, key = certificate(tmp_path, "one")
    async with world(certificate=Certificate(chain, key)) as w:
        peer, tls = await secure(w, chain)
        assert tls.selected_alpn_protocol() == "http/1.1"
        assert (await told(w, peer=peer))[b"x-forwarded-proto"] == b"https"
        await peer.send(body=b"x" * 500_000)
        assert (await peer.answer()).body == b"ok"


async def test_plain_http_to_a_tls_port_gets_nothing(tmp_path: Path) -> None:
    async with world(certificate=Certificate(*certificate(tmp_path, "one"))) as w:
        peer = await w.connect()
        await peer.send()
        assert b"HTTP/1.1" not in await all_that_comes(peer)


async def test_a_renewed_certificate_is_served_to_new_connections(tmp_path: Path) -> None:
    serving = Certificate(*certificate(tmp_path, "one"))
    async with world(certificate=serving) as w:
        before, _ = await secure(w, tmp_path / "chain.pem")
        (tmp_path / "key.pem").write_text("half of a file")
        assert not serving.renew()
        certificate(tmp_path, "two")
        assert serving.renew()
        assert not serving.renew()
        _, tls = await secure(w, tmp_path / "chain.pem")
        names = {name: value for part in tls.getpeercert()["subject"] for name, value in part}
        assert names["commonName"] == "two"
        await before.send("GET /health/live", session=None)  # what stands is not touched
        assert (await before.answer()).status == 200


async def test_a_client_that_never_shakes_hands_is_dropped(tmp_path: Path) -> None:
    made = Certificate(*certificate(tmp_path, "one"))
    async with world(replace(FAST, head_timeout_s=0.2), certificate=made) as w:
        with socket.create_connection(("127.0.0.1", w.port)) as sock:
            sock.setblocking(False)
            data = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 100), 10)
            assert data == b""


def test_files_that_are_no_certificate_are_refused(tmp_path: Path) -> None:
    chain, key = certificate(tmp_path, "one")
    for pair in ((chain, tmp_path / "absent"), (key, chain), (chain, chain)):
        with pytest.raises(Invalid, match="cannot use the certificate"):
            Certificate(*pair)


def test_an_encrypted_key_is_refused_and_asks_nobody(tmp_path: Path) -> None:
    chain, key = certificate(tmp_path, "one")
    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(
        loaded.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(Invalid, match="passphrase"):
        Certificate(chain, key)
