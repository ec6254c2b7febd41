"""Settings from the environment: taken, or refused by name."""

from __future__ import annotations

import pytest

from agentcube.errors import Invalid
from agentcube.router.settings import RouterSettings
from agentcube.up.environment import manager_settings, router_settings


def test_numbers_of_the_router_come_from_the_environment() -> None:
    environ = {
        "AGENTCUBE_ROUTER_REQUESTS_PER_S": "2.5",
        "AGENTCUBE_ROUTER_REQUEST_BURST": "7",
        "AGENTCUBE_ROUTER_EXCHANGE_TIMEOUT_S": "0",
        "AGENTCUBE_ROUTERS": "x",
        "PATH": "/bin",
    }
    settings = router_settings(environ, ports_domain="apps.test")
    assert settings == RouterSettings(requests_per_s=2.5, request_burst=7, ports_domain="apps.test")
    assert isinstance(settings.request_burst, int)
    assert router_settings({}) == RouterSettings()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("REQUESTS_PER_S", "fast", "'fast' is not a number above 0, or 0"),
        ("REQUESTS_PER_S", "-1", "'-1' is not"),
        ("REQUESTS_PER_S", "nan", "'nan' is not"),
        ("HEAD_TIMEOUT_S", "inf", "'inf' is not"),
        ("HEAD_TIMEOUT_S", "0", "'0' is not a number above 0"),
        ("REQUEST_BURST", "1.5", "'1.5' is not a whole number above 0"),
        ("REQUEST_BURST", "", "'' is not"),
        ("LOCAL_ONLY", "1", "set by a flag"),
        ("TRUSTED_PROXIES", "::1", "set by a flag"),
        ("PORTS_DOMAIN", "x", "set by a flag"),
        ("NONSENSE", "1", "there is no such setting"),
    ],
)
def test_what_the_router_cannot_be_told_is_refused_by_name(name: str, value: str, says: str) -> None:
    with pytest.raises(Invalid, match=f"AGENTCUBE_ROUTER_{name}: ") as caught:
        router_settings({f"AGENTCUBE_ROUTER_{name}": value}, ports_domain="localhost")
    assert says in caught.value.detail


def test_the_managers_are_refused_by_name_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTCUBE_MANAGER_START_TIMEOUT_S", "7")
    assert manager_settings({"AGENTCUBE_MANAGER_START_TIMEOUT_S": "7"}, replica="x").start_timeout_s == 7
    monkeypatch.setenv("AGENTCUBE_MANAGER_START_TIMEOUT_S", "soon")
    with pytest.raises(Invalid, match=r"AGENTCUBE_MANAGER_START_TIMEOUT_S: .*number"):
        manager_settings({"AGENTCUBE_MANAGER_START_TIMEOUT_S": "soon"})
    with pytest.raises(Invalid, match="AGENTCUBE_MANAGER_NONSENSE: there is no such setting"):
        manager_settings({"AGENTCUBE_MANAGER_NONSENSE": "1"})
