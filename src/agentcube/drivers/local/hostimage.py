"""The parts of `image: host`: the machine's programs without the machine's secrets.

/usr is seen as it is, read-only. /etc is a small one of ours, with what programs need to work and
nothing that tells of users, keys or configuration. Home directories, /root, /var, /run and /srv are
not there at all.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import site
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

import agentcube

_RECIPE = "2"  # goes into the skeleton's name: raise it when the skeleton is made differently

_MOUNT_POINTS = (
    "dev",
    "proc",
    "sys",
    "tmp",
    "run",
    "usr",
    "workspace",
    "opt/agentcube/env",
    "etc",
    "var",
    "mnt",
)

_TOP = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")

_ETC = (
    "alternatives", "ca-certificates.conf", "crypto-policies/back-ends", "debian_version", "fonts", "gai.conf",
    "inputrc", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "locale.alias", "localtime", "magic", "magic.mime",
    "mime.types", "os-release", "pki/ca-trust/extracted", "pki/tls/cert.pem", "pki/tls/certs", "protocols",
    "python3", "python3.11", "python3.12", "python3.13", "python3.14", "services", "shells", "ssl/cert.pem",
    "ssl/certs", "ssl/openssl.cnf", "terminfo", "timezone",
)  # fmt: skip
"""What of the machine's /etc is copied: files that any user may read and that hold no secret. Never
ssl/private, hosts, hostname, machine-id, environment, pip.conf, profile or anything below ssh."""

_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/usr/sbin/nologin\n"
    "sandbox:x:1000:1000:sandbox:/workspace:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "etc/group": "root:x:0:\nsandbox:x:1000:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost sandbox\n::1 localhost sandbox\n",
    "etc/hostname": "sandbox\n",
    "etc/host.conf": "multi on\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files\n"
    "networks: files\nprotocols: files\nservices: files\n",
    "etc/resolv.conf": "",  # no network, so no name server: lookups fail at once
}

_MASKED = ("/usr/local/etc", "/usr/local/var", "/usr/local/src", "/usr/etc", "/usr/src")
"""Where people keep configuration below /usr."""

_PREFIX_MASKED = ("envs", "pkgs", "conda-meta", "etc", "var")
"""The same in an interpreter's own prefix; the first three are conda's other environments."""


@dataclass(frozen=True, slots=True)
class Bind:
    """A directory of the machine and where a sandbox sees it, read-only."""

    source: Path
    target: str


def skeleton(root: Path) -> Path:
    """The lower directory of `image: host` below `root`, made when it is not there yet.

    Its name depends on what it is copied from, so that a change of the machine's certificates or
    libraries makes a new one; those in use stay.
    """
    final = root / "host" / _fingerprint()
    if final.is_dir():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".host-", dir=final.parent))
    try:
        _fill(temporary / "root")
        os.rename(temporary / "root", final)
    except OSError:
        if not final.is_dir():  # else another process was faster
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def binds(root: Path) -> tuple[Bind, ...]:
    """What is mounted over the skeleton, outermost first, ending with empty covers."""
    seen = [Bind(Path("/usr"), "/usr")]
    seen += [Bind(Path("/", name), f"/{name}") for name in _TOP if _is_plain_directory(Path("/", name))]
    prefix = Path(sys.base_prefix).resolve()
    if not prefix.is_relative_to("/usr"):
        seen.append(Bind(prefix, str(prefix)))
        if Path(sys.base_prefix) != prefix:
            seen.append(Bind(prefix, sys.base_prefix))
    empty = root / "empty"
    empty.mkdir(parents=True, exist_ok=True)
    empty.chmod(0o755)
    covers = [path for path in _masked(prefix) if any(path.is_relative_to(bind.target) for bind in seen)]
    return (*seen, *(Bind(empty, str(path)) for path in covers))


def _masked(prefix: Path) -> list[Path]:
    """Directories that exist and are not for sandboxes: configuration, and the server's own packages."""
    masked = {Path(name) for name in _MASKED}
    masked |= {Path(name) for name in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))}
    masked.add(Path(agentcube.__file__).resolve().parent)
    if not prefix.is_relative_to(
        "/usr"
    ):  # an interpreter of somebody's own: what is installed in it is theirs
        masked |= {Path(name) for name in site.getsitepackages([str(prefix)])}
        masked |= {prefix / name for name in _PREFIX_MASKED}
    elif sys.prefix != sys.base_prefix:
        masked.add(Path(sys.prefix))
    existing = sorted(path for path in masked if path.is_dir())
    return [path for path in existing if not any(path.is_relative_to(p) for p in existing if p != path)]


def _is_plain_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _fingerprint() -> str:
    """Names this machine's state of everything that goes into the skeleton."""
    digest = hashlib.sha256(_RECIPE.encode())
    for name in _ETC:
        try:
            state = os.stat(f"/etc/{name}")
        except OSError:
            continue
        digest.update(f"{name} {state.st_mtime_ns} {state.st_size}\n".encode())
    return digest.hexdigest()[:12]


def _fill(to: Path) -> None:
    to.mkdir()
    to.chmod(0o755)
    for name in _MOUNT_POINTS:
        (to / name).mkdir(parents=True)
    (to / "root").mkdir()
    (to / "var/tmp").symlink_to("/tmp")  # noqa: S108  # the sandbox's
    (to / "var/run").symlink_to("/run")
    for name in _TOP:
        source = Path("/", name)
        if source.is_symlink():
            (to / name).symlink_to(os.readlink(source))
        elif source.is_dir():
            (to / name).mkdir()
    for name in _ETC:
        _copy(Path("/etc", name), to / "etc" / name)
    for name, text in _FILES.items():
        (to / name).write_text(text)
        (to / name).chmod(0o644)
    for folder, _, _ in os.walk(to):
        os.chmod(folder, 0o755)  # noqa: S103  # whatever the umask is; sandboxes are other users


def _copy(source: Path, target: Path) -> None:
    """Copy what everybody may read; links stay links (they lead into /usr or to their neighbours)."""
    if source.is_symlink():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(os.readlink(source))
    elif source.is_dir():
        if source.stat().st_mode & 0o005 != 0o005:
            return
        target.mkdir(parents=True, exist_ok=True)
        for entry in source.iterdir():
            _copy(entry, target / entry.name)
    elif source.is_file() and source.stat().st_mode & 0o004:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        shutil.copystat(source, target)
        target.chmod(0o644)
