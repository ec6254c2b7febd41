"""Sized workspaces."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkspaceMount:
    """A workspace made for one sandbox.

    `mount_fd` is a detached mount (for move_mount), owned by the caller, who closes it; None when
    the sandbox has to mount a tmpfs of `size_bytes` itself.
    """

    mechanism: Literal["disk", "memory"]
    size_bytes: int
    mount_fd: int | None


class Workspaces:
    """Makes and removes workspaces; `root` is a folder of ours for templates."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def mechanism(self) -> Literal["disk", "memory"]:
        """Where workspaces live on this machine."""
        return "memory"

    def create(self, dir: Path, size_bytes: int, uid: int, gid: int) -> WorkspaceMount:
        """A workspace for the sandbox whose folder is `dir`, its root owned by host ids `uid`:`gid`."""
        return WorkspaceMount(mechanism="memory", size_bytes=size_bytes, mount_fd=None)

    def destroy(self, dir: Path) -> None:
        """Delete the workspace of the sandbox whose folder is `dir`. Idempotent."""

    def used_bytes(self, dir: Path) -> int | None:
        """Disk space the workspace holds; None for one in memory."""
        return None
