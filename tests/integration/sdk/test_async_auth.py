"""Credentials that are fetched, against a token endpoint."""

from __future__ import annotations

from urllib.parse import parse_qsl

import pytest

from agentcube import AsyncAgentCube, AsyncServiceAccountAuth, ConnectFailed, UnexpectedAnswer
from agentcube.errors import Unauthenticated
from tests.integration.sdk.wire_server import WireServer, of

# [async
pytestmark = pytest.mark.anyio
# async]


def _auth(server: WireServer) -> AsyncServiceAccountAuth:
    return AsyncServiceAccountAuth(f"{server.url}/token", "me", "secret", scope="s")


async def test_a_token_is_fetched_once_and_sent(server: WireServer) -> None:
    server.script("POST", "/token", of({"access_token": "t-1", "expires_in": 3600}))
    auth = _auth(server)
    async with AsyncAgentCube(server.url, auth=auth) as cube:
        await cube.pools.list()
        await cube.pools.list()
    assert dict(parse_qsl(server.seen[0].body.decode())) == {
        "grant_type": "client_credentials",
        "client_id": "me",
        "client_secret": "secret",
        "scope": "s",
    }
    assert [s.headers.get("authorization") for s in server.seen] == [None, "Bearer t-1", "Bearer t-1"]
    assert "secret" not in repr(auth)


async def test_a_token_that_ended_is_fetched_again(server: WireServer) -> None:
    server.script(
        "POST",
        "/token",
        of({"access_token": "t-1", "expires_in": 0}),
        of({"access_token": "t-2", "expires_in": "9"}),
    )
    auth = _auth(server)
    assert [await auth.get_token() for _ in range(3)] == ["t-1", "t-2", "t-2"]


async def test_failures_are_named(server: WireServer) -> None:
    server.script(
        "POST",
        "/token",
        of({"error": "invalid_client"}, 401),
        of({}),
        of({"access_token": "t", "expires_in": []}),
    )
    auth = _auth(server)
    with pytest.raises(Unauthenticated, match="client id"):
        await auth.get_token()
    with pytest.raises(UnexpectedAnswer, match="access_token"):
        await auth.get_token()
    with pytest.raises(UnexpectedAnswer, match="expires_in"):
        await auth.get_token()
    with pytest.raises(ConnectFailed, match=r"127\.0\.0\.1:9"):
        await AsyncServiceAccountAuth("http://127.0.0.1:9/token", "me", "secret").get_token()
