"""The CLI in this process, on real descriptors: a process of its own takes ten times as long to start."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import BinaryIO
from unittest import mock

from agentcube.cli import main
from tests.e2e import harness


def cli(server: harness.Server, *argv: str, input: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """As `server.cli`, which see. Only in the main thread, which gets the signals."""
    with (
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        mock.patch.dict(os.environ, server.env()),
    ):
        given.write(input)
        given.seek(0)
        with _standing_for("stdin", given), _standing_for("stdout", out), _standing_for("stderr", err):
            code = main.run(list(argv))
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(argv, code, out.read(), err.read())


@contextlib.contextmanager
def _standing_for(name: str, file: BinaryIO) -> Iterator[None]:
    """A file in the place of a standard stream, and of its descriptor."""
    number = ("stdin", "stdout", "stderr").index(name)
    kept = os.dup(number)
    os.dup2(file.fileno(), number)
    try:
        with (
            open(number, "r" if name == "stdin" else "w", closefd=False) as stream,
            mock.patch.object(sys, name, stream),
        ):
            yield
    finally:
        os.dup2(kept, number)
        os.close(kept)
