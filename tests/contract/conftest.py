"""Readable assertion failures in the shipped suites."""

import pytest

pytest.register_assert_rewrite("agentcube.testing.driver_contract", "agentcube.testing.store_contract")
