"""What a process writes, as events to one client: in order, by offset, and confirmed where nothing may be lost."""

from __future__ import annotations

import base64
import codecs

from agentcube.picod.events import EventStream
from agentcube.picod.process_life import Process

PIECE_BYTES = 48 * 1024  # of output in one event; a multiple of three, for base64
UNCONFIRMED_BYTES = 512 * 1024
"""What a stream with a grace sends before the client has to say what it got: sockets on the way hold megabytes."""


class ProcessStream:
    """One client's view of a process, from `positions` on: offsets by stream, which move on as it is sent.

    `reader` is the attachment of a foreground process' one reader, None for others, who only look.
    """

    def __init__(
        self,
        process: Process,
        events: EventStream,
        positions: dict[str, int],
        *,
        as_base64: bool,
        reader: object | None,
    ) -> None:
        self._process = process
        self._events = events
        self._positions = positions
        self._as_base64 = as_base64
        self._reader = reader
        self._sent = 0

    async def run(self, *, follow: bool) -> None:
        """Send everything there is, and unless `follow` is off what comes, up to an event that ends the stream."""
        process = self._process
        wanted = process.ends()
        await self._events.send("start", process.start_event())
        while True:
            version, settled = process.version, process.settled.is_set()
            if self._reader is not None and process.reader is not self._reader:
                return await self._events.close("replaced")
            enough = self._is_unconfirmed() or not (follow or self._is_short_of(wanted))
            if not enough and await self._send_piece(final=settled):
                continue
            if settled and not self._is_short_of(process.ends()):
                return await self._events.close("exit", process.exit_event())
            if enough or not follow or self._is_stuck():
                return await self._events.close("more", self._positions)
            await process.change(version)

    @property
    def _confirms(self) -> bool:
        """Whether the client says by attaching again what it got."""
        return self._reader is not None and self._process.grace_s > 0

    def _is_unconfirmed(self) -> bool:
        return self._confirms and self._sent >= UNCONFIRMED_BYTES

    def _is_stuck(self) -> bool:
        """Whether no more will be read before what was sent is confirmed."""
        return self._confirms and any(output.full for output in self._process.outputs.values())

    def _is_short_of(self, ends: dict[str, int]) -> bool:
        return any(position < ends[name] for name, position in self._positions.items())

    async def _send_piece(self, *, final: bool) -> bool:
        """Send the next piece of each stream that has one; whether any had."""
        sent = False
        for name, output in self._process.outputs.items():
            position = self._positions[name]
            if position < output.start:
                gap = {"stream": name, "from": position, "to": output.start}
                position = self._positions[name] = output.start
                await self._events.send("gap", gap)
            data = output.read(position, PIECE_BYTES)
            text, size = "", len(data)
            if not self._as_base64:  # a character that is not whole yet waits for its rest
                last = final and position + size == output.end
                text, size = codecs.utf_8_decode(data, "replace", last)
            if size == 0:
                continue
            sent = True
            self._positions[name] = position + size
            self._sent += size
            members = {"offset": position, "end": position + size}
            if self._as_base64:
                await self._events.send(
                    name, {**members, "data_base64": base64.b64encode(data).decode("ascii")}
                )
            else:
                await self._events.send(name, {**members, "data": text})
            if self._reader is not None and self._process.reader is self._reader and not self._confirms:
                output.drop(position + size)
        return sent
