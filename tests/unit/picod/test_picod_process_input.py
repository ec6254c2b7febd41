"""Standard input: each byte once, in order, and nobody waits for ever on a program that reads nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

import pytest

from agentcube.picod.problems import Problem
from agentcube.picod.process_input import Input


def body(*pieces: bytes) -> Callable[[], Awaitable[bytes]]:
    left = list(pieces)

    async def read() -> bytes:
        return left.pop(0) if left else b""

    return read


class Pipe:
    """An input with the other end of its pipe."""

    def __init__(self, stall_s: float = 30.0) -> None:
        self.fd, write = os.pipe()
        self.input = Input(asyncio.get_running_loop(), write, None, stall_s=stall_s)

    def close(self) -> None:
        os.close(self.fd)
        self.input.end()


def test_a_write_that_is_repeated_writes_only_what_is_new() -> None:
    async def story() -> None:
        pipe = Pipe()
        assert await pipe.input.write(body(b"abc", b"def"), 0, close=False)
        assert await pipe.input.write(body(b"cd", b"efg"), 2, close=False)
        assert await pipe.input.write(body(b"h"), None, close=False)
        assert pipe.input.accepted == 8
        assert os.read(pipe.fd, 100) == b"abcdefgh"
        pipe.close()

    asyncio.run(story())


def test_an_offset_beyond_what_was_accepted_is_refused() -> None:
    async def story() -> None:
        pipe = Pipe()
        with pytest.raises(Problem, match="beyond the 0 bytes"):
            await pipe.input.write(body(b"abc"), 1, close=False)
        pipe.close()

    asyncio.run(story())


def test_after_the_end_only_what_says_nothing_new_succeeds() -> None:
    async def story() -> None:
        pipe = Pipe()
        assert await pipe.input.write(body(b"abc"), 0, close=True)
        assert (os.read(pipe.fd, 100), os.read(pipe.fd, 100)) == (b"abc", b"")
        assert await pipe.input.write(body(b"abc"), 0, close=True)  # its answer was lost
        for pieces, offset in (((b"d",), None), ((b"abcd",), 0), ((), None)):
            with pytest.raises(Problem) as caught:
                await pipe.input.write(body(*pieces), offset, close=False)
            assert caught.value.code == "stdin_closed"
            assert caught.value.context == {"offset": 3}
        pipe.input.end()
        with pytest.raises(Problem) as caught:
            await pipe.input.write(body(b"d"), None, close=False)
        assert caught.value.code == "process_ended"
        pipe.close()

    asyncio.run(story())


def test_a_program_that_reads_nothing_is_told_and_nothing_is_lost() -> None:
    async def story() -> None:
        pipe = Pipe(stall_s=0.05)
        data = os.urandom(1 << 20)
        assert not await pipe.input.write(body(data), 0, close=True)
        accepted = pipe.input.accepted
        assert 0 < accepted < len(data)
        assert pipe.input.open

        read = bytearray(os.read(pipe.fd, 1 << 20))
        again = asyncio.create_task(pipe.input.write(body(data), 0, close=True))
        while not again.done() or len(read) < len(data):
            await asyncio.sleep(0)
            if pipe.input.accepted > len(read):
                read += os.read(pipe.fd, 1 << 20)
        assert await again
        assert bytes(read) == data
        pipe.close()

    asyncio.run(story())


def test_a_second_writer_waits_for_its_turn_but_not_for_ever() -> None:
    async def story() -> None:
        pipe = Pipe(stall_s=0.2)
        first = asyncio.create_task(pipe.input.write(body(bytes(1 << 20)), None, close=False))
        await asyncio.sleep(0)
        assert not await pipe.input.write(body(b"x"), None, close=False)
        assert not await first
        pipe.close()

    asyncio.run(story())


def test_an_end_wakes_who_is_writing() -> None:
    async def story() -> None:
        pipe = Pipe()
        writing = asyncio.create_task(pipe.input.write(body(bytes(1 << 20)), None, close=False))
        while not pipe.input.accepted:
            await asyncio.sleep(0)
        pipe.input.end()
        with pytest.raises(Problem, match="has ended"):
            await writing
        pipe.close()

    asyncio.run(story())


def test_a_program_that_closes_its_end_ends_it() -> None:
    async def story() -> None:
        pipe = Pipe()
        os.close(pipe.fd)
        with pytest.raises(Problem, match="program has closed"):
            await pipe.input.write(body(b"x"), None, close=False)
        assert not pipe.input.open

    asyncio.run(story())


def test_feeding_ends_with_a_close_and_takes_a_deaf_program() -> None:
    async def story() -> None:
        pipe, deaf = Pipe(), Pipe()
        await pipe.input.feed(b"abc")
        assert (os.read(pipe.fd, 100), os.read(pipe.fd, 100)) == (b"abc", b"")
        os.close(deaf.fd)
        await deaf.input.feed(b"abc")
        os.close(pipe.fd)

    asyncio.run(story())
