"""Ports of a real session, exposed and shared: by path, on a host of their own, over WebSockets, and no longer."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from agentcube import Sandbox
from tests.e2e.agents import STREAMS
from tests.e2e.harness import Server
from tests.e2e.here import cli

PORT = 8000


@pytest.fixture(scope="module")
def box(server: Server) -> Iterator[Sandbox]:
    """A session in which a server listens on `PORT`, which its template declares nowhere."""
    with Sandbox(url=server.url, api_key=server.api_key) as box:
        box.files.write("server.py", STREAMS)
        process = box.commands.start("python3 server.py")
        box.ports.expose(PORT)
        url = f"{server.url}/v1/sessions/{box.session_id}/ports/{PORT}/"
        end = time.monotonic() + 60
        while httpx2.head(url, headers=key(server)).status_code != 200:
            assert time.monotonic() < end, "the server in the sandbox does not come up"
            time.sleep(0.05)
        yield box
        process.kill()
        process.close()


def key(server: Server) -> dict[str, str]:
    return {"authorization": f"Bearer {server.api_key}"}


def ask(server: Server, url: str, method: str = "POST", **headers: str) -> httpx2.Response:
    """A request to a host that no name service needs to know."""
    there = urlsplit(url)
    at = f"{server.url}{there.path}?{there.query}"
    return httpx2.request(method, at, headers={"host": there.netloc, **headers}, content=b"hi", timeout=30)


def dial(server: Server, url: str, headers: dict[str, str]) -> ClientConnection:
    there, router = urlsplit(url), urlsplit(server.url)
    sock = socket.create_connection((router.hostname, router.port), timeout=30)
    return connect(f"ws://{there.netloc}{there.path}ws", sock=sock, additional_headers=headers, proxy=None)


def entered(server: Server, link: str) -> dict[str, str]:
    """What a browser sends once it has followed the link."""
    answer = ask(server, link, "GET")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    return {"cookie": answer.headers["set-cookie"].partition(";")[0]}


def test_its_owner_reaches_an_exposed_port_both_ways(server: Server, box: Sandbox) -> None:
    (port,) = box.ports.list()
    for url, path in ((port.api_url, "/a?b=c"), (port.url, "/a?b=c")):
        answer = ask(server, f"{url}a?b=c", **key(server))
        assert (answer.status_code, answer.headers["x-saw-path"]) == (200, path)
        assert answer.headers["x-authorization"] == ""
        assert ("sandbox" in answer.headers.get("content-security-policy", "")) == (url == port.api_url)
        with dial(server, url, key(server)) as client:
            client.send("hello")
            assert client.recv(timeout=30) == "hello"
        assert ask(server, url).status_code == 401
    assert ask(server, port.url.replace(f"/{PORT}-", "/8001-"), **key(server)).status_code == 404


def test_a_link_lets_others_in_until_it_is_withdrawn(server: Server, box: Sandbox) -> None:
    link = cli(server, "share", box.session_id, str(PORT), "--ttl", "10m").stdout.decode().strip()
    own = f"http://{urlsplit(link).netloc}/"
    cookie = entered(server, link)
    assert ask(server, own, **cookie).status_code == 200
    assert ask(server, own, origin="http://8000-other.localhost", **cookie).status_code == 403
    assert ask(server, f"{server.url}/v1/sessions", "GET", **cookie).status_code == 401
    with dial(server, own, {**cookie, "origin": own.rstrip("/")}) as guest:
        guest.send("hello")
        assert guest.recv(timeout=30) == "hello"
        cli(server, "withdraw", box.session_id, str(PORT))
        with pytest.raises(ConnectionClosed):
            guest.recv(timeout=30)
    box.ports.expose(PORT)
    assert ask(server, own, **cookie).status_code == 401, "a withdrawn link does not come back"
    assert ask(server, own, **entered(server, box.ports.share(PORT).url)).status_code == 200


def test_a_link_ends_with_its_session(server: Server) -> None:
    with Sandbox(url=server.url, api_key=server.api_key) as box:
        link = box.ports.share(3000).url
        cookie = entered(server, link)
        nobody = ask(server, link.partition("?")[0], **cookie)
        assert (nobody.status_code, nobody.json()["code"]) == (502, "sandbox_unreachable")
    assert ask(server, link, "GET").status_code in (401, 404)
    assert ask(server, link.partition("?")[0], **cookie).status_code in (401, 404)
