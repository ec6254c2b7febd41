"""What a store is and of which version: checked whenever a link is made, upgraded in steps.

The rule for a change of keys or record heads: raise `layout.SCHEMA`, and add the step that leads there
to `STEPS`. A step is repeatable and leaves the store whole whenever it is cut short. Processes of the
older version stop using the store once the version is raised; their links tell them.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping

from agentcube.errors import StoreFailed
from agentcube.stores.redis.layout import SCHEMA, Keys
from agentcube.stores.redis.link import Link, said
from agentcube.stores.redis.scripts import OPEN

Step = Callable[[Link, Keys], Awaitable[None]]

STEPS: Mapping[int, Step] = {}
"""By the version that a step starts from; it leads to the next. Version 1 is the first, so there is none yet."""

_LOCK_MS = 60_000  # a step that lasts longer renews it, by being called again


async def check_schema(
    link: Link, keys: Keys, *, version: int = SCHEMA, steps: Mapping[int, Step] = STEPS
) -> str:
    """Make the store if there is none, bring it up to `version`; its id, which names it for ever.

    Raises StoreFailed for a store that is newer, damaged, or being upgraded by somebody else.
    """
    meta = await _meta(link, keys, version)
    while (found := _number(meta)) < version:
        step = steps.get(found)
        if step is None:
            raise StoreFailed(
                f"its version {found} is too old to be upgraded; use the AgentCube before this one first"
            )
        lock = f"{keys.base}upgrading"
        if await said(link, "SET", lock, "1", "NX", "PX", _LOCK_MS) is None:
            raise StoreFailed("it is being upgraded by another process")
        meta = await _meta(link, keys, version)
        if _number(meta) == found:
            await step(link, keys)
            await said(link, "HSET", keys.meta, "schema", found + 1)
        await said(link, "DEL", lock)
        meta = await _meta(link, keys, version)
    if found > version:
        raise StoreFailed(
            f"it was written by a newer AgentCube (store version {found}, this one knows up to {version});"
            " upgrade this one"
        )
    return meta["id"]


async def _meta(link: Link, keys: Keys, version: int) -> dict[str, str]:
    reply = await said(link, "EVAL", OPEN.text, 1, keys.base, version, secrets.token_hex(8))
    words = [word.decode() for word in reply[1:]]
    meta = dict(zip(words[::2], words[1::2], strict=True))
    if "id" not in meta:
        raise StoreFailed(f"its key {keys.meta} is damaged")
    return meta


def _number(meta: Mapping[str, str]) -> int:
    try:
        return int(meta["schema"])
    except (KeyError, ValueError):
        raise StoreFailed("the store's version is damaged") from None
