"""Python and command lines in the README and the guides run as they stand, against a real server."""

from __future__ import annotations

import json
import os
import re
import shutil
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


def _commands(text: str) -> list[tuple[str, str]]:
    """Command lines of a console, each with what it prints, which is nothing where the page does not say it."""
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], ""))
        elif line.startswith("> "):
            found[-1] = (f"{found[-1][0]}\n{line[2:]}", "")
        else:
            found[-1] = (found[-1][0], f"{found[-1][1]}{line}\n")
    return [(command, said) for command, said in found if not NOT_HERE.search(command)]


BLOCK = re.compile(r"^ *```python\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
EXAMPLES = [
    pytest.param(page, textwrap.dedent(code), id=f"{page.relative_to(ROOT)}-{number}")
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
WIRE = ROOT / "docs" / "reference" / "inside-a-session.md"
SHELL = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
CONSOLE = re.compile(r"^ *```console\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
NOT_HERE = re.compile(  # installs, or starts, stops or builds what the tests have already
    r"python3? -m venv|pip install|agentcube (up|down|env create)\b|cat requirements.txt"
)
CONSOLES = [
    pytest.param(page, commands, id=str(page.relative_to(ROOT)))
    for page in PAGES
    if (commands := _commands("".join(map(textwrap.dedent, CONSOLE.findall(page.read_text())))))
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


@pytest.mark.skipif(not shutil.which("bash"), reason="this machine has no bash")
@pytest.mark.parametrize(("page", "commands"), CONSOLES)
def test_console(page: Path, commands: list[tuple[str, str]], server: harness.Server, tmp_path: Path) -> None:
    """The command lines of a page, one after the other in one shell; they print what the page says they do."""
    if any("curl " in command for command, _ in commands) and not _curl_knows_localhost():
        pytest.skip("this machine has no curl that takes *.localhost for itself")
    script = "".join(f"{command}\nprintf '\\036%d\\036' $?\n" for command, _ in commands)
    env = server.env({"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"})
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, env=env, timeout=100
    )
    parts = done.stdout.split("\036")[:-1]
    for (command, expected), got, code in zip(commands, parts[::2], parts[1::2], strict=True):
        assert code == "0", f"{command}\n{got}{done.stderr}"
        if expected:
            assert got.strip("\n") == expected.strip("\n"), f"{command}\n{done.stderr}"


def _curl_knows_localhost() -> bool:
    """Port 1 refuses; an old curl asks the name service, which need not know the name."""
    try:
        return subprocess.run(["curl", "-s", "http://any.localhost:1/"], timeout=60).returncode == 7
    except FileNotFoundError:
        return False


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


@pytest.mark.skipif(
    not all(map(shutil.which, ("bash", "curl"))), reason="this machine has no bash, or no curl"
)
def test_the_calls_of_the_wire_page(server: harness.Server, tmp_path: Path) -> None:
    """All of them as one script, which ends at the first that fails."""
    script = "set -euo pipefail\n" + "\n".join(SHELL.findall(WIRE.read_text()))
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, env=server.env(), timeout=100
    )
    assert done.returncode == 0, done.stderr + done.stdout
    event_lines = re.compile(r"\{\"event\".*$", re.MULTILINE)  # maybe behind a body without a newline
    events = [json.loads(line) for line in event_lines.findall(done.stdout)]
    assert {"exit", "execute_result"} <= {event["event"] for event in events}
    for shown in event_lines.findall(WIRE.read_text()):
        event = json.loads(shown)
        assert any(event.keys() <= said.keys() for said in events if said["event"] == event["event"]), shown


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")], ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    broken = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert not broken
