"""Templates and pools over real HTTP."""

import asyncio
import json

import pytest
import yaml

from agentcube.testing.eventually import eventually

pytestmark = pytest.mark.anyio

PATH = "/v1/namespaces/team-a/code-interpreters/py"
GO_INTERPRETER = """
apiVersion: runtime.agentcube.volcano.sh/v1alpha1
kind: CodeInterpreter
metadata:
  name: py
  namespace: team-a
  creationTimestamp: 2024-05-01T10:00:00Z
spec:
  ports:
    - {pathPrefix: "/", port: 8080, protocol: "HTTP"}
  template:
    image: ghcr.io/volcano-sh/picod:latest
    imagePullPolicy: IfNotPresent
    args: ["--workspace=/root"]
    resources:
      limits: {cpu: "500m", memory: "512Mi"}
      requests: {cpu: "100m", memory: "128Mi"}
  sessionTimeout: "15m"
  maxSessionDuration: "8h"
  warmPoolSize: 0
status: {}
"""


async def test_a_go_manifest_is_put_got_listed_and_deleted(api, world) -> None:
    yaml_type = {"content-type": "application/yaml"}
    put = await api.put(PATH, content=GO_INTERPRETER, headers=yaml_type)
    assert put.status_code == 201, put.text
    got = (await api.get(PATH)).json()
    assert got == put.json()
    given = yaml.safe_load(GO_INTERPRETER)
    assert got["spec"] == given["spec"]
    assert got["metadata"]["generation"] == 1
    again = await api.put(PATH, content=json.dumps(got), headers={"content-type": "application/json"})
    assert again.status_code == 200
    listed = (await api.get("/v1/namespaces/team-a/code-interpreters")).json()
    assert [m["metadata"]["name"] for m in listed["items"]] == ["py"]
    assert (await api.get("/v1/namespaces/team-a/agent-runtimes")).json()["items"] == []
    made = await api.post("/v1/sessions", json={"namespace": "team-a", "name": "py"})
    assert made.status_code == 201
    spec = world.machine.boxes[made.json()["sandbox"]["id"]].spec
    assert (spec.image, spec.command, spec.resources.cpu_millis) == ("host", (), 500)
    assert spec.resources.memory_bytes == 512 << 20
    assert (await api.delete(PATH)).status_code == 204
    assert (await api.get(PATH)).json()["code"] == "template_not_found"
    assert (await api.delete(PATH)).status_code == 404
    assert (await api.get(f"/v1/sessions/{made.json()['id']}")).json()["phase"] == "Ready"


async def test_putting_the_same_again_keeps_the_generation_and_a_change_grows_it(api, world) -> None:
    first = (await api.put(PATH, json=world.interpreter())).json()
    same = (await api.put(PATH, json=world.interpreter())).json()
    changed = (await api.put(PATH, json=world.interpreter(sessionTimeout="1h"))).json()
    generations = [m["metadata"]["generation"] for m in (first, same, changed)]
    assert generations == [1, 1, 2]


@pytest.mark.parametrize(
    ("content_type", "content", "says"),
    [
        ("application/yaml", "a: [", "line 1"),
        ("application/yaml", "a: 1\n---\nb: 2\n", "YAML"),
        ("application/yaml", "just text", "object"),
        ("application/yaml", "&a [*a]", "object"),
        ("application/json", "{", "JSON at line 1"),
        ("application/json", "[" * 5000, "nested"),
        ("text/html", "<p>", "application/yaml"),
        ("application/yaml", "kind: Deployment\nspec: {}", "/kind"),
        ("application/yaml", "metadata: {name: other}\nspec: {template: {}}", "/metadata/name"),
        ("application/yaml", "spec: {}", "/spec/template"),
        ("application/yaml", "spec: {template: {}, colour: red}", "/spec/colour"),
        ("application/yaml", "spec: {template: {}, warmPoolSize: -1}", "/spec/warmPoolSize"),
        ("application/yaml", "spec: {template: {}, sessionTimeout: soon}", "/spec/sessionTimeout"),
        ("application/yaml", "apiVersion: v2\nspec: {template: {}}", "/apiVersion"),
    ],
)
async def test_bad_manifests_are_named(api, content_type, content, says) -> None:
    answer = await api.put(PATH, content=content, headers={"content-type": content_type})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid"), answer.text
    assert says in answer.json()["detail"]
    assert (await api.get(PATH)).status_code == 404


