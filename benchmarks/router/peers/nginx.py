"""nginx as installed on the machine, one process. It has no tables to look into but `map`: no JWT is verified.

Configured to stream, as the Router does: bodies are not gathered first.
"""

from __future__ import annotations

import shutil
import subprocess
from contextlib import ExitStack

from benchmarks.router.peers import (
    FORWARDED,
    SANDBOX_TOKEN,
    Absent,
    Given,
    Proxy,
    free_port,
    launch,
    wait_for,
)
from benchmarks.router.scene import PREFIX, SCENE

NAME = "nginx"

BEGIN = """\
daemon off;
master_process off;
pid {folder}/pid;
error_log stderr crit;
events {{ worker_connections 12000; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_requests 1000000000;
"""
_TEXT = (
    BEGIN
    + """\
    client_max_body_size 0;
    client_header_buffer_size 4k;
    keepalive_timeout 75s;
    map_hash_bucket_size 2048;
    tcp_nodelay on;
    map $http_authorization $caller {{ default ""; {callers} }}
    map $http_x_agentcube_session_id $owner {{ default ""; {owners} }}
    map $http_x_agentcube_session_id $token {{ default ""; {tokens} }}
    map $http_x_agentcube_session_id $place {{ default ""; {places} }}
    map "$caller $owner" $refused {{ default 1; {pairs} }}
    map $http_upgrade $onward {{ default upgrade; "" ""; }}
    {upstreams}
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        location / {{
            if ($refused) {{ return 404; }}
            rewrite {prefix}(/.*)$ $1 break;
            proxy_pass http://$place;
            proxy_http_version 1.1;
            proxy_buffering off;
            proxy_request_buffering off;
            proxy_buffer_size 16k;
            proxy_buffers 8 16k;
            proxy_read_timeout 1h;
            proxy_set_header Connection $onward;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Authorization $token;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Host $http_host;
            proxy_set_header X-Forwarded-Proto http;
            proxy_set_header X-Request-Id $request_id;
            {dropped}
            add_header X-AgentCube-Session-Id $http_x_agentcube_session_id;
            add_header X-Request-Id $request_id;
        }}
    }}
}}
"""
)


def start(stack: ExitStack, given: Given) -> Proxy:
    program = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if program is None:
        raise Absent("nginx is not installed (Debian: apt install nginx-light)")
    said = subprocess.run((program, "-v"), capture_output=True, text=True, check=True).stderr
    port = free_port()
    text = _TEXT.format(
        folder=given.folder,
        port=port,
        prefix=PREFIX,
        callers=_rows({f"Bearer {token}": name for name, token in given.tokens.items()}),
        owners=_rows({held.id: held.owner for held in SCENE}),
        tokens=_rows({held.id: SANDBOX_TOKEN for held in SCENE}),
        places=_rows({held.id: f"sandbox{held.sandbox}" for held in SCENE}),
        pairs=_rows({f"{held.owner} {held.owner}": "0" for held in SCENE}),
        upstreams=" ".join(
            f"upstream sandbox{n} {{ server 127.0.0.1:{p}; keepalive 64; keepalive_requests 1000000000; }}"
            for n, p in enumerate(given.sandboxes)
        ),
        dropped=" ".join(f'proxy_set_header {name} "";' for name in FORWARDED),
    )
    config = given.folder / "nginx.conf"
    config.write_text(text)
    process = launch(stack, (program, "-c", str(config), "-e", "stderr"))
    wait_for(port, process)
    return Proxy(f"{NAME} {said.rpartition('/')[2].strip()} (no JWT)", process.pid, port)


def _rows(rows: dict[str, str]) -> str:
    return " ".join(f'"{key}" "{value}";' for key, value in rows.items())
