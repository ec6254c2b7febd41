"""Refuses what web pages send, for a Router that asks nobody who they are.

A browser on this machine reaches every loopback port, and lets any page send simple requests there
(CSRF), or read answers too once the page's own name resolves to 127.0.0.1 (DNS rebinding). Neither
page nor browser can change Host, Origin and Sec-Fetch-Site, which tell. Pure.
"""

from __future__ import annotations

import ipaddress

from agentcube import http1
from agentcube.errors import Forbidden
from agentcube.router.heads import Request

_OWN_SITE = (b"same-origin", b"none")  # "none": typed by the user (W3C Fetch Metadata §2.3)


def refuse_pages(request: Request, *, hosted: bool = False) -> None:
    """Return when no page of another site can have sent this. Raises Forbidden.

    `hosted`: the host is one that the operator gave to ports.
    """
    if not hosted and not _is_local(request.host):
        raise Forbidden(
            "a server without authentication answers only to localhost and to addresses, not to names: "
            "web pages could use any; start it with --auth key"
        )
    for line in request.kept.split(b"\r\n")[:-1]:
        name, value = http1.parse_field(line)
        own = name != b"origin" or value in (b"http://" + request.host, b"https://" + request.host)
        if not own or (name == b"sec-fetch-site" and value not in _OWN_SITE):
            raise Forbidden(
                "a server without authentication answers no web page of another site; start it with --auth key"
            )


def _is_local(host: bytes) -> bool:
    """Whether no name service had a say in what `host` (a Host field) leads to."""
    name, colon, port = host.decode("latin-1").lower().rpartition(":")
    if not colon or not port.isdecimal():
        name = host.decode("latin-1").lower()
    if name in ("", "localhost") or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True
