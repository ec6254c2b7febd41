"""What the two halves do differently. This file and its async counterpart are both written by hand."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from agentcube.sdk._core.auth import AuthProvider
from agentcube.sdk._core.errors import InvalidArgument
from agentcube.sdk._core.multipart import Upload

Lock = threading.Lock
sleep = time.sleep


def token_of(auth: AuthProvider) -> str:
    """The provider's token. Raises InvalidArgument for a provider that is asynchronous."""
    token = auth.get_token()
    if isinstance(token, str):
        return token
    raise InvalidArgument(f"{type(auth).__name__} is asynchronous: use it with the Async clients")


def body_of(upload: Upload) -> Iterator[bytes]:
    """The body of an upload."""
    upload.rewind()
    yield upload.head
    while chunk := upload.read():
        yield chunk
    yield upload.tail
