"""What a server says of itself, as far as it matters to a store: for its operator, and for refusing."""

from __future__ import annotations

from dataclasses import dataclass

from agentcube.stores.redis.link import Link, ReplyError


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """From INFO. A user who may not ask for that has none."""

    program: str
    memory_bytes_max: int
    eviction: str
    append_only: bool
    replicas: int

    @property
    def evicts_sessions(self) -> bool:
        """Whether a full server throws keys away, whichever they are."""
        return self.memory_bytes_max > 0 and self.eviction.startswith("allkeys")

    def __str__(self) -> str:
        memory = (
            f"{self.memory_bytes_max >> 20} MB, {self.eviction}" if self.memory_bytes_max else "unlimited"
        )
        log = "append-only file" if self.append_only else "no append-only file"
        return f"{self.program}; memory {memory}; {log}; {self.replicas} replicas"


EVICTS = "its maxmemory-policy {} throws sessions away when its memory is full; set noeviction"


async def find_facts(link: Link) -> Facts | None:
    """Ask the server. None when it does not tell. Raises LinkLost."""
    said = await link.call("INFO")
    if isinstance(said, ReplyError):
        return None
    info = info_fields(said)
    valkey = info.get("valkey_version")
    return Facts(
        program=f"Valkey {valkey}" if valkey else f"Redis {info.get('redis_version', '?')}",
        memory_bytes_max=int(info.get("maxmemory", "0")),
        eviction=info.get("maxmemory_policy", "?"),
        append_only=info.get("aof_enabled") == "1",
        replicas=int(info.get("connected_slaves", "0")),
    )


def info_fields(said: bytes) -> dict[str, str]:
    """The answer to INFO by name."""
    lines = (line.partition(":") for line in said.decode("utf-8", "replace").splitlines())
    return {name: value for name, _, value in lines}
