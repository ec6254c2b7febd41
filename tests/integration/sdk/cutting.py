"""A proxy that cuts connections after random numbers of bytes, or seconds, either way, softly or with a reset."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from tests.integration.sdk.serving import serving


class CuttingProxy:
    """All connections but every fourth are cut; `cuts` counts them. While it is `resting`, none is, until `unleash`.

    `most`: bytes after which at the latest; `early`: half of them within the first 600; `life_s`: seconds after which
    on average, if at all.
    """

    def __init__(
        self, target: str, seed: int, *, most: int, early: bool = True, life_s: float | None = None
    ) -> None:
        parts = urlsplit(target)
        self.cuts = 0
        self.url = ""
        self._host, self._port = str(parts.hostname), int(parts.port or 0)
        self._random = random.Random(seed)
        self._most, self._early, self._life_s = most, early, life_s
        self._limits: list[list[int]] = []
        self._made = 0
        self.resting = False

    def unleash(self) -> None:
        """Cut again, also what was connected meanwhile."""
        self.resting, self._made = False, 0
        for left in self._limits:
            left[0] = self._limit()

    def _limit(self) -> int:
        self._made += 1
        if self.resting or self._made % 4 == 0:
            return 1 << 60
        if self._early and self._random.random() < 0.5:
            return self._random.randint(0, 600)  # within the first request or its answer
        return self._random.randint(0, self._most)

    def _life(self, bytes_left: int) -> float | None:
        endless = self._life_s is None or bytes_left > 1 << 50
        return None if endless else self._random.expovariate(1 / self._life_s)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream = await asyncio.open_connection(self._host, self._port)
        left = [self._limit()]
        self._limits.append(left)
        ways = [
            asyncio.ensure_future(self._pump(reader, upstream[1], left)),
            asyncio.ensure_future(self._pump(upstream[0], writer, left)),
        ]
        try:
            await asyncio.wait(ways, timeout=self._life(left[0]), return_when=asyncio.FIRST_COMPLETED)
            if not any(way.done() for way in ways):
                self.cuts += 1
                left[0] = 0
        finally:
            for way in ways:
                way.cancel()
            await asyncio.wait(ways)
            reset = left[0] <= 0 and self._random.random() < 0.5
            for one in (writer, upstream[1]):
                _close(one, reset=reset)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: list[int]
    ) -> None:
        try:
            while left[0] > 0 and (data := await reader.read(65536)):
                writer.write(data[: left[0]])
                left[0] -= len(data)
                self.cuts += left[0] <= 0
                await writer.drain()
        except ConnectionError:
            return


def _close(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    if reset:
        peer = writer.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    writer.close()


@contextmanager
def cutting(
    target: str, seed: int, *, most: int = 20_000, early: bool = True, life_s: float | None = None
) -> Iterator[CuttingProxy]:
    """A proxy in front of a server."""
    proxy = CuttingProxy(target, seed, most=most, early=early, life_s=life_s)
    with serving(asyncio.new_event_loop(), proxy.serve) as proxy.url:
        yield proxy
