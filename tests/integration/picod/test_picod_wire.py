"""What PicoD says is what the published wire says: every call of the catalogue, asked of a real PicoD."""

from __future__ import annotations

import base64
import io
import re
import tarfile
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel

from agentcube.picod.file_routes import FileRoutes
from agentcube.picod.fs_routes import FsRoutes
from agentcube.picod.kernel_routes import KernelRoutes
from agentcube.picod.process_routes import ProcessRoutes
from agentcube.wire.inside.call import Call
from agentcube.wire.inside.openapi import CALLS

from .conftest import Answer, Keys, PicoD
from .kernels.kernel import running

Event = dict[str, Any]


class Wire:
    """Calls a PicoD and holds every answer against the catalogue. `seen` are the calls that were answered so."""

    def __init__(self, picod: PicoD) -> None:
        self.picod = picod
        self.seen: set[tuple[str, str]] = set()

    def call(
        self,
        method: str,
        target: str,
        body: Any = None,
        *,
        problem: str = "",
        asks: bool = True,
        **headers: str,
    ) -> Answer:
        """The answer; its status and body are among those of the catalogue, or `problem` is, and came."""
        row = row_of(method, target)
        if isinstance(row.body, type) and not isinstance(body, bytes | None):
            row.body.model_validate(body)
        answer = self.picod.call(method, f"/api{target}", body, headers)
        if problem:
            assert answer.json()["code"] == problem
            assert problem in row.problems
            return answer
        assert answer.status in row.answers, answer.body
        check(row.answers[answer.status], answer)
        self.seen.add((row.method, row.path))
        return answer

    def stream(self, method: str, target: str, body: Any = None, **headers: str) -> list[Event]:
        """The events, each one of the catalogue."""
        row = row_of(method, target)
        if isinstance(row.body, type):
            row.body.model_validate(body)
        with self.picod.streaming(method, f"/api{target}", body, **headers) as stream:
            events = list(stream)
        for event in events:
            check_event(row, event)
        self.seen.add((row.method, row.path))
        return events


def row_of(method: str, target: str) -> Call:
    """The row of the catalogue for a request."""
    path = urlsplit(target).path
    found = [row for row in CALLS if row.method == method and pattern(row).fullmatch(path)]
    assert len(found) == 1, (method, path, found)
    return found[0]


def pattern(row: Call) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{\w+(\*?)\}", lambda m: ".+" if m[1] else "[^/]+", row.path))


def check(content: Any, answer: Answer) -> None:
    kind = answer.headers.get("content-type", "")
    if content is None:
        assert answer.body == b""
    elif isinstance(content, str):
        assert kind.startswith(content) or content == "application/octet-stream", kind
    else:
        assert kind == "application/json"
        validate(content if isinstance(content, tuple) else (content,), answer.json())


def check_event(row: Call, event: Event) -> None:
    models = [m for m in row.events if event["event"] in names(m)]
    assert models, f"no event {event['event']!r} in the catalogue"
    validate(tuple(models), event)


def names(model: type[BaseModel]) -> list[str]:
    said = model.model_json_schema()["properties"]["event"]
    return [said["const"]] if "const" in said else list(said["enum"])


def validate(models: tuple[type[BaseModel], ...], value: Any) -> None:
    """One of the models is what this is, to the last member."""
    wrong = []
    for model in models:
        try:
            model.model_validate(value, extra="forbid", strict=True)
        except ValueError as exc:
            wrong.append(exc)
        else:
            return
    raise AssertionError(f"{value!r}: {wrong}")


def test_every_call_answers_what_the_catalogue_says(keys: Keys) -> None:
    with running(keys) as picod:
        wire = Wire(picod)
        _commands(wire)
        _processes(wire)
        _terminal(wire)
        _files(wire)
        _directories(wire)
        _watch(wire)
        _kernels(wire)
    # A CodeInterpreter has no command of its own whose logs could be read.
    assert {(row.method, row.path) for row in CALLS} - wire.seen == {("GET", "/logs")}


def _commands(wire: Wire) -> None:
    wire.call(
        "POST", "/execute", {"command": ["sh", "-c", "echo out; echo err >&2; exit 3"], "timeout": "20s"}
    )
    asked = {"command": ["cat"], "stdin_base64": "/w==", "encoding": "base64", "env": {"A": "b"}}
    assert wire.call("POST", "/execute", asked).json()["stdout_base64"] == "/w=="
    assert (
        wire.call("POST", "/execute", {"command": ["sleep", "9"], "timeout": "50ms"}).json()["exit_code"]
        == 124
    )
    wire.call("POST", "/execute", {"command": ["x"], "timeout": "soon"}, problem="invalid")
    wire.call("GET", "/logs", problem="no_command")


