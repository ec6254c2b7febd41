"""Root file systems: what a sandbox's `/` is made of, before anything is mounted.

`host` is the machine's own programs with a small /etc of ours and a Python environment; `dir:/path`
and `tar:/path` are root file systems that the operator brings. Nothing here mounts anything.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from agentcube.drivers.local import hostimage, tarballs
from agentcube.drivers.local.environments import MOUNTED_AT, Environments
from agentcube.drivers.local.hostimage import Bind
from agentcube.errors import Invalid

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class ImageRoot:
    """A root file system, ready to be mounted.

    `lower` is the overlay's read-only lower directory. `binds` are mounted over it read-only, in
    this order; a target that is missing in `lower` has to be made. `path` is PATH, `env` further
    variables that programs in this image want. `preload` are modules of its Python environment, built
    at `environment`, that kernels are to find imported.
    """

    lower: Path
    binds: tuple[Bind, ...] = ()
    path: str = SYSTEM_PATH
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    environment: Path | None = None
    preload: tuple[str, ...] = ()

    def environ(self) -> dict[str, str]:
        """What every program in a sandbox of this image finds in its environment, before the template's own."""
        return {
            "PATH": self.path,
            "HOME": "/workspace",
            "USER": "sandbox",
            "LANG": "C.UTF-8",
            **self.env,
        }


def resolve(
    image: str,
    *,
    environment: str,
    root: Path,
    environments: Environments,
    host_paths: Sequence[str] | None = None,
) -> ImageRoot:
    """The root file system of `image`; unpacks or builds it when this is its first use (blocks).

    `root` is a directory of ours for skeletons and unpacked tarballs. `environment` names the Python
    environment of `image: host`, "" for none; other images have a Python of their own or none.
    Archives have to lie in one of `host_paths` (directories: whoever opens them looks at that); None: any.

    Raises:
        Invalid: an image this driver does not know, or that cannot be used; names the remedy.
        NotFound: nobody created that environment.
        StartFailed: the environment could not be built.
    """
    kind, _, rest = image.partition(":")
    if image == "host":
        return _host(environment, root, environments)
    if kind == "dir":
        return ImageRoot(_directory(image, rest))
    if kind == "tar":
        return ImageRoot(tarballs.unpacked(_absolute(image, rest), root / "tar", within=host_paths))
    raise Invalid(
        f"image {image!r}: this machine's driver has no registry images yet; use 'host', "
        "'dir:/path/to/root' or 'tar:/path/to/root.tar.gz'",
        image=image,
    )


def _host(environment: str, root: Path, environments: Environments) -> ImageRoot:
    env_path, preload = environments.prepare(environment) if environment else (None, ())
    skeleton = hostimage.skeleton(root)
    binds = hostimage.binds(root)
    if env_path is None:
        return ImageRoot(skeleton, binds)
    return ImageRoot(
        skeleton,
        (*binds, Bind(env_path, MOUNTED_AT)),
        path=f"{MOUNTED_AT}/bin:{SYSTEM_PATH}",
        env={"VIRTUAL_ENV": MOUNTED_AT, "MPLCONFIGDIR": "/tmp/.matplotlib"},  # noqa: S108  # in the sandbox
        environment=env_path,
        preload=preload,
    )


def _absolute(image: str, text: str) -> Path:
    path = Path(text)
    if not path.is_absolute() or ".." in path.parts:
        raise Invalid(f"image {image!r}: the path has to be absolute and without '..'", image=image)
    return path


def _directory(image: str, text: str) -> Path:
    path = _absolute(image, text)
    try:
        mode = path.stat().st_mode
    except OSError as exc:
        raise Invalid(f"image {image!r}: {exc.strerror}: {path}", image=image) from exc
    if not path.is_dir():
        raise Invalid(
            f"image {image!r}: {path} is not a directory; for an archive write 'tar:{path}'", image=image
        )
    if path == Path("/"):
        raise Invalid("image 'dir:/' would show the whole machine; use 'host'", image=image)
    if os.geteuid() == 0 and mode & 0o005 != 0o005:
        raise Invalid(
            f"image {image!r}: sandboxes have user ids of their own and cannot read {path}: "
            f"chmod -R o+rX {path}",
            image=image,
        )
    return path
