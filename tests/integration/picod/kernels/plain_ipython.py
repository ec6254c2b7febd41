"""What plain IPython prints for cells, and what it would print for a kernel's events: to be compared.

Run as a program under a Python with IPython, it reads a list of cells as JSON and prints what each gave.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any


def expected(python: str, cells: list[str], folder: Path) -> list[dict[str, str]]:
    """What each cell writes on stdout and stderr in one plain IPython of that Python, working in `folder`."""
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder), "IPYTHONDIR": str(folder / "ipython")}
    command = [python, __file__]
    given = json.dumps(cells)
    done = subprocess.run(
        command,
        env={**environ, "MPLBACKEND": "agg"},
        input=given,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=folder,
    )
    return [{name: comparable(text) for name, text in one.items()} for one in json.loads(done.stdout)]


def comparable(text: str) -> str:
    """Without what differs from process to process."""
    text = re.sub(r"~?/\S*/site-packages/", "…/site-packages/", text)
    text = re.sub(r"0x[0-9a-f]{6,}", "0x…", text)
    text = re.sub(r"(File: +)?\S*<ipython-input-\d+-[0-9a-f]+>", "<ipython-input>", text)
    text = re.sub(r"Out\[\d+\]: (?=-{70})", "", text)  # a terminal has begun to answer when the repr fails
    return re.sub(r"CPU times.*\nWall time.*\n", "", text)


def transcript(events: list[dict[str, Any]]) -> dict[str, str]:
    """What IPython in a terminal would have printed for these events; figures are not shown there."""
    out = err = ""
    for event in events:
        kind = event["event"]
        if kind == "stdout":
            out += event["text"]
        elif kind == "stderr":
            err += event["text"]
        elif kind in ("display_data", "update_display_data") and "image/png" not in event["data"]:
            out += event["data"]["text/plain"] + "\n"
        elif kind == "execute_result":
            text = event["data"]["text/plain"]
            out += f"Out[{event['execution_count']}]: " + ("\n" if "\n" in text else "") + text + "\n"
        elif kind == "error":
            text = "\n".join(event["traceback"]) + "\n"
            if event["name"] == "UsageError":
                err += text  # without a traceback, and told on stderr
            else:
                out += text
    return {"stdout": comparable(out), "stderr": comparable(err)}


class Recorder:
    """A stream that remembers what was written, and says it is no terminal."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return False


def transcripts(cells: list[str]) -> list[dict[str, str]]:
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    config = Config()
    config.HistoryManager.enabled = False
    config.HistoryManager.hist_file = ":memory:"
    config.InteractiveShell.colors = "nocolor"
    shell = InteractiveShell.instance(config=config)
    found = []
    for cell in cells:
        own = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = out, err = Recorder(), Recorder()  # type: ignore[assignment]
        try:
            shell.run_cell(cell, store_history=True)
        finally:
            sys.stdout, sys.stderr = own
        found.append({"stdout": out.text, "stderr": err.text})
    return found


if __name__ == "__main__":
    print(json.dumps(transcripts(json.load(sys.stdin))))
