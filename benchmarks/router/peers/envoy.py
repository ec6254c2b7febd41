"""Envoy from its PyPI wheel, one worker: its own JWT filter with its cache, and Lua for the sessions."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any

from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import RSAAlgorithm

from benchmarks.router.peers import FORWARDED, SANDBOX_TOKEN, Given, Proxy, free_port, launch, wait_for, wheel
from benchmarks.router.scene import SCENE

NAME = "Envoy 1.40"

_LUA = """\
local sessions = {{ {sessions} }}
local active = {{}}
local dropped = {{ {dropped} }}
function envoy_on_request(handle)
  local headers = handle:headers()
  local id = headers:get("x-agentcube-session-id") or ""
  local held = sessions[id]
  local claims = handle:streamInfo():dynamicMetadata():get("envoy.filters.http.jwt_authn")
  if held == nil or claims.token.sub ~= held.owner then
    handle:respond({{[":status"] = "404"}}, "")
    return
  end
  active[id] = true
  for _, name in ipairs(dropped) do headers:remove(name) end
  headers:replace("authorization", "{token}")
  headers:replace("x-forwarded-host", headers:get(":authority"))
  headers:replace("x-sandbox", held.sandbox)
  local path = headers:get(":path")
  headers:replace(":path", string.match(path, "^/v1/namespaces/[^/]+/agent%-runtimes/[^/]+/invocations(/.*)") or path)
end
"""
_TYPE = "type.googleapis.com/envoy.extensions"


def start(stack: ExitStack, given: Given) -> Proxy:
    program, port = wheel("envoy/_bin/envoy"), free_port()
    config = given.folder / "envoy.json"
    config.write_text(json.dumps(_config(given, port)))
    command = (
        program,
        "-c",
        str(config),
        "--concurrency",
        "1",
        "--log-level",
        "error",
        "--disable-hot-restart",
    )
    process = launch(stack, command)
    wait_for(port, process)
    return Proxy(NAME, process.pid, port)


def _config(given: Given, port: int) -> dict[str, Any]:
    key = json.loads(RSAAlgorithm.to_jwk(load_pem_public_key(given.public_key.encode())))  # type: ignore[arg-type]
    sessions = (f'["{h.id}"] = {{owner = "{h.owner}", sandbox = "sandbox{h.sandbox}"}}' for h in SCENE)
    lua = _LUA.format(
        sessions=", ".join(sessions),
        token=SANDBOX_TOKEN,
        dropped=", ".join(f'"{name}"' for name in FORWARDED),
    )
    provider = {
        "issuer": "bench",
        "audiences": ["agentcube"],
        "local_jwks": {"inline_string": json.dumps({"keys": [key]})},
        "payload_in_metadata": "token",
        "jwt_cache_config": {"jwt_cache_size": 1000},
    }
    filters = [
        {
            "name": "jwt",
            "typed_config": {
                "@type": f"{_TYPE}.filters.http.jwt_authn.v3.JwtAuthentication",
                "providers": {"bench": provider},
                "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "bench"}}],
            },
        },
        {
            "name": "lua",
            "typed_config": {
                "@type": f"{_TYPE}.filters.http.lua.v3.Lua",
                "default_source_code": {"inline_string": lua},
            },
        },
        {"name": "router", "typed_config": {"@type": f"{_TYPE}.filters.http.router.v3.Router"}},
    ]
    manager = {
        "@type": f"{_TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "router",
        "http_filters": filters,
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "use_remote_address": True,
        "stream_idle_timeout": "3600s",
        "route_config": {"virtual_hosts": [_virtual_host()]},
    }
    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    return {
        "static_resources": {
            "listeners": [{"name": "router", "address": _address(port), "filter_chains": [chain]}],
            "clusters": [_cluster(n, p) for n, p in enumerate(given.sandboxes)],
        }
    }


def _virtual_host() -> dict[str, Any]:
    said = ("x-agentcube-session-id", "x-request-id")
    return {
        "name": "all",
        "domains": ["*"],
        "request_headers_to_remove": ["x-sandbox"],
        "response_headers_to_add": [{"header": {"key": name, "value": f"%REQ({name})%"}} for name in said],
        "routes": [{"match": {"prefix": "/"}, "route": {"cluster_header": "x-sandbox", "timeout": "0s"}}],
    }


def _cluster(number: int, port: int) -> dict[str, Any]:
    name = f"sandbox{number}"
    endpoint = {"lb_endpoints": [{"endpoint": {"address": _address(port)}}]}
    return {
        "name": name,
        "connect_timeout": "5s",
        "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": [endpoint]},
    }


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def edge_config(port: int, router: int) -> str:
    """Envoy as an edge that takes HTTP/2 and speaks HTTP/1.1 to one Router."""
    manager = {
        "@type": f"{_TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "edge",
        "codec_type": "HTTP2",
        "use_remote_address": True,
        "stream_idle_timeout": "3600s",
        "http_filters": [
            {"name": "router", "typed_config": {"@type": f"{_TYPE}.filters.http.router.v3.Router"}}
        ],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "sandbox0", "timeout": "0s"}}],
                }
            ]
        },
    }
    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    listener = {"name": "edge", "address": _address(port), "filter_chains": [chain]}
    return json.dumps({"static_resources": {"listeners": [listener], "clusters": [_cluster(0, router)]}})
