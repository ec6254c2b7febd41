"""Fakes and contract suites, for our tests and for users'."""

import sys

if "pytest" in sys.modules:
    import pytest

    # Before any of them is imported: then a failing contract shows the values in its asserts.
    for _suite in (
        "driver_suite",
        "driver_contract",
        "sleep_contract",
        "store_contract",
        "session_store_contract",
        "pool_store_contract",
    ):
        pytest.register_assert_rewrite(f"{__name__}.{_suite}")
