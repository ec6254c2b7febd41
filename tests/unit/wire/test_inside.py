"""The published calls into a session: a sound part of the OpenAPI document, and what the Router passes on."""

from __future__ import annotations

import json
import re
from typing import Any, cast

from agentcube.manager.app import build_app, document
from agentcube.manager.manager import Service
from agentcube.manager.settings import ManagerSettings
from agentcube.runtime.keys import RsaVerifier
from agentcube.wire.inside.openapi import CALLS, SESSION_PATH
from agentcube.wire.names import SANDBOX_CALLS


def _document() -> dict[str, Any]:
    return document(build_app(cast(Service, None), RsaVerifier(()), ManagerSettings()))


def test_every_reference_leads_to_a_schema() -> None:
    made = _document()
    wanted = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(made)))
    assert wanted <= made["components"]["schemas"].keys()
    assert {"StartProcess", "ProcessBody", "KernelBody", "EntryBody", "CellEnded"} <= wanted


def test_operations_have_names_of_their_own_and_need_a_key() -> None:
    made = _document()
    inside = [
        operation
        for path, operations in made["paths"].items()
        for operation in operations.values()
        if operation["tags"][0].startswith("Inside a session")
    ]
    assert len(inside) == len(CALLS)
    assert len({operation["operationId"] for operation in inside}) == len(CALLS)
    assert all(operation["security"] == [{"bearer": []}] for operation in inside)


def test_parameters_of_a_path_are_those_in_it() -> None:
    for path, operations in _document()["paths"].items():
        if path.startswith(SESSION_PATH + "/"):
            for operation in operations.values():
                declared = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
                assert declared == set(re.findall(r"\{(\w+)\}", path)), path


def test_they_are_the_calls_that_the_router_passes_on() -> None:
    assert {call.path.split("/")[1] for call in CALLS} == set(SANDBOX_CALLS)
