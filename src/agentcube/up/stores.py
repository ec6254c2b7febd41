"""Which store this server keeps its sessions in, and the care that it is the one they were left in.

Sandboxes outlive a server that crashed or was told to keep them. A start with another store would not
know them and destroy them; so a data directory remembers where its sessions are, until none is left.
"""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING

from pydantic import ValidationError

from agentcube.errors import Invalid, StoreFailed
from agentcube.ports.clock import Clock, SystemClock
from agentcube.ports.store import SessionQuery, Store
from agentcube.stores.sqlite import SqliteStore

if TYPE_CHECKING:
    from agentcube.stores.redis.address import Address
    from agentcube.stores.redis.settings import RedisSettings
    from agentcube.stores.redis.store import RedisStore

EMBEDDED = "sqlite"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedStore:
    """A store in use, and the clock that its times are by."""

    store: Store
    clock: Clock
    data_dir: Path

    async def let_go(self) -> None:
        """A clean stop left nothing behind: whatever store comes next will do. Raises StoreFailed."""
        if (await self.store.list(SessionQuery(limit=1))).sessions or await self.store.list_warm():
            return
        _sessions_in(self.data_dir).unlink(missing_ok=True)
        leave = getattr(self.store, "leave_home", None)
        if leave is not None:
            await leave()


@asynccontextmanager
async def open_store(where: str, data_dir: Path) -> AsyncIterator[OpenedStore]:
    """The store at `where`: `sqlite`, in the data directory, or the URL of a Redis or Valkey server.

    Raises Invalid and StoreFailed saying what to do.
    """
    if where == EMBEDDED:
        async with SqliteStore.open(data_dir / "store.sqlite3") as store:
            _must_be_the_same(data_dir, EMBEDDED)
            yield OpenedStore(store=store, clock=SystemClock(), data_dir=data_dir)
        return
    address, settings = redis_address(where)
    from agentcube.stores.redis.store import RedisStore

    async with RedisStore.open(address, settings) as shared:
        _must_be_the_same(data_dir, f"redis {settings.prefix} {shared.id}")
        await _move_in(shared, settings, data_dir)
        yield OpenedStore(store=shared, clock=shared.clock, data_dir=data_dir)


def redis_address(url: str) -> tuple[Address, RedisSettings]:
    """Where the server is, and the settings from the environment. Raises Invalid."""
    if importlib.util.find_spec("hiredis") is None:
        raise Invalid("--store with a URL needs one package more: pip install 'agentcube[server,redis]'")
    from agentcube.stores.redis.address import parse_address
    from agentcube.stores.redis.settings import RedisSettings

    try:
        return parse_address(url), RedisSettings()
    except ValidationError as exc:
        first = exc.errors()[0]
        name = "_".join(str(part) for part in first["loc"]).upper()
        raise Invalid(f"AGENTCUBE_REDIS_{name}: {first['msg']}") from exc


def _sessions_in(data_dir: Path) -> Path:
    return data_dir / "sessions-in"


def _must_be_the_same(data_dir: Path, store: str) -> None:
    file = _sessions_in(data_dir)
    try:
        before = file.read_text().strip()
    except FileNotFoundError:
        file.write_text(f"{store}\n")
        return
    except OSError as exc:
        raise Invalid(f"cannot read {file}: {exc.strerror}") from exc
    if before != store:
        raise Invalid(
            f"the sandboxes of {data_dir} belong to sessions in another store ({before}, not {store}): start with "
            f"that one, or restore it. To go on without them, remove {file}; their sandboxes are then destroyed"
        )


async def _move_in(store: RedisStore, settings: RedisSettings, data_dir: Path) -> None:
    """Sandboxes live on one machine: two servers with one store would take each other's for dead."""
    file = data_dir / "id"
    if not file.exists():
        file.write_text(f"{token_hex(8)}\n")
    us = f"{file.read_text().strip()} {socket.gethostname()}:{data_dir}"
    owner = await store.claim_home(us)
    if owner.partition(" ")[0] != us.partition(" ")[0]:
        raise StoreFailed(
            f"the sessions with prefix {settings.prefix!r} in this store live on another machine or in another data "
            f"directory ({owner.partition(' ')[2]}): set AGENTCUBE_REDIS_PREFIX to another. If that server is gone "
            f"for good, DEL {{{settings.prefix}}}:home; its sessions then end here"
        )
