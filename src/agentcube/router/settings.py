"""Limits and deadlines of the Router, each with where its number comes from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSettings:
    """Everything about the Router that may be tuned. Times are seconds, sizes bytes.

    Deadlines are held to within `sweep_interval_s`: one timer looks at every connection, so that
    none costs a request anything.
    """

    local_only: bool = False  # nobody is asked who they are: refuse what web pages of other sites send

    ports_domain: str = "localhost"  # below it each exposed port has a host of its own; "": none has

    trusted_proxies: tuple[str, ...] = ()  # addresses or networks whose X-Forwarded-* and PROXY headers count
    proxy_protocol: bool = False  # every connection begins with a PROXY header (v1 or v2), or is dropped

    head_timeout_s: float = 10.0  # first byte to empty line; honest clients need one round trip
    keep_alive_timeout_s: float = 75.0  # nginx's keepalive_timeout; cloud balancers idle at 60
    body_idle_timeout_s: float = 60.0  # between two reads of a request's body; nginx's client_body_timeout
    connect_timeout_s: float = 5.0  # one machine or one cluster away, and PicoD's own dialling takes up to 5
    first_byte_timeout_s: float = 3600.0  # a command may run for long before it says anything
    stream_idle_timeout_s: float = 3600.0  # within a response: a quiet event stream, or a client not reading
    tunnel_idle_timeout_s: float = 3600.0  # WebSockets without pings
    exchange_timeout_s: float = 0.0  # from a request's head to its answer's end, tunnels included; 0: no end
    linger_timeout_s: float = (
        2.0  # reading on after an answer, so that a reset does not eat it (RFC 9112 §9.6)
    )
    half_close_probe_s: float = 1.0  # after a client's EOF: does it still read? Ctrl-C ends a command so soon
    create_timeout_s: float = 120.0  # above the manager's own deadline, which gives the better message
    wake_timeout_s: float = 60.0  # above the manager's own deadline for waking a sandbox, 30 s

    upstream_idle_ttl_s: float = 4.0  # uvicorn, a common server in sandboxes, closes at 5
    idle_per_endpoint_max: int = 64
    idle_max: int = 1024  # descriptors

    connections_max: int = 16_384  # each is a descriptor and about 10 KB
    in_flight_max: int = 8_192
    in_flight_per_session_max: int = (
        512  # one sandbox with one core; so that one session cannot fill the rest
    )
    in_flight_per_subject_max: int = 4_096  # half of all, so that one tenant cannot take every place
    requests_per_s: float = 0.0  # of one subject, for long; 0: as fast as it likes
    request_burst: int = 100  # of one subject at once, where there is a rate
    waiting_per_subject_max: int = 512  # half of `waiting_max`
    waiting_max: int = 1_024  # requests held for a session that is made or woken
    hold_bytes_max: int = 256 * 1024  # of one request's body while it waits; one read of the event loop
    held_bytes_max: int = 64 << 20  # of all heads and bodies that wait; above it nobody may add more
    body_bytes_max: int = 16 << 30  # a stop for endless uploads; nothing is buffered
    linger_bytes_max: int = 16 << 20

    sweep_interval_s: float = 0.25
    flush_interval_s: float = 1.0  # of noted activity; with a sweep, within model.session.ACTIVITY_LAG
    drain_timeout_s: float = 20.0  # below the 30 s of Kubernetes' terminationGracePeriodSeconds
