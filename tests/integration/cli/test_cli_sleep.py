"""`session suspend`, `resume` and `events` on the command line."""

from __future__ import annotations

import json
from typing import Any

from tests.integration.cli.conftest import Cli
from tests.integration.sdk.wire_answers import problem, stream
from tests.integration.sdk.wire_server import WireServer

AT = "2026-11-21T15:00:00Z"


def phase(seq: int, name: str, **more: Any) -> dict[str, Any]:
    return {"event": "phase", "seq": seq, "phase": name, "at": AT, "reason": "", "message": "", **more}


def test_sessions_are_put_to_sleep_and_woken(cli: Cli, server: WireServer) -> None:
    ids = [cli("session", "create").text.strip() for _ in range(2)]
    done = cli("session", "suspend", *ids)
    assert done.text == "".join(f"session {id} sleeps (frozen)\n" for id in ids)
    assert [server.sessions[id]["phase"] for id in ids] == ["Paused", "Paused"]
    assert cli("session", "resume", *ids).text == "".join(f"session {id} is awake\n" for id in ids)
    assert [server.sessions[id]["phase"] for id in ids] == ["Ready", "Ready"]


def test_what_keeps_a_session_awake_is_one_line_and_a_failure(cli: Cli, server: WireServer) -> None:
    server.script("POST", ".*/suspend", problem(409, "suspend_unsupported", "no freezer here"))
    done = cli("session", "suspend", "s")
    assert (done.code, done.error) == (1, "agentcube: suspend session s: no freezer here\n")


def test_phases_are_printed_as_they_come(cli: Cli, server: WireServer) -> None:
    told = (
        {"event": "gap", "from": 1, "to": 6},
        phase(7, "Ready", reason="suspend_failed", message="no\x1b[31m freezer"),
        phase(8, "Deleted"),
    )
    server.script("GET", ".*/events", stream(*told), stream(*told))
    lines = cli("session", "events", "s", "--all").text.splitlines()
    assert "Ready" in lines[0]
    assert "suspend_failed: no [31m freezer" in lines[0]
    assert "not on record" in lines[0]
    assert lines[1].endswith("   Deleted")
    assert server.requests("GET", ".*/events")[0].query == {"after": "0"}
    objects = [json.loads(line) for line in cli("session", "events", "s", "-o", "json").text.splitlines()]
    assert [(o["seq"], o["phase"], o["missed"]) for o in objects] == [
        (7, "Ready", True),
        (8, "Deleted", False),
    ]
    assert server.requests("GET", ".*/events")[1].query == {}
