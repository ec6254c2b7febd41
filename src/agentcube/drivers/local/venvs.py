"""Builds one virtual environment that will be mounted somewhere else.

It calls `venv` and pip as a person would, with the machine's ordinary pip configuration, then makes
the result independent of where it was built.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from agentcube.drivers.local.programs import Programs
from agentcube.errors import Invalid, StartFailed

_PIP_WITHIN_S = 1800.0  # a slow line and a few hundred megabytes
_VENV_WITHIN_S = 120.0
_NOT_FOUND = (
    "No matching distribution found",
    "Could not find a version",
    "Invalid requirement",
    "ResolutionImpossible",
)
_OFFLINE = (
    "Failed to establish a new connection",
    "Temporary failure in name resolution",
    "Connection refused",
)

Say = Callable[[str], None]


def build(
    target: Path,
    requirements: str,
    *,
    mounted_at: str,
    folder: Path | None,
    wheels_only: bool,
    say: Say,
    programs: Programs,
) -> None:
    """Make a virtual environment at `target`, to be used at `mounted_at`.

    `folder` is what relative paths in `requirements` start from. The files are readable by everybody:
    sandboxes have user ids of their own.

    Raises:
        Invalid: a requirement cannot be had.
        StartFailed: this Python or this machine cannot build it, or `programs` was given up; says what to do.
    """
    say("making a virtual environment")
    _make_venv(target, programs)
    names = ", ".join(line.strip() for line in requirements.splitlines() if line.strip()) or "nothing"
    say(f"installing {names}")
    _install(target, requirements, folder, wheels_only, say, programs)
    say("compiling")
    _relocate(target, mounted_at)
    _write_fonts_module(target)
    _compile(target, mounted_at, programs)
    _warm(target, say, programs)
    _open_to_all(target)


def _make_venv(target: Path, programs: Programs) -> None:
    # Without pip in it: sandboxes cannot reach an index, and the environment is read-only there.
    command = [sys.executable, "-m", "venv", "--without-pip", str(target)]
    done = programs.run(command, within_s=_VENV_WITHIN_S, env=_environ())
    if done.returncode != 0:
        raise StartFailed(
            f"cannot make a virtual environment: {_last_line(done.stdout)}: "
            "install Python's venv module (Debian and Ubuntu: apt install python3-venv)"
        )
    _link_directly(target)


def _link_directly(target: Path) -> None:
    """Let the environment name the interpreter itself: links to it may lead through hidden directories."""
    links = [path for path in (target / "bin").iterdir() if path.is_symlink()]
    real = os.path.realpath(target / "bin/python3")
    for link in links:
        if os.path.isabs(os.readlink(link)):
            link.unlink()
            link.symlink_to(real)
    config = target / "pyvenv.cfg"
    lines = config.read_text().splitlines()
    home = f"home = {os.path.dirname(real)}"
    config.write_text("".join(f"{home if line.startswith('home =') else line}\n" for line in lines))


def available() -> tuple[bool, str]:
    """Whether environments can be built here, and with what."""
    if importlib.util.find_spec("venv") is None:
        return False, f"{sys.executable} has no venv module"
    if importlib.util.find_spec("pip") is not None:
        return True, f"venv, and pip of {sys.executable}"
    if _bundled_pip(sys.executable, Programs()):
        return True, f"venv, and the pip bundled with {sys.executable}"
    if uv := shutil.which("uv"):
        return True, f"venv, and {uv}"
    return False, "no pip and no uv"


def _installer(target: Path, programs: Programs) -> list[str]:
    """The command that installs into `target`: the server's own pip, the one Python brings, or uv."""
    python = str(target / "bin/python3")
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "--python", python, "install"]
    if wheel := _bundled_pip(python, programs):
        return [python, f"{wheel}/pip", "install"]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--python", python]
    raise StartFailed(
        "no pip to build the Python environment with: run 'python -m ensurepip' in the server's "
        "environment, or install uv (Debian and Ubuntu: apt install python3-venv)"
    )


def _bundled_pip(python: str, programs: Programs) -> str:
    """The wheel of pip that `python`'s ensurepip would install; "" when it has none."""
    code = "import ensurepip, glob, os; folder = os.path.dirname(ensurepip.__file__); "
    code += "print(*glob.glob(folder + '/_bundled/pip-*.whl'), sep='\\n')"
    done = programs.run([python, "-c", code], within_s=_VENV_WITHIN_S, env=_environ())
    return _last_line(done.stdout) if done.returncode == 0 and done.stdout.strip() else ""


def _install(
    target: Path, requirements: str, folder: Path | None, wheels_only: bool, say: Say, programs: Programs
) -> None:
    if not any(line.strip() and not line.lstrip().startswith("#") for line in requirements.splitlines()):
        return
    listed = target.parent / "requirements.txt"
    listed.write_text(requirements)
    command = [*_installer(target, programs), "-r", str(listed)]
    if "uv" not in Path(command[0]).name:
        command += ["--no-compile", "--no-input", "--no-warn-script-location", "--progress-bar", "off"]
    if wheels_only:
        command += ["--only-binary", ":all:"]
    lines: list[str] = []

    def heard(line: str) -> None:
        """Keep the last lines, pass on those that tell progress."""
        lines.append(line.strip()[:400])
        del lines[:-200]
        if line.lstrip().startswith(("Collecting ", "Downloading ", "Building ", "Installing collected")):
            say(line.strip().partition(" (from ")[0][:200])

    # Relative paths in the file are relative to where its author wrote it, which is our cwd.
    code = programs.stream(command, heard, cwd=folder or target.parent, env=_environ())
    if code == 0:
        return
    raise _failure(lines or [f"exit status {code}"])


