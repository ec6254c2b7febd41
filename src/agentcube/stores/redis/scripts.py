"""The Lua scripts, each one atomic step in one hash slot, and how their outcomes are read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

_FOLDER = resources.files(__package__) / "lua"
_COMMON = (_FOLDER / "common.lua").read_text()


@dataclass(frozen=True, slots=True)
class Script:
    """A script's text and the digest under which a server knows it once it was loaded."""

    name: str
    text: str
    sha: str


def _script(name: str) -> Script:
    text = f"{_COMMON}\n{(_FOLDER / f'{name}.lua').read_text()}"
    return Script(name, text, hashlib.sha1(text.encode()).hexdigest())  # noqa: S324  the server's choice


INSERT = _script("insert")
CLAIM = _script("claim")
REPLACE = _script("replace")
DELETE = _script("delete")
TOUCH = _script("touch")
PAGE = _script("page")
LEASE = _script("lease")
PUT_WARM = _script("put_warm")
REMOVE_WARM = _script("remove_warm")
UPDATE_WARM = _script("update_warm")
LEASE_ROLE = _script("lease_role")
LEAVE_ROLE = _script("leave_role")
PUT_TEMPLATE = _script("put_template")
DELETE_TEMPLATE = _script("delete_template")
OPEN = _script("open")

ALL = (
    INSERT,
    CLAIM,
    REPLACE,
    DELETE,
    TOUCH,
    PAGE,
    LEASE,
    PUT_WARM,
    REMOVE_WARM,
    UPDATE_WARM,
    LEASE_ROLE,
    LEAVE_ROLE,
    PUT_TEMPLATE,
    DELETE_TEMPLATE,
    OPEN,
)
