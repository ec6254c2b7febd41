"""Shared by all tests."""

import pytest
from hypothesis import HealthCheck, settings

# The machine may be busy: an example that was slow is not one that was wrong. pytest-timeout bounds the whole.
settings.register_profile("agentcube", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("agentcube")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