def _failure(lines: list[str]) -> Invalid | StartFailed:
    """What pip's words mean for the person who asked."""
    if offline := _line_with(lines, *_OFFLINE):
        return StartFailed(
            f"cannot reach the package index: {offline}: check the network and 'pip config list' "
            "(PIP_INDEX_URL, a proxy, or PIP_FIND_LINKS with a folder of wheels)"
        )
    reason = _line_with(lines, "ERROR", "error:") or lines[-1]
    if _line_with(lines, *_NOT_FOUND):
        return Invalid(
            f"a requirement cannot be installed: {reason}: check its spelling, version and platform"
        )
    return StartFailed(f"pip failed: {reason}")


def _line_with(lines: list[str], *marks: str) -> str:
    """The last line with one of `marks` in it; "" when there is none."""
    return next((line for line in reversed(lines) if any(mark in line for mark in marks)), "")


def _relocate(target: Path, mounted_at: str) -> None:
    """Let scripts and activation name the place where the environment will be, not where it was built."""
    here, there = os.fsencode(target), mounted_at.encode()
    for path in [*(target / "bin").iterdir(), target / "pyvenv.cfg"]:
        if path.is_symlink() or not path.is_file():
            continue
        content = path.read_bytes()
        if here in content and b"\0" not in content:
            path.write_bytes(content.replace(here, there))


def _compile(target: Path, mounted_at: str, programs: Programs) -> None:
    # The files never change, so their bytecode need not be checked against them. Sources that do not
    # compile (templates, other Python versions) are what packages ship: their names are no error.
    programs.run(
        [
            str(target / "bin/python3"), "-m", "compileall", "-q", "-j", "0",
            "--invalidation-mode", "unchecked-hash", "-s", str(target), "-p", mounted_at, str(target / "lib"),
        ],
        within_s=_PIP_WITHIN_S, env=_environ(),
    )  # fmt: skip


def _write_fonts_module(target: Path) -> None:
    for found in (target / "lib").glob("python*/site-packages/matplotlib"):
        (found.parent / "agentcube_fonts.py").write_text(_FONTS_MODULE)
        (found.parent / "agentcube_fonts.pth").write_text("import agentcube_fonts\n")


def _warm(target: Path, say: Say, programs: Programs) -> None:
    """Keep matplotlib's list of fonts in the environment: a sandbox would spend its first chart on it."""
    if not any((target / "lib").glob("python*/site-packages/matplotlib")):
        return
    say("listing fonts")
    folder = target / FONTS
    folder.mkdir()
    environ = {**_environ(), "MPLCONFIGDIR": str(folder), "MPLBACKEND": "Agg"}
    command = [str(target / "bin/python3"), "-c", "import matplotlib.pyplot"]
    done = programs.run(command, within_s=_VENV_WITHIN_S, env=environ)
    if done.returncode != 0:
        raise StartFailed(f"matplotlib was installed but does not work: {_last_line(done.stdout)}")


FONTS = "fonts"
"""Folder in an environment with matplotlib's cache, for MPLCONFIGDIR to start from."""

# Runs at the start of every Python of the environment, so it imports nothing that is not there anyway.
# Links, not copies: matplotlib wants a directory that it can write to, and only reads the list.
_FONTS_MODULE = """\
import os
import sys


def seed():
    target = os.environ.get("MPLCONFIGDIR")
    source = os.path.join(sys.prefix, "fonts")
    if not target or os.path.exists(target):
        return
    try:
        os.mkdir(target)
        for name in os.listdir(source):
            os.symlink(os.path.join(source, name), os.path.join(target, name))
    except OSError:
        pass  # another process was first, or matplotlib will make its own


seed()
"""


def has_module(target: Path, name: str) -> bool:
    """Whether the environment at `target` has the top-level package `name`."""
    return any((target / "lib").glob(f"python*/site-packages/{name}/__init__.py"))


def check_imports(target: Path, modules: Sequence[str], programs: Programs) -> None:
    """Raises Invalid when one of `modules` cannot be imported in the environment at `target`."""
    for name in modules:
        done = programs.run(
            [str(target / "bin/python3"), "-c", f"import {name}"], within_s=_VENV_WITHIN_S, env=_environ()
        )
        if done.returncode != 0:
            raise Invalid(f"cannot preload {name}: {_last_line(done.stdout)}")


def _open_to_all(target: Path) -> None:
    for folder, _, files in os.walk(target):
        os.chmod(folder, 0o755)  # noqa: S103  # sandboxes are other users
        for name in files:
            path = os.path.join(folder, name)
            if not os.path.islink(path):
                os.chmod(path, 0o755 if os.stat(path).st_mode & 0o100 else 0o644)


def _environ() -> dict[str, str]:
    """Our environment, without what would bend another interpreter."""
    bent = {
        "PYTHONPATH",
        "PYTHONHOME",
        "PYTHONSTARTUP",
        "VIRTUAL_ENV",
        "PIP_REQUIRE_VIRTUALENV",
        "PIP_TARGET",
        "PIP_USER",
    }
    return {**{k: v for k, v in os.environ.items() if k not in bent}, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def _last_line(text: str) -> str:
    return next((line.strip()[:400] for line in reversed(text.splitlines()) if line.strip()), "no output")
