"""One PicoD for a module's tests of kernels, and one kernel of each language."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.integration.picod.conftest import Keys, PicoD

from .kernel import Kernel, running


@pytest.fixture(scope="module")
def picod(keys: Keys) -> Iterator[PicoD]:
    with running(keys) as picod:
        yield picod


@pytest.fixture(scope="module")
def kernel(picod: PicoD) -> Kernel:
    return Kernel(picod)


@pytest.fixture(scope="module")
def bash(picod: PicoD) -> Kernel:
    return Kernel(picod, language="bash")
