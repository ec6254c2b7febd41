"""Settings from the environment, beside the flags: `AGENTCUBE_MANAGER_<NAME>` and `AGENTCUBE_ROUTER_<NAME>`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pydantic import ValidationError

from agentcube.errors import Invalid
from agentcube.manager.settings import ManagerSettings
from agentcube.router.settings import RouterSettings

MANAGER = "AGENTCUBE_MANAGER_"
ROUTER = "AGENTCUBE_ROUTER_"


def manager_settings(environ: Mapping[str, str], **flags: Any) -> ManagerSettings:
    """The manager's settings: `flags`, and what the process's environment says. Raises Invalid naming the variable."""
    for name in _named(environ, MANAGER):
        if name not in ManagerSettings.model_fields:
            raise Invalid(f"{MANAGER}{name.upper()}: there is no such setting")
    try:
        return ManagerSettings(**flags)
    except ValidationError as exc:
        first = exc.errors()[0]
        name = "_".join(str(part) for part in first["loc"]).upper()
        raise Invalid(f"{MANAGER}{name}: {first['msg']}") from exc


def router_settings(environ: Mapping[str, str], **flags: Any) -> RouterSettings:
    """The Router's settings: `flags`, and numbers from the environment. Raises Invalid naming the variable."""
    known = {field.name: field for field in fields(RouterSettings)}
    given: dict[str, Any] = {}
    for name, text in _named(environ, ROUTER).items():
        default = known[name].default if name in known else None
        if name in flags or isinstance(default, bool) or not isinstance(default, int | float):
            hint = (
                "there is no such setting" if name not in known else "this is set by a flag of `agentcube up`"
            )
            raise Invalid(f"{ROUTER}{name.upper()}: {hint}")
        given[name] = _number(text, default, f"{ROUTER}{name.upper()}")
    return RouterSettings(**flags, **given)


def _named(environ: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {name[len(prefix) :].lower(): text for name, text in environ.items() if name.startswith(prefix)}


def _number(text: str, default: float, what: str) -> float:
    """A number of the default's type; 0 only where that means something, which is where it is the default."""
    try:
        number = type(default)(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0 or (number == 0 and default != 0):
        kind = "a whole number" if isinstance(default, int) else "a number"
        raise Invalid(f"{what}: {text!r} is not {kind} above 0{'' if default else ', or 0'}")
    return number
