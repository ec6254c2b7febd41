"""Python environments for `image: host`: virtual environments made for sandboxes.

An environment is built on first use, beside the others of this user, and never changed afterwards:
new requirements or another Python make a new one. Sandboxes see it read-only at `MOUNTED_AT`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import platformdirs

from agentcube.drivers.local import venvs
from agentcube.drivers.local.programs import Programs
from agentcube.drivers.local.steps import named
from agentcube.errors import Invalid, NotFound

MOUNTED_AT = "/opt/agentcube/env"

DEFAULT = "default"

DEFAULT_REQUIREMENTS = "numpy>=2.2,<3\npandas>=2.2,<4\nmatplotlib>=3.10,<4\nipython>=8.18,<10\n"
"""What the environment `default` holds. Changing it builds a new one for everybody."""

USUAL = ("IPython", "numpy", "pandas", "matplotlib")
"""Modules that are preloaded when nobody says which: those of them that an environment has."""

MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
"""A module's name as `import` takes it."""

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_REQUIREMENTS_BYTES_MAX = 256 << 10
_LOOK_S = 0.2  # between two looks at whether another builder has finished
_RECIPE = "3"  # goes into the key: raise it when environments are built differently

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """One environment. `path` is None until it is built for this Python; `folder` is what relative paths
    in `requirements` start from. `preload` are modules that kernels find imported; empty until it is built
    unless somebody named them.
    """

    name: str
    requirements: str
    folder: str
    path: Path | None
    preload: tuple[str, ...]


class _Definition(NamedTuple):
    """What somebody said an environment is to be."""

    requirements: str
    folder: str = ""
    preload: tuple[str, ...] | None = None


