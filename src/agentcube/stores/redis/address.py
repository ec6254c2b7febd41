"""Where a Redis or Valkey server is: the URL, read strictly. Knows no connection."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

from agentcube.errors import Invalid

_PORT = 6379
_SENTINEL_PORT = 26379
_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<netloc>[^/?#]*)(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?(?:#.*)?"
)
_HOST = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.%]+)\]|(?P<name>[A-Za-z0-9._-]+))(?::(?P<port>\d{1,5}))?")
_FORMS = (
    "redis://[USER:PASSWORD@]HOST[:PORT][/DB], unix:///PATH[?db=DB], "
    "redis+sentinel://HOST[:PORT][,HOST…]/SERVICE[/DB] or redis+cluster://HOST[:PORT][,HOST…]; "
    "rediss… with TLS; valkey… is the same"
)


class Kind(StrEnum):
    """What answers at the hosts of an address."""

    SERVER = "server"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


class Place(NamedTuple):
    """One socket: host and port, or the path of a unix socket."""

    host: str
    port: int
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A parsed URL. `service` is the name under which Sentinels know the master."""

    kind: Kind
    places: tuple[Place, ...]
    service: str = ""
    db: int = 0
    user: str = ""
    password: str = field(default="", repr=False)
    tls: bool = False

    def __str__(self) -> str:
        """For people; without the password."""
        hosts = ",".join(str(place) for place in self.places)
        name = f" {self.service!r}" if self.service else ""
        return f"{self.kind} {hosts}{name}" if self.kind is not Kind.SERVER else hosts


def parse_address(url: str) -> Address:
    """The address in a URL. Raises Invalid, which never quotes the URL: it may hold a password."""
    # By hand: newer releases of urllib.parse refuse brackets anywhere but around an only host.
    parts = _URL.fullmatch(url)
    if parts is None:
        raise _wrong("it is no URL")
    if "#" in url:
        raise _wrong("it has a '#'; write %23 in a password")
    scheme = parts["scheme"].lower().replace("valkey", "redis", 1)
    if scheme == "unix":
        return _unix(parts["netloc"], parts["path"], parts["query"] or "")
    base, _, variant = scheme.partition("+")
    if base not in ("redis", "rediss") or variant not in ("", Kind.SENTINEL, Kind.CLUSTER):
        raise _wrong(f"{parts['scheme'][:20]!r} is none of its schemes")
    if parts["query"]:
        raise _wrong("it takes nothing after '?'; settings are AGENTCUBE_REDIS_… in the environment")
    kind = Kind(variant) if variant else Kind.SERVER
    user, password, hosts = _credentials(parts["netloc"])
    places = tuple(_place(h, _SENTINEL_PORT if kind is Kind.SENTINEL else _PORT) for h in hosts.split(","))
    if kind is Kind.SERVER and len(places) != 1:
        raise _wrong("several hosts are for redis+sentinel and redis+cluster")
    steps = [unquote(step) for step in parts["path"].strip("/").split("/") if step]
    service = ""
    if kind is Kind.SENTINEL:
        if not steps:
            raise _wrong("redis+sentinel needs the master's name as its path")
        service = steps.pop(0)
    db = _database(steps.pop(0)) if steps else 0
    if steps or (kind is Kind.CLUSTER and db):
        raise _wrong("its path says too much")
    return Address(
        kind=kind,
        places=places,
        service=service,
        db=db,
        user=user,
        password=password,
        tls=base == "rediss",
    )


def _unix(netloc: str, path: str, query: str) -> Address:
    user, password, host = _credentials(netloc) if netloc else ("", "", "")
    options = dict(parse_qsl(query, keep_blank_values=True))
    db = _database(options.pop("db", "0"))
    if host or options or not path.startswith("/"):
        raise _wrong("a unix socket is given by an absolute path and ?db= at most")
    place = Place("", 0, unquote(path))
    return Address(kind=Kind.SERVER, places=(place,), db=db, user=user, password=password)


def _credentials(netloc: str) -> tuple[str, str, str]:
    who, _, hosts = netloc.rpartition("@")
    user, _, password = who.partition(":")
    return unquote(user), unquote(password), hosts


def _place(text: str, port: int) -> Place:
    found = _HOST.fullmatch(text)
    if found is None or int(found["port"] or port) not in range(1, 65536):
        raise _wrong("a host of it is not HOST or HOST:PORT")
    return Place(found["v6"] or found["name"], int(found["port"] or port))


def _database(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5):
        raise _wrong("its database is not a number")
    return int(text)


def _wrong(why: str) -> Invalid:
    return Invalid(f"the store's address is not usable: {why}. It is one of {_FORMS}")
