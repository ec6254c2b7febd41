"""Where the SDK finds its servers, and as whom it speaks to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentcube.sdk._core import config
from agentcube.sdk._core.auth import AuthProvider, TokenAuth
from agentcube.sdk._core.errors import InvalidArgument, NotConfigured


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(config, "SERVICE_ACCOUNT_TOKEN", tmp_path / "token")
    file = config.local_config_path()
    assert file == tmp_path / "agentcube" / "local.json"
    file.parent.mkdir()
    file.write_text('{"url": "http://127.0.0.1:1/", "api_key": "from-file"}')
    return file


def _found(env: dict[str, str] | None = None, **given: Any) -> tuple[str, str, str | None]:
    servers = config.resolve(env=env or {}, **given)
    token = servers.auth.get_token() if servers.auth else None
    assert token is None or isinstance(token, str)
    return servers.router_url, servers.manager_url, token


FILE = "http://127.0.0.1:1"
BOTH = {"ROUTER_URL": "http://r", "WORKLOAD_MANAGER_URL": "http://m"}


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize(
    ("env", "given", "expected"),
    [
        ({}, {}, (FILE, FILE, "from-file")),
        ({"AGENTCUBE_API_KEY": "k"}, {}, (FILE, FILE, "k")),
        ({"AGENTCUBE_URL": "http://e"}, {}, ("http://e", "http://e", None)),
        ({"AGENTCUBE_URL": FILE}, {}, (FILE, FILE, "from-file")),
        ({"AGENTCUBE_URL": "http://e", **BOTH}, {}, ("http://e", "http://e", None)),
        (BOTH, {}, ("http://r", "http://m", None)),
        ({"ROUTER_URL": "http://r"}, {}, ("http://r", "http://r", None)),
        ({"WORKLOAD_MANAGER_URL": "http://m"}, {}, ("http://m", "http://m", None)),
        (
            {"AGENTCUBE_URL": "http://e"},
            {"router_url": "http://x/base/"},
            ("http://x/base", "http://x/base", None),
        ),
        (BOTH, {"router_url": "http://x"}, ("http://x", "http://m", None)),
        (BOTH, {"url": "http://x", "token": "t"}, ("http://x", "http://x", "t")),
        ({"AGENTCUBE_API_KEY": "k"}, {"url": "http://x", "token": "t"}, ("http://x", "http://x", "t")),
        ({}, {"url": FILE, "auth": TokenAuth("a"), "token": "t"}, (FILE, FILE, "a")),
    ],
)
def test_arguments_then_environment_then_file(
    env: dict[str, str], given: dict[str, Any], expected: tuple[str, str, str | None]
) -> None:
    assert _found(env, **given) == expected


def test_in_a_pod_the_service_account_speaks(local: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("sa-token\n")
    assert _found(BOTH)[2] == "sa-token"
    assert _found()[2] == "from-file"
    local.write_text('{"url": "http://127.0.0.1:1", "api_key": null}')
    assert _found()[2] is None


@pytest.mark.parametrize("text", ["", "[]", "{", '{"url": 7}'])
def test_a_damaged_file_is_as_good_as_none(local: Path, text: str) -> None:
    local.write_text(text)
    with pytest.raises(NotConfigured, match="agentcube up") as caught:
        config.resolve(env={}, argument="router_url")
    assert "router_url" in caught.value.detail


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8080", "ftp://h", "http://", "http://h:x", "http://h?q", "http://[::1"]
)
def test_an_address_that_is_none_is_named(url: str) -> None:
    with pytest.raises(InvalidArgument, match=r"http://127\.0\.0\.1:8080"):
        config.resolve(url=url, token="t", env={})


def test_tokens_fit_in_a_header_and_stay_out_of_sight() -> None:
    assert isinstance(TokenAuth("abc"), AuthProvider)
    assert "abc" not in repr(TokenAuth("abc"))
    for bad in ("", "a b", "a\r\nx: y", "ä"):
        with pytest.raises(ValueError):
            TokenAuth(bad)


def test_loopback_is_never_reached_through_a_proxy() -> None:
    assert all(
        config.is_loopback(f"http://{host}:1") for host in ("127.0.0.1", "127.9.9.9", "[::1]", "localhost")
    )
    assert not any(
        config.is_loopback(f"http://{host}:1") for host in ("10.0.0.1", "localhost.example", "[::2]")
    )
