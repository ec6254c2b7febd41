"""The template that every one-machine server has: `default/my-interpreter`."""

from __future__ import annotations

from typing import Any

from agentcube.wire.names import API_VERSION, BUILT_IN_INTERPRETER, BUILT_IN_NAMESPACE

BUILT_IN_LABEL = "agentcube.dev/built-in"
"""Marks a template as ours: `up` may replace it. One that a user put under the same name is left alone."""


def my_interpreter(pool: int) -> dict[str, Any]:
    """The manifest: the machine's own programs, the default Python environment, `pool` warm sandboxes."""
    return {
        "apiVersion": API_VERSION,
        "kind": "CodeInterpreter",
        "metadata": {
            "name": BUILT_IN_INTERPRETER,
            "namespace": BUILT_IN_NAMESPACE,
            "labels": {BUILT_IN_LABEL: "true"},
        },
        "spec": {
            "template": {"image": "host"},
            "environment": "default",
            "warmPoolSize": pool,
        },
    }