async def test_bad_addresses_are_named(api, world) -> None:
    manifest = world.interpreter()
    assert (await api.put("/v1/namespaces/a/pods/b", json=manifest)).status_code == 404
    answer = await api.put("/v1/namespaces/a/code-interpreters/Not_A_Label", json=manifest)
    assert answer.json()["errors"][0]["pointer"] == "/name"


async def test_pools_are_reported(world) -> None:
    async with world.manager() as manager, world.serving(manager) as client:
        api = client()
        await api.put("/v1/namespaces/default/code-interpreters/my-interpreter", json=world.interpreter(2))
        await api.put(PATH, json=world.interpreter())
        await world.pool_of(manager, ready=2)
        gate = world.driver.hold("create")
        body = {"name": "my-interpreter"}
        for _ in range(2):
            assert (await api.post("/v1/sessions", json=body)).json()["from_pool"]
        miss = asyncio.ensure_future(api.post("/v1/sessions", json=body))
        await world.pool_of(manager, ready=0)
        await eventually(lambda: len(world.machine.boxes) == 5)
        gate.set()
        assert not (await miss).json()["from_pool"]
        [pool] = (await api.get("/v1/pools")).json()["items"]
        assert (pool["kind"], pool["name"], pool["target"], pool["max"]) == (
            "CodeInterpreter",
            "my-interpreter",
            2,
            2,
        )
        assert (pool["claims"], pool["misses"], pool["last_error"]) == (2, 1, None)
        assert pool["wait_ms"]["p95"] >= pool["wait_ms"]["p50"] > 0


async def test_every_route_has_an_access_policy_and_every_policy_a_route(world) -> None:
    from agentcube.manager.access import ACCESS
    from agentcube.manager.app import build_app
    from agentcube.manager.settings import ManagerSettings

    async with world.manager() as manager:
        app = build_app(manager.service, world.verifier, ManagerSettings())
        served = {(m, r.path) for r in world.routes(app) for m in r.methods}
    assert served == set(ACCESS)


async def test_a_route_without_a_policy_is_refused(world) -> None:
    from starlette.requests import Request

    from agentcube.errors import Forbidden
    from agentcube.manager.access import authorise

    scope = {"type": "http", "method": "GET", "path": "/x", "headers": [], "route": None}
    with pytest.raises(Forbidden):
        authorise(Request(scope), world.verifier)


async def test_the_openapi_document_describes_every_operation(api) -> None:
    document = (await api.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.")
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], (method, path)
            assert operation["description"], (method, path)
            assert "422" not in operation["responses"]
            if path.startswith("/v1"):
                assert operation["security"] == [{"bearer": []}]
                assert "401" in operation["responses"], (method, path)
    assert "Problem" in document["components"]["schemas"]
    create = document["paths"]["/v1/sessions"]["post"]
    assert "application/problem+json" in create["responses"]["503"]["content"]
    assert (
        "application/yaml"
        in document["paths"]["/v1/namespaces/{namespace}/{plural}/{name}"]["put"]["requestBody"]["content"]
    )


async def test_the_page_for_people_needs_nothing_from_elsewhere(api) -> None:
    answer = await api.get("/docs")
    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    document = (await api.get("/openapi.json")).json()
    for path in document["paths"]:
        assert f"<code>{path}</code>" in answer.text
    for foreign in ("<script", "src=", "http://", "https://"):
        assert foreign not in answer.text.replace("https://agentcube.dev", ""), foreign


async def test_health_follows_the_store_and_the_start(world) -> None:
    async with world.manager() as manager, world.serving(manager) as client:
        api = client()
        assert (await api.get("/health/ready")).status_code == 200
        manager.refuse()
        unready = await api.get("/health/ready")
        assert (unready.status_code, unready.json()["code"]) == (503, "unavailable")
        assert (await api.get("/health")).status_code == 503
        assert (await api.get("/health/live")).status_code == 200
        refused = await api.post("/v1/sessions", json={"name": "my-interpreter"})
        assert refused.status_code == 503
