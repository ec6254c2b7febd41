"""Every Python example of the client's pages runs, against a server that speaks the wire."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.integration.sdk.wire_server import WireServer

DOCS = Path(__file__).resolve().parents[3] / "docs"
PAGES = ("tutorial/first-session.md", "how-to/use-the-sdk.md")
EXAMPLES = [
    pytest.param(code, id=f"{page}-{number}")
    for page in PAGES
    for number, code in enumerate(
        re.findall(r"```python\n(.*?)```", (DOCS / page).read_text("utf-8"), re.DOTALL)
    )
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_example(code: str, server: WireServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTCUBE_URL", server.url)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "example", "exec"), {"__name__": "__main__"})
    assert server.seen
    assert server.sessions == {}