def _processes(wire: Wire) -> None:
    wire.stream("POST", "/processes", {"shell": "echo out; echo err >&2", "timeout": "20s", "grace": "5s"})
    wire.stream("POST", "/processes?encoding=base64", {"command": ["/nowhere"]})
    wire.stream("POST", "/processes", {"shell": "sleep 9", "timeout": "50ms"})
    cat = {"command": ["cat"], "stdin": "open", "background": True, "user": "sandbox", "working_dir": "."}
    made = wire.call("POST", "/processes", cat, **{"Idempotency-Key": "k1"}).json()
    one = f"/processes/{made['id']}"
    assert wire.call("GET", one).json()["state"] == "running"
    wire.call(
        "POST",
        "/processes",
        {**cat, "env": {"A": "b"}},
        problem="idempotency_conflict",
        **{"Idempotency-Key": "k1"},
    )
    wire.call("POST", f"{one}/stdin", b"hello")
    assert wire.call("POST", f"{one}/stdin?offset=3&close=true", b"lo!").json() == {"offset": 6}
    assert wire.call("GET", f"{one}/wait?timeout=20s").json()["state"] == "exited"
    events = wire.stream("GET", f"{one}/output?stdout=1&follow=false")
    assert [event["event"] for event in events] == ["start", "stdout", "exit"]
    assert events[1]["data"] == "ello!"
    wire.call("POST", f"{one}/resize", {"cols": 1, "rows": 1}, problem="not_a_terminal")
    wire.call("POST", f"{one}/signal", {"signal": "INT"}, problem="process_ended")
    assert len(wire.call("GET", "/processes?limit=2").json()["processes"]) == 2
    assert wire.call("GET", "/processes?limit=1").json()["next_cursor"]
    wire.call("DELETE", one)
    wire.call("GET", one, problem="process_not_found")
    wire.call("POST", "/processes", {"command": ["x"], "shell": "y"}, problem="invalid")
    _overwritten(wire)


def _overwritten(wire: Wire) -> None:
    """More than is kept, and not read."""
    made = wire.call("POST", "/processes", {"shell": "head -c 2000000 /dev/zero", "background": True}).json()
    wire.call("GET", f"/processes/{made['id']}/wait")
    events = wire.stream("GET", f"/processes/{made['id']}/output?encoding=base64")
    assert "gap" in {event["event"] for event in events}


def _terminal(wire: Wire) -> None:
    asked = {"command": ["sleep", "60"], "pty": {"cols": 100, "rows": 30}, "background": True}
    made = wire.call("POST", "/processes", asked).json()
    assert made["pty"] == {"cols": 100, "rows": 30}
    one = f"/processes/{made['id']}"
    without = wire.call("POST", "/processes", {"command": ["sleep", "60"], "background": True}).json()["id"]
    wire.call("POST", f"/processes/{without}/stdin", b"more", problem="stdin_closed")
    wire.call("DELETE", f"/processes/{without}")
    assert wire.call("POST", f"{one}/resize", {"cols": 90, "rows": 20}).json()["pty"]["cols"] == 90
    wire.call("POST", f"{one}/signal", {"signal": 15, "tree": True})
    assert wire.call("GET", f"{one}/wait").json()["signal"] == "SIGTERM"


def _files(wire: Wire) -> None:
    content = base64.b64encode(b"content").decode()
    wire.call("POST", "/files", {"path": "d/a.txt", "content": content, "mode": "0600"})
    wire.call("PUT", "/files/d/b.txt?mode=0755", b"one")
    assert wire.call("PUT", "/files/d/b.txt?append=true&offset=3", b" two").json()["size"] == 7
    wire.call("PUT", "/files/d/b.txt?append=true&offset=3", b"!", problem="conflict")
    wire.call("PUT", "/files/d/b.txt?exclusive=true", b"!", problem="file_exists")
    wire.call("GET", "/files/d/b.txt")
    part = wire.call("GET", "/files/d/b.txt", Range="bytes=4-")
    assert part.body == b"two"
    assert wire.call("GET", "/files/d/b.txt", **{"If-None-Match": part.headers["etag"]}).status == 304
    wire.call("GET", "/files/d/b.txt", Range="bytes=99-", problem="range_not_satisfiable")
    wire.call("GET", "/files?path=d")
    assert len(wire.call("GET", "/files?path=.&glob=**/*.txt").json()["files"]) == 2
    assert wire.call("GET", "/files?recursive=true&limit=1").json()["next_cursor"]
    wire.call("PATCH", "/files/d/b.txt", {"permissions": "0640", "modified": "2026-01-02T03:04:05Z"})
    wire.call("DELETE", "/files/d", problem="not_empty")
    wire.call("DELETE", "/files/d?recursive=true")
    wire.call("GET", "/files/d/b.txt", problem="file_not_found")


