"""A notebook in a session shows what plain IPython shows for the same cells: texts, values, exceptions, charts."""

from __future__ import annotations

import base64
import json
import re
import shutil
import struct
import subprocess
import threading
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from agentcube import Sandbox
from agentcube.drivers.local.environments import DEFAULT, Environments
from agentcube.events import CellEnded, CellError, CellEvent, Displayed, Stderr, Stdout
from agentcube.up.paths import env_cache_dir
from tests.e2e import harness
from tests.e2e.notebook_cells import CELLS, INTERRUPTED

PLAIN = Path(__file__).with_name("plain_ipython.py")

# Where Python's own files and packages lie differs, and so does what a cell's file is called in a SyntaxError.
_ELSEWHERE = re.compile(r"File \S*/(lib/python3\.\d+/|site-packages/)")
_CELL_FILE = re.compile(r"\([^()]*, line (\d+)\)")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("notebook")
    with resources.as_file(resources.files("agentcube.up") / "demo_files" / "penguins.csv") as shipped:
        shutil.copy(shipped, folder)
    return folder


@pytest.fixture(scope="module")
def plain(data: Path) -> list[dict[str, Any]]:
    """What plain IPython says, run by the interpreter of the environment that sandboxes have."""
    python = Environments(env_cache_dir()).ensure(DEFAULT) / "bin" / "python"
    done = subprocess.run(
        [python, PLAIN],
        input=json.dumps({"cells": CELLS, "interrupted": INTERRUPTED}),
        capture_output=True,
        text=True,
        cwd=data,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    said: list[dict[str, Any]] = json.loads(done.stdout)
    return said


@pytest.fixture(scope="module")
def ours(server: harness.Server, data: Path) -> list[dict[str, Any]]:
    """What the SDK gives."""
    with Sandbox(url=server.url, api_key=server.api_key) as box:
        box.files.upload(data / "penguins.csv", "penguins.csv")
        return [_outcome(box, cell) for cell in CELLS]


def _outcome(box: Sandbox, cell: str) -> dict[str, Any]:
    outcome: dict[str, Any] = {"stdout": "", "stderr": "", "events": []}
    interrupter = threading.Timer(0.2, lambda: box.kernels.get("main").interrupt())
    with box.stream(cell) as events:
        for event in events:
            _take(outcome, event)
            if isinstance(event, Stdout) and INTERRUPTED in event.text:
                interrupter.start()
    if interrupter.is_alive():
        interrupter.join()
    return outcome


def _take(outcome: dict[str, Any], event: CellEvent) -> None:
    match event:
        case Stdout():
            outcome["stdout"] += event.text
        case Stderr():
            outcome["stderr"] += event.text
        case Displayed():
            kind = "value" if event.result.is_value else "display"
            outcome["events"].append({"kind": kind, "data": dict(event.result.data)})
        case CellError():
            outcome["events"].append(
                {
                    "kind": "error",
                    "name": event.name,
                    "value": event.value,
                    "traceback": list(event.traceback),
                }
            )
        case CellEnded():
            outcome |= {"execution_count": event.execution_count, "status": event.status}


def _comparable(outcome: dict[str, Any]) -> list[Any]:
    """An outcome without what is known to differ."""
    events = []
    for event in outcome["events"]:
        if event["kind"] == "error":
            trace = "\n".join(event["traceback"]).rstrip()
            value = _CELL_FILE.sub(r"(cell, line \1)", event["value"])
            events.append((event["name"], value, _ELSEWHERE.sub(r"File …/\1", trace)))
        else:
            forms = {mime: _form(mime, form) for mime, form in event["data"].items()}
            events.append((event["kind"], forms))
    return [outcome["execution_count"], outcome["stdout"], outcome["stderr"], *events]


def _form(mime: str, form: Any) -> Any:
    """Pictures count by their size: their bytes may differ in what they say of the program that made them."""
    if mime != "image/png":
        return form
    png = base64.b64decode(form)
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", png[16:24])


@pytest.mark.parametrize("number", range(len(CELLS)), ids=lambda n: f"cell {n + 1}")
def test_a_cell_shows_what_it_shows_in_ipython(
    number: int, plain: list[dict[str, Any]], ours: list[dict[str, Any]]
) -> None:
    assert _comparable(ours[number]) == _comparable(plain[number]), CELLS[number]


def test_the_notebook_has_what_it_should(ours: list[dict[str, Any]]) -> None:
    assert len(CELLS) >= 30
    statuses = [outcome["status"] for outcome in ours]
    assert statuses.count("interrupted") == 1
    assert statuses.count("error") >= 1
    assert statuses.count("ok") >= 30
    charts = [
        event for outcome in ours for event in outcome["events"] if "image/png" in event.get("data", {})
    ]
    assert len(charts) == 3
