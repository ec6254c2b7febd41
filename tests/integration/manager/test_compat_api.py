"""The calls of the Go system's clients, as those clients make them."""

import pytest

from agentcube.drivers.fake import Exits

pytestmark = pytest.mark.anyio


async def test_creation_answers_in_the_go_systems_words(api) -> None:
    body = {"name": "my-interpreter", "namespace": "default", "ttl": 3600, "metadata": {}}
    answer = await api.post("/v1/code-interpreter", json=body)
    assert answer.status_code == 200
    made = answer.json()
    assert set(made) == {"kind", "sessionId", "sandboxId", "sandboxName", "entryPoints", "ownerId"}
    assert (made["kind"], made["ownerId"]) == ("Sandbox", "local")
    assert made["entryPoints"] == [{"path": "/", "protocol": "HTTP", "endpoint": "box.example:8080"}]
    session = (await api.get(f"/v1/sessions/{made['sessionId']}")).json()
    assert session["ttl"] == 3600
    assert session["sandbox"]["id"] == made["sandboxId"]


async def test_metadata_of_any_json_and_fields_of_the_go_system_are_taken(api) -> None:
    body = {
        "name": "my-interpreter",
        "namespace": "default",
        "metadata": {"a": "text", "b": 1, "c": {"d": [True]}},
        "publicKey": "ignored",
    }
    id = (await api.post("/v1/code-interpreter", json=body)).json()["sessionId"]
    kept = (await api.get(f"/v1/sessions/{id}")).json()["metadata"]
    assert kept == {"a": "text", "b": "1", "c": '{"d":[true]}'}
    null = await api.post("/v1/code-interpreter", json={**body, "metadata": None})
    assert null.status_code == 200


async def test_a_lifetime_beyond_the_templates_is_cut_to_it(api) -> None:
    body = {"name": "my-interpreter", "namespace": "default", "ttl": 7 * 86400}
    id = (await api.post("/v1/code-interpreter", json=body)).json()["sessionId"]
    assert (await api.get(f"/v1/sessions/{id}")).json()["ttl"] == 8 * 3600


@pytest.mark.parametrize(
    "body", [{}, {"name": "a"}, {"namespace": "default"}, {"name": "", "namespace": "b"}]
)
@pytest.mark.parametrize("path", ["/v1/code-interpreter", "/v1/agent-runtime"])
async def test_missing_fields_are_400(api, path, body) -> None:
    answer = await api.post(path, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"] == answer.json()["detail"]


async def test_unknown_templates_are_404_by_kind(api) -> None:
    body = {"name": "my-interpreter", "namespace": "default"}
    assert (await api.post("/v1/agent-runtime", json=body)).status_code == 404
    assert (await api.post("/v1/code-interpreter", json={**body, "namespace": "x"})).status_code == 404


async def test_deletion_says_so_and_then_404(api) -> None:
    body = {"name": "my-interpreter", "namespace": "default"}
    id = (await api.post("/v1/code-interpreter", json=body)).json()["sessionId"]
    first = await api.delete(f"/v1/code-interpreter/sessions/{id}")
    assert (first.status_code, list(first.json())) == (200, ["message"])
    assert (await api.delete(f"/v1/code-interpreter/sessions/{id}")).status_code == 404
    assert (await api.delete(f"/v1/agent-runtime/sessions/{id}")).status_code == 404


async def test_a_session_from_a_pool_is_a_claim(world) -> None:
    async with world.manager() as manager, world.serving(manager) as client:
        api = client()
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter(pool=1))
        await world.pool_of(manager, ready=1)
        body = {"name": "my-interpreter", "namespace": "default"}
        assert (await api.post("/v1/code-interpreter", json=body)).json()["kind"] == "SandboxClaim"


async def test_an_agent_has_its_ports_as_entry_points(world) -> None:
    async with world.manager() as manager, world.serving(manager) as client:
        api = client()
        await manager.service.catalog.put(world.AGENT, world.agent())
        made = (await api.post("/v1/agent-runtime", json={"name": "echo", "namespace": "default"})).json()
        assert [e["path"] for e in made["entryPoints"]] == ["/echo"]
        assert ("ready", made["sandboxId"]) in world.driver.calls


async def test_an_agent_whose_command_ends_is_502_with_the_status(world) -> None:
    world.new_driver(programs={("broken",): Exits(3)})
    async with world.manager() as manager, world.serving(manager) as client:
        api = client()
        await manager.service.catalog.put(world.AGENT, world.agent(command=("broken",)))
        answer = await api.post("/v1/agent-runtime", json={"name": "echo", "namespace": "default"})
        assert (answer.status_code, answer.json()["code"]) == (502, "start_failed")
        assert "status 3" in answer.json()["detail"]
        assert not world.machine.boxes