def _directories(wire: Wire) -> None:
    wire.call("POST", "/fs/mkdir", {"path": "d/e", "mode": "0700"})
    assert wire.call("POST", "/fs/mkdir", {"path": "d/e"}).status == 200
    wire.call("PUT", "/files/d/e/f", b"x")
    wire.call("POST", "/execute", {"command": ["ln", "-s", "e/f", "d/link"]})
    assert wire.call("GET", "/fs/stat?path=d/link&follow=false").json()["target"] == "e/f"
    assert wire.call("GET", "/fs/stat?path=d/link").json()["type"] == "file"
    wire.call("POST", "/fs/copy", {"source": "d", "destination": "copy"})
    wire.call("POST", "/fs/move", {"source": "copy/e/f", "destination": "moved"})
    wire.call("POST", "/fs/move", {"source": "moved", "destination": "d/e/f"}, problem="file_exists")
    packed = wire.call("GET", "/fs/tar?path=d").body
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        assert {"e", "e/f", "link"} <= {name.strip("/") for name in archive.getnames()}
    assert wire.call("PUT", "/fs/tar?path=unpacked", packed).json()["entries"] == 3
    wire.call("PUT", "/fs/tar?path=unpacked", b"no archive" * 100, problem="invalid")


def _watch(wire: Wire) -> None:
    row = row_of("GET", "/fs/watch")
    wire.call("POST", "/fs/mkdir", {"path": "watched"})
    with wire.picod.streaming("GET", "/api/fs/watch?path=watched") as stream:
        events = iter(stream)
        check_event(row, first := next(events))
        assert first["event"] == "ready"
        wire.call("PUT", "/files/watched/a", b"x")
        wire.call("POST", "/fs/move", {"source": "watched/a", "destination": "watched/b"})
        wire.call("DELETE", "/files/watched?recursive=true")
        said = list(events)
    for event in said:
        check_event(row, event)
    assert {"rename", "delete", "end"} <= {event["event"] for event in said}
    wire.seen.add((row.method, row.path))


def _kernels(wire: Wire) -> None:
    made = wire.call("POST", "/kernels", {"language": "bash"}).json()
    wire.stream("POST", f"/kernels/{made['id']}/execute", {"code": "echo hi; false"})
    wire.call("DELETE", f"/kernels/{made['id']}")
    asked = {"language": "python", "env": {"A": "b"}, "working_dir": "."}
    assert wire.call("PUT", "/kernels/main", asked).status == 201
    assert wire.call("PUT", "/kernels/main", asked).status == 200
    wire.call("PUT", "/kernels/main", {"language": "bash"}, problem="kernel_exists")
    cell = "print(1)\nimport sys\nprint(2, file=sys.stderr)\ndisplay(3, display_id='i')\n4"
    events = wire.stream("POST", "/kernels/main/execute", {"code": cell, "timeout": "60s"})
    assert [event["event"] for event in events][:2] == ["start", "stdout"]
    wire.stream("POST", "/kernels/main/execute", {"code": "1/0", "grace": "5s", "store_history": False})
    wire.stream("GET", f"/kernels/main/executions/{events[0]['execution']}?after=2")
    _busy(wire)
    wire.call("POST", "/kernels/main/restart")
    died = wire.stream("POST", "/kernels/main/execute", {"code": "import os; os._exit(1)"})
    assert died[-1]["status"] == "kernel_died"
    assert wire.call("GET", "/kernels/main").json()["reason"]
    wire.call("POST", "/kernels/main/execute", {"code": "1"}, problem="kernel_dead")
    wire.stream(
        "POST", "/kernels/main/execute", {"code": "1", "create": {"language": "python"}, "wait": "1s"}
    )
    wire.call("GET", "/kernels")
    wire.call("GET", "/kernels/other", problem="kernel_not_found")


def _busy(wire: Wire) -> None:
    row = row_of("POST", "/kernels/main/execute")
    cell = {"code": "print('begun', flush=True)\nimport time\ntime.sleep(60)"}
    with wire.picod.streaming("POST", "/api/kernels/main/execute", cell) as stream:
        events = iter(stream)
        begun = [next(events), next(events)]
        assert wire.call("GET", "/kernels/main").json()["state"] == "busy"
        wire.call("POST", "/kernels/main/execute", {"code": "1"}, problem="kernel_busy")
        wire.call("POST", "/kernels/main/interrupt", {"execution": begun[0]["execution"], "grace": "30s"})
        for event in (*begun, *events):
            check_event(row, event)
    assert event["status"] == "interrupted"


def test_picod_has_no_call_that_the_catalogue_has_not() -> None:
    nothing: Any = None
    parts = (
        ProcessRoutes(nothing, nothing, 0, nothing),
        KernelRoutes(nothing),
        FileRoutes(nothing, nothing),
        FsRoutes(nothing, nothing, (0, 0)),
    )
    served = {(route.method, route.path) for part in parts for route in part.rows()}
    known = {(row.method, row.path) for row in CALLS}
    assert len({_shape(*row) for row in served}) == len(served)
    assert {_shape(*row) for row in served} <= {_shape(*row) for row in known}


def _shape(method: str, path: str) -> str:
    """A route without the names of its parameters."""
    inside = path.removeprefix("/api")
    inside = re.sub(r"/\{\w+\*\}$", "/", inside)
    return method + re.sub(r"\{\w+\}", "{}", inside)
