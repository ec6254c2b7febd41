"""Files of the wire server beyond what the Go system has: a dictionary of paths; names imply the directories."""

from __future__ import annotations

import asyncio
import io
import re
import tarfile
from collections.abc import AsyncIterator
from fnmatch import fnmatch
from typing import Any

from tests.integration.sdk.wire_answers import Answer, Seen, of, problem


class Files:
    """The workspace of a session, shared with the routes of `WireServer`."""

    def __init__(self, files: dict[str, bytes], modes: dict[str, str]) -> None:
        self.files = files
        self.modes = modes
        self.folders: set[str] = set()
        self.versions: dict[str, int] = {}
        self.watchers: list[asyncio.Queue[dict[str, Any]]] = []
        self.page_size = 1000

    def entry(self, path: str) -> dict[str, Any] | None:
        """The entry of a path; None where there is nothing."""
        is_dir = (
            path in ("", ".") or path in self.folders or any(f.startswith(f"{path}/") for f in self.files)
        )
        if path not in self.files and not is_dir:
            return None
        return {
            "path": path,
            "name": path.rpartition("/")[2],
            "type": "directory" if is_dir else "file",
            "size": len(self.files.get(path, b"")),
            "mode": "drwxr-xr-x" if is_dir else "-rw-r--r--",
            "permissions": self.modes.get(path, "0755" if is_dir else "0644"),
            "uid": 1000,
            "gid": 1000,
            "modified": "2026-11-28T15:00:00Z",
            "is_dir": is_dir,
        }

    def route(self, seen: Seen, rest: list[str]) -> Answer | None:
        """The answer; None for what the older routes serve."""
        if rest[0] == "fs":
            return self._fs(seen, rest[1])
        path = "/".join(rest[1:])
        match seen.method:
            case "GET" if path:
                return self._get(seen, path)
            case "PUT":
                return self._put(seen, path)
            case "DELETE":
                return self._delete(seen, path)
            case "PATCH":
                self.modes[path] = seen.json.get("permissions", self.modes.get(path, "0644"))
                return self._found(path)
            case "GET" if {"recursive", "glob", "limit"} & set(seen.query):
                return self._list(seen)
        return None

    def _found(self, path: str, status: int = 200) -> Answer:
        entry = self.entry(path)
        return of(entry, status) if entry else problem(404, "file_not_found", f"no file {path}")

    def _get(self, seen: Seen, path: str) -> Answer:
        if path not in self.files:
            return problem(404, "file_not_found", f"no file {path}")
        data, etag = self.files[path], f'"{self.versions.get(path, 0)}"'
        headers = {"content-type": "application/octet-stream", "etag": etag}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", seen.headers.get("range", ""))
        if asked is None or seen.headers.get("if-range", etag) != etag:
            return Answer(200, data, headers)
        start, end = int(asked[1]), int(asked[2] or len(data) - 1)
        if start >= len(data):
            return problem(416, "range_not_satisfiable", "there is nothing")
        return Answer(206, data[start : end + 1], headers)

    def _put(self, seen: Seen, path: str) -> Answer:
        there = path in self.files
        if there and seen.query.get("exclusive") == "true":
            return problem(409, "file_exists", f"{path} is there")
        before = self.files.get(path, b"") if seen.query.get("append") == "true" else b""
        if seen.query.get("offset", str(len(before))) != str(len(before)):
            return problem(409, "conflict", f"{path} has {len(before)} bytes")
        self.files[path] = before + seen.body
        self.versions[path] = self.versions.get(path, 0) + 1
        self.modes[path] = seen.query.get("mode", self.modes.get(path, "0644"))
        self.tell("modify" if there else "create", path)
        return self._found(path, 200 if there else 201)

    def _delete(self, seen: Seen, path: str) -> Answer:
        entry = self.entry(path)
        if entry is None:
            return problem(404, "file_not_found", f"no file {path}")
        below = [name for name in self.files if name == path or name.startswith(f"{path}/")]
        if entry["is_dir"] and below and seen.query.get("recursive") != "true":
            return problem(409, "not_empty", f"{path} holds {len(below)} files")
        for name in below:
            del self.files[name]
        self.folders.discard(path)
        self.tell("delete", path)
        return Answer(204)

    def _list(self, seen: Seen) -> Answer:
        base, pattern = seen.query["path"], seen.query.get("glob", "*")
        prefix = "" if base == "." else f"{base}/"
        names = {name for name in (*self.files, *self.folders) if name.startswith(prefix)}
        if seen.query.get("recursive") != "true":
            names = {prefix + name.removeprefix(prefix).partition("/")[0] for name in names}
        found = sorted(
            name for name in names if fnmatch(name.removeprefix(prefix), pattern.replace("**/", "*"))
        )
        start = int(seen.query.get("cursor", "0"))
        end = start + self.page_size
        entries = [self.entry(name) for name in found[start:end]]
        return of({"files": entries, "next_cursor": str(end) if end < len(found) else None})

    def _fs(self, seen: Seen, call: str) -> Answer:
        match call:
            case "stat":
                return self._found(seen.query["path"])
            case "mkdir":
                self.folders.add(seen.json["path"])
                return self._found(seen.json["path"], 201)
            case "move" | "copy":
                source, destination = seen.json["source"], seen.json["destination"]
                if source not in self.files:
                    return problem(404, "file_not_found", f"no file {source}")
                if destination in self.files and not seen.json["overwrite"]:
                    return problem(409, "file_exists", f"{destination} is there")
                self.files[destination] = self.files.pop(source) if call == "move" else self.files[source]
                self.tell("rename" if call == "move" else "create", destination, **{"from": source})
                return self._found(destination)
            case "watch":
                return Answer(events=self._watch())
            case "tar" if seen.method == "PUT":
                return self._unpack(seen)
            case "tar":
                return Answer(200, self._packed(seen.query["path"]), {"content-type": "application/x-tar"})
        return of({}, 404)

    def _unpack(self, seen: Seen) -> Answer:
        size = entries = 0
        with tarfile.open(fileobj=io.BytesIO(seen.body)) as archive:
            for member in archive:
                entries += 1
                content = archive.extractfile(member) if member.isreg() else None
                if content is not None:
                    data = content.read()
                    size += len(data)
                    self.files[f"{seen.query['path']}/{member.name}"] = data
        return of({"entries": entries, "bytes": size})

    def _packed(self, path: str) -> bytes:
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w") as archive:
            for name, data in sorted(self.files.items()):
                if name.startswith(f"{path}/"):
                    member = tarfile.TarInfo(name.removeprefix(f"{path}/"))
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
        return made.getvalue()

    def tell(self, event: str, path: str, **members: Any) -> None:
        for watcher in self.watchers:
            watcher.put_nowait({"event": event, "path": path, "is_dir": False, **members})

    async def _watch(self) -> AsyncIterator[dict[str, Any]]:
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.watchers.append(queue)
        yield {"event": "ready"}
        while True:
            yield await queue.get()
