"""`agentcube demo`: the main job on real input, one line per step with its time, everything cleaned up.

It uses the product as a user would: a server in a process of its own, the SDK against its address.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from agentcube.drivers.local.environments import DEFAULT, Environments
from agentcube.errors import AgentCubeError
from agentcube.sdk import AgentCube, AgentRuntimeClient, Sandbox
from agentcube.up.paths import env_cache_dir

START_WITHIN_S = 60.0
STOP_WITHIN_S = 60.0
POOL_WITHIN_S = 60.0

LOAD = """
import matplotlib.pyplot as plt
import pandas as pd

penguins = pd.read_csv("penguins.csv").dropna(subset=["body_mass_g", "flipper_length_mm"])
f"{len(penguins)} penguins of {penguins.species.nunique()} species"
"""

ASK = 'penguins.groupby("species").body_mass_g.mean().round().astype(int).to_dict()'

DRAW = """
for name, group in penguins.groupby("species"):
    plt.scatter(group.flipper_length_mm, group.body_mass_g, label=name, s=12)
plt.xlabel("flipper length (mm)")
plt.ylabel("body mass (g)")
plt.legend()
plt.show()
"""

COUNT = 'for n in one two three; do echo "$n"; sleep 0.1; done'

NOSY = """
import os, socket
print("files:", sorted(os.listdir("/workspace")) or "none")
print("processes:", len([p for p in os.listdir("/proc") if p.isdigit()]))
try:
    socket.create_connection(("192.0.2.1", 80), timeout=3)
    print("network: REACHED")
except OSError as exc:
    print("network:", exc.strerror or exc)
