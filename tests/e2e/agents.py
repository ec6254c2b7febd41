"""Small agents for AgentRuntime tests, written into a directory that sandboxes may read."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import yaml


def manifest(name: str, folder: Path, command: list[str], port: int = 8000) -> dict[str, object]:
    """An AgentRuntime whose code is `folder`, mounted at /agent."""
    return {
        "apiVersion": "runtime.agentcube.volcano.sh/v1alpha1",
        "kind": "AgentRuntime",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "targetPort": [{"pathPrefix": "/", "port": port, "protocol": "HTTP"}],
            "podTemplate": {
                "spec": {
                    "containers": [
                        {
                            "name": "agent",
                            "image": "host",
                            "command": command,
                            "volumeMounts": [{"name": "code", "mountPath": "/agent", "readOnly": True}],
                        }
                    ],
                    "volumes": [{"name": "code", "hostPath": {"path": str(folder)}}],
                }
            },
        },
    }


def write(folder: Path, name: str, code: str) -> Path:
    """Write agent `name` below `folder` and its manifest beside it; returns the manifest's path."""
    home = folder / name
    home.mkdir(exist_ok=True)
    home.chmod(0o755)
    (home / "agent.py").write_text(code)
    (home / "agent.py").chmod(0o644)
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(manifest(name, home, ["python3", "/agent/agent.py"])))
    return file


def write_parrot(folder: Path) -> Path:
    """The demo's agent."""
    code = (resources.files("agentcube.up") / "demo_files" / "agent" / "agent.py").read_text()
    return write(folder, "parrot", code)
