"""The answer to the request under way: relayed from the upstream, or made here.

`Answering` is a client's connection seen from the upstream and from `slow`; reading requests is
`client`'s. What begins with `_` and belongs to one exchange is set anew by each request.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from enum import Enum
from typing import TYPE_CHECKING

from agentcube import http1
from agentcube.errors import AgentCubeError, LimitExceeded, Unreachable
from agentcube.router import edge, exposed, heads, problems, redirects, slow
from agentcube.router.downstream import Downstream
from agentcube.wire.names import REQUEST_ID_HEADER, SESSION_HEADER

if TYPE_CHECKING:
    from agentcube.ports.tokens import Subject
    from agentcube.router.engine import Engine
    from agentcube.router.heads import Answer, Request
    from agentcube.router.limits import Share
    from agentcube.router.resolve import Destination
    from agentcube.router.sessions import Entry
    from agentcube.router.upstream import Upstream

REQUEST_ID_NAME = REQUEST_ID_HEADER.encode() + b": "
_CLOSE_LINE = b"Connection: close\r\n"
_NO_REQUEST = heads.unread_request(b"")


class State(Enum):
    """What the next byte from the client is."""

    HEAD = 1  # of a request's head
    RESOLVE = 2  # held: its request waits for a session or connection
    BODY = 3  # of the body of the request under way
    WAIT = 4  # of the request after the one under way
    TUNNEL = 5  # nobody's business
    LINGER = 6  # dropped: the answer is out and the connection is closing
    DEAD = 7
    PREFACE = 8  # of the PROXY header before the first request


_HEAD, _RESOLVE, _BODY, _WAIT = State.HEAD, State.RESOLVE, State.BODY, State.WAIT
_TUNNEL, _LINGER, _DEAD = State.TUNNEL, State.LINGER, State.DEAD


class Answering(Downstream):
    """A client's connection and the exchange under way on it.

    `entry` is None for the manager's exchanges, and for all until the session is known.
    """

    __slots__ = (
        "_answered",
        "_body",
        "_busy",
        "_closing",
        "_destination",
        "_ends_at",
        "_eof_at",
        "_in_exchange",
        "_passed",
        "_retried",
        "_searched",
        "_share",
        "_state",
        "_tunnel_eofs",
        "_upstream",
        "_waits",
        "entry",
        "request",
        "served",
    )

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.request: Request = _NO_REQUEST
        self.served = False  # a request has come on this connection
        self.entry: Entry | None = None
        self._state = _HEAD
        self._searched = 0  # how much of what is held is known not to end a head
        self._body: http1.Body | None = None  # None: the request has none
        self._passed = 0  # bytes of the body that passed
        self._destination: Destination | None = None
        self._upstream: Upstream | None = None
        self._in_exchange = False
        self._busy = False  # it keeps its session awake, however quiet it is
        self._answered = False  # the final response's head is out
        self._closing = False  # after this exchange
        self._retried = False
        self._share: Share | None = None  # of the subject whose exchange it is, once that is known
        self._waits = False  # counted among those of `_share` that wait
        self._eof_at = 0.0
        self._ends_at = 0.0  # when the exchange has taken as long as one may; 0: never
        self._tunnel_eofs = 0

    @abstractmethod
    def _continue(self) -> None:
        """Begin the next request, if its bytes are held and its answer could be written."""

    @abstractmethod
    def forward(self, destination: Destination, upstream: Upstream) -> None:
        """Send the exchange that was held for `slow`; the connection goes to the pool if it is over."""

    def open_tunnel(self, destination: Destination, upstream: Upstream) -> None:
        """Answer the exchange that was held for `slow` with a tunnel to `upstream`; closed if that is over."""
        if self._state is not _RESOLVE:
            upstream.close()
            return
        self._destination, self._upstream = destination, upstream
        upstream.begin_tunnel(self)
        self._switch(b"HTTP/1.1 101 Switching Protocols\r\n", b"tcp", b"")

    def attach(self, entry: Entry, *, guest: bool) -> None:
        """The exchange is of this session: count it in, and name the session in every answer.

        Guests have half of the session's places, so that there is one for its owner.

        Raises:
            LimitExceeded: too many of its requests are in flight.
        """
        if self.entry is None and self._in_exchange:
            self.entry = entry
            entry.in_flight += 1  # whatever comes of it, `_end_exchange` counts it out
            entry.busy += 1
            self._busy = True
            limit = self.engine.settings.in_flight_per_session_max // (2 if guest else 1)
            if entry.in_flight > limit:
                raise LimitExceeded("too many requests of this session are in flight", limit=limit)

    def charge(self, subject: Subject, *, waits: bool = False) -> None:
        """The exchange is this subject's: count it in, once; with `waits` also as one that waits.

        Raises:
            LimitExceeded: the subject has all it may have.
        """
        engine = self.engine
        if not self._in_exchange:
            return
        if self._share is None:
            self._share = engine.limits.enter(subject.name, engine.now)
        if waits and not self._waits:
            engine.limits.wait(self._share)
            self._waits = True

    def waited(self) -> None:
        """The exchange waits no longer."""
        if self._waits and self._share is not None:
            self._waits = False
            self._share.waiting -= 1

    def _calm(self) -> None:
        """The exchange keeps its session awake no more by being under way, only by its bytes."""
        if self._busy:
            assert self.entry is not None
            self._busy = False
            self.entry.busy -= 1

    def _note_flow(self, idle_s: float) -> None:
        self.deadline = self.engine.now + idle_s
        entry = self.entry
        if entry is not None:
            self.engine.activity.note(entry.id)
            if entry.sleeps:
                self.engine.wakes.rouse(entry)

    @property
    def whole(self) -> bool:
        """Whether the whole request has been sent on."""
        return self._state is _WAIT

    def give_back(self, upstream: Upstream) -> None:
        """Put a connection that is between two requests where the next one finds it."""
        upstream.pool.give(upstream, self.engine.now)

    # The answer, as the upstream reports it.

    def on_interim(self, answer: Answer) -> None:
        """A 1xx passes on, but not to HTTP/1.0, which has none."""
        if self.request.minor == 1:
            self.transport.write(self._head_of(answer) + b"\r\n")
        self._note_flow(self.engine.settings.first_byte_timeout_s)

    def on_answer(self, answer: Answer, body: bytes) -> None:
        """The final response's head, and what came of its body."""
        self._answered = True
        assert self._destination is not None
        if not self._destination.called:
            self._calm()
        if answer.body == http1.UNTIL_CLOSE or self._state is not _WAIT:
            self._closing = True
        elif self._eof_at or self.engine.draining:
            self._see_whether_last()
        head = self._head_of(answer)
        self._write_answer(head + _CLOSE_LINE if self._closing else head, body)
        self.deadline = self.engine.now + self.engine.settings.stream_idle_timeout_s

    def _head_of(self, answer: Answer) -> bytes:
        """The head as it passes on: of a sandbox on the API's own origin, nothing that could act there."""
        destination, head = self._destination, answer.head
        if destination is None or destination.entry is None:
            return head
        if 300 <= answer.status < 400 and (prefix := destination.base(self.request)):
            hosts = {self.request.host, edge.host_of(self.request)} if self.trusted else {self.request.host}
            head = redirects.led_within(head, prefix, destination.target, hosts)
        if destination.exposed:
            return exposed.answer_head(head, destination.prefix, guest=destination.guest is not None)
        if self.engine.settings.local_only:
            return head + exposed.OPAQUE  # an agent's page would have the whole API
        return head

    def _see_whether_last(self) -> None:
        """Decide, before the answer's head is written, whether another request may follow."""
        if self.engine.draining or (self._eof_at and not self._held):
            self._closing = True

    def _write_answer(self, head: bytes, body: bytes) -> None:
        session = b"" if self.entry is None else self.entry.line
        self.transport.write(b"".join((head, session, REQUEST_ID_NAME, self.request.id, b"\r\n\r\n", body)))

    def relay(self, data: bytes) -> None:
        """Bytes of the response's body, or of the tunnel."""
        self.transport.write(data)
        self._note_flow(self.engine.settings.stream_idle_timeout_s)

    def on_answer_end(self) -> None:
        """The response is whole."""
        self._upstream = None
        self._finish_exchange()

    def on_switch(self, answer: Answer, rest: bytes) -> None:
        """A 101 was agreed on: from here on bytes pass unread, both ways."""
        assert answer.upgrade is not None
        self._switch(self._head_of(answer), answer.upgrade, rest)

    def _switch(self, head: bytes, protocol: bytes, rest: bytes) -> None:
        self._answered = True
        self._calm()
        self._state = _TUNNEL
        assert self._upstream is not None
        self._write_answer(b"%bConnection: Upgrade\r\nUpgrade: %b\r\n" % (head, protocol), rest)
        if self.writing_paused:
            self._upstream.pause()
        early = self.take_held()
        if early:
            self._upstream.write(early)
        self._note_flow(self.engine.settings.tunnel_idle_timeout_s)
        if self._eof_at:
            self._upstream.end()
            self._tunnel_eofs = 1

    def on_tunnel_eof(self) -> None:
        """The upstream will send no more."""
        if not self.transport.is_closing() and self.transport.can_write_eof():
            self.transport.write_eof()
        self._count_tunnel_eof()

    def _count_tunnel_eof(self) -> bool:
        """Whether the client's connection must stay open; it ends when both sides are through."""
        self._tunnel_eofs += 1
        if self._tunnel_eofs < 2:
            return True
        self._close()
        return False

    def _close(self) -> None:
        """Close once what was written is sent, which a client that does not read cannot put off for ever."""
        self._state = _DEAD
        self.deadline = self.engine.now + self.engine.settings.body_idle_timeout_s
        self.transport.close()

    def on_bad_answer(self, error: http1.ProtocolError) -> None:
        """The upstream broke HTTP/1.1."""
        self.refuse(problems.BadAnswer(error.detail))

    def on_upstream_lost(self, upstream: Upstream) -> None:
        """The upstream's connection ended before its answer did."""
        self._upstream = None
        destination = self._destination
        assert destination is not None
        if self._state is _TUNNEL:
            self._close()
        elif self._answered:
            self.abort()  # a clean end would make half an answer look whole
        elif upstream.reused and not upstream.heard and self.request.repeatable and not self._retried:
            # Its server closed it while the request was on its way (RFC 9112 §9.3.1).
            self._retried = True
            self._state = _RESOLVE
            self.engine.waiting += 1
            self.engine.spawn(slow.serve(self.engine, self, self.request, destination), "retry")
        else:
            if not upstream.reused and destination.entry is not None:
                self.engine.spawn(slow.suspect(self.engine, destination.entry), "suspect")
            self.refuse(Unreachable("the sandbox closed the connection without an answer"))

    # Answers of our own, and endings.

    def refuse(self, error: AgentCubeError) -> None:
        """Answer with a problem; if an answer has begun, break it off. No error when it is too late."""
        if self._state is _DEAD or self._state is _LINGER:
            return
        if self._answered:
            self.abort()
            return
        if not self._body_is_here():
            self._closing = True
        self._see_whether_last()
        self._answer_problem(error)
        self._finish_exchange()

    def refuse_unread(self, error: AgentCubeError) -> None:
        """Answer with a problem and read no more of what the client sends."""
        if self._answered and self._in_exchange:
            self.abort()
            return
        self._closing = True
        if not self._in_exchange:
            self.request = heads.unread_request(self.engine.next_id())
            self.entry = None
        self._answer_problem(error)
        self._state = _BODY  # whatever it was: more may come, and nobody will read it
        self._finish_exchange()

    def respond(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Answer a request that `slow` holds with something made here."""
        if self._state is not _RESOLVE:
            return
        if not self._body_is_here():
            self._closing = True
        self._see_whether_last()
        whole = http1.response(status, [*headers, *self._own_headers()], body)
        self.transport.write(whole[: -len(body)] if self.request.method == b"HEAD" and body else whole)
        self._finish_exchange()

    def _answer_problem(self, error: AgentCubeError) -> None:
        status, headers, body = problems.render(error, self.request)
        whole = http1.response(status, [*headers, *self._own_headers()], body)
        self.transport.write(whole[: -len(body)] if self.request.method == b"HEAD" else whole)

    def _own_headers(self) -> list[tuple[bytes, bytes]]:
        headers = [(REQUEST_ID_HEADER.encode(), self.request.id)]
        if self.entry is not None:
            headers.append((SESSION_HEADER.encode(), self.entry.id.encode("ascii")))
        if self._closing:
            headers.append((b"connection", b"close"))
        return headers

    def _body_is_here(self) -> bool:
        """Whether nothing of the request is still to come; then it is no longer held either."""
        body = self._body
        if self._state is not _RESOLVE or body is None:
            return self._state is _WAIT or self._state is _RESOLVE
        held = self.take_held()
        taken = 0
        try:
            while taken < len(held) and not body.done:
                taken += body.feed(held[taken:])
        except http1.ProtocolError:
            return False
        if body.done and taken < len(held):
            self.hold(held[taken:])
        return body.done

    def _finish_exchange(self) -> None:
        """Go on to the next request, or close."""
        self._end_exchange()
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abandon()
        now, settings = self.engine.now, self.engine.settings
        if not self._closing:
            self._state = _HEAD
            self._searched = 0
            if not self.request.block:
                self.request = _NO_REQUEST  # a long head is not kept while the client idles
            self.deadline = now + settings.keep_alive_timeout_s
            if self._reading_held:
                self.hold_reading(False)
            if self._held:
                # Not by a call: a read may hold thousands of requests, and the stack has an end.
                asyncio.get_running_loop().call_soon(self._continue)
        elif self._state is _WAIT and not self.held:
            self._close()
        else:
            self._state = _LINGER
            unsent = self.transport.get_write_buffer_size() > 0
            self.deadline = now + (settings.body_idle_timeout_s if unsent else settings.linger_timeout_s)
            self.shut()

    def _end_exchange(self) -> None:
        """Count the exchange out. Once per exchange, whatever became of it."""
        if not self._in_exchange:
            return
        self._in_exchange = False
        self.engine.in_flight -= 1
        if self._share is not None:
            self.waited()
            self.engine.limits.leave(self._share)
            self._share = None
        if self.entry is not None:
            self._calm()
            self.entry.in_flight -= 1
            self.engine.activity.note(self.entry.id)
        if self.engine.draining:
            self.engine.changed.set()

    def abort(self) -> None:
        """Break the connection off, and the upstream's with it."""
        self._state = _DEAD
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abandon()
        self.reset()
