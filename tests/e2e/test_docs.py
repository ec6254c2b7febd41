"""Python in the README and the guides runs as it stands, against a real server."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.e2e import harness
from tests.e2e.agents import write_parrot

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("tutorial/*.md")),
    *sorted((ROOT / "docs").glob("how-to/*.md")),
]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
EXAMPLES = [
    pytest.param(page, code, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, code in enumerate(BLOCK.findall(page.read_text()), 1)
]
YAML = re.compile(r"^ *```yaml\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
MANIFESTS = [
    pytest.param(page, text, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, text in enumerate(YAML.findall(page.read_text()), 1)
    if "kind:" in text
]
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")


@pytest.mark.parametrize(("page", "code"), EXAMPLES)
def test_example(page: Path, code: str, server: harness.Server, agents_dir: Path, tmp_path: Path) -> None:
    if "parrot" in code:
        assert server.cli("apply", "-f", str(write_parrot(agents_dir))).returncode == 0
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=server.env(),
        timeout=100,
    )
    assert done.returncode == 0, f"{page}\n{done.stderr}"


@pytest.mark.parametrize(("page", "text"), MANIFESTS)
def test_manifest(page: Path, text: str, server: harness.Server, agents_dir: Path) -> None:
    """Any manifest in a guide can be applied; its directories are replaced by one that this server allows."""
    text = re.sub(r"path: /srv/[^}\n]*", f"path: {agents_dir}", textwrap.dedent(text))
    done = server.cli("apply", "-f", "-", input=text.encode())
    assert done.returncode == 0, f"{page}\n{done.stderr.decode()}"
    for kind, name in re.findall(
        r"(AgentRuntime|CodeInterpreter) default/(\S+) created", done.stdout.decode()
    ):
        assert server.cli("delete", kind.lower(), name).returncode == 0


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")], ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    broken = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert not broken
