"""What is on record of each sandbox, in its folder: written before acting, so that nothing gets lost.

A record is also the handle: opaque text to everyone else, versioned here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from agentcube.drivers.local import processes
from agentcube.errors import DriverFailed, Invalid
from agentcube.model.ids import SandboxId

VERSION = 1
RECORD = "sandbox.json"
LOG = "picod.log"
_LOG_TAIL = 2000
_ID = re.compile(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?")  # short: it names sockets (108-byte paths)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One sandbox, whole (`made`) or half-made. `pid` and `start` are 0 until process 1 is born."""

    id: SandboxId
    labels: Mapping[str, str] = field(default_factory=dict)
    made: bool = False
    boot: str = field(default_factory=processes.boot_id)
    pid: int = 0
    start: int = 0
    uid_base: int | None = None
    cgroups: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    ports: Sequence[int] = ()

    def to_text(self) -> str:
        """As `parse` reads it."""
        return json.dumps({"v": VERSION, **asdict(self)}, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> Record:
        """Raises DriverFailed for a text of another version, or none of ours."""
        try:
            data = json.loads(text)
            version = data.pop("v")
            if version != VERSION:
                raise DriverFailed(f"sandbox record of version {version}: this AgentCube reads {VERSION}")
            return cls(**data)
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            raise DriverFailed(f"damaged sandbox record: {exc}") from exc

    def open_process(self) -> int | None:
        """A pidfd of its process 1; None when that is no more (or was never born)."""
        if not self.pid or self.boot != processes.boot_id():
            return None
        return processes.open_process(self.pid, self.start)


class Records:
    """The folders of all sandboxes below `root`. All calls block, for a moment."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def folder(self, id: SandboxId) -> Path:
        """Where sandbox `id` keeps its things. Raises Invalid for what cannot name a folder."""
        if not _ID.fullmatch(id):
            raise Invalid(f"{id!r} is not a sandbox id")
        return self._root / id

    def write(self, record: Record) -> None:
        """Put the record; what is there is replaced in one step. Raises DriverFailed."""
        folder = self.folder(record.id)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # No fsync: a record matters as long as its processes live, which is until the next boot.
            temporary = folder / f".{RECORD}"
            temporary.write_text(record.to_text())
            os.replace(temporary, folder / RECORD)
        except OSError as exc:
            raise DriverFailed(f"cannot write the record of sandbox {record.id}: {exc.strerror}") from exc

    def find(self, id: SandboxId) -> Record | None:
        """The record; None when there is none that can be read."""
        try:
            return Record.parse((self.folder(id) / RECORD).read_text())
        except (OSError, DriverFailed):
            return None

    def ids(self) -> list[SandboxId]:
        """All sandboxes that have a folder."""
        try:
            return sorted(SandboxId(e.name) for e in os.scandir(self._root) if _ID.fullmatch(e.name))
        except FileNotFoundError:
            return []

    def remove(self, id: SandboxId) -> None:
        """Forget the sandbox and delete its folder. Idempotent. Raises DriverFailed."""
        try:
            shutil.rmtree(self.folder(id))
        except FileNotFoundError:
            pass
        except OSError as exc:
            raise DriverFailed(f"cannot delete the folder of sandbox {id}: {exc.strerror}") from exc

    def last_words(self, id: SandboxId) -> str:
        """The end of its PicoD's log, "" when there is none."""
        try:
            return (self.folder(id) / LOG).read_text(errors="replace").strip()[-_LOG_TAIL:]
        except OSError:
            return ""
