"""Terminals, standard streams and signals of the command line, with real terminals and pipes."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import signal
import struct
import termios
import threading
from collections.abc import Iterator

import pytest

from agentcube.cli import streams, terminal


@pytest.fixture
def both_ends() -> Iterator[tuple[int, int]]:
    outer, inner = pty.openpty()
    yield outer, inner
    os.close(outer)
    os.close(inner)


def test_a_terminal_is_raw_in_the_block_and_as_before_afterwards(both_ends: tuple[int, int]) -> None:
    _, inner = both_ends
    before = termios.tcgetattr(inner)
    with contextlib.suppress(ZeroDivisionError), terminal.Raw(inner) as raw:
        assert not termios.tcgetattr(inner)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
        raw.restore()
        assert termios.tcgetattr(inner) == before
        raw.resume()
        assert not termios.tcgetattr(inner)[3] & termios.ICANON
        raise ZeroDivisionError
    assert termios.tcgetattr(inner) == before


def test_what_is_no_terminal_is_left_alone() -> None:
    reading, writing = os.pipe()
    with terminal.Raw(reading) as raw:
        raw.restore()
        raw.resume()
    os.close(reading)
    os.close(writing)


def test_a_terminal_that_is_gone_is_no_failure() -> None:
    outer, inner = pty.openpty()
    with terminal.Raw(inner):
        os.close(outer)
        os.close(inner)


def test_sizes(both_ends: tuple[int, int]) -> None:
    outer, inner = both_ends
    reading, writing = os.pipe()
    for rows, columns, expected in ((30, 100, (100, 30)), (0, 0, (80, 24)), (9999, 9999, (4096, 4096))):
        fcntl.ioctl(outer, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        assert terminal.size_of(reading, inner) == expected
    os.close(reading)
    os.close(writing)
    assert terminal.size_of(reading) == (80, 24)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("xterm-256color", "xterm-256color"),
        ("tmux-256color", "tmux-256color"),
        ("linux", "linux"),
        ("xterm-kitty", "xterm-256color"),
        ("alacritty", "xterm-256color"),
        ("", "xterm-256color"),
    ],
)
def test_term_is_one_that_other_machines_know(
    monkeypatch: pytest.MonkeyPatch, given: str, expected: str
) -> None:
    monkeypatch.setenv("TERM", given)
    assert terminal.kind() == expected


@pytest.mark.parametrize(
    ("typed", "sent", "ended"),
    [
        ([b"ls\r"], b"ls\r", False),
        ([b"~."], b"", True),
        ([b"x\r~.rest"], b"x\r", True),
        ([b"x\r", b"~", b"."], b"x\r", True),
        ([b"x~."], b"x~.", False),
        ([b"~~."], b"~.", False),
        ([b"~/x\r"], b"~/x\r", False),
        ([b"~\r~."], b"~\r", True),
    ],
)
def test_the_way_out(typed: list[bytes], sent: bytes, ended: bool) -> None:
    escape = terminal.Escape()
    got = [escape.feed(piece) for piece in typed]
    assert b"".join(piece for piece, _ in got) == sent
    assert got[-1][1] is ended


def test_input_comes_as_it_is_written_and_ends() -> None:
    data = os.urandom(3 * streams.WAITING_BYTES_MAX)
    reading, writing = os.pipe()

    def write() -> None:
        with os.fdopen(writing, "wb") as file:
            file.write(data)

    async def main() -> bytes:
        inlet = streams.Inlet(reading)
        os.write(writing, b"first")
        got = bytearray(await inlet.read())
        assert got == b"first"
        writer = threading.Thread(target=write)
        writer.start()
        while piece := await inlet.read():
            assert len(piece) < streams.WAITING_BYTES_MAX + streams.READ_BYTES
            got += piece
        assert await inlet.read() == b""
        writer.join()
        return bytes(got)

    assert asyncio.run(main()) == b"first" + data
    os.close(reading)


def test_streams_that_do_not_block_by_themselves_are_waited_for() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    data = os.urandom(500_000)

    async def main() -> bytes:
        inlet, got = streams.Inlet(reading), bytearray()
        with streams.Outlet() as outlet:
            written = asyncio.ensure_future(outlet.write(writing, data))
            while len(got) < len(data):
                got += await inlet.read()
            await written
        os.close(writing)
        assert await inlet.read() == b""
        return bytes(got)

    assert asyncio.run(main()) == data
    os.close(reading)


def test_a_slow_reader_does_not_hold_up_the_loop_nor_the_end() -> None:
    reading, writing = os.pipe()

    async def main() -> None:
        with streams.Outlet() as outlet:
            stuck = asyncio.ensure_future(outlet.write(writing, bytes(1_000_000)))
            await asyncio.sleep(0.01)
            assert not stuck.done()
            stuck.cancel()

    asyncio.run(main())
    os.close(reading)
    os.close(writing)


def test_a_reader_that_is_gone_is_an_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)

    async def main() -> None:
        with streams.Outlet() as outlet, pytest.raises(BrokenPipeError):
            await outlet.write(writing, b"x")

    asyncio.run(main())
    os.close(writing)


def test_signals_are_heard_in_the_block_only() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    handler = signal.getsignal(signal.SIGTERM)

    async def main() -> None:
        came = asyncio.Event()

        def hear(number: int) -> None:
            heard.append(number)
            came.set()

        with streams.hearing(hear, "SIGTERM", "SIGUSR1", "SIGNONE"):
            os.kill(os.getpid(), signal.SIGUSR1)  # ignored by whoever started us
            os.kill(os.getpid(), signal.SIGTERM)
            await came.wait()

    try:
        asyncio.run(main())
        assert heard == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) == handler
    finally:
        signal.signal(signal.SIGUSR1, before)
