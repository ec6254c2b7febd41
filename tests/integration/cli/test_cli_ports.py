"""`ports`, `expose`, `withdraw` and `share` on the command line."""

from __future__ import annotations

import json

import pytest

from tests.integration.cli.conftest import Cli
from tests.integration.sdk.wire_answers import of, problem
from tests.integration.sdk.wire_server import WireServer

BASE = "/v1/sessions/s/ports"
PORT = {
    "port": 3000,
    "name": "",
    "declared": False,
    "path": f"{BASE}/3000/",
    "url": "http://3000-s.localhost/",
}


def test_a_port_is_exposed_listed_and_withdrawn(cli: Cli, server: WireServer) -> None:
    server.script("PUT", f"{BASE}/3000", of(PORT), of(PORT))
    assert cli("expose", "s", "3000").text == f"{server.url}{BASE}/3000/\n"
    told = json.loads(cli("expose", "s", "3000", "-o", "json").text)
    assert (told["port"], told["url"]) == (3000, "http://3000-s.localhost/")
    listed = of({"items": [PORT, {**PORT, "port": 80, "name": "web", "declared": True, "url": None}]})
    server.script("GET", BASE, listed, listed)
    head, first, second = cli("ports", "s").text.splitlines()
    assert head.split() == ["PORT", "NAME", "BY", "FOR", "PROGRAMS", "OWN", "HOST"]
    assert first.split()[1:] == ["-", "exposed", f"{server.url}{BASE}/3000/", "http://3000-s.localhost/"]
    assert second.split()[:3] == ["80", "web", "template"]
    assert [port["port"] for port in json.loads(cli("ports", "s", "-o", "json").text)] == [3000, 80]
    server.script("DELETE", f"{BASE}/3000", of({}), problem(404, "not_found", "not exposed"))
    assert cli("withdraw", "s", "3000").text == "port 3000 of session s withdrawn\n"
    done = cli("withdraw", "s", "3000")
    assert (done.code, done.error) == (1, "agentcube: withdraw port 3000 of session s: not exposed\n")


def test_a_link_is_printed_and_nothing_else(cli: Cli, server: WireServer) -> None:
    link = {"port": 3000, "url": "http://x/?agentcube-share=t", "expires_at": "2026-11-21T15:00:00Z"}
    server.script("POST", "/v1/sessions/s/shares", of(link, 201), of(link, 201))
    assert cli("share", "s", "3000", "--ttl", "2h").text == "http://x/?agentcube-share=t\n"
    assert server.seen[-1].json == {"port": 3000, "ttl": 7200.0}
    assert json.loads(cli("share", "s", "3000", "-o", "json").text)["url"] == "http://x/?agentcube-share=t"


@pytest.mark.parametrize(
    "argv",
    [
        ("expose", "s", "0"),
        ("expose", "s", "http"),
        ("expose", "s"),
        ("share", "s", "65536"),
        ("share", "s", "80", "--ttl", "soon"),
        ("withdraw", "s", "-1"),
    ],
)
def test_what_is_no_port_or_time_is_bad_usage(cli: Cli, server: WireServer, argv: tuple[str, ...]) -> None:
    done = cli(*argv)
    assert (done.code, done.text, done.error.count("\n")) == (2, "", 1)
    assert not server.seen
