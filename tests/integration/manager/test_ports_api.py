"""Exposing ports and sharing them, as the API has it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from agentcube.model.template import Kind, TemplateKey

pytestmark = pytest.mark.anyio


async def make(api, **body: Any) -> str:
    answer = await api.post("/v1/sessions", json={"name": "my-interpreter", **body})
    assert answer.status_code == 201
    return str(answer.json()["id"])


async def test_a_port_is_exposed_listed_and_withdrawn(api) -> None:
    id = await make(api)
    base = f"/v1/sessions/{id}/ports"
    assert (await api.get(base)).json() == {"items": []}
    assert (await api.get(f"{base}/3000")).status_code == 404
    through = {"x-forwarded-proto": "https", "x-forwarded-host": "cube.test:8443"}
    exposed = await api.put(f"{base}/3000", headers=through)
    assert exposed.status_code == 200
    assert exposed.json() == {
        "port": 3000,
        "name": "",
        "declared": False,
        "path": f"{base}/3000/",
        "url": f"https://3000-{id}.localhost:8443/",
    }
    assert (await api.put(f"{base}/80")).json()["url"] == f"http://80-{id}.localhost/"
    assert [item["port"] for item in (await api.get(base)).json()["items"]] == [80, 3000]
    assert (await api.get(f"{base}/3000", headers=through)).json() == exposed.json()
    assert (await api.delete(f"{base}/3000")).status_code == 204
    assert [item["port"] for item in (await api.get(base)).json()["items"]] == [80]
    assert (await api.delete(f"{base}/3000")).status_code == 404


async def test_declared_ports_are_listed_and_stay(world) -> None:
    key = TemplateKey(Kind.AGENT_RUNTIME, "default", "echo")
    ports = [{"port": 8000, "name": "http", "pathPrefix": "/"}]
    manifest = {
        "kind": "AgentRuntime",
        "spec": {
            "targetPort": ports,
            "podTemplate": {"spec": {"containers": [{"image": "host", "command": ["x"]}]}},
        },
    }
    async with world.manager() as manager, world.serving(manager) as client:
        await manager.service.catalog.put(key, manifest)
        api = client()
        id = await make(api, kind="AgentRuntime", name="echo")
        base = f"/v1/sessions/{id}/ports"
        (port,) = (await api.get(base)).json()["items"]
        assert (port["port"], port["name"], port["declared"]) == (8000, "http", True)
        for _ in range(2):
            assert (await api.delete(f"{base}/8000")).status_code == 204
        assert len((await api.get(base)).json()["items"]) == 1


async def test_a_share_link_says_what_it_is_for_and_no_longer_than_its_session(world, api) -> None:
    id = await make(api, ttl="30m")
    answer = await api.post(f"/v1/sessions/{id}/shares", json={"port": 3000, "ttl": "10m"})
    assert answer.status_code == 201
    body = answer.json()
    url = urlsplit(body["url"])
    assert (url.hostname, url.path) == (f"3000-{id}.localhost", "/")
    assert parse_qs(url.query) == {"agentcube-share": [body["token"]]}
    link = world.verifier.link(body["token"])
    assert (link.session, link.port) == (id, 3000)
    assert link.expires == int(datetime.fromisoformat(body["expires_at"]).timestamp())
    assert link.key == (await world.store.get(link.session)).exposed[3000]
    assert len(body["url"]) < 1000  # chat programs and proxies take it

    again = (await api.post(f"/v1/sessions/{id}/shares", json={"port": 3000, "ttl": "20h"})).json()
    assert world.verifier.link(again["token"]).key == link.key
    ends = datetime.fromisoformat((await api.get(f"/v1/sessions/{id}")).json()["expires_at"])
    assert abs(datetime.fromisoformat(again["expires_at"]) - ends) < timedelta(seconds=1)

    await api.delete(f"/v1/sessions/{id}/ports/3000")
    anew = (await api.post(f"/v1/sessions/{id}/shares", json={"port": 3000})).json()
    assert world.verifier.link(anew["token"]).key != link.key  # what was withdrawn stays so


async def test_what_is_no_port_or_link_is_refused(api) -> None:
    id = await make(api)
    for method, path, body, status, code in (
        ("PUT", "ports/0", None, 400, "invalid"),
        ("PUT", "ports/65536", None, 400, "invalid"),
        ("PUT", "ports/http", None, 400, "invalid"),
        ("PUT", "ports/8e1", None, 400, "invalid"),
        ("POST", "ports/80", None, 405, "method_not_allowed"),
        ("POST", "shares", {}, 400, "invalid"),
        ("POST", "shares", {"port": 0}, 400, "invalid"),
        ("POST", "shares", {"port": "80x"}, 400, "invalid"),
        ("POST", "shares", {"port": 80, "ttl": 0}, 400, "invalid"),
        ("POST", "shares", {"port": 80, "ttl": "-1s"}, 400, "invalid"),
        ("POST", "shares", {"port": 80, "ttl": "721h"}, 400, "invalid"),
        ("POST", "shares", {"port": 80, "url": "http://evil.test"}, 400, "invalid"),
    ):
        answer = await api.request(method, f"/v1/sessions/{id}/{path}", json=body)
        assert (answer.status_code, answer.json()["code"]) == (status, code), (path, body)
    assert (await api.get(f"/v1/sessions/{id}/ports")).json() == {"items": []}


async def test_foreign_and_ended_sessions_expose_nothing(world) -> None:
    async with world.manager() as manager, world.serving(manager) as client:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter())
        api, eve = client(), client(world.EVE)
        id = await make(api)
        await api.put(f"/v1/sessions/{id}/ports/80")
        for who, session in ((eve, id), (api, "nobody")):
            base = f"/v1/sessions/{session}"
            for answer in (
                await who.get(f"{base}/ports"),
                await who.get(f"{base}/ports/80"),
                await who.put(f"{base}/ports/81"),
                await who.delete(f"{base}/ports/80"),
                await who.post(f"{base}/shares", json={"port": 80}),
            ):
                assert (answer.status_code, answer.json()["code"]) == (404, "session_not_found")
        assert [item["port"] for item in (await api.get(f"/v1/sessions/{id}/ports")).json()["items"]] == [80]
        await api.delete(f"/v1/sessions/{id}")
        assert (await api.put(f"/v1/sessions/{id}/ports/81")).status_code == 404


async def test_only_so_many_ports_are_exposed(api) -> None:
    id = await make(api)
    for port in range(1, 33):
        assert (await api.put(f"/v1/sessions/{id}/ports/{port}")).status_code == 200
    answer = await api.put(f"/v1/sessions/{id}/ports/33")
    assert (answer.status_code, answer.json()["code"], answer.json()["limit"]) == (429, "limit_exceeded", 32)
    assert (await api.put(f"/v1/sessions/{id}/ports/32")).status_code == 200  # it is already
