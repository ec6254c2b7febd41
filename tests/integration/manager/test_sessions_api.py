"""`/v1/sessions` over real HTTP."""

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta

import httpx2
import pytest

from agentcube.errors import CapacityExhausted, Conflict, StartFailed, StartTimedOut
from agentcube.model.lifecycle import Phase, Trigger
from agentcube.ports.tokens import LOCAL
from agentcube.testing.eventually import eventually

pytestmark = pytest.mark.anyio


def problem(response, status: int, code: str) -> dict:
    """The problem document of a refusal, after checking what every one has."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert (body["status"], body["code"], body["error"]) == (status, code, body["detail"])
    assert body["type"].endswith(code.replace("_", "-"))
    assert body["request_id"] == response.headers["x-request-id"]
    assert ("retry-after" in response.headers) == body["retryable"]
    return body


async def test_a_session_is_ready_when_its_creation_answers(api, world) -> None:
    made = await api.post("/v1/sessions", json={"name": "my-interpreter", "metadata": {"a": "b"}, "ttl": 60})
    body = made.json()
    assert made.status_code == 201
    assert made.headers["location"] == f"/v1/sessions/{body['id']}"
    assert made.headers["x-agentcube-session-id"] == body["id"]
    assert (body["phase"], body["kind"], body["owner"]) == ("Ready", "CodeInterpreter", "local")
    assert (body["ttl"], body["idle_timeout"], body["suspend_after"]) == (60, 900, None)
    assert body["metadata"] == {"a": "b"}
    assert body["sandbox"]["driver"] == "fake"
    created, ends = (datetime.fromisoformat(body[k]) for k in ("created_at", "expires_at"))
    assert ends - created == timedelta(seconds=60)
    assert world.driver.session_of(body["sandbox"]["id"]) == body["id"]
    got = (await api.get(f"/v1/sessions/{body['id']}")).json()
    assert got["usage"]["memory_bytes"] == 4 << 20
    assert {**got, "usage": None} == body


async def test_deleting_destroys_the_sandbox_and_forgets_the_session(api, world) -> None:
    id = (await api.post("/v1/sessions", json={"name": "my-interpreter"})).json()["id"]
    assert len(world.machine.boxes) == 1
    assert (await api.delete(f"/v1/sessions/{id}")).status_code == 204
    assert not world.machine.boxes
    problem(await api.get(f"/v1/sessions/{id}"), 404, "session_not_found")
    problem(await api.delete(f"/v1/sessions/{id}"), 404, "session_not_found")


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/name"),
        ({"name": "My_Interpreter"}, "/name"),
        ({"name": "x" * 64}, "/name"),
        ({"name": "a", "namespace": "-b"}, "/namespace"),
        ({"name": "a", "kind": "Pod"}, "/kind"),
        ({"name": "a", "ttl": -1}, "/ttl"),
        ({"name": "a", "ttl": "fast"}, "/ttl"),
        ({"name": "a", "ttl": True}, "/ttl"),
        ({"name": "a", "idle_timeout": "0s"}, "/idle_timeout"),
        ({"name": "a", "colour": "red"}, "/colour"),
        ({"name": "a", "metadata": {"k": 1}}, "/metadata/k"),
        ({"name": "a", "metadata": {"k" * 200: "v"}}, "/metadata"),
        ({"name": "a", "env": {"A B": "v"}}, "/env"),
        ({"name": "a", "resources": {"memory": "lots"}}, "/resources/memory"),
        ({"name": "a", "resources": {"disk": "1Gi"}}, "/resources/disk"),
        ({"name": "a", "network": {"egress": ["*"]}}, "/network/egress"),
    ],
)
async def test_a_wrong_field_is_pointed_at(api, body, pointer) -> None:
    document = problem(await api.post("/v1/sessions", json=body), 400, "invalid")
    assert [e["pointer"] for e in document["errors"]] == [pointer]


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "missing"), (b"{", "JSON"), (b"[]", "object"), (b'"x"', "object"), (b"\xff", "JSON")],
)
async def test_a_body_that_is_no_object_is_refused(api, content, says) -> None:
    answer = await api.post("/v1/sessions", content=content, headers={"content-type": "application/json"})
    assert says in problem(answer, 400, "invalid")["detail"]


async def test_a_body_over_the_bound_is_refused(api) -> None:
    huge = b'{"name": "' + b"x" * (2 << 20) + b'"}'
    problem(await api.post("/v1/sessions", content=huge), 413, "body_too_large")

    async def stream():
        for _ in range(40):
            yield b" " * (64 << 10)

    problem(await api.post("/v1/sessions", content=stream()), 413, "body_too_large")


async def test_an_unknown_template_is_named(api) -> None:
    answer = await api.post("/v1/sessions", json={"name": "nothing"})
    assert "CodeInterpreter default/nothing" in problem(answer, 404, "template_not_found")["detail"]


async def test_a_lifetime_beyond_the_templates_is_refused(api) -> None:
    answer = await api.post("/v1/sessions", json={"name": "my-interpreter", "ttl": "9h"})
    assert "maxSessionDuration" in problem(answer, 400, "invalid")["detail"]


async def test_a_driver_that_is_full_leaves_no_session(api, world) -> None:
    world.driver.fail("create", CapacityExhausted("this machine is full"))
    answer = await api.post("/v1/sessions", json={"name": "my-interpreter"})
    assert problem(answer, 503, "capacity_exhausted")["detail"] == "this machine is full"
    assert (await api.get("/v1/sessions")).json()["items"] == []


async def test_a_failed_start_answers_its_reason_and_stays_to_tell_it(api, world) -> None:
    world.driver.fail("create", StartFailed("mounting the workspace: no loop device"), half_made=True)
    document = problem(await api.post("/v1/sessions", json={"name": "my-interpreter"}), 502, "start_failed")
    assert document["detail"] == "mounting the workspace: no loop device"
    kept = (await api.get(f"/v1/sessions/{document['session']}")).json()
    assert (kept["phase"], kept["reason"], kept["sandbox"]) == ("Failed", "start_failed", None)
    assert not world.machine.boxes
    assert (await api.delete(f"/v1/sessions/{document['session']}")).status_code == 204


async def test_somebody_elses_session_is_as_absent_as_none(world) -> None:
    async with world.manager() as manager, world.serving(manager) as client:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter())
        session = await world.session(manager)
        eve, admin, path = client(world.EVE), client(world.ADMIN), f"/v1/sessions/{session.id}"
        for answer in (
            await eve.get(path),
            await eve.delete(path),
            await eve.patch(path, json={"ttl": 60}),
            await eve.delete(f"/v1/code-interpreter/sessions/{session.id}"),
        ):
            absent = problem(answer, 404, "session_not_found")
            assert absent["detail"] == f"there is no session {session.id}"
        assert (await eve.get("/v1/sessions")).json()["items"] == []
        assert [s["id"] for s in (await admin.get("/v1/sessions")).json()["items"]] == [session.id]
        assert (await admin.get(path)).status_code == 200
        assert (await admin.delete(path)).status_code == 204


async def test_callers_without_the_routers_word_are_refused(world) -> None:
    async with world.manager() as manager, world.serving(manager) as client:
        nobody = client(None)
        for method, path in (("GET", "/v1/sessions"), ("POST", "/v1/sessions"), ("GET", "/v1/pools")):
            answer = await nobody.request(method, path)
            problem(answer, 401, "unauthenticated")
            assert answer.headers["www-authenticate"] == "Bearer"
        forged = client(None)
        forged.headers["authorization"] = "Bearer nonsense"
        problem(await forged.get("/v1/sessions"), 401, "unauthenticated")
        assert (await nobody.get("/health")).json() == {"status": "healthy"}


async def test_what_does_not_exist_is_a_problem_too(api) -> None:
    problem(await api.get("/v2"), 404, "not_found")
    answer = await api.put("/v1/sessions")
    problem(answer, 405, "method_not_allowed")
    assert "GET" in answer.headers["allow"] or "POST" in answer.headers["allow"]


async def test_a_clients_request_id_comes_back(api) -> None:
    assert (await api.get("/health", headers={"x-request-id": "abc-1"})).headers["x-request-id"] == "abc-1"
    odd = await api.get("/health", headers={"x-request-id": "a b\tc"})
    assert odd.headers["x-request-id"] not in ("", "a b\tc")


async def test_lists_are_paged_and_filtered(api) -> None:
    made = []
    for n in range(5):
        body = {"name": "my-interpreter", "metadata": {"n": str(n), "app": "x" if n % 2 else "y"}}
        made.append((await api.post("/v1/sessions", json=body)).json()["id"])
    first = (await api.get("/v1/sessions", params={"limit": 2})).json()
    second = (await api.get("/v1/sessions", params={"limit": 2, "cursor": first["next_cursor"]})).json()
    third = (await api.get("/v1/sessions", params={"limit": 2, "cursor": second["next_cursor"]})).json()
    assert [s["id"] for page in (first, second, third) for s in page["items"]] == made
    assert third["next_cursor"] is None
    odd = (await api.get("/v1/sessions", params={"metadata.app": "x", "phase": "Ready"})).json()["items"]
    assert [s["id"] for s in odd] == [made[1], made[3]]
    assert (await api.get("/v1/sessions?kind=AgentRuntime")).json()["items"] == []
    assert (await api.get("/v1/sessions?namespace=other")).json()["items"] == []


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("limit=0", "query:limit"),
        ("limit=x", "query:limit"),
        ("phase=Sleepy", "query:phase"),
        ("cursor=nonsense", "cursor"),
        ("colour=red", "there is no filter 'colour'"),
    ],
)
async def test_wrong_queries_are_named(api, query, says) -> None:
    assert says in problem(await api.get(f"/v1/sessions?{query}"), 400, "invalid")["detail"]


async def test_a_session_is_changed(api) -> None:
    made = (
        await api.post(
            "/v1/sessions",
            json={"name": "my-interpreter", "metadata": {"a": "1", "b": "2"}, "suspend_after": "5m"},
        )
    ).json()
    path = f"/v1/sessions/{made['id']}"
    changed = (
        await api.patch(path, json={"ttl": "2h", "idle_timeout": 30, "metadata": {"a": None, "c": "3"}})
    ).json()
    assert (changed["ttl"], changed["idle_timeout"], changed["suspend_after"]) == (7200, 30, 300)
    assert changed["metadata"] == {"b": "2", "c": "3"}
    assert changed["revision"] > made["revision"]
    assert (await api.patch(path, json={"suspend_after": None})).json()["suspend_after"] is None
    problem(await api.patch(path, json={"ttl": "9h"}), 400, "invalid")
    problem(await api.patch(path, json={"phase": "Ready"}), 400, "invalid")
    problem(await api.patch(path, json={"metadata": {"k": "v" * 2000}}), 400, "invalid")
    problem(await api.patch("/v1/sessions/unknown", json={"ttl": 60}), 404, "session_not_found")


async def test_a_lifetime_that_is_over_ends_the_session(api) -> None:
    id = (await api.post("/v1/sessions", json={"name": "my-interpreter"})).json()["id"]
    assert (await api.patch(f"/v1/sessions/{id}", json={"ttl": 0.001})).status_code == 200

    async def gone() -> bool:
        return (await api.get(f"/v1/sessions/{id}")).status_code == 404

    await eventually(gone, within=3)


async def test_a_session_whose_template_was_deleted_is_still_changed(api) -> None:
    id = (await api.post("/v1/sessions", json={"name": "my-interpreter"})).json()["id"]
    await api.delete("/v1/namespaces/default/code-interpreters/my-interpreter")
    assert (await api.patch(f"/v1/sessions/{id}", json={"ttl": "9h"})).json()["ttl"] == 9 * 3600


async def test_a_failed_session_cannot_be_changed(api, world) -> None:
    world.driver.fail("create", StartFailed("no"))
    id = (await api.post("/v1/sessions", json={"name": "my-interpreter"})).json()["session"]
    problem(await api.patch(f"/v1/sessions/{id}", json={"ttl": "1h"}), 409, "invalid_transition")


async def test_the_same_key_and_body_answer_with_the_same_session(api, world) -> None:
    headers = {"idempotency-key": "k1"}
    body = {"name": "my-interpreter"}
    answers = await asyncio.gather(*(api.post("/v1/sessions", json=body, headers=headers) for _ in range(5)))
    assert {a.status_code for a in answers} == {201}
    assert len({a.json()["id"] for a in answers}) == 1
    assert len(world.machine.boxes) == 1
    other = await api.post("/v1/sessions", json={**body, "ttl": 60}, headers=headers)
    problem(other, 409, "conflict")
    compat = {"name": "my-interpreter", "namespace": "default"}
    elsewhere = await api.post("/v1/code-interpreter", json=compat, headers=headers)
    assert elsewhere.status_code == 200  # another route: another key


async def test_the_key_of_a_session_that_ended_makes_no_second_one(api) -> None:
    headers = {"idempotency-key": "k2"}
    id = (await api.post("/v1/sessions", json={"name": "my-interpreter"}, headers=headers)).json()["id"]
    await api.delete(f"/v1/sessions/{id}")
    answer = await api.post("/v1/sessions", json={"name": "my-interpreter"}, headers=headers)
    assert "has ended" in problem(answer, 409, "conflict")["detail"]
    wrong = await api.post(
        "/v1/sessions", json={"name": "my-interpreter"}, headers={"idempotency-key": "x" * 300}
    )
    problem(wrong, 400, "invalid")


async def test_a_client_that_leaves_leaves_nothing_behind(api, world) -> None:
    gate = world.driver.hold("create")
    with pytest.raises(httpx2.ReadTimeout):
        await api.post("/v1/sessions", json={"name": "my-interpreter"}, timeout=0.2)
    await eventually(lambda: not world.machine.boxes)
    gate.set()
    assert (await api.get("/v1/sessions")).json()["items"] == []


async def test_a_client_that_comes_back_with_its_key_gets_its_session(world) -> None:
    world.settings["abandoned_s"] = 0.4
    async with world.manager() as manager, world.serving(manager) as client:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter())
        api, body = client(), {"name": "my-interpreter"}
        gate = world.driver.hold("create")
        for key in ("comes-back", "never-does"):
            with pytest.raises(httpx2.ReadTimeout):
                await api.post("/v1/sessions", json=body, timeout=0.1, headers={"idempotency-key": key})
        await eventually(
            lambda: sum(s.answer_by is not None for s in world.store._live.sessions.values()) == 2
        )
        gate.set()
        again = await api.post("/v1/sessions", json=body, headers={"idempotency-key": "comes-back"})
        assert again.status_code == 201
        await eventually(lambda: len(world.machine.boxes) == 1)
        assert (await api.get(f"/v1/sessions/{again.json()['id']}")).json()["phase"] == "Ready"


async def test_a_session_is_kept_whose_maker_was_taken_for_dead_and_answers_all_the_same(world) -> None:
    world.settings["replicated"] = True
    async with world.manager() as manager:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter())
        gate = world.driver.hold("bind")
        making = asyncio.ensure_future(manager.service.create_for(world.INTERPRETER, LOCAL))
        await eventually(lambda: any(operation == "bind" for operation, _ in world.driver.calls))
        # Another manager took over meanwhile: the client counted as gone, and the session is Ready.
        (begun,) = world.store._live.sessions.values()
        ready = replace(begun, hold=None, answer_by=world.clock.now() + timedelta(hours=1))
        await world.store.replace(ready.advanced(Trigger.ANSWER))
        gate.set()
        made = await making
        assert (await world.store.get(made.id)).answer_by is None


async def test_a_session_that_another_caller_of_its_key_has_does_not_end_with_a_slow_one(world) -> None:
    world.settings["start_timeout_s"] = 0.3
    async with world.manager() as manager:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter())
        gate = world.driver.hold("bind")
        making = asyncio.ensure_future(manager.service.create_for(world.INTERPRETER, LOCAL, key="k"))
        await eventually(lambda: any(operation == "bind" for operation, _ in world.driver.calls))
        (begun,) = world.store._live.sessions.values()
        # A retry by another manager has it: that was quicker than this one, which stood still.
        await world.store.replace(replace(begun, hold=None, joined=True).advanced(Trigger.ANSWER))
        with pytest.raises(StartTimedOut):
            await making
        gate.set()
        assert (await manager.service.suspect(begun.id)).phase is Phase.READY


async def test_a_first_request_that_comes_again_with_its_key_has_the_session_it_made(world) -> None:
    async with world.manager() as manager:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter())
        made = await asyncio.gather(
            *(manager.service.create_for(world.INTERPRETER, LOCAL, key="k") for _ in range(3))
        )
        assert len({s.id for s in made}) == len(world.machine.boxes) == 1
        for other in (
            await manager.service.create_for(world.INTERPRETER, LOCAL, key="other"),
            await manager.service.create_for(world.INTERPRETER, world.EVE, key="k"),
            await manager.service.create_for(world.INTERPRETER, LOCAL),
        ):
            assert other.id != made[0].id
        await manager.service.sessions.delete(made[0].id, LOCAL)
        with pytest.raises(Conflict, match="has ended"):
            await manager.service.create_for(world.INTERPRETER, LOCAL, key="k")


async def test_deleting_a_session_that_starts_gives_the_start_up(api, world) -> None:
    world.driver.hold("create")
    creating = asyncio.ensure_future(api.post("/v1/sessions", json={"name": "my-interpreter"}))
    await eventually(lambda: len(world.machine.boxes) == 1)
    [session] = (await api.get("/v1/sessions")).json()["items"]
    assert session["phase"] == "Pending"
    assert (await api.delete(f"/v1/sessions/{session['id']}")).status_code == 204
    problem(await creating, 502, "session_failed")
    assert not world.machine.boxes


async def test_a_start_that_takes_too_long_is_given_up(world) -> None:
    world.settings["start_timeout_s"] = 0.2
    async with world.manager() as manager, world.serving(manager) as client:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter())
        world.driver.hold("create")
        problem(await client().post("/v1/sessions", json={"name": "my-interpreter"}), 504, "start_timed_out")
        await eventually(lambda: not world.machine.boxes)


async def test_bounds_on_sessions_hold(world) -> None:
    world.settings |= {"sessions_max": 3, "sessions_per_owner_max": 2}
    async with world.manager() as manager, world.serving(manager) as client:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter())
        mine, eves, body = client(), client(world.EVE), {"name": "my-interpreter"}
        ids = [(await mine.post("/v1/sessions", json=body)).json()["id"] for _ in range(2)]
        problem(await mine.post("/v1/sessions", json=body), 429, "limit_exceeded")
        assert (await eves.post("/v1/sessions", json=body)).status_code == 201
        problem(await eves.post("/v1/sessions", json=body), 503, "capacity_exhausted")
        assert (await mine.delete(f"/v1/sessions/{ids[0]}")).status_code == 204
        assert (await eves.post("/v1/sessions", json=body)).status_code == 201


async def test_twenty_at_a_time_all_become_ready(api, world) -> None:
    answers = await asyncio.gather(
        *(api.post("/v1/sessions", json={"name": "my-interpreter"}) for _ in range(20))
    )
    assert {a.status_code for a in answers} == {201}
    assert len({a.json()["sandbox"]["id"] for a in answers}) == 20 == len(world.machine.boxes)


@pytest.mark.parametrize(
    "body", [r'{"name": "a", "\ud800": 1}', r'{"name": "a", "metadata": {"a": "\ud800"}}']
)
async def test_half_a_surrogate_pair_is_a_refusal_and_leaves_no_session(api, world, body) -> None:
    made = await api.post("/v1/sessions", content=body, headers={"content-type": "application/json"})
    problem(made, 400, "invalid")
    assert (await api.get("/v1/sessions")).json()["items"] == []
