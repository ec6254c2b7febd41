"""A small real HTTP server that speaks the wire: in-memory sessions, templates and files, and misbehaviour on demand.

It runs on an event loop in a thread of its own, so that sync clients, async clients and subprocesses can
all be pointed at it. It shares no code with the servers or the SDK.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from email.parser import BytesParser
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.integration.sdk.serving import serving
from tests.integration.sdk.wire_answers import Answer, Seen, of, problem
from tests.integration.sdk.wire_files import Files
from tests.integration.sdk.wire_kernels import Kernels
from tests.integration.sdk.wire_processes import Processes, encode

HEADER = "x-agentcube-session-id"
KINDS = {"code-interpreters": "CodeInterpreter", "agent-runtimes": "AgentRuntime"}


DROP = Answer(drop=True)
HANG = Answer(hang=True)


class WireServer:
    """`seen` is every request; `script` is answered first, one entry per request whose path it matches."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.sessions: dict[str, dict[str, Any]] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.workspaces: dict[str, Files] = {}
        self.processes = Processes()
        self.kernels = Kernels()
        self.modes: dict[str, str] = {}
        self.templates: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.api_key: str | None = None
        self.page_size = 2
        self.executed: dict[str, Any] = {"stdout": "", "stderr": "", "exit_code": 0}
        self.url = ""
        self.loop = asyncio.new_event_loop()
        self._dropped_after: list[tuple[str, re.Pattern[str]]] = []
        self._held: list[tuple[str, re.Pattern[str]]] = []
        self.streaming: set[asyncio.StreamWriter] = set()
        self._script: list[tuple[str, re.Pattern[str], deque[Answer]]] = []
        self._by_key: dict[str, Answer] = {}

    def script(self, method: str, path: str, *answers: Answer) -> None:
        """Answer the next requests of this method whose whole path matches, with these."""
        self._script.append((method, re.compile(path), deque(answers)))

    def drop_after(self, method: str, path: str) -> None:
        """Do what the next request of this method and path asks, and close the connection instead of answering."""
        self._dropped_after.append((method, re.compile(path)))

    def hold_events(self, method: str, path: str) -> None:
        """Do what the next request of this method and path asks, and do not begin to answer."""
        self._held.append((method, re.compile(path)))

    def cut_streams(self) -> None:
        """Close all connections on which there are events now."""
        self.call(lambda: [writer.close() for writer in self.streaming])

    def call(self, function: Callable[[], object]) -> None:
        """Call a function in the server's thread, and wait for it."""
        done = threading.Event()
        self.loop.call_soon_threadsafe(lambda: (function(), done.set()))
        assert done.wait(30)

    def requests(self, method: str, path: str) -> list[Seen]:
        return [s for s in self.seen if s.method == method and re.fullmatch(path, s.path)]

    def answer(self, seen: Seen) -> Answer:
        for method, path, answers in self._script:
            if answers and method == seen.method and path.fullmatch(seen.path):
                return answers.popleft()
        if self.api_key and seen.headers.get("authorization") != f"Bearer {self.api_key}":
            return problem(401, "unauthenticated", "no credentials")
        key = seen.headers.get("idempotency-key", "")
        if key and key in self._by_key:
            return self._by_key[key]
        made = self._route(seen)
        if key and "/sessions/" not in seen.path:
            self._by_key[key] = made
        return made

    def _route(self, seen: Seen) -> Answer:
        parts = [unquote(p) for p in seen.path.strip("/").split("/")]
        match parts:
            case ["v1", "code-interpreter" | "agent-runtime" as singular]:
                made = self._new({"kind": "CodeInterpreter", **seen.json})
                value = {
                    "kind": "Sandbox",
                    "sessionId": made["id"],
                    "sandboxId": "sb-1",
                    "sandboxName": singular,
                }
                return of({**value, "entryPoints": [{"path": "/", "protocol": "HTTP", "endpoint": "h:1"}]})
            case ["v1", "code-interpreter" | "agent-runtime", "sessions", id]:
                if self.sessions.pop(id, None) is None:
                    return problem(404, "session_not_found", f"no session {id}")
                return of({"message": "deleted"})
            case ["v1", "sessions"]:
                return self._new_or_list(seen)
            case ["v1", "sessions", id, *rest]:
                return self._session(seen, id, rest)
            case ["v1", "namespaces", space, plural, name, "invocations", *rest]:
                return self._invocation(seen, KINDS[plural], space, name, rest)
            case ["v1", "namespaces", space, plural, *rest]:
                return self._template(seen, KINDS[plural], space, rest)
            case ["v1", "pools"]:
                pool = {"kind": "CodeInterpreter", "namespace": "default", "name": "my-interpreter"}
                return of(
                    {"items": [{**pool, "target": 2, "ready": 1, "starting": 1, "claims": 7, "misses": 3}]}
                )
        return problem(404, "not_found", f"no route {seen.path}")

    def _new(self, asked: dict[str, Any]) -> dict[str, Any]:
        id = f"s{len(self.sessions) + 1}x{len(self.seen)}"
        self.sessions[id] = {
            "id": id,
            "phase": "Ready",
            "owner": "local",
            "metadata": {},
            "created_at": "2026-11-21T15:00:00.123456Z",
            **asked,
        }
        self.files[id] = {}
        self.workspaces[id] = Files(self.files[id], self.modes)
        return self.sessions[id]

    def _new_or_list(self, seen: Seen) -> Answer:
        if seen.method == "POST":
            return of(self._new(seen.json), 201)
        wanted = {k: v for k, v in seen.query.items() if k in ("namespace", "kind", "phase")}
        ids = sorted(i for i, s in self.sessions.items() if all(s.get(k) == v for k, v in wanted.items()))
        start = int(seen.query.get("cursor", "0"))
        end = start + self.page_size
        more = str(end) if end < len(ids) else None
        return of({"items": [self.sessions[i] for i in ids[start:end]], "next_cursor": more})

    def _session(self, seen: Seen, id: str, rest: list[str]) -> Answer:
        if id not in self.sessions:
            return problem(404, "session_not_found", f"no session {id}")
        if rest in (["suspend"], ["resume"]) and seen.method == "POST":
            asleep = rest == ["suspend"]
            self.sessions[id] |= {
                "phase": "Paused" if asleep else "Ready",
                "sleep": "frozen" if asleep else None,
            }
            return of(self.sessions[id])
        if rest:
            return self._picod(seen, id, rest)
        if seen.method == "DELETE":
            del self.sessions[id]
            return of({"message": "deleted"})
        if seen.method == "PATCH":
            self.sessions[id].update(seen.json)
        return of(self.sessions[id])

    def _invocation(self, seen: Seen, kind: str, space: str, name: str, rest: list[str]) -> Answer:
        id = seen.headers.get(HEADER) or self._new({"kind": kind, "namespace": space, "name": name})["id"]
        if id not in self.sessions:
            return problem(404, "session_not_found", f"no session {id}")
        if rest[:1] == ["api"]:
            answer = self._picod(seen, id, rest[1:])
        elif seen.method == "GET":
            answer = Answer(405, b"method not allowed", {"content-type": "text/plain"})
        elif rest == ["text"]:
            answer = Answer(200, b"plain text", {"content-type": "text/plain"})
        else:
            answer = of({"echo": json.loads(seen.body), "query": seen.query, "path": rest})
        return Answer(answer.status, answer.body, {**answer.headers, HEADER: id})

    def _picod(self, seen: Seen, id: str, rest: list[str]) -> Answer:
        files = self.files[id]
        if rest[0] == "processes":
            return self.processes.route(seen, rest[1:])
        if rest[0] == "kernels":
            return self.kernels.route(seen, rest[1:])
        if rest[0] in ("files", "fs") and (answer := self.workspaces[id].route(seen, rest)) is not None:
            return answer
        if rest == ["execute"]:
            return of(self._execute(seen.json, files))
        if rest == ["logs"]:
            return Answer(200, f"{seen.query['stream']} {seen.query.get('tail_bytes', '')}".encode())
        if rest == ["files"] and seen.method == "POST":
            path, data, mode = (
                _form(seen) if "multipart" in seen.headers["content-type"] else _file(seen.json)
            )
            files[path], self.modes[path] = data, mode
            return of(
                {"path": path, "size": len(data), "mode": "-rw-r--r--", "modified": "2026-11-21T15:00:00Z"}
            )
        if rest == ["files"]:
            entry = {"modified": "2026-11-21T15:00:00Z", "mode": "-rw-r--r--", "is_dir": False}
            return of({"files": [{"name": n, "size": len(d), **entry} for n, d in sorted(files.items())]})
        return problem(404, "not_found", f"no route {seen.path}")

    def _execute(self, asked: dict[str, Any], files: dict[str, bytes]) -> dict[str, Any]:
        """The canned result, or for the program `echo-stdin` what it was given."""
        result: dict[str, Any] = {"duration": 0.25, "start_time": "2026-11-21T15:00:00Z", **self.executed}
        stdout, stderr = result["stdout"].encode("utf-8"), result["stderr"].encode("utf-8")
        if asked["command"][0] == "echo-stdin":
            stdout = base64.b64decode(asked.get("stdin_base64", "")) or asked.get("stdin", "").encode()
        if asked["command"][-1] in files:
            stdout += files[asked["command"][-1]]
        if asked.get("encoding") == "base64":
            del result["stdout"], result["stderr"]
            result["stdout_base64"] = base64.b64encode(stdout).decode()
            result["stderr_base64"] = base64.b64encode(stderr).decode()
        else:
            result["stdout"] = stdout.decode("utf-8", "replace")
        return result

    def _template(self, seen: Seen, kind: str, space: str, rest: list[str]) -> Answer:
        if not rest:
            found = [m for (k, s, _), m in sorted(self.templates.items()) if (k, s) == (kind, space)]
            return of({"items": found, "next_cursor": None})
        key = (kind, space, rest[0])
        if seen.method == "PUT":
            status = 200 if key in self.templates else 201
            self.templates[key] = seen.json
            return of(seen.json, status)
        if key not in self.templates:
            return problem(404, "template_not_found", f"no {kind} {space}/{rest[0]}")
        return of(self.templates.pop(key) if seen.method == "DELETE" else self.templates[key])

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while seen := await _read(reader):
                self.seen.append(seen)
                answer = self.answer(seen)
                if answer.hang or _taken(self._held, seen):
                    await reader.read()  # until the client gives up
                    return
                if answer.drop or _taken(self._dropped_after, seen):
                    return
                if answer.events is not None:
                    self.streaming.add(writer)
                    await _stream(writer, answer.events)
                    self.streaming.discard(writer)
                    continue
                length = len(answer.body) if answer.promise is None else answer.promise
                head = f"HTTP/1.1 {answer.status} X\r\ncontent-length: {length}\r\n"
                head += "".join(f"{name}: {text}\r\n" for name, text in answer.headers.items())
                writer.write(head.encode() + b"\r\n" + answer.body)
                await writer.drain()
                if length != len(answer.body):
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            self.streaming.discard(writer)
            writer.close()


