"""Shared by all tests."""

import signal
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# The machine may be busy: an example that was slow is not one that was wrong. pytest-timeout bounds the whole.
settings.register_profile("agentcube", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("agentcube")


# Who runs tests in the background (`make test &` in a script, nohup) ignores these, and so would every program
# that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


_CRASHED = pytest.StashKey[bool]()


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem: str, report: pytest.TestReport, sched: Any) -> None:
    """A worker of xdist died in a test. That is no failed test, which may be run once more."""
    sched.config.stash[_CRASHED] = True


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.stash.get(_CRASHED, False):
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
