"""The side towards a client: reads requests, sends each where it belongs, relays the answer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from agentcube import http1
from agentcube.errors import AgentCubeError, BodyTooLarge, Unavailable
from agentcube.router import edge, exposed, problems, resolve, slow
from agentcube.router.answering import REQUEST_ID_NAME, Answering, State
from agentcube.router.heads import FORBIDDEN_TRAILERS
from agentcube.router.turns import TURN_LINES

if TYPE_CHECKING:
    from agentcube.router.engine import Engine
    from agentcube.router.heads import Request
    from agentcube.router.resolve import Destination
    from agentcube.router.upstream import Upstream

_PROBE = b"HTTP/1.1 102 Processing\r\n\r\n"

_HEAD, _RESOLVE, _BODY, _WAIT = State.HEAD, State.RESOLVE, State.BODY, State.WAIT
_TUNNEL, _LINGER, _DEAD, _PREFACE = State.TUNNEL, State.LINGER, State.DEAD, State.PREFACE


class Client(Answering):
    """A client's connection as the event loop drives it, and the requests that arrive on it."""

    __slots__ = ("_forwarded", "_forwarded_host")

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._forwarded_host: bytes | None = None
        self._forwarded = b""  # the lines that name the client, for that host

    # Events of the connection.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        engine = self.engine
        self.deadline = engine.now + engine.settings.head_timeout_s
        engine.clients.add(self)
        if len(engine.clients) > engine.settings.connections_max:
            self.refuse_unread(Unavailable("too many connections", limit="connections"))
        elif engine.settings.proxy_protocol:
            self._state = _PREFACE

    def data_received(self, data: bytes) -> None:
        state = self._state
        if state is _HEAD:
            if self.writing_paused:
                self.hold(data)  # it does not read its answers: no more requests
            else:
                self._on_head(data)
        elif state is _BODY:
            self._on_body(data)
        elif state is _TUNNEL:
            assert self._upstream is not None
            self._upstream.write(data)
            self._note_flow(self.engine.settings.tunnel_idle_timeout_s)
        elif state is _LINGER:
            self.lingered += len(data)
            if self.lingered > self.engine.settings.linger_bytes_max:
                self.abort()
        elif state is _PREFACE:
            self._on_preface(data)
        elif state is not _DEAD:
            self.hold(data)

    def eof_received(self) -> bool:
        """The client will send no more; it may still read (RFC 9112 §9.6 allows half-close).

        Not with TLS, whose end is that of both directions here (RFC 9112 §9.8).
        """
        if self.encrypted:
            return False
        if self._state is _TUNNEL:
            assert self._upstream is not None
            self._upstream.end()
            return self._count_tunnel_eof()
        more = self._state is _HEAD and self._held and not self._searched  # whole requests, it may be
        if self._state is _RESOLVE or self._state is _WAIT or more:
            self._eof_at = self.engine.now
            return True
        return False  # between requests, or in the middle of one that will never be whole

    def pause_writing(self) -> None:
        self.writing_paused = True
        if self._upstream is not None:
            self._upstream.pause()

    def resume_writing(self) -> None:
        self.writing_paused = False
        if self._upstream is not None:
            self._upstream.resume()
        elif self._state is _HEAD and self.held:
            self._continue()

    def connection_lost(self, exc: Exception | None) -> None:
        self._later = b""
        tunnel = self._state is _TUNNEL or self._tunnel_eofs > 0
        self._state = _DEAD
        self.engine.clients.discard(self)
        self.take_held()
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.client = None
            if tunnel:
                upstream.close()
            else:
                upstream.abandon()
        self._end_exchange()
        self.engine.changed.set()

    def retire(self) -> None:
        """Close if no request is under way or on its way; the Router drains.

        A connection that brought none yet was made for one: closing it now would lose that request.
        """
        if self._state is _HEAD and not self._in_exchange and self.served:
            self._close()

    def _on_preface(self, data: bytes) -> None:
        """The PROXY header says who the client is; without one, from whom we trust, there is no client."""
        data = self.take_held() + data
        try:
            found = edge.read_preface(data) if self.trusted else None
        except edge.BadPreface:
            found = None
        else:
            if found is None and self.trusted:
                self.hold(data)
                return
        if found is None:
            self.abort()
            return
        length, origin = found
        if origin.address:
            self.name_peer(origin.address)
        if origin.tls:
            self.scheme = b"https"
        self._state = _HEAD
        if data[length:]:
            self.data_received(data[length:])

    # The request.

    def _on_head(self, data: bytes) -> None:
        engine = self.engine
        searched = self._searched
        if self._held:
            data = self.take_held() + data
        try:
            end = http1.request_end(data, searched)
            if end >= 0:
                self._searched = 0
                request = engine.reader.request(data[:end], self.request)
        except http1.ProtocolError as error:
            self.refuse_unread(problems.Malformed(error))
            return
        if end >= 0:
            self._begin(request, data[end:])
            return
        if self._eof_at:
            self._close()  # it will never be whole
            return
        if not data:
            return
        if not searched:
            self.deadline = engine.now + engine.settings.head_timeout_s
        self._searched = len(data)
        if engine.held_bytes > engine.settings.held_bytes_max:
            self.refuse_unread(Unavailable("too much is waiting to be whole", limit="held_bytes"))
        else:
            self.hold(data)

    def _begin(self, request: Request, rest: bytes) -> None:
        engine = self.engine
        settings = engine.settings
        request.id = request.given_id or engine.next_id()
        request.scheme = self.scheme
        if self.trusted and request.forwarded:
            request.scheme = edge.scheme_of(request, self.scheme)
        self.request = request
        self.entry = self._destination = None
        self._answered = False
        self._retried = False
        self._closing = not request.keep_alive or engine.draining
        self._in_exchange = self.served = True
        if settings.exchange_timeout_s:
            self._ends_at = engine.now + settings.exchange_timeout_s
        engine.in_flight += 1
        if request.body:
            self._body = http1.track(request.body, forbidden=FORBIDDEN_TRAILERS, lines_max=TURN_LINES)
            self._passed = 0
        else:
            self._body = None
        self._state = _RESOLVE
        try:
            if request.body > settings.body_bytes_max:
                raise _too_large(settings.body_bytes_max)
            if engine.in_flight > settings.in_flight_max:
                raise Unavailable("too many requests are in flight", limit="in_flight")
            destination = resolve.find(engine, request)
            if destination is not None:
                self.charge(destination.subject)
                if destination.entry is not None:
                    self.attach(destination.entry, guest=destination.guest is not None)
                upstream = destination.port.pool.take(engine.now)
                if upstream is not None:
                    self._send(destination, upstream, rest)
                    return
            engine.wait_turn()
        except AgentCubeError as error:
            if rest:
                self.hold(rest)
            self.refuse(error)
            return
        if rest:
            self.hold(rest)
        engine.spawn(slow.serve(engine, self, request, destination), "serve")

    def forward(self, destination: Destination, upstream: Upstream) -> None:
        """Send the exchange that was held for `slow`; the connection goes to the pool if it is over."""
        if self._state is _RESOLVE:
            self._send(destination, upstream, self.take_held())
        else:
            self.give_back(upstream)

    def _send(self, destination: Destination, upstream: Upstream, rest: bytes) -> None:
        """Begin the exchange on `upstream`; `rest` is what came behind the head."""
        body = self._body
        first = b""
        if body is not None and rest:
            try:
                taken = body.feed(rest)
            except http1.ProtocolError as error:
                self.give_back(upstream)
                self.refuse_unread(problems.Malformed(error))
                return
            first, rest = rest[:taken], rest[taken:]
            self._passed = taken
            if taken > self.engine.settings.body_bytes_max:
                self.give_back(upstream)
                self.refuse_unread(_too_large(self.engine.settings.body_bytes_max))
                return
        self._destination = destination
        self._upstream = upstream
        upstream.begin(self)
        upstream.write(self._head_for(destination, first))
        if self.writing_paused:
            upstream.pause()
        engine = self.engine
        if body is None or body.done:
            self._state = _WAIT
            self.deadline = engine.now + engine.settings.first_byte_timeout_s
            if rest:
                self.hold(rest)
        else:
            self._state = _BODY
            self.deadline = engine.now + engine.settings.body_idle_timeout_s
            if rest:
                self.put_off(rest)
            elif self._eof_at:
                self.abort()
        if self.entry is not None:
            engine.activity.note(self.entry.id)

    def _head_for(self, destination: Destination, body: bytes) -> bytes:
        request = self.request
        if self.trusted and request.forwarded:
            self._forwarded_host, self._forwarded = (
                None,
                edge.forwarded_lines(request, self.peer),
            )
        elif request.host != self._forwarded_host:
            self._forwarded_host = request.host
            self._forwarded = b"X-Forwarded-For: %b\r\nX-Forwarded-Host: %b\r\nX-Forwarded-Proto: %b\r\n" % (
                self.peer,
                request.host,
                self.scheme,
            )
        entry = destination.entry
        kept = request.kept
        if destination.exposed:
            kept = exposed.request_lines(kept, destination.prefix)
        upgrade = b""
        if request.upgrade is not None and entry is not None:  # the manager has nothing to upgrade to
            upgrade = b"Connection: Upgrade\r\nUpgrade: %b\r\n" % request.upgrade
        return b"".join(
            (
                request.method,
                b" ",
                destination.target,
                b" HTTP/1.1\r\n" if request.minor else b" HTTP/1.0\r\n",
                destination.host_line,
                kept,
                destination.authorization,
                self._forwarded,
                b"" if entry is None else entry.line,
                upgrade,
                REQUEST_ID_NAME,
                request.id,
                b"\r\n\r\n",
                body,
            )
        )

    def _on_body(self, data: bytes) -> None:
        body, upstream = self._body, self._upstream
        assert body is not None
        assert upstream is not None
        try:
            taken = body.feed(data)
        except http1.ProtocolError as error:
            self.refuse_unread(problems.Malformed(error))
            return
        settings = self.engine.settings
        self._passed += taken
        if self._passed > settings.body_bytes_max:
            self.refuse_unread(_too_large(settings.body_bytes_max))
            return
        upstream.write(data if taken == len(data) else data[:taken])
        if not body.done:
            self._note_flow(settings.body_idle_timeout_s)
            if taken < len(data):
                self.put_off(data[taken:])
            return
        self._state = _WAIT
        self._note_flow(settings.stream_idle_timeout_s if self._answered else settings.first_byte_timeout_s)
        if taken < len(data):
            self.hold(data[taken:])

    def _continue(self) -> None:
        if self._state is _HEAD and self.held and not self.writing_paused:
            self._on_head(b"")

    # Time.

    def on_sweep(self, now: float) -> None:
        """Act on deadlines that have passed."""
        state = self._state
        if self._busy and self.entry is not None:
            self.engine.activity.note(self.entry.id)  # a command that runs in the foreground
        if self._eof_at and (state is _WAIT or state is _RESOLVE):
            self._probe(now)
        over = self._over(now)
        if over is not None:
            if state is _RESOLVE:  # `slow` is at it, and would take what came next here for it
                self._closing = True
            self.refuse(over)
            return
        if now < self.deadline or state is _RESOLVE:  # `slow` has deadlines of its own
            return
        if state is _HEAD:
            if self._searched:
                self.refuse_unread(problems.HeadTimedOut("the request's head did not come in time"))
            else:
                self._close()
        elif state is _BODY and not self._answered:
            if self.reading_held:
                self.refuse(problems.UploadTimedOut("the sandbox stopped reading the request"))
            else:
                self.refuse(problems.BodyTimedOut("the request's body did not come in time"))
        elif state is _WAIT and not self._answered:
            self.refuse(problems.FirstByteTimedOut("the sandbox gave no answer in time"))
        else:
            self.abort()

    def _over(self, now: float) -> AgentCubeError | None:
        """Why the exchange may go on no longer, wherever it is."""
        if self._in_exchange and 0 < self._ends_at <= now:
            return problems.ExchangeTimedOut("the exchange took as long as any may take here")
        if self._in_exchange and self._outstays():
            return resolve.link_over()
        return None

    def _outstays(self) -> bool:
        """Whether the exchange was opened with a share link that holds no longer."""
        guest = None if self._destination is None else self._destination.guest
        if guest is None or self.entry is None:
            return False
        return not guest.holds(self.entry.session, self.engine.links.now)

    def _probe(self, now: float) -> None:
        """Find out whether a client that sent EOF still reads: TCP tells only those who write.

        Its answer to the first probe is a reset, of which asyncio tells only those who write again.
        Within an answer nothing can be put: what the sandbox says next (PicoD's streams ping) is the probe.
        """
        if self.is_reset():
            self.abort()
        elif self._answered or self.request.minor == 0:
            return
        elif now - self._eof_at >= self.engine.settings.half_close_probe_s:
            self._eof_at = now
            self.transport.write(_PROBE)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {limit} bytes", limit_bytes=limit)