class Environments:
    """The environments of this user on this machine. All calls block; builds take a minute."""

    def __init__(self, root: Path | None = None) -> None:
        self._root = root or platformdirs.user_cache_path("agentcube") / "envs"
        self._programs = Programs()

    @property
    def root(self) -> Path:
        """The directory that holds them all."""
        return self._root

    def give_up(self) -> None:
        """End builds under way and begin no more, from any thread; they raise StartFailed. Idempotent."""
        self._programs.give_up()

    def list(self) -> Sequence[Environment]:
        """`default` and all that were created, by name."""
        defined = {path.stem for path in self._root.glob("*.json") if _NAME.fullmatch(path.stem)}
        return [self._environment(name) for name in sorted(defined | {DEFAULT})]

    def find(self, name: str) -> Path | None:
        """Where environment `name` is built; None when it is not yet. `NotFound`: nobody created it."""
        return self._environment(name).path

    def path(self, name: str) -> Path:
        """Where environment `name` is built.

        Raises:
            NotFound: nobody created it.
            Invalid: it is not built yet.
        """
        path = self.find(name)
        if path is None:
            raise Invalid(
                f"Python environment {name!r} is not built yet: run 'agentcube env create {name}'",
                environment=name,
            )
        return path

    def create(
        self,
        name: str,
        requirements_file: Path,
        progress: Progress | None = None,
        *,
        preload: Sequence[str] | None = None,
    ) -> Path:
        """Define environment `name` by a requirements file and build it; replaces an earlier definition.

        Sandboxes that run keep the environment they have. Paths inside the file are relative to it.
        `preload` names the modules that kernels are to find imported; None: the usual ones it has.

        Raises:
            Invalid: the name, the file, a requirement in it, or a module that cannot be imported.
            StartFailed: it could not be built; the earlier definition stays.
        """
        _check_name(name)
        if name == DEFAULT:
            raise Invalid(f"environment {DEFAULT!r} is built in: choose another name")
        for module in preload or ():
            if not MODULE.fullmatch(module):
                raise Invalid(f"{module!r} is not a module to preload: give names as 'import' takes them")
        requirements = _read_requirements(requirements_file)
        folder = str(requirements_file.resolve().parent)
        path = self._build(name, requirements, folder, progress)
        if preload:
            venvs.check_imports(path, preload, self._programs)
        definition = {"requirements": requirements, "folder": folder, "preload": preload}
        _write_whole(self._root / f"{name}.json", definition)
        return path

    def ensure(self, name: str, progress: Progress | None = None) -> Path:
        """Where environment `name` is; builds it first when needed (`progress` gets a line per step).

        Raises:
            NotFound: nobody created it.
            StartFailed: it could not be built; says why and what to do.
        """
        environment = self._environment(name)
        if environment.path is not None:
            return environment.path
        return self._build(name, environment.requirements, environment.folder, progress)

    def prepare(self, name: str) -> tuple[Path, tuple[str, ...]]:
        """Where environment `name` is, as `ensure` has it, and what kernels are to find imported."""
        environment = self._environment(name)
        if environment.path is None:
            self.ensure(name)
            environment = self._environment(name)
        assert environment.path is not None
        return environment.path, environment.preload

    def _environment(self, name: str) -> Environment:
        _check_name(name)
        self._check_ours()
        known = _Definition(DEFAULT_REQUIREMENTS) if name == DEFAULT else self._definition(name)
        path = self._root / _key(name, known.requirements)
        found = path if path.is_dir() else None
        preload = known.preload
        if preload is None:
            preload = tuple(name for name in USUAL if found and venvs.has_module(found, name))
        return Environment(
            name=name, requirements=known.requirements, folder=known.folder, path=found, preload=preload
        )

    def _check_ours(self) -> None:
        """We run what lies here, and so do sandboxes. With sudo it may be the caller's. Raises Invalid."""
        try:
            found = self._root.stat()
        except OSError:
            return  # nothing there, or nothing that can be read
        if found.st_uid != os.geteuid() or found.st_mode & 0o002:
            raise Invalid(
                f"Python environments in {self._root} can be changed by others (it belongs to uid {found.st_uid}): "
                "set XDG_CACHE_HOME to a directory of this user; with sudo, use 'sudo -H'"
            )

    def _definition(self, name: str) -> _Definition:
        path = self._root / f"{name}.json"
        try:
            definition = json.loads(path.read_text())
            preload = definition.get("preload")
            return _Definition(
                str(definition["requirements"]),
                str(definition["folder"]),
                None if preload is None else tuple(str(module) for module in preload),
            )
        except FileNotFoundError:
            raise NotFound(
                f"no Python environment {name!r}: make it with 'agentcube env create {name} --requirements FILE'",
                environment=name,
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            raise Invalid(
                f"the definition of environment {name!r} is damaged: create it again ({path})"
            ) from exc

    def _build(self, name: str, requirements: str, folder: str, progress: Progress | None) -> Path:
        say = progress or (lambda line: None)
        final = self._root / _key(name, requirements)
        with named(f"build Python environment {name}"):
            self._root.mkdir(parents=True, exist_ok=True)
            self._check_ours()
            self._build_at(final, name, requirements, folder, say)
        say(f"environment {name}: ready")
        return final

    def _build_at(self, final: Path, name: str, requirements: str, folder: str, say: Progress) -> None:
        with self._locked(self._root / f".{final.name}.lock", say):
            if final.is_dir():
                return
            for left in self._root.glob(f".{final.name}-*"):
                shutil.rmtree(left)  # a build that was killed; we hold the lock
            temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=self._root))
            try:
                venvs.build(
                    temporary / "env",
                    requirements,
                    mounted_at=MOUNTED_AT,
                    folder=Path(folder) if folder else None,
                    wheels_only=name == DEFAULT,
                    say=say,
                    programs=self._programs,
                )
                description = {
                    "name": name,
                    "python": platform.python_version(),
                    "requirements": requirements,
                }
                note = temporary / "env/agentcube.json"
                note.write_text(json.dumps(description, indent=1) + "\n")
                note.chmod(0o644)
                os.rename(temporary / "env", final)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    @contextmanager
    def _locked(self, path: Path, say: Progress) -> Iterator[None]:
        """Hold `path` against other builders of the same environment; they wait for each other."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not _lock(fd):
                say("another process is building this environment: waiting for it")
                while not _lock(fd):
                    self._programs.pause(_LOOK_S)
            yield
        finally:
            os.close(fd)


def _key(name: str, requirements: str) -> str:
    """A built environment's directory: its name and what it depends on."""
    lines = sorted(line.strip() for line in requirements.splitlines() if line.strip())
    facts = [_RECIPE, platform.python_implementation(), platform.python_version(), sys.base_prefix, *lines]
    return f"{name}-{hashlib.sha256(chr(0).join(facts).encode()).hexdigest()[:12]}"


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise Invalid(
            f"{name!r} is not a name for an environment: use lower-case letters, digits and '-' (up to 63)"
        )


def _read_requirements(path: Path) -> str:
    try:
        if path.stat().st_size > _REQUIREMENTS_BYTES_MAX:
            raise Invalid(f"requirements file {path} is larger than {_REQUIREMENTS_BYTES_MAX} bytes")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not UTF-8 text"
        raise Invalid(f"cannot read requirements file {path}: {reason}") from exc


def _write_whole(path: Path, definition: Mapping[str, object]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_native_id()}")
    temporary.write_text(json.dumps(definition, indent=1) + "\n")
    os.replace(temporary, path)


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
