"""What the two halves do differently. This file and its sync counterpart are both written by hand."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator

from agentcube.sdk._core.auth import AuthProvider
from agentcube.sdk._core.multipart import Upload

Lock = asyncio.Lock
sleep = asyncio.sleep


async def token_of(auth: AuthProvider) -> str:
    """The provider's token, awaited where the provider is asynchronous."""
    token = auth.get_token()
    return await token if inspect.isawaitable(token) else token


async def body_of(upload: Upload) -> AsyncIterator[bytes]:
    """The body of an upload; the file is read in a thread, because a pipe may block."""
    upload.rewind()
    yield upload.head
    while chunk := await asyncio.to_thread(upload.read):
        yield chunk
    yield upload.tail