def _taken(rules: list[tuple[str, re.Pattern[str]]], seen: Seen) -> bool:
    """Whether one of the rules is for this request; it is used up then."""
    for number, (method, path) in enumerate(rules):
        if method == seen.method and path.fullmatch(seen.path):
            del rules[number]
            return True
    return False


async def _stream(writer: asyncio.StreamWriter, events: AsyncIterator[dict[str, Any]]) -> None:
    writer.write(
        b"HTTP/1.1 200 X\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    async for event in events:
        writer.write(encode(event))
        await writer.drain()
    writer.write(b"0\r\n\r\n")
    await writer.drain()


async def _read(reader: asyncio.StreamReader) -> Seen | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, _, rest = head.partition(b"\r\n")
    method, target, _ = first.decode().split(" ")
    headers = {name.lower(): text for name, text in BytesParser().parsebytes(rest).items()}
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    parts = urlsplit(target)
    return Seen(method, parts.path, dict(parse_qsl(parts.query)), headers, body)


def _file(value: dict[str, Any]) -> tuple[str, bytes, str]:
    return value["path"], base64.b64decode(value["content"]), value["mode"]


def _form(seen: Seen) -> tuple[str, bytes, str]:
    message = BytesParser().parsebytes(
        b"content-type: " + seen.headers["content-type"].encode() + b"\r\n\r\n" + seen.body
    )
    parts = {
        str(p.get_param("name", header="content-disposition")): p.get_payload(decode=True)
        for p in message.get_payload()
    }  # type: ignore[union-attr]
    return parts["path"].decode(), parts["file"], parts["mode"].decode()


@contextmanager
def running() -> Iterator[WireServer]:
    """A server on a free port, stopped at the end of the block."""
    server = WireServer()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await server.serve(reader, writer)
        except asyncio.CancelledError:
            writer.close()

    with serving(server.loop, serve) as server.url:
        yield server
