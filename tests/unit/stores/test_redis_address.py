"""URLs of Redis and Valkey servers, and the clock that goes by theirs."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from agentcube.errors import Invalid
from agentcube.stores.redis.address import Address, Kind, Place, parse_address
from agentcube.stores.redis.clock import StoreClock
from agentcube.stores.redis.settings import RedisSettings


def _server(host: str, port: int = 6379, **fields: object) -> Address:
    return Address(kind=Kind.SERVER, places=(Place(host, port),), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://h", _server("h")),
        ("valkey://h:1/2", _server("h", 1, db=2)),
        ("rediss://u:p%40%2F@h", _server("h", user="u", password="p@/", tls=True)),
        ("valkeys://:p@h/", _server("h", password="p", tls=True)),
        ("redis://[::1]:7", _server("::1", 7)),
        ("unix:///run/r.sock", Address(kind=Kind.SERVER, places=(Place("", 0, "/run/r.sock"),))),
        (
            "unix://u:p@/run/r.sock?db=3",
            Address(kind=Kind.SERVER, places=(Place("", 0, "/run/r.sock"),), db=3, user="u", password="p"),
        ),
        (
            "redis+sentinel://a,b:1/main/4",
            Address(kind=Kind.SENTINEL, places=(Place("a", 26379), Place("b", 1)), service="main", db=4),
        ),
        (
            "rediss+cluster://a:1,[fe80::1]:2",
            Address(kind=Kind.CLUSTER, places=(Place("a", 1), Place("fe80::1", 2)), tls=True),
        ),
    ],
)
def test_an_address_is_read(url: str, address: Address) -> None:
    assert parse_address(url) == address


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h:6379",
        "http://h",
        "redis+x://h",
        "redis://",
        "redis://a,b",
        "redis://h:0",
        "redis://h:65536",
        "redis://h:x",
        "redis://h o",
        "redis://h/x",
        "redis://h/1/2",
        "redis://h/-1",
        "redis://h?db=1",
        "redis://h#1",
        "redis://[::1",
        "redis://[x]",
        "unix://host/run/r.sock",
        "unix:relative",
        "unix:///r?x=1",
        "redis+sentinel://a",
        "redis+sentinel://a/",
        "redis+sentinel://a,/m",
        "redis+cluster://a/1",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(Invalid, match=r"the store's address is not usable: .* It is one of redis://"):
        parse_address(url)


@pytest.mark.parametrize(
    "url", ["redis://u:hunter2@h:x", "redis://u:hunter2@h#", "rediss+sentinel://u:hunter2@a,b"]
)
def test_a_password_is_never_shown(url: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_address(url)
    assert "hunter2" not in caught.value.detail
    address = parse_address("redis+sentinel://u:hunter2@a,b/m")
    assert "hunter2" not in f"{address} {address!r}"
    assert str(address) == "sentinel a:26379,b:26379 'm'"


def test_a_prefix_has_no_braces_of_its_own() -> None:
    with pytest.raises(ValueError, match="pattern"):
        RedisSettings(prefix="a}b")


def test_the_clock_goes_by_the_server_s() -> None:
    clock = StoreClock()
    assert abs(clock.now() - datetime.now(UTC)) < timedelta(seconds=5)  # before it was ever set
    moment = time.monotonic()
    server = datetime(2031, 5, 6, tzinfo=UTC)
    clock.set(server.timestamp(), sent=moment - 0.010, received=moment + 0.010)
    first = clock.now()
    assert timedelta(0) <= first - server < timedelta(seconds=5)
    clock.set(server.timestamp() + 0.005, sent=moment - 0.010, received=moment + 0.010)
    assert clock.now() - first < timedelta(seconds=5)  # within its doubt: not moved
    before = clock.now() - timedelta(seconds=time.monotonic() - moment)
    assert abs(before - server) < timedelta(milliseconds=1)
    clock.set(server.timestamp() - 3600, sent=moment - 0.010, received=moment + 0.010)
    assert clock.now() < server  # the server's own clock jumped
