"""What the tests of kernels share: a PicoD with a fork server, and cells as one line each."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.integration.picod.conftest import PYTHON, Keys, PicoD, _start

FORKER = str(Path(__file__).parent / "kernel_forker.py")
PATH = f"{Path(PYTHON).parent}:/usr/local/bin:/usr/bin:/bin"


@contextmanager
def running(keys: Keys, python: str = PYTHON, *, forks: bool = True, **config: Any) -> Iterator[PicoD]:
    """A PicoD whose kernels are forked, or executed, from `python`; its user is ours, who can run that."""
    with ExitStack() as stack:
        prefix = (sys.executable, FORKER, python) if forks else ()
        env = {"PATH": f"{Path(python).parent}:{PATH}", "HOME": "/tmp", **config.pop("env", {})}
        yield _start(stack, keys, prefix, True, {"single_uid": True, "env": env, **config})


class Kernel:
    """One kernel, and what its cells say."""

    def __init__(self, picod: PicoD, **design: Any) -> None:
        answer = picod.call("POST", "/api/kernels", design)
        assert answer.status == 201, answer.body
        self.made = answer.json()
        self.picod = picod
        self.path = f"/api/kernels/{self.made['id']}"

    def get(self) -> Any:
        return self.picod.call("GET", self.path).json()

    def run(self, code: str, **more: Any) -> list[dict[str, Any]]:
        """All events of a cell; the last one is `end`."""
        with self.picod.streaming("POST", self.path + "/execute", {"code": code, **more}) as stream:
            events = list(stream)
        assert events[0]["event"] == "start"
        assert events[-1]["event"] == "end"
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        return events

    def value(self, code: str, **more: Any) -> str:
        """The text of a cell's value, which must be there."""
        return data_of(self.run(code, **more), "execute_result")[0]["text/plain"]

    def out(self, code: str, **more: Any) -> str:
        """What a cell prints, which must not fail."""
        events = self.run(code, **more)
        assert events[-1]["status"] == "ok", events
        return text_of(events)


def text_of(events: list[dict[str, Any]], stream: str = "stdout") -> str:
    return "".join(event["text"] for event in events if event["event"] == stream)


def data_of(events: list[dict[str, Any]], name: str = "display_data") -> list[dict[str, str]]:
    return [event["data"] for event in events if event["event"] == name]


def error_of(events: list[dict[str, Any]]) -> dict[str, Any]:
    errors = [event for event in events if event["event"] == "error"]
    assert len(errors) == 1, events
    return errors[0]