"""

AGENT_MANIFEST = {
    "apiVersion": "runtime.agentcube.volcano.sh/v1alpha1",
    "kind": "AgentRuntime",
    "metadata": {"name": "parrot", "namespace": "default"},
    "spec": {
        "targetPort": [{"pathPrefix": "/", "port": 8000, "protocol": "HTTP"}],
        "podTemplate": {
            "spec": {
                "containers": [
                    {
                        "name": "agent",
                        "image": "host",
                        "command": ["python3", "/agent/agent.py"],
                        "volumeMounts": [{"name": "code", "mountPath": "/agent", "readOnly": True}],
                    }
                ],
                "volumes": [{"name": "code", "hostPath": {"path": ""}}],
            }
        },
    },
}


T = TypeVar("T")


class DemoFailed(AgentCubeError):
    """A step of the demo did not do what it should."""

    code, title = "demo_failed", "Demo failed"


def demo() -> int:
    """Run the demo. Returns the exit code; every failure is one line."""
    with tempfile.TemporaryDirectory(prefix="agentcube-demo-") as folder:
        place = Path(folder)
        place.chmod(0o755)
        server = None
        try:
            _step("have a Python environment for sandboxes: numpy, pandas, matplotlib, IPython", _environment)
            server, url, api_key = _start(place)
            _tour(place, url, api_key)
            _step("stop the server; its sandboxes, sockets and files go with it", lambda: _stop(server))
        except AgentCubeError as exc:
            print(f"demo failed: {exc.detail}", file=sys.stderr)  # noqa: T201
            return 1
        finally:
            if server is not None and server.poll() is None:
                _stop(server)
    print("\nThat was a real server, real sandboxes and real code. Start your own with: agentcube up")  # noqa: T201
    return 0


def _step(what: str, act: Callable[[], T]) -> T:
    began = time.perf_counter()
    result = act()
    print(f"{(time.perf_counter() - began) * 1000:8.1f} ms  {what}", flush=True)  # noqa: T201
    return result


def _tell(*lines: str) -> None:
    """What came of a step."""
    for line in lines:
        print(f"{'':13}{line}", flush=True)  # noqa: T201


def _environment() -> None:
    """Built once per user and machine; only then is there something to watch."""
    Environments(env_cache_dir()).ensure(DEFAULT, _tell)


def _start(place: Path) -> tuple[subprocess.Popen[str], str, str]:
    log = place / "server.log"
    agent = place / "agent"
    with resources.as_file(resources.files("agentcube.up") / "demo_files" / "agent") as shipped:
        shutil.copytree(shipped, agent)
    for path in (agent, *agent.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    argv = [
        sys.executable,
        "-m",
        "agentcube.cli.main",
        "up",
        "--port",
        "0",
        "--data-dir",
        str(place / "data"),
    ]
    argv += ["--allow-host-path", str(agent)]
    env = {**os.environ, "XDG_CONFIG_HOME": str(place / "config")}

    def act() -> tuple[subprocess.Popen[str], str]:
        with log.open("w") as errors:
            server = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=errors, text=True, env=env)
        assert server.stdout is not None
        readable, _, _ = select.select([server.stdout], [], [], START_WITHIN_S)
        line = server.stdout.readline().strip() if readable else ""
        if not line.startswith("ready "):
            server.kill()
            server.wait()
            said = log.read_text().strip().splitlines()
            raise DemoFailed(f"the server did not start: {said[-1] if said else 'it said nothing'}")
        return server, line.removeprefix("ready ")

    server, url = _step("start AgentCube: Router, Workload Manager, store", act)
    return server, url, (place / "data" / "api-key").read_text().strip()


def _stop(server: subprocess.Popen[str]) -> None:
    server.send_signal(signal.SIGTERM)
    try:
        code = server.wait(STOP_WITHIN_S)
    except subprocess.TimeoutExpired as exc:
        server.kill()
        raise DemoFailed(f"the server did not stop within {STOP_WITHIN_S:.0f} s") from exc
    finally:
        if server.stdout is not None:
            server.stdout.close()
    if code != 0:
        raise DemoFailed(f"the server ended with exit code {code}")


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise DemoFailed(otherwise)


def _wait_for_pool(cube: AgentCube) -> None:
    end = time.monotonic() + POOL_WITHIN_S
    while not any(pool.ready for pool in cube.pools.list()):
        if time.monotonic() > end:
            raise DemoFailed(f"no sandbox was warm within {POOL_WITHIN_S:.0f} s; see agentcube doctor")
        time.sleep(0.02)


def _tour(place: Path, url: str, api_key: str) -> None:
    with AgentCube(url=url, api_key=api_key) as cube:
        _step("wait for the first warm sandbox", lambda: _wait_for_pool(cube))
        _analysis(place, url, api_key)
        _own_agent(place, cube, url, api_key)
        _check(not list(cube.sessions.list()), "sessions were left behind")


def _analysis(place: Path, url: str, api_key: str) -> None:
    data = place / "penguins.csv"
    data.write_bytes((resources.files("agentcube.up") / "demo_files" / "penguins.csv").read_bytes())
    first = _step(
        "open a session: a sandbox of its own, from the warm pool", lambda: Sandbox(url=url, api_key=api_key)
    )
    try:
        said = _step('run print("hello")', lambda: first.run('print("hello")').check())
        _check(said.stdout == "hello\n", f"hello came back as {said.stdout!r}")
        _step(
            f"upload penguins.csv, {data.stat().st_size:,} bytes", lambda: first.files.upload(data, data.name)
        )
        _cells(first)
        _stream(first)
        second = _step("open a second session", lambda: Sandbox(url=url, api_key=api_key))
        try:
            seen = _step(
                "look around in it: other files, processes, the network",
                lambda: second.commands.run(["python3", "-c", NOSY], check=True),
            ).stdout
            _tell(*seen.splitlines())
            _check("penguins" not in seen and "REACHED" not in seen, "the second session saw too much")
        finally:
            _step("delete the second session", second.close)
    finally:
        _step("delete the first session", first.close)


def _cells(box: Sandbox) -> None:
    """State that stays from one cell to the next, and a chart as a result."""
    loaded = _step("load it with pandas", lambda: box.run(LOAD).check())
    _tell(str(loaded.text))
    asked = _step("ask about it in the next cell: variables stay", lambda: box.run(ASK).check())
    _tell(str(asked.text))
    _check("Gentoo" in str(asked.text), "the second cell did not know what the first one loaded")
    drawn = _step("draw a chart with matplotlib; it comes back as a result", lambda: box.run(DRAW).check())
    _check(len(drawn.pngs) == 1 and drawn.pngs[0].startswith(b"\x89PNG\r\n\x1a\n"), "the chart is not a PNG")
    _tell(f"{len(drawn.pngs[0]):,} bytes of PNG")


def _stream(box: Sandbox) -> None:
    """Output that comes while the program runs."""
    began = time.perf_counter()
    came: list[float] = []

    def heard(text: str) -> None:
        came.append((time.perf_counter() - began) * 1000)
        _tell(f"after {came[-1]:.0f} ms: {text.strip()}")

    _step("watch a program that takes its time", lambda: box.commands.run(COUNT, on_stdout=heard, check=True))
    _check(len(came) == 3, "its output did not come as it was written")


def _own_agent(place: Path, cube: AgentCube, url: str, api_key: str) -> None:
    manifest: dict[str, Any] = AGENT_MANIFEST
    manifest["spec"]["podTemplate"]["spec"]["volumes"][0]["hostPath"]["path"] = str(place / "agent")
    _step(
        "apply an AgentRuntime: a small HTTP agent from a directory", lambda: cube.templates.apply(manifest)
    )
    agent = _step(
        "open a conversation with it",
        lambda: AgentRuntimeClient("parrot", router_url=url, auth_token=api_key),
    )
    try:
        for say in ("good morning", "what did I say?"):
            answer = _step(f"say {say!r}", lambda say=say: agent.invoke({"say": say}))  # type: ignore[misc]
        _tell(f"it remembers: {answer['heard']}")
        _check(answer["heard"] == ["good morning", "what did I say?"], "the agent forgot")
    finally:
        _step("end the conversation", agent.stop)
        cube.templates.delete("AgentRuntime", "parrot")
