"""The small parts: targets, memory that stays bounded, shared calls, kept tokens, activity."""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcube.errors import NotFound, StoreFailed
from agentcube.model.ids import SessionId
from agentcube.model.template import Kind, TemplateKey
from agentcube.ports.clock import SystemClock
from agentcube.router.activity import Activity
from agentcube.router.flights import Flights
from agentcube.router.memo import Memo
from agentcube.router.problems import NoSuchRoute
from agentcube.router.targets import Health, Invocation, Managed, Routes, SandboxCall, longest_prefix
from agentcube.router.tokens import Tokens

pytestmark = pytest.mark.anyio

AGENT = TemplateKey(Kind.AGENT_RUNTIME, "ns", "a")
CODE = TemplateKey(Kind.CODE_INTERPRETER, "ns", "invocations")

TARGETS = {
    b"/v1/namespaces/ns/agent-runtimes/a/invocations": Invocation(AGENT, b"/"),
    b"/v1/namespaces/ns/agent-runtimes/a/invocations/": Invocation(AGENT, b"/"),
    b"/v1/namespaces/ns/agent-runtimes/a/invocations?x": Invocation(AGENT, b"/?x"),
    b"/v1/namespaces/ns/agent-runtimes/a/invocations/b/invocations/c": Invocation(AGENT, b"/b/invocations/c"),
    b"/v1/namespaces/ns/code-interpreters/invocations/invocations/x": Invocation(CODE, b"/x"),
    b"/v1/namespaces/ns/agent-runtimes/a/invocationsx": Managed(),
    b"/v1/namespaces/ns/agent-runtimes/a?x=/invocations/": Managed(),
    b"/v1/namespaces/ns/agent-runtimes/invocations": Managed(),
    b"/v1/namespaces/ns/pools/a/invocations/x": Managed(),
    b"/v1/namespaces/invocations/agent-runtimes": Managed(),
    b"/v1/sessions/s/execute": SandboxCall(SessionId("s"), b"/api/execute"),
    b"/v1/sessions/s/files?path=a": SandboxCall(SessionId("s"), b"/api/files?path=a"),
    b"/v1/sessions/s/files/a/../b%2F": SandboxCall(SessionId("s"), b"/api/files/a/../b%2F"),
    b"/v1/sessions/s/executes": Managed(),
    b"/v1/sessions/s/suspend": Managed(),
    b"/v1/sessions": Managed(),
    b"/v1/sessions?limit=1": Managed(),
    b"/openapi.json": Managed(public=True),
    b"/docs?x=y": Managed(public=True),
    b"/health": Health(b""),
    b"/health?x": Health(b""),
    b"/health/live": Health(b"/live"),
}


def test_targets_mean_what_they_say_also_when_remembered() -> None:
    routes = Routes("localhost")
    for _ in range(3):
        for target, meaning in TARGETS.items():
            assert routes.route(target) == meaning, target


@pytest.mark.parametrize(
    "target",
    [b"*", b"/", b"/v1", b"/v1/session", b"/V1/sessions", b"/health/x", b"/docs/x", b"//v1/sessions"],
)
def test_other_targets_are_not_served(target: bytes) -> None:
    with pytest.raises(NoSuchRoute):
        Routes("localhost").route(target)


@given(
    st.lists(
        st.sampled_from([b"/v1/", b"namespaces/", b"a/", b"agent-runtimes/", b"invocations", b"?", b"/"])
    )
)
def test_remembering_changes_no_meaning(parts: list[bytes]) -> None:
    target = b"/v1/namespaces/" + b"".join(parts)
    warm, outcomes = Routes("localhost"), []
    for known in TARGETS:
        warm.route(known)
    for routes in (Routes("localhost"), warm, warm):
        try:
            outcomes.append(routes.route(target))
        except NoSuchRoute:
            outcomes.append(None)  # type: ignore[arg-type]
    assert outcomes[0] == outcomes[1] == outcomes[2]


def test_no_prefix_is_not_found() -> None:
    assert longest_prefix((b"/api/v2", b"/api", b"/"), b"/apiary") == 1
    with pytest.raises(NotFound):
        longest_prefix((b"/api",), b"/")


@given(st.lists(st.integers(0, 30), max_size=300))
def test_a_memo_stays_bounded_and_keeps_the_newest(keys: list[int]) -> None:
    memo: Memo[int, str] = Memo(5)
    newest: list[int] = []
    for key in keys:
        if memo.find(key) is None:
            memo.put(key, str(key))
        newest = [*[k for k in newest if k != key], key][-5:]
        held = set(memo.young) | set(memo._old)
        assert len(held) <= 10
        assert set(newest) <= held
        assert all(memo.find(k) == str(k) for k in newest[-1:])


async def test_those_who_ask_together_share_one_call_and_its_outcome() -> None:
    calls, gate = 0, asyncio.Event()
    flights: Flights[int] = Flights()

    async def call() -> int:
        nonlocal calls
        calls += 1
        await gate.wait()
        if calls == 2:
            raise StoreFailed("no")
        return calls

    async with asyncio.TaskGroup() as group:
        waiters = [group.create_task(flights.join("key", call)) for _ in range(3)]
        await asyncio.sleep(0)
        waiters[0].cancel()
        await asyncio.sleep(0)
        gate.set()
    assert [w.result() for w in waiters[1:]] == [1, 1]
    with pytest.raises(StoreFailed):
        await flights.join("key", call)
    assert await flights.join("key", call) == 3


async def test_tokens_are_signed_once_renewed_early_and_never_used_late() -> None:
    now, signed = 1_000_000.0, 0

    def sign() -> str:
        nonlocal signed
        signed += 1
        return f"t{signed}"

    with ThreadPoolExecutor(1) as executor:
        kept = Tokens(executor, lambda: now)
        assert kept.find("a", sign) is None
        both = await asyncio.gather(kept.get("a", sign), kept.get("a", sign))
        assert both == [b"Authorization: Bearer t1\r\n"] * 2
        now += 149
        assert kept.fresh("a") == kept.find("a", sign) == b"Authorization: Bearer t1\r\n"
        now += 2  # half its life is over: the old one serves while a new one is signed
        assert kept.fresh("a") is None
        assert kept.find("a", sign) == b"Authorization: Bearer t1\r\n"
        assert await kept.get("a", sign) == b"Authorization: Bearer t1\r\n"
        async with asyncio.timeout(5):
            while kept.fresh("a") != b"Authorization: Bearer t2\r\n":
                await asyncio.sleep(0)
        assert signed == 2
        now += 241
        assert kept.find("a", sign) is None
        assert await kept.get("a", sign) == b"Authorization: Bearer t3\r\n"
        now -= 10  # the clock was set back: the sandbox would call the token one of the future
        assert kept.find("a", sign) is None
        await kept.close()


class Touchable:
    def __init__(self) -> None:
        self.fails = True
        self.noted: dict[SessionId, datetime] = {}

    async def touch(self, activity: Mapping[SessionId, datetime]) -> None:
        if self.fails:
            raise StoreFailed("out of reach")
        self.noted.update(activity)


async def test_activity_that_could_not_be_stored_is_kept() -> None:
    store = Touchable()
    activity = Activity(store, SystemClock())  # type: ignore[arg-type]  # the part that it uses
    activity.note(SessionId("a"))
    await activity.flush()
    activity.note(SessionId("b"))
    store.fails = False
    await activity.flush()
    assert set(store.noted) == {"a", "b"}
    assert abs((datetime.now(UTC) - store.noted[SessionId("a")]).total_seconds()) < 60
    store.noted.clear()
    await activity.flush()
    assert store.noted == {}
