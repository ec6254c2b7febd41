"""How a piece of code becomes a script and a command."""

from __future__ import annotations

import ast
import secrets
import time
import warnings
from dataclasses import dataclass

from agentcube.sdk._core.errors import InvalidArgument

_LANGUAGES = {
    "python": ("python3", "py"),
    "python3": ("python3", "py"),
    "py": ("python3", "py"),
    "bash": ("bash", "sh"),
    "sh": ("bash", "sh"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A file to write in the workspace, and the command that runs it. `repaired`: newlines were unescaped."""

    path: str
    source: str
    command: tuple[str, ...]
    repaired: bool = False


def script(language: str, code: str) -> Script:
    """The script for `code`.

    The file stands in the workspace itself, so that the code imports modules that lie beside it. Its
    name is unique and cannot be guessed: two calls at once never meet.

    Raises:
        InvalidArgument: the language is not known.
    """
    known = _LANGUAGES.get(language.lower())
    if known is None:
        raise InvalidArgument(f"unsupported language {language!r}: use python or bash")
    program, suffix = known
    source = _unescaped(code) if suffix == "py" else code
    path = f"script_{int(time.time() * 1000)}_{secrets.token_hex(8)}.{suffix}"
    return Script(path=path, source=source, command=(program, path), repaired=source is not code)


def _unescaped(code: str) -> str:
    """`code`, or the same with every literal backslash-n a newline if only that is valid Python.

    Language models and the parsers between often escape newlines twice.
    """
    if "\\n" not in code or _is_python(code):
        return code
    repaired = code.replace("\\n", "\n")
    return repaired if _is_python(repaired) else code


def _is_python(code: str) -> bool:
    """Whether this interpreter can parse the code. Code too deep for the parser is nobody's to repair."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an invalid escape in the user's code is the user's matter
        try:
            ast.parse(code)
        except (SyntaxError, ValueError):
            return False
        except (RecursionError, MemoryError):
            return True
    return True
