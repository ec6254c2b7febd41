"""Memory that requests share."""

import asyncio

from agentcube.picod.messages import Room


def test_who_finds_no_room_waits_for_it() -> None:
    async def story() -> None:
        room = Room(10)
        assert await room.take(8)
        waiting = [asyncio.create_task(room.take(8)) for _ in range(2)]
        await asyncio.sleep(0)
        room.give(8)
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert len(done) == 1
        room.give(8)
        assert await asyncio.gather(*waiting) == [True, True]

    asyncio.run(story())


def test_nobody_waits_for_ever_and_nothing_is_taken_then() -> None:
    async def story() -> None:
        room = Room(10, patience_s=0.01)
        assert await room.take(8)
        assert not await room.take(3)
        assert await room.take(2)

    asyncio.run(story())


def test_who_leaves_while_waiting_takes_nothing() -> None:
    async def story() -> None:
        room = Room(10)
        assert await room.take(8)
        leaving = asyncio.create_task(room.take(8))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        room.give(8)
        assert await room.take(10)

    asyncio.run(story())
