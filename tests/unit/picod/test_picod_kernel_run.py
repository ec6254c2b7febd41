"""What is kept of a cell, for how long, and when its kernel is held up. No kernel, no network."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from agentcube.picod import kernel_run
from agentcube.picod.kernel_events import members
from agentcube.picod.kernel_run import Execution, Order, Store


def running(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    @functools.wraps(test)
    def run() -> None:
        asyncio.run(test())

    del run.__wrapped__  # type: ignore[attr-defined]  # pytest looks behind it
    return run


class Client:
    """Takes what a stream sends; `after` how many events its connection breaks."""

    def __init__(self, breaks_after: int = 1 << 30) -> None:
        self.events: list[dict[str, Any]] = []
        self._left = breaks_after
        self.closed = False

    async def send(self, event: str, members: dict[str, Any]) -> None:
        await self.send_encoded(event, json.dumps({"event": event, **members}).encode())

    async def send_encoded(self, event: str, data: bytes) -> None:
        if self._left == 0:
            raise ConnectionResetError
        self._left -= 1
        self.events.append(json.loads(data))
        await asyncio.sleep(0)

    async def close(self) -> None:
        self.closed = True


def execution(store: Store | None = None, **order: Any) -> Execution:
    return Execution(asyncio.get_running_loop(), store or Store(), Order("code", **order), 1)


async def read(one: Execution, after: int = 0, client: Client | None = None) -> Client:
    client = client or Client()
    reader = one.attach(after)
    try:
        await one.stream(cast(Any, client), reader, after)
    except ConnectionResetError:
        pass
    finally:
        one.detach(reader)
    return client


def write(one: Execution, size: int) -> None:
    one.output("stdout", b"x" * size)


@running
async def test_events_are_numbered_and_the_last_ends_the_stream() -> None:
    one = execution()
    one.add("start", members(execution=one.id))
    write(one, 3)
    one.output("stderr", b"\xe2\x82")
    one.output("stderr", b"\xac\xff\xe2")
    one.finish("ok", state_lost=False)
    client = await read(one)
    assert [(event["seq"], event["event"]) for event in client.events] == [
        (1, "start"),
        (2, "stdout"),
        (3, "stderr"),
        (4, "stderr"),
        (5, "end"),
    ]
    assert client.events[2]["text"] + client.events[3]["text"] == "€��"
    assert client.closed


@running
async def test_a_direct_reader_makes_room_as_it_reads() -> None:
    one, room = execution(), []
    one.room = lambda: room.append(1)
    while not one.full:
        write(one, 10_000)
    assert one.size < kernel_run.DIRECT_BYTES + 20_000
    client = Client()
    task = asyncio.create_task(read(one, 0, client))
    while one.full:
        await asyncio.sleep(0)
    assert room
    one.finish("ok", state_lost=False)
    await task
    assert client.events[-1]["event"] == "end"


@running
async def test_with_a_grace_only_confirmation_makes_room() -> None:
    one = execution(grace_s=60)
    while not one.full:
        write(one, 100_000)
    assert one.size >= kernel_run.HELD_BYTES
    first = await read(one)
    assert first.events[-1]["event"] == "more"
    assert first.closed
    assert one.full
    second = await read(one, first.events[-1]["after"])
    assert not one.full
    assert second.events[0]["seq"] == first.events[-1]["after"] + 1


@running
async def test_a_cell_that_is_to_stop_may_say_so() -> None:
    one = execution(grace_s=60)
    while not one.full:
        write(one, 100_000)
    one.stopping = "interrupted"
    assert not one.full


@running
async def test_whoever_is_gone_for_good_abandons_the_cell() -> None:
    for grace_s in (0.0, 0.02):
        one, told = execution(grace_s=grace_s), asyncio.Event()
        one.abandoned = told.set
        one.add("start", "")
        await read(one, 0, Client(breaks_after=0))
        await asyncio.wait_for(told.wait(), 20)
        for _ in range(100):  # nobody waits for it, so it never fills up
            write(one, 100_000)
        assert not one.full
        assert one.size <= kernel_run.HELD_BYTES


@running
async def test_a_reader_that_comes_back_in_time_keeps_the_cell() -> None:
    one, told = execution(grace_s=60), []
    one.abandoned = lambda: told.append(1)
    one.add("start", "")
    await read(one, 0, Client(breaks_after=0))
    one.finish("ok", state_lost=False)
    client = await read(one)
    assert [event["event"] for event in client.events] == ["start", "end"]
    assert not told


@running
async def test_an_older_reader_is_replaced() -> None:
    one = execution(grace_s=60)
    one.add("start", "")
    old = Client()
    task = asyncio.create_task(read(one, 0, old))
    while not old.events:
        await asyncio.sleep(0)
    new = asyncio.create_task(read(one))
    await task
    assert [event["event"] for event in old.events] == ["start", "replaced"]
    one.finish("ok", state_lost=False)
    assert [event["event"] for event in (await new).events] == ["start", "end"]


@running
async def test_what_all_keep_is_bounded_and_the_ended_lose_first() -> None:
    store = Store(1_000_000)
    old, other, now = (execution(store, grace_s=60) for _ in range(3))
    for one in (old, other):
        write(one, 400_000)
        one.finish("ok", state_lost=False)
    write(now, 400_000)
    assert old.size < 1000 < other.size
    events = (await read(old)).events
    assert [event["event"] for event in events] == ["gap", "end"]
    write(now, 1_000_000)
    assert other.size < 1000
    assert now.full
    told = []
    now.room = lambda: told.append(1)
    now.detach(now.attach(now.last))
    assert told
    assert not now.full


@running
async def test_what_is_read_is_not_dropped() -> None:
    store = Store(500_000)
    one, other = execution(store), execution(store)
    write(one, 400_000)
    reader = one.attach(0)
    one.finish("ok", state_lost=False)
    write(other, 400_000)
    assert one.size > 400_000
    one.detach(reader)


@running
async def test_large_messages_come_one_after_the_other() -> None:
    store, called = Store(), []
    assert store.take_large("a")
    assert store.take_large("a")
    assert not store.take_large("b")
    store.tell("b", lambda: called.append("b"))
    store.give_large("b")
    assert not called
    store.give_large("a")
    assert called == ["b"]
    assert store.take_large("b")


@running
async def test_a_dismissed_cell_is_read_to_its_end_and_then_forgotten() -> None:
    store = Store()
    one = execution(store)
    one.add("start", "")
    task = asyncio.create_task(read(one))
    await asyncio.sleep(0)
    one.finish("kernel_died", state_lost=True, reason="why")
    one.dismiss()
    assert (await task).events[-1]["reason"] == "why"
    assert one.size == 0
    with pytest.raises(IndexError):
        one._fresh.popleft()
