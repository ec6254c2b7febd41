"""Where a sandbox may send a client that follows redirects: elsewhere, or within what it serves. Pure.

Clients keep their credentials, method and body on the way to the same origin, and there is the whole API: a
307 of a hostile sandbox would have its owner's own program call it. What leads to the Router is read as a
path of the sandbox's, which is also what servers mean that do not know that they are behind a prefix.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Collection
from urllib.parse import unquote, urlsplit

_DOT = re.compile("%2e", re.IGNORECASE)  # browsers take it for a dot


def led_within(head: bytes, prefix: bytes, path: bytes, hosts: Collection[bytes]) -> bytes:
    """An answer's head whose Location does not leave `prefix` on `hosts`, all of which are the Router.

    One that cannot be read is dropped, and what was read is what is sent: clients disagree about backslashes.

    `path` is what was asked for behind the prefix. `head` has its lines, each with its CRLF.
    """
    lines = []
    for line in head.split(b"\r\n")[:-1]:
        name, _, value = line.partition(b":")
        if name.lower() == b"location":
            place = _within(value.strip(b" \t").decode("latin-1"), prefix, path, hosts)
            line = b"Location: " + place.encode("latin-1") if place else b""
        if line:
            lines.append(line)
    return b"\r\n".join((*lines, b""))


def _within(location: str, prefix: bytes, path: bytes, hosts: Collection[bytes]) -> str:
    """The location, or where it is led; "" when it cannot be told where that is."""
    try:
        to = urlsplit(location.replace("\\", "/"))
        name = to.hostname
        ours = [urlsplit(f"//{host.decode('latin-1')}").hostname or "" for host in hosts]
    except ValueError:
        return ""
    if to.netloc and not name:
        return ""  # some clients fill in the host that they came from
    if name and not any(_is_host(name, own) for own in ours):
        return to.geturl()  # elsewhere: credentials do not go along
    if to.scheme and not to.netloc:
        return "" if to.scheme in ("http", "https") else to.geturl()
    if not to.netloc and not to.path:
        return to.geturl()  # the same path with another query, or a fragment of it
    root = prefix.decode("latin-1")
    asked = path.partition(b"?")[0].decode("latin-1")
    whole = to.path if to.path[:1] == "/" or to.netloc else f"{root}{asked.rpartition('/')[0]}/{to.path}"
    straight = _straight(whole)
    if straight != root and not straight.startswith(f"{root}/"):
        straight = root + straight
    query = f"?{to.query}" if to.query else ""
    fragment = f"#{to.fragment}" if to.fragment else ""
    return f"{straight}{query}{fragment}"


def _is_host(name: str, ours: str) -> bool:
    """Whether some client may take `name` for the host `ours`: it is written in another way, or so that it may be."""
    name, ours = unquote(name).lower().rstrip("."), ours.rstrip(".")
    return not name.isascii() or name == ours or _address(name) == _address(ours) != b""


def _address(name: str) -> bytes:
    """The address that a name is, also 127.1 or 0x7f000001; b"" for others."""
    try:
        return socket.inet_pton(socket.AF_INET6, name) if ":" in name else socket.inet_aton(name)
    except OSError:
        return b""


def _straight(path: str) -> str:
    """The path without `.` and `..`, as clients walk it (RFC 3986 §5.2.4), and beginning with one slash."""
    steps: list[str] = []
    walked = path.lstrip("/").split("/")
    for step in walked:
        plain = _DOT.sub(".", step)
        if plain == "..":
            del steps[-1:]
        elif plain != ".":
            steps.append(step)
    if _DOT.sub(".", walked[-1]) in (".", ".."):
        steps.append("")
    return "/" + "/".join(steps).lstrip("/")
