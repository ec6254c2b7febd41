"""The table of routes: who may call what, spelled out once more so that a change is seen."""

from __future__ import annotations

from typing import Any, cast

import pytest

from agentcube.picod.app import Access, App
from agentcube.picod.config import parse_config
from agentcube.picod.problems import Problem


class _Handlers:
    async def upload(self, request: Any, response: Any) -> None: ...
    async def list(self, request: Any, response: Any) -> None: ...
    async def download(self, request: Any, response: Any) -> None: ...


def test_every_route_says_who_may_call_it() -> None:
    config = parse_config({"sandbox_id": "sb", "public_keys": [], "listen_fd": 0})
    app = App(config, cast(Any, None), cast(Any, None), None, cast(Any, _Handlers()))

    assert {(route.method, route.path): route.access for route in app.routes} == {
        ("GET", "/health"): Access.OPEN,
        ("GET", "/ready"): Access.OPEN,
        ("POST", "/bind"): Access.MANAGER,
        ("POST", "/api/execute"): Access.SESSION,
        ("GET", "/api/logs"): Access.SESSION,
        ("POST", "/api/files"): Access.SESSION,
        ("GET", "/api/files"): Access.SESSION,
        ("GET", "/api/files/"): Access.SESSION,
    }
    assert all(route.access is Access.SESSION for route in app.routes if route.path.startswith("/api"))


def test_a_problems_status_goes_with_its_code() -> None:
    assert Problem("limit_exceeded", "x").headers == ((b"retry-after", b"1"),)
    assert Problem("start_failed", "x").headers == ()
    with pytest.raises(KeyError):
        Problem("made_up", "x")


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({}, "sandbox_id"),
        ({"sandbox_id": "a", "public_keys": []}, "listen_fd"),
        ({"ports": ["80"]}, "ports"),
        ({"ports": [True]}, "ports"),
        ({"env": {"": "x"}}, "env"),
        ({"limits": {"mode": "none"}}, "limits.mode"),
        ({"limits": {"cpu": 1}}, "limits"),
        ({"single_uid": 1}, "single_uid"),
        ({"command": "sleep"}, "command"),
        ({"workspace": 1}, "workspace"),
    ],
)
def test_a_bad_configuration_is_named(config: dict[str, Any], named: str) -> None:
    whole = {"sandbox_id": "a", "public_keys": [], "listen_fd": 3} if len(config) == 1 else {}
    with pytest.raises(ValueError, match=named):
        parse_config({**whole, **config})


def test_a_whole_configuration_is_read_and_null_is_absent() -> None:
    limits = {"memory_bytes": 5, "pids_max": None, "mode": "rlimit"}
    config = parse_config(
        {
            "sandbox_id": "a",
            "public_keys": ["k"],
            "listen_fd": 3,
            "control_fd": None,
            "ports": [80],
            "limits": limits,
        }
    )
    assert (config.control_fd, config.ports, config.limits.pids_max) == (-1, (80,), 0)
