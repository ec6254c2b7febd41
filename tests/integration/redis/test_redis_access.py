"""Passwords, users, TLS, and servers that will not do: what is needed, and what is said when it lacks."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agentcube.errors import StoreFailed
from agentcube.stores.redis.address import parse_address
from agentcube.stores.redis.examine import examine
from agentcube.testing.redis_server import RedisServer, running
from agentcube.testing.samples import NOW, sample_session, sample_warm
from agentcube.testing.store_suite import lease_ids
from tests.integration.redis.world import Proxy, hasty, opened, refused
from tests.redis_servers import fresh_settings, program

pytestmark = pytest.mark.anyio

GUIDE = Path(__file__).parents[3] / "docs" / "how-to" / "use-redis.md"


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that asks for a password."""
    with running(program("redis"), tmp_path / "redis", "--requirepass", "open sesame") as server:
        yield server


async def test_a_password_comes_from_the_url_or_from_a_file(locked: RedisServer, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("open sesame\n")
    by_url = locked.url.replace("redis://", "redis://:open%20sesame@")
    for url, settings in ((by_url, hasty()), (locked.url, hasty(password_file=file))):
        async with opened(url, settings) as store:
            await store.check()


async def test_a_password_that_lacks_or_is_wrong_is_told_and_never_shown(
    locked: RedisServer, tmp_path: Path
) -> None:
    await refused(locked.url, hasty(), "it asks for a password; put it into a file")
    wrong = locked.url.replace("redis://", "redis://:hunter2@")
    with pytest.raises(StoreFailed, match="user or password are wrong") as caught:
        async with opened(wrong, hasty()):
            pass
    assert "hunter2" not in str(caught.value.detail)
    await refused(locked.url, hasty(password_file=tmp_path / "no"), "password file")


async def test_the_user_of_the_guide_can_do_all_that_a_store_does_and_no_more(server: RedisServer) -> None:
    rule = re.search(r"^ACL SETUSER agentcube (.+)$", GUIDE.read_text(), re.MULTILINE)
    assert rule is not None
    settings = fresh_settings(wait_replicas=1)
    words = rule[1].replace("{agentcube}", f"{{{settings.prefix}}}").replace("PASSWORD", "secret").split()
    server.command("ACL", "SETUSER", "agentcube", *words)
    url = server.url.replace("redis://", "redis://agentcube:secret@")
    async with opened(url, settings) as store:
        await store.check()
        session = await store.insert(sample_session(due_at=NOW))
        assert await lease_ids(store, NOW) == [session.id]
        await store.touch({session.id: NOW})
        await store.put_warm(sample_warm())
        assert await store.claim_warm(sample_session()) is not None
        await store.delete(session.id, revision=1)
        await store.claim_home("us")
    assert (await examine(parse_address(url), settings)).startswith("Redis ")
    await refused(url, hasty(), "refused")  # another's prefix


async def test_a_server_that_is_none_is_told(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as http:
        url = f"redis://127.0.0.1:{http.sockets[0].getsockname()[1]}"
        await refused(url, hasty(), "the session store speaks no RESP3")


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        (b"-ERR unknown command `HELLO`\r\n", "it is older than Redis 6.2"),
        (
            b"%2\r\n$7\r\nversion\r\n$6\r\n6.0.16\r\n$4\r\nrole\r\n$6\r\nmaster\r\n",
            "it is version 6.0; Redis 6.2",
        ),
        (b"%1\r\n$7\r\nversion\r\n$6\r\nelderr\r\n", "it does not answer as Redis or Valkey do"),
        (b"+OK\r\n", "it does not answer as Redis or Valkey do"),
        (b"", "did not answer in time"),
    ],
)
async def test_a_server_that_is_too_old_or_odd_is_refused(hello: bytes, reason: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(hello)
        await reader.read()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as odd:
        url = f"redis://127.0.0.1:{odd.sockets[0].getsockname()[1]}"
        await refused(url, hasty(connect_timeout_s=0.3 if not hello else 30), reason)


async def test_another_database_is_used(server: RedisServer) -> None:
    async with opened(f"{server.url}/3", hasty()) as store:
        await store.insert(sample_session())
        assert server.command("DBSIZE") == 0
    await refused(f"{server.url}/99", hasty(), "SELECT was refused: ERR DB index is out of range")


async def test_a_unix_socket_leads_there_as_well(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with running(program("redis"), tmp_path / "redis", "--unixsocket", str(path)):
        async with opened(f"unix://{path}", hasty()) as store:
            await store.check()


@asynccontextmanager
async def _tls_proxy(server: RedisServer, folder: Path, *, ask: bool = False) -> AsyncIterator[Proxy]:
    """TLS before the server, which was built without it."""
    _certificate(folder, "authority")
    _certificate(folder, "server")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=folder / "authority.crt")
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    context.verify_mode = ssl.CERT_REQUIRED if ask else ssl.CERT_NONE
    async with Proxy(server.port, tls=context).running() as proxy:
        yield proxy


async def test_with_tls_only_a_certificate_that_is_trusted_will_do(
    server: RedisServer, tmp_path: Path
) -> None:
    async with _tls_proxy(server, tmp_path) as proxy:
        async with opened(proxy.url, hasty(tls_ca_file=tmp_path / "authority.crt")) as store:
            await store.insert(sample_session())
        await refused(proxy.url, hasty(), "certificate verify failed")
        by_number = proxy.url.replace("localhost", "127.0.0.1")
        await refused(by_number, hasty(tls_ca_file=tmp_path / "authority.crt"), "IP address mismatch")
        await refused(proxy.url, hasty(tls_ca_file=tmp_path / "none.crt"), "TLS files")


async def test_a_server_that_asks_for_a_certificate_gets_ours(server: RedisServer, tmp_path: Path) -> None:
    async with _tls_proxy(server, tmp_path, ask=True) as proxy:
        _certificate(tmp_path, "client")
        ca = tmp_path / "authority.crt"
        ours = {"tls_cert_file": tmp_path / "client.crt", "tls_key_file": tmp_path / "client.key"}
        async with opened(proxy.url, hasty(tls_ca_file=ca, **ours)) as store:
            await store.check()
        with pytest.raises(StoreFailed):
            async with opened(proxy.url, hasty(tls_ca_file=ca)):
                pass


def _certificate(folder: Path, name: str) -> None:
    """A certificate and its key in `folder`, signed by the one called `authority`."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer, signer = subject, key
    if name != "authority":
        issuer = x509.load_pem_x509_certificate((folder / "authority.crt").read_bytes()).subject
        loaded = serialization.load_pem_private_key((folder / "authority.key").read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        signer = loaded
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=name == "authority", path_length=None), critical=True)
        .sign(signer, hashes.SHA256())
    )
    (folder / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
