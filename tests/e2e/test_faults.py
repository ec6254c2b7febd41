"""The server is killed in the middle of creations, sleeps, wakes and deletions, over and over; its store is Valkey.

What every client was told holds afterwards, what it was not told can be asked again, and nothing is left.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

from agentcube.testing.eventually import eventually
from agentcube.testing.redis_server import RedisServer, running
from tests.e2e import harness
from tests.redis_servers import DURABLE, program

pytestmark = [pytest.mark.serial, pytest.mark.timeout(420)]

SESSIONS = "/v1/sessions"
INTERPRETER = {"kind": "CodeInterpreter", "namespace": "default", "name": "my-interpreter"}
ENOUGH = 6  # of each kind of call, before the kill


@dataclass
class Told:
    """What clients asked for, and what they were told."""

    keys: list[str] = field(default_factory=list)
    made: dict[str, str] = field(default_factory=dict)  # session ids by key
    written: set[str] = field(default_factory=set)
    ending: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)
    naps: int = 0


async def _create(http: httpx2.AsyncClient, key: str) -> httpx2.Response:
    return await http.post(SESSIONS, json=INTERPRETER, headers={"idempotency-key": key})


async def _create_on_and_on(http: httpx2.AsyncClient, told: Told, name: str) -> None:
    for number in range(10_000):
        key = f"{name}-{number}"
        told.keys.append(key)
        answer = await _create(http, key)
        assert answer.status_code == 201, answer.text
        id = told.made[key] = answer.json()["id"]
        answer = await http.put(f"{SESSIONS}/{id}/files/kept.txt", content=key.encode())
        assert answer.status_code == 201, answer.text
        told.written.add(id)


async def _delete_on_and_on(http: httpx2.AsyncClient, told: Told) -> None:
    while True:
        old = next((id for id in list(told.made.values())[:-6] if id not in told.ending), None)
        if old is None:
            await asyncio.sleep(0.01)
            continue
        told.ending.add(old)
        answer = await http.delete(f"{SESSIONS}/{old}")
        assert answer.status_code in (200, 204), answer.text
        told.ended.add(old)


async def _sleep_on_and_on(http: httpx2.AsyncClient, told: Told, id: str) -> None:
    while True:
        for wish in ("suspend", "resume"):
            answer = await http.post(f"{SESSIONS}/{id}/{wish}")
            assert answer.status_code in (200, 409), answer.text
        told.naps += 1


def _client(server: harness.Server) -> httpx2.AsyncClient:
    authorization = {"authorization": f"Bearer {server.api_key}"}
    return httpx2.AsyncClient(base_url=server.url, headers=authorization, timeout=120)


async def _kill_amid_it_all(server: harness.Server, told: Told, sleepers: list[str]) -> None:
    """Every kind of call is under way when the server is killed: whoever calls does nothing else."""
    dead = False

    async def until_dead(work: Awaitable[None]) -> None:
        try:
            await work
        except httpx2.TransportError:
            assert dead

    async with _client(server) as http, asyncio.TaskGroup() as group:
        for name in "abc":
            group.create_task(until_dead(_create_on_and_on(http, told, f"{name}-{server.process.pid}")))
        deleting = [group.create_task(until_dead(_delete_on_and_on(http, told))) for _ in range(2)]
        for id in sleepers:
            group.create_task(until_dead(_sleep_on_and_on(http, told, id)))
        naps, ended = told.naps, len(told.ended)

        def enough() -> bool:
            slept = not sleepers or told.naps >= naps + ENOUGH
            return slept and len(told.ended) >= ended + ENOUGH and len(told.ending) > len(told.ended)

        await eventually(enough, within=120)
        dead = True
        server.kill()
        for task in deleting:  # with nothing to delete they do not notice
            task.cancel()


async def _check(server: harness.Server, told: Told, sleepers: list[str]) -> None:
    async with _client(server) as http:
        for key in told.keys:
            answer = await _create(http, key)
            known = told.made.get(key)
            if answer.status_code == 409:  # ended, as somebody had asked
                assert known in told.ending, (key, answer.text)
                told.ended.add(known)
                continue
            assert answer.status_code == 201, answer.text
            id = told.made.setdefault(key, answer.json()["id"])
            assert answer.json()["id"] == id, "one key, two sessions"
        await eventually(lambda: _is(http, told, sleepers), within=60)
        for key, id in told.made.items():
            if id in told.ended:
                assert (await http.get(f"{SESSIONS}/{id}")).status_code == 404
            elif id in told.written:
                kept = await http.get(f"{SESSIONS}/{id}/files/kept.txt")
                assert (kept.status_code, kept.text) == (200, key), "a session lost what was in it"
        for id in sleepers:
            assert (await http.get(f"{SESSIONS}/{id}/files/kept.txt")).text == "sleeper"


async def _is(http: httpx2.AsyncClient, told: Told, sleepers: list[str]) -> bool:
    """There are just the sessions that clients know, each at rest with a sandbox of its own."""
    listed = (await http.get(SESSIONS, params={"limit": 1000})).json()["items"]
    sandboxes = [s["sandbox"]["id"] for s in listed if s.get("sandbox")]
    assert len(sandboxes) == len(set(sandboxes)), "a sandbox in two sessions"
    known = (set(told.made.values()) | set(sleepers)) - told.ended
    resting = all(s["phase"] in ("Ready", "Paused") for s in listed)
    return resting and {s["id"] for s in listed} == known and len(sandboxes) == len(known)


async def _sleepers(server: harness.Server, count: int) -> list[str]:
    """Sessions to be put to sleep and woken all the time; none where nothing can freeze a sandbox."""
    async with _client(server) as http:
        made = []
        for number in range(count):
            body = (await _create(http, f"sleeper-{number}")).json()
            if body["sandbox"]["facts"]["sleep"] == "none":
                await http.delete(f"{SESSIONS}/{body['id']}")
                return []
            await http.put(f"{SESSIONS}/{body['id']}/files/kept.txt", content=b"sleeper")
            made.append(body["id"])
        return made


def test_a_server_killed_in_the_middle_of_everything_doubles_and_loses_nothing(tmp_path: Path) -> None:
    with running(program("valkey"), tmp_path / "valkey", *DURABLE) as redis, harness.orphans():
        _storm(redis, tmp_path / "data")


def _storm(redis: RedisServer, data_dir: Path) -> None:
    start: Callable[[], harness.Server] = lambda: harness.start(  # noqa: E731
        data_dir, "--store", redis.url, "--pool", "2"
    )
    before = harness.census(data_dir)
    told = Told()
    server = start()
    try:
        sleepers = asyncio.run(_sleepers(server, 2))
        for _ in range(2):
            asyncio.run(_kill_amid_it_all(server, told, sleepers))
            server = start()
            asyncio.run(_check(server, told, sleepers))
    finally:
        code = server.stop()
    assert code == 0, server.log.read_text()[-4000:]
    with contextlib.suppress(AssertionError):
        harness.eventually(lambda: harness.census(data_dir) == before, within=30)
    assert harness.census(data_dir) == before
