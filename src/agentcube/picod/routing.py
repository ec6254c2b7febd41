"""Rows that say what is served where, and for whom; and the table that finds a request's row."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from typing import Callable
from urllib.parse import unquote_to_bytes

from agentcube.picod.messages import Request, Response
from agentcube.picod.problems import Problem


class Access(enum.Enum):
    """Who may call a route."""

    OPEN = "open"  # whoever reaches the socket: tells nothing of the session
    MANAGER = "manager"  # the handler checks the manager's token, which is in the body
    SESSION = "session"  # the Router's token for the bound session


@dataclass(frozen=True)
class Route:
    """One row of the table.

    A `{name}` in `path` stands for one whole segment, which must not be empty; a `path` that ends
    with `/` for everything below it. HEAD is served by the row of GET.
    """

    method: str
    path: str
    access: Access
    handler: Callable[[Request, Response], Awaitable[None]]


class Table:
    """All rows. Where several paths fit, literal ones go before `{names}`, and these before `…/`."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        self._literal: dict[str, list[Route]] = {}
        self._named: dict[int, list[tuple[list[str], Route]]] = {}  # by the number of segments
        self._below: list[Route] = []
        for route in self.routes:
            segments = route.path.split("/")
            if route.path.endswith("/"):
                self._below.append(route)
            elif "{" in route.path:
                self._named.setdefault(len(segments), []).append((segments, route))
            else:
                self._literal.setdefault(route.path, []).append(route)

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """The row of a request and what its `{names}` stand for, percent-decoded.

        Raises:
            Problem: `not_found`, or `method_not_allowed` where other methods are served.
        """
        method = "GET" if method == "HEAD" else method
        allowed: list[str] = []
        for route, params in self._fitting(path):
            if route.method == method:
                return route, params
            allowed.append(route.method)
        if not allowed:
            raise Problem("not_found", "PicoD has no such path")
        header = (b"allow", ", ".join(dict.fromkeys(allowed)).encode("ascii"))
        raise Problem("method_not_allowed", f"{method} is not allowed here", headers=(header,))

    def _fitting(self, path: str) -> Iterable[tuple[Route, dict[str, str]]]:
        for route in self._literal.get(path, ()):
            yield route, {}
        given = path.split("/")
        for segments, route in self._named.get(len(given), ()):
            params = _match(segments, given)
            if params is not None:
                yield route, params
        for route in self._below:
            if path.startswith(route.path):
                yield route, {}


def _match(segments: list[str], given: list[str]) -> dict[str, str] | None:
    params = {}
    for expected, segment in zip(segments, given):
        if expected.startswith("{"):
            if not segment:
                return None
            params[expected[1:-1]] = unquote_to_bytes(segment).decode("utf-8", "replace")
        elif expected != segment:
            return None
    return params
