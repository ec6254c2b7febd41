"""Sized workspaces: what a sandbox sees at /workspace, with a quota that the kernel keeps.

On disk, a workspace is a sparse image file with an ext4 of exactly that size, mounted over a loop
device and handed to the sandbox as a detached mount. Where this machine cannot do that (not root,
no loop devices, no mkfs.ext4) it is a tmpfs of that size, which the sandbox mounts itself.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agentcube.drivers.local import loopdev
from agentcube.drivers.local.inside import kernel
from agentcube.errors import CapacityExhausted, DriverFailed

IMAGE = "workspace.img"
"""The image's name in a sandbox's folder."""

SIZE_MIN = 1 << 20
"""ext4 itself takes about 100 KiB of the smallest one."""

_PROBE_BYTES = 4 << 20
_PROBE_WITHIN_S = 10.0
_MKFS_WITHIN_S = 60.0
_NOATIME = 0x10  # linux/mount.h
_TEMPLATES_MAX = 16  # sizes are the callers' to choose; each costs 100 KiB on disk, of 10 TiB 140 MiB
_RECIPE = 1  # goes into a template's name: raise it when file systems are made differently

Mechanism = Literal["disk", "memory"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkspaceMount:
    """A workspace made for one sandbox.

    `mount_fd` is a detached mount (for move_mount), owned by the caller, who closes it; None when
    the sandbox has to mount a tmpfs of `size_bytes` itself.
    """

    mechanism: Mechanism
    size_bytes: int
    mount_fd: int | None


class Workspaces:
    """Makes and removes workspaces; `root` is a folder of ours for templates. All calls block for ms."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._mechanism: Mechanism | None = None
        self._reason = ""

    @property
    def mechanism(self) -> Mechanism:
        """Where workspaces live on this machine: found by making one, once, within 10 s."""
        with self._lock:
            if self._mechanism is None:
                self._reason = _failure_of(self._probe)
                self._mechanism = "memory" if self._reason else "disk"
            return self._mechanism

    @property
    def reason(self) -> str:
        """Why workspaces are in memory; "" when they are on disk."""
        return self._reason if self.mechanism == "memory" else ""

    def create(self, dir: Path, size_bytes: int, uid: int, gid: int) -> WorkspaceMount:
        """An empty workspace for the sandbox whose folder is `dir`, its root owned by host ids `uid`:`gid`.

        `size_bytes` is rounded up to 1 MiB and to 4 KiB; the file system's own tables are part of it
        (3% of 1 GiB). Nothing is left when it fails.

        Raises:
            CapacityExhausted: the disk is full, or no loop device is free.
            DriverFailed: a step failed; names it.
        """
        size = max(SIZE_MIN, -(-size_bytes // 4096) * 4096)
        if self.mechanism == "memory":
            return WorkspaceMount(mechanism="memory", size_bytes=size, mount_fd=None)
        try:
            return WorkspaceMount(
                mechanism="disk", size_bytes=size, mount_fd=self._mount(dir, size, uid, gid)
            )
        except OSError as exc:
            if not isinstance(exc, FileExistsError):  # that one is somebody's
                self.destroy(dir)
            full = exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EBUSY, errno.EMFILE, errno.ENFILE)
            kind = CapacityExhausted if full else DriverFailed
            raise kind(f"cannot make a workspace of {size} bytes: {exc}") from exc

    def destroy(self, dir: Path) -> None:
        """Delete the workspace of the sandbox whose folder is `dir`. Idempotent.

        The kernel gives back disk space and loop device when the last mount is gone with its sandbox.
        """
        (dir / IMAGE).unlink(missing_ok=True)

    def used_bytes(self, dir: Path) -> int | None:
        """Disk space that the workspace holds; None for one in memory."""
        try:
            return (dir / IMAGE).stat().st_blocks * 512
        except FileNotFoundError:
            return None

    def _mount(self, dir: Path, size: int, uid: int, gid: int) -> int:
        template = self._template(size)
        image = dir / IMAGE
        copy_sparse(template, image)
        mount = _mounted(image)
        try:
            os.rmdir("lost+found", dir_fd=mount)
            os.chmod(".", 0o755, dir_fd=mount)  # noqa: S103  # its owner is the sandbox's user
            os.chown(".", uid, gid, dir_fd=mount)
        except OSError:
            os.close(mount)
            raise
        return mount

    def _template(self, size: int) -> Path:
        """A new file system of that size, made on first use; two makers do no harm to each other.

        It is never mounted itself: an unmount can be late (any fork of ours holds the mount until it
        execs), and copies made meanwhile would be of a file system in use.
        """
        final = self._root / f"ext4-{_RECIPE}-{size}.img"
        try:
            os.utime(final)  # in use: see `_forget_templates`
            return final
        except FileNotFoundError:
            pass
        self._root.mkdir(parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(prefix=".ext4-", dir=self._root)
        try:
            os.truncate(fd, size)
            _format(name)
            os.fsync(fd)
            os.rename(name, final)
        except OSError:
            os.unlink(name)
            raise
        finally:
            os.close(fd)
        self._forget_templates()
        return final

    def _forget_templates(self) -> None:
        """Keep those that were used last."""
        with os.scandir(self._root) as entries:
            made = [(entry.stat().st_mtime_ns, entry.path) for entry in entries if entry.name[0] != "."]
        for _, path in sorted(made)[:-_TEMPLATES_MAX]:
            Path(path).unlink(missing_ok=True)

    def _probe(self) -> None:
        """Make, fill and drop a small workspace."""
        self._root.mkdir(parents=True, exist_ok=True)
        dir = Path(tempfile.mkdtemp(prefix=".probe-", dir=self._root))
        try:
            mount = self._mount(dir, _PROBE_BYTES, 0, 0)
            try:
                fd = os.open("probe", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, dir_fd=mount)
                os.write(fd, b"probe")
                os.close(fd)
            finally:
                os.close(mount)
        finally:
            shutil.rmtree(dir, ignore_errors=True)


def _failure_of(probe: Callable[[], None]) -> str:
    """Why `probe` failed, "" when it did not. A kernel call that hangs leaves a thread behind, no more."""
    outcome: list[str] = []

    def attempt() -> None:
        try:
            probe()
            outcome.append("")
        except OSError as exc:
            outcome.append(": ".join(filter(None, (exc.filename, exc.strerror))) or str(exc))

    thread = threading.Thread(target=attempt, name="workspace-probe", daemon=True)
    thread.start()
    thread.join(_PROBE_WITHIN_S)
    return outcome[0] if outcome else f"making one took longer than {_PROBE_WITHIN_S:.0f} s"


def _format(path: str) -> None:
    """An empty ext4 without a journal: a sandbox does not outlive its machine, and each journal costs a
    kernel thread and up to 64 MiB. Tables are not zeroed: a sparse file is.
    """
    command = ["mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-O", "^has_journal,^resize_inode"]
    command += ["-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", path]
    environ = {"PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_MKFS_WITHIN_S,
            check=False,
        )
    except FileNotFoundError as exc:
        raise OSError(errno.ENOENT, "no mkfs.ext4 (package e2fsprogs)") from exc
    except subprocess.TimeoutExpired as exc:
        raise OSError(errno.ETIMEDOUT, "mkfs.ext4 did not end") from exc
    if done.returncode != 0:
        raise OSError(errno.EIO, f"mkfs.ext4: {done.stderr.decode(errors='replace').strip()[-300:]}")


def _mounted(image: Path) -> int:
    """A detached mount of the ext4 in `image`: no setuid, no devices."""
    options = {"noinit_itable": None, "errors": "remount-ro"}
    with loopdev.attached(image) as device:
        attributes = kernel.NOSUID | kernel.NODEV | _NOATIME
        return kernel.new_mount("ext4", {"source": device, **options}, attributes, "mount the workspace")


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a sparse file, its holes staying holes. `target` must not exist."""
    source_fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        target_fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(source_fd).st_size
            os.truncate(target_fd, size)
            offset = 0
            while offset < size:
                try:
                    start = os.lseek(source_fd, offset, os.SEEK_DATA)
                except OSError as exc:
                    if exc.errno == errno.ENXIO:  # only a hole is left
                        break
                    raise
                offset = os.lseek(source_fd, start, os.SEEK_HOLE)
                _copy_range(source_fd, target_fd, start, offset)
        finally:
            os.close(target_fd)
    finally:
        os.close(source_fd)


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    while start < end:
        block = os.pread(source, min(1 << 20, end - start), start)
        if not block:
            raise OSError(errno.EIO, "the template shrank while it was copied")
        os.pwrite(target, block, start)
        start += len(block)
