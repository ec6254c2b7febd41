"""The table of routes: who may call what, spelled out once more so that a change is seen."""

from __future__ import annotations

from typing import Any, cast

import pytest

from agentcube.errors import BY_CODE
from agentcube.picod import problems
from agentcube.picod.app import App
from agentcube.picod.config import parse_config
from agentcube.picod.file_routes import FileRoutes
from agentcube.picod.fs_routes import FsRoutes
from agentcube.picod.problems import Problem
from agentcube.picod.process_routes import ProcessRoutes
from agentcube.picod.routing import Access, Route, Table
from agentcube.picod.upload_routes import UploadRoutes


def test_every_route_says_who_may_call_it() -> None:
    config = parse_config({"sandbox_id": "sb", "public_keys": [], "listen_fd": 0})
    uploads = UploadRoutes(cast(Any, None), cast(Any, None)).rows()
    files = FileRoutes(cast(Any, None), cast(Any, None)).rows()
    fs = FsRoutes(cast(Any, None), cast(Any, None), (1000, 1000)).rows()
    calls = ProcessRoutes(cast(Any, None), cast(Any, None), 1000, dict).rows()
    app = App(config, cast(Any, None), cast(Any, None), None, (*uploads, *files, *fs, *calls))

    assert {(route.method, route.path): route.access for route in app.table.routes} == {
        ("GET", "/health"): Access.OPEN,
        ("GET", "/ready"): Access.OPEN,
        ("POST", "/bind"): Access.MANAGER,
        ("POST", "/api/execute"): Access.SESSION,
        ("GET", "/api/logs"): Access.SESSION,
        ("POST", "/api/files"): Access.SESSION,
        ("GET", "/api/files"): Access.SESSION,
        ("GET", "/api/files/"): Access.SESSION,
        ("POST", "/api/processes"): Access.SESSION,
        ("GET", "/api/processes"): Access.SESSION,
        ("GET", "/api/processes/{id}"): Access.SESSION,
        ("DELETE", "/api/processes/{id}"): Access.SESSION,
        ("GET", "/api/processes/{id}/output"): Access.SESSION,
        ("GET", "/api/processes/{id}/wait"): Access.SESSION,
        ("POST", "/api/processes/{id}/stdin"): Access.SESSION,
        ("POST", "/api/processes/{id}/signal"): Access.SESSION,
        ("POST", "/api/processes/{id}/resize"): Access.SESSION,
        ("PUT", "/api/files/"): Access.SESSION,
        ("PATCH", "/api/files/"): Access.SESSION,
        ("DELETE", "/api/files/"): Access.SESSION,
        ("GET", "/api/fs/stat"): Access.SESSION,
        ("POST", "/api/fs/mkdir"): Access.SESSION,
        ("POST", "/api/fs/move"): Access.SESSION,
        ("POST", "/api/fs/copy"): Access.SESSION,
        ("GET", "/api/fs/tar"): Access.SESSION,
        ("PUT", "/api/fs/tar"): Access.SESSION,
        ("GET", "/api/fs/watch"): Access.SESSION,
    }
    assert all(route.access is Access.SESSION for route in app.table.routes if route.path.startswith("/api"))


def test_a_problems_status_goes_with_its_code() -> None:
    assert Problem("limit_exceeded", "x").headers == ((b"retry-after", b"1"),)
    assert Problem("start_failed", "x").headers == ()
    with pytest.raises(KeyError):
        Problem("made_up", "x")


def test_problems_are_those_of_the_other_planes() -> None:
    for code, (status, title, retryable) in problems._KNOWN.items():
        kind = BY_CODE[code]
        assert (kind.title, kind.status) == (title, status) or code in ("start_failed", "internal")
        assert kind.retryable == retryable or code == "request_timed_out"


async def _handler(request: Any, response: Any) -> None: ...


def _table(*rows: str) -> Table:
    return Table(Route(*row.split(" "), Access.SESSION, _handler) for row in rows)


@pytest.mark.parametrize(
    ("request_line", "path", "params"),
    [
        ("GET /a", "/a", {}),
        ("HEAD /a", "/a", {}),
        ("GET /a/x", "/a/{id}", {"id": "x"}),
        ("GET /a/x%2Fy", "/a/{id}", {"id": "x/y"}),
        ("GET /a/x/out", "/a/{id}/out", {"id": "x"}),
        ("GET /a/all", "/a/all", {}),
        ("PUT /a/x/b/y", "/a/{id}/b/{other}", {"id": "x", "other": "y"}),
        ("GET /below/x/y//z", "/below/", {}),
    ],
)
def test_a_request_finds_its_row(request_line: str, path: str, params: dict[str, str]) -> None:
    table = _table(
        "GET /below/",
        "GET /a/{id}",
        "GET /a/all",
        "GET /a",
        "GET /a/{id}/out",
        "PUT /a/{id}/b/{other}",
    )
    route, found = table.find(*request_line.split(" "))
    assert (route.path, found) == (path, params)


@pytest.mark.parametrize("path", ["/b", "/a/", "/a//out", "/a/x/in", "/a/x/out/", ""])
def test_what_no_row_fits_is_not_found(path: str) -> None:
    with pytest.raises(Problem) as caught:
        _table("GET /a/{id}", "GET /a/{id}/out").find("GET", path)
    assert caught.value.code == "not_found"


def test_another_method_is_told_which_ones_there_are() -> None:
    with pytest.raises(Problem) as caught:
        _table("GET /a/{id}", "DELETE /a/{id}").find("PATCH", "/a/x")
    assert caught.value.status == 405
    assert caught.value.headers == ((b"allow", b"GET, DELETE"),)


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
